"""Rows: reading them, turning them into tokens, and cutting them into batches.

In order: `rows` (rows of a file), `alpaca` (Alpaca's prompt, split and labels), `batching` (padded, grouped,
packed), `tasks` (word tasks), `bbh`, `fewshot` (a task to adapt to), `sequence_tasks`.
"""
