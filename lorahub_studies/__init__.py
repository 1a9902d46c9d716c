"""The long measurements behind the findings: plan, run, read."""
