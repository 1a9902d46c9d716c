"""LoRA: the layer, a whole model with such layers, and adapters on disk.

In order: `layer` (the heart, in one sitting), `adapters` (inject, route, merge, count), `adapter_files`
(PEFT's layout).
"""

# PEFT's layout; here, so that a folder can be looked at without loading torch
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
