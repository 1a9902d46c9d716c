"""LoRAHub: modules, their composition, and the search for its weights without gradients.

In order: `zoo` (modules on disk and on the hub), `stand_ins` (random modules for other bases), `compose`, `population`
(many compositions in one forward), `candidates`, `cmaes`, `searches` (by name), `adapt` (the search on a few examples,
its history and its log), `task_adapter`.
"""
