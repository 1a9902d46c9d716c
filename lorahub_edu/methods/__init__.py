"""Methods of fine-tuning, behind one call.

In order: `kinds` (which there are), `attach` (the call), `attached` (on and off a model), `bottleneck` (Houlsby's
adapters), `quantised` (a base in 4 bits), `budget` (sizes by number of parameters), `files` (on disk), `overview`.
"""
