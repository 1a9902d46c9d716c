"""What a learner sees: figures, panels, checks, findings and lessons.

In order: `notebook` (what a lesson imports), `figures`, `panels`, `claims`, `findings`, `objects`, `answers`,
`properties`, `check` (the engine), `graded`, `progress`, `progress_overview`, `lessons`, `adapter_report`.
"""
