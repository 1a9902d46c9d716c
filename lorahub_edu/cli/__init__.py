"""Command line: each command parses, calls one function and prints.

In order: `app` (all commands together), `training`, `hub`, `spectra`, `doctor`, `terminal` (what they share: the
console, checks of what was typed).
"""
