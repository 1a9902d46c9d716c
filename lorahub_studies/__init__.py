"""The long measurements behind the findings: a study plans its jobs, runs each to a row, and reads the rows as tables.

In reading order: `engine` runs jobs and writes rows; `adapting`, `baselines`, `adapting_tables` compare approaches on
targets and draws; `bbh` does so on BIG-Bench Hard; `composed_spectra` counts intruders of compositions; `zoo_training`
trains the modules; `comparison`, `comparison_grid`, `comparison_tables` compare methods of fine-tuning;
`tail_runs`, `forgetting_plans`, `continual`, `forgetting` train tails; `correlation`, `forgetting_tables`,
`intervention_tables` say what the rows show; `spreads` writes a mean with its range; `cli` has the commands.
"""
