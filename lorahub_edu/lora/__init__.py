"""LoRA: the layer, a whole model with such layers, and adapters on disk.

In order: `layer` (the heart, in one sitting), `adapters` (inject, route, merge, count), `adapter_files`
(PEFT's layout).
"""
