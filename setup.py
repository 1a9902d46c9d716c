"""The wheel carries the course beside the packages; everything else stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("lessons/*.ipynb", "lessons/src/*.py", "exercises/*/*.ipynb", "recipes/*.yaml", "results/*.json", "docs/*.*")


class WithCourse(build_py):
    """Copies lessons, exercises, recipes and results into `lorahub_course`; an editable install has the clone's."""

    def run(self):
        super().run()
        target = Path(self.build_lib) / "lorahub_course"
        if not self.editable_mode:
            shutil.rmtree(target, ignore_errors=True)
            for source in (path for pattern in SHIPPED for path in Path().glob(pattern)):
                copy = target / source
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copy)


setup(cmdclass={"build_py": WithCourse})
