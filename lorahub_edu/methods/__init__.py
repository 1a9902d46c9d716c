"""Methods of fine-tuning, behind one call.

In order: `kinds` (which there are), `bottleneck` (Houlsby's adapters), `attach` (the call: on and off a model, sizes
by number of parameters), `files` (on disk), `overview` (all on one page).
"""
