"""Memory of a training or inference step, predicted before it runs.

In order: `setting` (of a step, and the guard that refuses what does not fit), `tracker` (live bytes of every tensor),
`fake` (a model without its memory), `predict`, `shapes` (models by name), `plan` (the cheapest change).
"""
