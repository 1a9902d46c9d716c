"""The long measurements behind the findings: a study plans its jobs, runs each to a row, and reads the rows as tables.

In reading order: `engine` runs jobs and writes rows; `approaches`, `adapting`, `baselines`, `adapting_tables` compare
approaches on targets and draws; `big_bench` does so on BIG-Bench Hard; `composed_spectra` counts intruders of
compositions; `zoo_training` trains the modules; `variants`, `comparison`, `comparison_grid`, `comparison_tables`
compare methods of fine-tuning; `tail_runs` trains the last layers of a model, `forgetting_sweep` has the studies made
of such runs, `correlation` and `forgetting_tables` say what their rows show; `cli` has the commands.
"""
