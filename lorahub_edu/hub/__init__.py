"""LoRAHub: modules, their composition, and the gradient-free search for its weights.

`zoo.py` modules on disk and on the hub · `stand_ins.py` random modules for other bases · `candidates.py` a choice ·
`compose.py` one module from many · `population.py` many compositions in one forward · `cmaes.py` · `searches.py` by
name · `nevergrads.py` nevergrad's · `history.py` what was tried, and its log ·
`workers.py` other processes · `adapt.py` the search on a few examples · `task_adapter.py` from a task to an adapter.
"""
