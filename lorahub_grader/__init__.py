"""Grading that the graded code can't fool: answers run in a sandbox, tests in another process, data crosses."""
