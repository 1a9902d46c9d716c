"""lorahub-edu: LoRA, LoRAHub and intruder dimensions, built from scratch and measured on a real LLaMA."""

import logging

__version__ = "0.1.0"

# PEFT imports bitsandbytes where it is installed, which then speaks of kernels that it would like to fetch.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
