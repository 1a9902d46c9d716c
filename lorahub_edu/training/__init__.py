"""Training: losses (at the labels only), descent (one optimizer step), contexts, checkpoints, processes, loop."""
