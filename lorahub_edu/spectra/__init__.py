"""Spectra: what fine-tuning does to the singular vectors of a matrix, and intruder dimensions, found fast."""
