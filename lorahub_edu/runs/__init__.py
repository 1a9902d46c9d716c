"""Runs: the main job in one call, and recipes that fix a run in a file.

In order: `finetune`, `recipes` (read, planned, carried out), `llamafactory`, `export` (to other programs
and to the hub).
"""
