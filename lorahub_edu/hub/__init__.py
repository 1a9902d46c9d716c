"""LoRAHub: modules, their composition, and the gradient-free search for its weights."""
