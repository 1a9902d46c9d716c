"""Runs: the main job in one call, and recipes that fix a run in a file.

In order: `finetune`, `recipe_file` (the file's fields), `recipes` (read, planned, carried out), `llamafactory`,
`export`, `publish`.
"""
