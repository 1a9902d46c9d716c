"""Spectra: the singular vectors of a base and of a tuned model, and the intruder dimensions among them.

In order: `measures` (the definitions), `bases` (spectra on disk), `updates` (a model's matrices, and what
fine-tuning changed), `solver` (the fast way to the same cosines), `intruders` (counts and tables for a whole
model), `interventions`.
"""
