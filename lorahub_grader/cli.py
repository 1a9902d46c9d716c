"""Assignments on the command line: build, lint-exercises, grade, feedback, export."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from lorahub_edu.cli.terminal import console, quiet_work, writable_file
from lorahub_edu.errors import CourseError
from lorahub_grader import assignments
from lorahub_grader.collect import check_place
from lorahub_studies.cluster import ClusterOption, DryRunOption, workers

CourseOption = Annotated[Path, typer.Option("--course", help="The folder with solutions/ and exercises/.")]
HERE = Path(".")
TEACH = "Teach"  # the group in --help


def build(
    assignment: Annotated[list[str] | None, typer.Argument(help="Names; default all.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if a file is out of date.")
    ] = False,
    course: CourseOption = HERE,
) -> None:
    """Generate solutions/ and exercises/ from solutions/src/ in nbgrader's format."""
    if check:
        _known(assignments.sources(course), course)
        found = assignments.differences(course)
        console.print("\n".join(found) or "Everything is what its source gives.", markup=False)
        raise typer.Exit(1 if found else 0)
    for name in _known(assignments.sources(course), course, assignment or ()):
        for path in assignments.build(name, course):
            console.print(str(path), markup=False)


def lint_exercises(
    assignment: Annotated[list[str] | None, typer.Argument(help="Names; default all.")] = None,
    course: CourseOption = HERE,
) -> None:
    """Check the checks: they must accept right answers and refuse wrong ones by name. Exit code 1 if not."""
    _known(assignments.names(course), course, assignment or ())
    with quiet_work("trying right and wrong answers on every check"):
        from lorahub_grader import lint

        found = list(lint.judgements(course, assignment))
    _print_rows(("problem", "assignment", "right answers", "wrong answers", "check"), lint.table(found))
    for one in found:
        for kind, line in one.faults:
            console.print(f"{one.problem}: {kind}: {line}", markup=False)
    console.print(lint.summary(found))
    raise typer.Exit(1 if any(one.faults for one in found) else 0)


def grade(
    submissions: Annotated[Path, typer.Argument(help="submitted/, a folder of STUDENT.ipynb, or a platform's zip.")],
    cluster: ClusterOption = "",
    dry_run: DryRunOption = False,
    assignment: Annotated[
        str | None, typer.Option(help="Only this one; needed if the notebooks do not name theirs.")
    ] = None,
    course: CourseOption = HERE,
    sandbox: Annotated[
        Literal["bubblewrap", "podman", "docker"] | None, typer.Option(help="Default: the first that works.")
    ] = None,
    unsafe: Annotated[bool, typer.Option("--unsafe", help="No sandbox: submissions run with your rights.")] = False,
) -> None:
    """Grade submissions into nbgrader's gradebook. The same command continues from the last finished submission."""
    _nbgrader_or_error()
    check_place(submissions)
    _known(assignments.names(course), course, [assignment] if assignment else ())
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from lorahub_edu.show.progress import graded as note_points
    from lorahub_grader import feedback, runner
    from lorahub_grader.gradebook import Course
    from lorahub_grader.sandbox import choose

    place = Course(course.resolve())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    able = None
    if cluster and not dry_run:
        sandbox = choose.choose(sandbox, unsafe, runner.hidden(place))
        able = partial(choose.problem, sandbox, runner.hidden(place))
    # No thread of its own: a process that forks should not have any.
    with (
        workers(cluster, able=able, dry_run=dry_run) as executor,
        Progress(*columns, console=console, auto_refresh=False) as progress,
    ):
        task = progress.add_task("grading", total=None)

        def show(outcome: object, done: int, of: int) -> None:
            progress.update(task, completed=done, total=of, refresh=True)

        graded = runner.grade(
            place, submissions, assignment=assignment, sandbox=sandbox, unsafe=unsafe, executor=executor, report=show
        )
    note_points(graded.outcomes)
    for name in sorted({outcome.assignment for outcome in graded.outcomes}):
        own = [outcome for outcome in graded.outcomes if outcome.assignment == name]
        feedback.write(place, assignments.load(name, place.root), own)
    _print_rows(("student", "assignment", "points from tests", "what happened"), runner.table(graded.outcomes))
    for line in graded.ignored:
        console.print(f"not graded: {line}", markup=False)
    console.print(f"{len(graded.outcomes)} submissions, {graded.new} newly graded; sandbox: {graded.sandbox}.")


def feedback(assignment: str, course: CourseOption = HERE) -> None:
    """Write the feedback pages again, with later manual grades."""
    _nbgrader_or_error()
    _known(assignments.names(course), course, [assignment])
    from lorahub_grader import feedback
    from lorahub_grader.gradebook import Course

    place = Course(course.resolve())
    loaded = assignments.load(assignment, place.root)
    for page in feedback.write(place, loaded, place.journal.all(assignment)):
        console.print(str(page), markup=False)


def export(
    assignment: str,
    to: Annotated[
        Literal["canvas", "moodle", "nbgrader", "gradescope"], typer.Option(help="Who reads the file.")
    ] = "canvas",
    roster: Annotated[Path | None, typer.Option(help="The export of Canvas or Moodle, to be filled in.")] = None,
    out: Annotated[Path | None, typer.Option(callback=writable_file, help="The file to write.")] = None,
    column: Annotated[
        str | None, typer.Option(help="The assignment's column in the roster, if its name differs.")
    ] = None,
    maximum: Annotated[
        Literal["scale", "refuse"], typer.Option(help="What to do if the platform's maximum is different.")
    ] = "scale",
    course: CourseOption = HERE,
) -> None:
    """Write an assignment's grades for a learning platform, or its autograder for Gradescope."""
    _nbgrader_or_error()
    _known(assignments.names(course), course, [assignment])
    from lorahub_grader import exports
    from lorahub_grader.gradebook import Course

    path, notes = exports.export(Course(course.resolve()), assignment, to, roster, out, column, maximum)
    console.print(str(path), markup=False)
    for note in notes:
        console.print(note, markup=False)


def _known(found: list[str], course: Path, given: Sequence[str] = ()) -> list[str]:
    """The assignments that were typed, else all that were found in a course's folder.

    A folder without one is no course.
    """
    if not found:
        raise CourseError(
            f"There is no assignment in {course.resolve()}: give the folder that has solutions/ with --course."
        )
    return [assignments.check_name(name, found) for name in given] or found


def _nbgrader_or_error() -> None:
    if find_spec("nbgrader") is None:
        raise CourseError("Grading needs nbgrader: pip install 'lorahub-edu[teach]'")


def _print_rows(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table

    table = Table(*titles)
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    console.print(table)


def register(app: typer.Typer) -> None:
    """Add the grader's commands to the course's command line."""
    app.command("build", rich_help_panel=TEACH)(build)
    app.command("lint-exercises", rich_help_panel=TEACH)(lint_exercises)
    app.command("grade", rich_help_panel=TEACH)(grade)
    app.command("feedback", rich_help_panel=TEACH)(feedback)
    app.command("export-grades", rich_help_panel=TEACH)(export)
