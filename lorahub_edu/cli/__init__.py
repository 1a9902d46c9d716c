"""Command line: each command parses, calls one function and prints.

In order: `app` (all commands together), `course`, `training`, `hub`, `spectra`, `chat`, `export`, `doctor`, `terminal`
(what they share), `typed` (what was typed is checked), `cluster` (workers for jobs).
"""
