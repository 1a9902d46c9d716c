"""What a learner sees: figures, panels, checks, findings and lessons.

In order: `notebook` (what a lesson imports), `figures`, `panels`, `clouds`, `chat`, `mixing`, `predictions`,
`findings`, `check` (which finds `lorahub_checks`), `graded`, `objects`, `progress`, `lessons`, `adapter_report`.
"""
