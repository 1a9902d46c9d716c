"""lorahub-edu: LoRA, LoRAHub and intruder dimensions, built from scratch and measured on a real LLaMA."""

__version__ = "0.1.0"
