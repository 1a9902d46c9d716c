"""What a learner sees: figures, panels, checks, findings and lessons.

In order: `notebook` (what a lesson imports), `figures`, `panels`, `findings`, `objects`, `answers`, `properties`,
`check` (the engine), `graded`, `progress`, `lessons`, `adapter_report`.
"""
