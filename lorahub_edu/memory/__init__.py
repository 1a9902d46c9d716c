"""The memory of a training or inference step, predicted before it runs: `tracker`, `setting`, `fake`, `stand_ins`,
`steps`, `predict`, `shapes`, `plan`, `advice`, `guard`."""
