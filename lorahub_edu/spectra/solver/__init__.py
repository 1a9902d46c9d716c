"""The fast solver: the largest cosines of the strongest tuned vectors, each with a proof, or else decomposed.

In order: `decide` (the entry, `largest_cosines`), `secular` (updates of low rank), `bounds` (what a proof rests on).
"""
