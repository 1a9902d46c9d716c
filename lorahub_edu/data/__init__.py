"""Rows: read from files, turned into tokens, cut into batches, and the tasks that adapters are composed for.

alpaca: instruction rows in the prompt, encoded. packing: rows end to end in one sequence. batching: the rows of an
optimizer step. tasks: the word tasks, and a user's own. bbh: BIG-Bench Hard. fewshot: prompts and answers to score.
targets: a task by name, drawn and encoded. sequence_tasks: phrases that code answers. records: a user's files.
"""
