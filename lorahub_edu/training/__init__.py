"""Training: one loop for LoRA and for full fine-tuning, resumable to the bit.

In order: `losses` (at the labels only), `architectures` (whose losses are the model's own), `descent` (one optimizer
step), `loop`, `checkpoints`.
"""
