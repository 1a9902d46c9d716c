"""The long measurements behind the findings: a study plans its jobs, runs each to a row, and reads the rows as tables.

In reading order: `jobs` does jobs here or hands them to an executor, `cluster` makes executors of many machines;
`engine` runs jobs and writes rows; `approaches`, `adapting`, `baselines`, `mergers`, `adapting_tables` compare
approaches on targets and draws; `big_bench` does so on BIG-Bench Hard; `composed_spectra` counts intruders of
compositions; `zoo_training` trains modules, `trained_ranks` and `many_modules` adapt with zoos of their own;
`variants`, `comparison`, `comparison_tables` compare methods of fine-tuning; `tail_runs` trains the last layers of a
model, and `forgetting_sweep`, `lora_regret`, `full_rank` have studies of such runs; `text_tasks` and
`task_sequences` train on tasks in a row; `correlation`, `forgetting_tables` say what the rows show; `cli` has the
commands.
"""
