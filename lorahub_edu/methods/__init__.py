"""Every way of fine-tuning that the course compares, behind one call: `kinds`, `attach`, `attached`, `bottleneck`,
`quantised`, `budget`, `files`, `overview`."""
