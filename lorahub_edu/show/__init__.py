"""What a learner sees: figures, panels, checks, findings and lessons.

In order: `notebook` (what a lesson imports), `figures`, `panels`, `claims`, `findings`, `check` (the engine), `graded`,
`objects`, `progress`, `progress_overview`, `lessons`, `adapter_report`.
"""
