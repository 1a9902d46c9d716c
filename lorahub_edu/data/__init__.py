"""Instruction rows: reading them, turning them into tokens, and cutting them into batches."""
