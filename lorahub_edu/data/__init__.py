"""Rows: reading them, turning them into tokens, and cutting them into batches.

In order: `records` (a user's file), `alpaca` (instruction rows), `packing` (rows in one sequence, with the mask),
`batching`, `tasks` (word tasks), `sequence_tasks`, `fewshot` (prompts with examples), `bbh`, `targets` (a task to
adapt to).
"""
