"""Memory of a training or inference step, predicted before it runs.

In order: `setting`, `tracker` (live bytes of every tensor), `fake` (a model without its memory), `stand_ins`, `steps`,
`predict`, `shapes` (models by name), `plan`, `advice` (the cheapest change), `guard` (refuses what does not fit).
"""
