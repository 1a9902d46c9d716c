"""Spectra: the singular vectors of a base and of a tuned model, and the intruder dimensions among them.

In order: `measures` (the definitions), `weights`, `updates`, `bases` (spectra on disk), `solver` (the fast way to the
same cosines), `intruders` (counts for a whole model), `interventions`, `examine` (tables).
"""
