"""Every way of fine-tuning that the course compares, behind one call."""
