"""What a learner sees: figures, panels, checks, findings and lessons.

figures, panels · claims, findings · check, objects, graded · progress, progress_overview · lessons · adapter_report
"""
