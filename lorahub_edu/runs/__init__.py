"""Runs: the main job in one call, and recipes that fix one in a file."""
