"""Mutants: every rule makes its mistake, a weak check is found by its survivors, and no hang stops the rest."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import mutants
import pytest
from grading_course import HEADER, make_course
from mutate import mutants as made

from lorahub_checks import problems
from lorahub_checks.problems import problem
from lorahub_checks.properties import equals
from lorahub_edu.show.check import check

SOURCE = (
    HEADER
    + """# %% answer="total"
def total(values, k):
    ### BEGIN SOLUTION
    return sum(abs(v) for v in values[:k] if v < 9)
    ### END SOLUTION

# %% test="test_total" points=2
assert callable(total)
### BEGIN HIDDEN TESTS
from lorahub_edu.show.graded import require

require("98.4", total)
### END HIDDEN TESTS
"""
)


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("a - b", ["a + b", "a", "b", "b - a"]),
        ("x[:k]", ["x", "x[:k + 1]", "x[:k - 1]"]),
        ("a < 3", ["a <= 3", "a > 3", "a < 4", "a < 2"]),
        ("f(a, b)", ["f(b, a)", "f(b)", "f(a)"]),
        ("x.abs().T", ["x.abs()", "x.T"]),
        ("-x", ["x"]),
        ("a and not b", ["a or not b", "a", "not b", "a and b"]),
        ("[v for v in x if v]", ["[v for v in list(x)[1:] if v]", "[v for v in list(x)[:-1] if v]", "[v for v in x]"]),
        ("p if q else r", ["p", "r"]),
    ],
)
def test_the_rules(source: str, wrong: list[str]) -> None:
    assert {mutant.source for mutant in made(source)} == set(wrong)


def test_a_change_shows_the_line_before_and_after() -> None:
    assert "    return a + b".strip() + " → return a - b" in [m.change for m in made("def f(a, b):\n    return a + b")]


def test_detach_is_a_mistake_only_where_something_is_trained() -> None:
    source = "def f(x):\n    return x + x"
    assert not any("detach" in m.source for m in made(source))
    assert any("detach" in m.source for m in made(source, gradients=True))


@pytest.fixture
def course(tmp_path: Path):
    def specification(answer, generator):
        for values, k in (
            WEAK if weak else WEAK + [([-1, 2, 9, -5, 8], 5), ([2, -3, 4], 2), ([10, 1], 2), ([4, -8, 3], 2)]
        ):
            right = sum(abs(v) for v in values[:k] if v < 9)
            yield equals("the sum", answer(values, k), right)

    weak = []
    WEAK = [([1, 2, 3], 3)]
    problem("98.4", "a sum", ("nudge", "concept", "worked step"))(specification)
    path = make_course(tmp_path / "course", SOURCE, "98_small")
    (path / "solutions" / "variants").mkdir()
    (path / "results").mkdir()
    yield path, weak
    problems._PROBLEMS.pop("98.4")


def test_a_weak_check_is_found_by_its_survivors(course) -> None:
    path, weak = course
    (sound,) = mutants.tallies(path, "98")
    assert sound.mutants > 10 and not sound.survivors and not sound.undiagnosed
    weak.append(True)
    (found,) = mutants.tallies(path, "98")
    assert any("abs" in line for line in found.survivors) and found.mutants == sound.mutants


def test_the_command_names_the_survivors(course, capsys) -> None:
    path, weak = course
    assert mutants.main(["98.4"], path) == 0
    weak.append(True)
    assert mutants.main(["all"], path) == 1 and "98.4 survives: the reference: " in capsys.readouterr().out
    for unknown in ("97", "nosuch"):
        with pytest.raises(SystemExit):
            mutants.main([unknown], path)
        assert f"no problem with a right answer is called '{unknown}'" in capsys.readouterr().err


def test_an_equivalent_mutant_stands_with_its_reason(course) -> None:
    path, weak = course
    weak.append(True)
    reasons = path / "solutions" / "equivalent.toml"
    reasons.write_text('[[equivalent]]\nproblem = "98.4"\nchange = "*"\nreason = "a test"\n', encoding="utf-8")
    (found,) = mutants.tallies(path, "98")
    assert not found.survivors and found.equivalent
    written = json.loads(mutants.note([found], path).read_text(encoding="utf-8"))
    assert written["problems"]["98.4"]["mutants"] == written["total"]["mutants"] == found.mutants
    reasons.write_text('[[equivalent]]\nproblem = "98.4"\nchange = "*"\n', encoding="utf-8")
    with pytest.raises(mutants.CourseError, match="needs problem, change and reason"):
        mutants.equivalents(path)


def test_mutants_that_hang_or_die_are_replaced(course, monkeypatch) -> None:
    monkeypatch.setattr(mutants, "MUTANT_SECONDS", 2.0)
    check("98.4", len, 0)  # torch's late imports, once for all forks
    names = {"deaf": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM]), "sleep": time.sleep}
    hang = "def total(values, k):\n    deaf()\n    sleep(9)"
    found = list(mutants.fates(mutants.Source("98.4", "x", "total", hang, names)))
    hung = ["hung" in fate.told for fate in found]
    assert any(hung) and not all(hung)


def test_every_equivalent_names_a_problem() -> None:
    for one in mutants.equivalents():
        assert problems.get_problem(one["problem"]) and len(one["reason"]) > 20
