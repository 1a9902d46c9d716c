"""nbgrader's settings for this course, read by nbgrader's own commands, by formgrader and by `lorahub-edu grade`."""

import os

c = get_config()
c.CourseDirectory.root = os.path.dirname(os.path.abspath(__file__))
c.CourseDirectory.course_id = "lorahub-edu"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "exercises"
# What a learner wrote is shown in the teacher's browser: without scripts.
c.HTMLExporter.sanitize_html = True
# A hand-in after the due date costs all points with "zero", none with "none"; any other rule is a plug-in of nbgrader.
c.LateSubmissionPlugin.penalty_method = "none"
