"""nbgrader's settings for this course, read by nbgrader's own commands, by formgrader and by `lorahub-edu grade`."""

import os

import nbgrader

import lorahub_grader

c = get_config()
c.CourseDirectory.root = os.path.dirname(os.path.abspath(__file__))
c.CourseDirectory.course_id = "lorahub-edu"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "exercises"
# What a learner wrote is shown in the teacher's browser: without scripts.
c.HTMLExporter.sanitize_html = True
# And where something got past that, the page's own policy lets nothing run but nbgrader's scripts.
pages = os.path.join(os.path.dirname(nbgrader.__file__), "server_extensions", "formgrader", "templates")
own = os.path.join(os.path.dirname(lorahub_grader.__file__), "templates")
c.HTMLExporter.extra_template_basedirs = [own, pages]
c.HTMLExporter.extra_template_paths = [pages]
# A hand-in after the due date costs all points with "zero", none with "none"; any other rule is a plug-in of nbgrader.
c.LateSubmissionPlugin.penalty_method = "none"
