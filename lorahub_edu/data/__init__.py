"""Rows: reading them, turning them into tokens, and cutting them into batches.

In order: `alpaca` (instruction rows, from a user's file too), `batching` (padded, grouped, packed), `tasks` (word
tasks), `bbh`, `fewshot` (a task to adapt to), `sequence_tasks`.
"""
