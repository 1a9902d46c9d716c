"""Base models and tokenizers, and the sizes that a machine can run.

In order: `profiles` (three sizes of the course, and base models by name), `tiny` (random ones for tests), `pretrained`
(find, convert once, load).
"""
