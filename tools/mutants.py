"""The checks are held to mutants: right answers with one small mistake each, which every check must refuse and explain.

A mutant that no draw refuses is a survivor: the check needs a better draw, or the mutant is no mistake and stands with
its reason in `solutions/equivalent.toml`. Counts go to `results/mutants.json`. Exit code 1 if a mutant survives.

    python tools/mutants.py 01 | 01.2 | all
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import inspect
import io
import json
import multiprocessing
import re
import resource
import sys
import textwrap
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import mutate
import torch

from lorahub_checks.problems import Report, check, get_problem
from lorahub_edu.errors import CourseError
from lorahub_edu.results import Table
from lorahub_grader import assignments, lint
from lorahub_grader.assignments import ROOT, SOURCE
from lorahub_grader.inside import namespaces

DRAWS = 20
CALL_SECONDS = 2.0
MEMORY = 2 << 30  # bytes of address space beyond what is mapped at the start
MUTANT_SECONDS = 60.0  # after which a mutant that does not even stop for its alarm is given up
REFERENCE = "the reference"
SHAPE = "you return shape"  # which depends on the inputs' shapes alone
DIAGNOSES = ("named", "input", "line", "place", "none")
RESULTS = Path("results") / "mutants.json"


@dataclass(frozen=True)
class Source:
    """A right answer's source, and the name that it defines; `globals` are what it is run with."""

    problem: str
    answer: str
    name: str
    source: str
    globals: Mapping[str, object] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: the first draw that refused it, None if all 20 accepted it.

    `diagnosis` says how it was explained: by a named mistake, by the input on which it differs, by the learner's line
    with an error, by the place in a tensor too large to print, or not at all.
    """

    answer: str
    change: str
    draw: int | None
    diagnosis: str = ""
    told: str = ""


@dataclass
class Tally:
    """A problem's mutants: how many, survivors by name, and how the others were explained."""

    problem: str
    mutants: int = 0
    equivalent: int = 0
    late: int = 0  # refused, but not on the first draw
    survivors: list[str] = field(default_factory=list)
    diagnoses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DIAGNOSES, 0))
    undiagnosed: list[str] = field(default_factory=list)


def sources(root: Path = ROOT, lesson: str = "") -> Iterator[Source]:
    """The sources of all right answers of a lesson or of all: the assignments' references and the right variants."""
    for name in assignments.names(root):
        if not name.startswith(lesson[:2]):
            continue
        loaded = assignments.load(name, root)
        everything = lint.run_cells(loaded, blank=False)
        cells = [cell for cell in loaded.cells if cell.role == "answer"]
        for asked in lint.asked(loaded):
            cell = next((cell for cell in cells if asked.name in cell.names), None)
            if cell is not None and callable(asked.reference) and asked.problem.startswith(lesson):
                yield Source(asked.problem, REFERENCE, asked.name, cell.source, everything)
    for id, given in lint.variants(root).items():
        for answer, function in given.right.items():
            if id.startswith(lesson) and callable(function):
                found = _source_of(function)
                if found is not None:
                    yield Source(id, answer, *found)


def _source_of(function: Callable) -> tuple[str, str, Mapping[str, object]] | None:
    """A variant's name, source and globals; None where it has no source of its own."""
    try:
        text = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        return None
    module = vars(sys.modules[function.__module__]) if function.__module__ in sys.modules else {}
    code = getattr(function, "__code__", None)
    if code is not None and code.co_freevars:
        return None
    if code is not None and function.__name__ == "<lambda>":
        tree = ast.parse(inspect.getsource(module_of(function)))
        found = [n for n in ast.walk(tree) if isinstance(n, ast.Lambda) and n.lineno == code.co_firstlineno]
        return ("answer", f"answer = {ast.unparse(found[0])}", module) if len(found) == 1 else None
    return (function.__name__, text, module) if text.startswith(("def ", "class ")) else None


def module_of(function: Callable) -> object:
    return sys.modules[function.__module__]


def fates(source: Source) -> Iterator[Fate]:
    """Run every mutant of an answer in a process of its own, which is replaced if it hangs or dies."""
    trains = bool(get_problem(source.problem).trains) or "nn.Module" in source.source
    waiting = list(mutate.mutants(source.source, trains))
    context = multiprocessing.get_context("fork")
    while waiting:
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(source, list(waiting), theirs), daemon=True)
        worker.start()
        theirs.close()
        try:
            while waiting:
                if not ours.poll(MUTANT_SECONDS):
                    raise EOFError
                yield ours.recv()
                waiting.pop(0)
        except EOFError:
            yield Fate(source.answer, waiting.pop(0).change, 0, "line", "it hung, or its process died")
        finally:
            worker.kill()
            worker.join()


def _work(source: Source, waiting: list[mutate.Mutant], writer: object) -> None:
    torch.set_num_threads(1)  # a fork has none of the threads that its parent has computed with, and would wait
    sys.stdout = sys.stderr = io.StringIO()
    if sys.platform == "linux":  # a mutant of a size can ask for all the memory that there is
        size = namespaces.mapped_bytes() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    for mutant in waiting:
        writer.send(_fate(source, mutant))


def _fate(source: Source, mutant: mutate.Mutant) -> Fate:
    namespace = dict(source.globals)
    try:
        exec(compile(mutant.source, "mutant", "exec"), namespace)
        answer = namespace[source.name]
    except Exception as error:
        return Fate(source.answer, mutant.change, 0, "line", repr(error))
    for draw in range(DRAWS):
        with contextlib.suppress(SystemExit):
            report = check(source.problem, answer, seed=draw, seconds=CALL_SECONDS)
            if not report.passed:
                return Fate(source.answer, mutant.change, draw, *diagnosis(report))
    return Fate(source.answer, mutant.change, None)


def diagnosis(report: Report) -> tuple[str, str]:
    """How a refusal is explained, and the words."""
    failed = [p for p in report.properties if not p.passed]
    for p in failed:
        if p.misconception:
            return "named", p.misconception
    for p in failed:
        if p.example and (SHAPE in p.example or "numbers of shape" not in p.example):
            return "input", p.example
    for p in failed:
        if p.example:
            return "place", p.example
    if any("Error" in p.seen and "line" in p.seen for p in failed):
        return "line", failed[0].seen
    return "none", f"{failed[0].name}: {failed[0].seen}"


def equivalents(root: Path = ROOT) -> list[dict[str, str]]:
    """The mutants that are no mistakes: {problem, answer, change, reason}; `*` in a change stands for anything."""
    path = root / SOURCE / "equivalent.toml"
    if not path.is_file():
        return []
    found = tomllib.loads(path.read_text(encoding="utf-8")).get("equivalent", [])
    for one in found:
        if not {"problem", "change", "reason"} <= set(one):
            raise CourseError(f"{path}: an entry needs problem, change and reason: {one}")
    return found


def tallies(root: Path = ROOT, lesson: str = "") -> Iterator[Tally]:
    """Count what becomes of the mutants of each problem."""
    excused = equivalents(root)
    by_problem: dict[str, list[Source]] = {}
    for source in sources(root, lesson):
        by_problem.setdefault(source.problem, []).append(source)
    for problem in sorted(by_problem, key=lambda id: [int(part) for part in id.split(".")]):
        tally = Tally(problem)
        for source in by_problem[problem]:
            for fate in fates(source):
                _count(tally, fate, excused)
        yield tally


def _count(tally: Tally, fate: Fate, excused: list[dict[str, str]]) -> None:
    tally.mutants += 1
    words = f"{fate.answer}: {fate.change}"
    if fate.draw is not None:
        tally.late += fate.draw > 0
        tally.diagnoses[fate.diagnosis] += 1
        if fate.diagnosis in ("place", "none"):
            tally.undiagnosed.append(f"{words}: {fate.told}")
    elif any(one["problem"] == tally.problem and fnmatchcase(words, f"*{_escaped(one['change'])}*") for one in excused):
        tally.equivalent += 1
    else:
        tally.survivors.append(words)


def _escaped(pattern: str) -> str:
    """`*` stays a wildcard; brackets and question marks are meant as they stand."""
    return pattern.replace("[", "[[]").replace("?", "[?]")


def note(found: list[Tally], root: Path = ROOT) -> Path:
    """Write the counts of these problems to results/, beside those of the others."""
    path = root / RESULTS
    kept = json.loads(path.read_text(encoding="utf-8"))["problems"] if path.is_file() else {}
    for tally in found:
        counts = asdict(tally)
        del counts["problem"], counts["undiagnosed"]
        kept[tally.problem] = counts | {"survivors": len(tally.survivors)}
    ordered = dict(sorted(kept.items(), key=lambda item: [int(part) for part in item[0].split(".")]))
    total: Counter[str] = Counter()
    for counts in ordered.values():
        total.update({key: value for key, value in counts.items() if key != "diagnoses"})
        total.update(counts["diagnoses"])
    text = json.dumps({"draws": DRAWS, "total": total, "problems": ordered}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def table(found: list[Tally]) -> Table:
    """A row for each problem: id, mutants, equivalent ones, survivors, late refusals, and the share explained."""
    rows = []
    for tally in found:
        refused = sum(tally.diagnoses.values())
        explained = refused - tally.diagnoses["place"] - tally.diagnoses["none"]
        share = f"{explained / refused:.0%}" if refused else "-"
        numbers = (tally.mutants, tally.equivalent, len(tally.survivors), tally.late)
        rows.append((tally.problem, *(str(n) for n in numbers), share))
    return Table(("problem", "mutants", "equivalent", "survivors", "refused late", "explained"), tuple(rows))


def main(words: list[str] | None = None, root: Path = ROOT) -> int:
    """Print what became of the mutants and note the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lesson", help="a lesson (01), a problem (01.2), or all")
    lesson = parser.parse_args(words).lesson
    found = list(tallies(root, "" if lesson == "all" else lesson)) if re.fullmatch(r"all|\d\d(\.\d+)?", lesson) else []
    if not found:
        parser.error(f"no problem with a right answer is called {lesson!r}")
    print(table(found))
    for tally in found:
        for line in tally.survivors:
            print(f"{tally.problem} survives: {line}")
        for line in tally.undiagnosed:
            print(f"{tally.problem} not explained: {line}")
    print(note(found, root))
    return 1 if any(tally.survivors for tally in found) else 0


if __name__ == "__main__":
    sys.exit(main())
