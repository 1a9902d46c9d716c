"""The fast solver: the largest cosines of the strongest tuned vectors, each with a proof, or else decomposed.

In order: `decide` (the one entry, `largest_cosines`), `secular` (updates of low rank), `gram` (any update),
`bounds` (what a proof rests on).
"""
