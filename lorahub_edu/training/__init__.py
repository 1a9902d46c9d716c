"""Training: one loop for LoRA and for full fine-tuning, resumable to the bit.

In order: `losses` (at the labels only, and equal to the model's own), `descent` (one optimizer step), `loop` (with
its checkpoints).
"""
