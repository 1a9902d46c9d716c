"""Methods of fine-tuning, behind one call.

In order: `kinds` (which there are), `bottleneck` (Houlsby's adapters), `quantised` (a base in 4 bits), `attach` (the
call: on and off a model, sizes by number of parameters), `files` (on disk), `overview` (all on one page).
"""
