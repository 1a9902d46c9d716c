"""A search that was killed goes on from its log and ends in the same weights, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import hub_modules
import numpy as np
import pytest
import torch
from hub_modules import random_modules

from lorahub_edu.errors import CourseError
from lorahub_edu.hub import population
from lorahub_edu.hub.adapt import LOG_FILE, SUMMARY_FILE, SearchConfig, adapt
from lorahub_edu.hub.compose import stack
from lorahub_edu.models import tiny

ROWS = hub_modules.rows(2)


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def files(model):
    return random_modules(model)


def lines(folder: Path) -> list[str]:
    return (folder / LOG_FILE).read_text(encoding="utf-8").splitlines(keepends=True)


def count_scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of candidates whenever a population is scored."""
    scored: list[int] = []
    real = population.Population.score

    def score(self, weights, rows):
        scored.append(len(weights))
        return real(self, weights, rows)

    monkeypatch.setattr(population.Population, "score", score)
    return scored


@pytest.mark.parametrize("optimizer", ["cma", "greedy", "ngopt", "random", "gradient"])
@pytest.mark.parametrize("cut", ["between lines", "in a line", "before the last newline"])
def test_a_log_cut_short_ends_in_the_same_weights(model, files, tmp_path: Path, optimizer: str, cut: str) -> None:
    whole = adapt(model, files, ROWS, SearchConfig(optimizer, budget=18), folder=tmp_path / "whole")
    kept = lines(tmp_path / "whole")[:3]
    text = "".join(kept)
    text = {"between lines": text, "in a line": text[:-30], "before the last newline": text[:-1]}[cut]
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / LOG_FILE).write_text(text, encoding="utf-8")
    again = adapt(model, files, ROWS, SearchConfig(optimizer, budget=18), folder=tmp_path / "cut")
    for what in ("weights", "losses", "objectives", "strict"):
        np.testing.assert_array_equal(getattr(again.history, what), getattr(whole.history, what))
    assert np.array_equal(again.weights, whole.weights) and again.loss == whole.loss
    for site, (A, B) in whole.module.weights.items():
        assert torch.equal(again.module.weights[site][0], A) and torch.equal(again.module.weights[site][1], B)
    stored = [json.loads(line) for line in lines(tmp_path / "cut")]
    expected = [json.loads(line) for line in lines(tmp_path / "whole")]
    for entry in (*stored, *expected):
        entry.pop("seconds", None)
    assert json.dumps(stored) == json.dumps(expected)
    assert (np.diff(again.history.seconds) >= 0).all()  # the clock goes on where it was


def test_what_was_scored_is_not_scored_again(model, files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(Exception):
        pass

    def kill(history) -> None:
        if len(history) == 14:
            raise KilledError

    scored = count_scored(monkeypatch)
    with pytest.raises(KilledError):
        adapt(model, files, ROWS, SearchConfig("cma", budget=28), folder=tmp_path, on_batch=kill)
    assert sum(scored) == 14
    found = adapt(model, files, ROWS, SearchConfig("cma", budget=28), folder=tmp_path)
    assert sum(scored) == 28
    finished = adapt(model, files, ROWS, SearchConfig("cma", budget=28), folder=tmp_path)
    assert sum(scored) == 28 and np.array_equal(finished.weights, found.weights)


def test_a_function_is_recognised_by_its_name(model, files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function's repr holds an address, which another process does not share."""

    def make():
        def mine(space, budget, seed):
            yield np.eye(space.dimension)

        return mine

    adapt(model, files, ROWS, SearchConfig(make()), folder=tmp_path)
    scored = count_scored(monkeypatch)
    adapt(model, files, ROWS, SearchConfig(make()), folder=tmp_path)
    assert scored == []


def test_the_summary_is_written(model, files, tmp_path: Path) -> None:
    found = adapt(model, files, ROWS, SearchConfig("greedy", budget=10), folder=tmp_path / "deep" / "folder")
    summary = json.loads((tmp_path / "deep" / "folder" / SUMMARY_FILE).read_text(encoding="utf-8"))
    assert summary == {
        "algorithm": found.algorithm,
        "composition": "paper",
        "loss": found.loss,
        "evaluations": 10,
        "failed": 0,
        "weights": dict(zip(("m0", "m1", "m2"), found.weights.tolist(), strict=True)),
    }


def test_a_kill_before_the_first_line_was_whole(model, files, tmp_path: Path) -> None:
    whole = adapt(model, files, ROWS, SearchConfig("random", budget=5))
    for text in ("", '{"optimi'):
        (tmp_path / LOG_FILE).write_text(text, encoding="utf-8")
        found = adapt(model, files, ROWS, SearchConfig("random", budget=5), folder=tmp_path)
        assert np.array_equal(found.weights, whole.weights) and len(lines(tmp_path)) == 2


def test_a_stack_in_half_precision_has_a_log_too(model, files, tmp_path: Path) -> None:
    found = adapt(model, stack(files, dtype=torch.bfloat16), ROWS, SearchConfig("random", budget=5), folder=tmp_path)
    assert np.isfinite(found.loss) and len(lines(tmp_path)) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"budget": 12}, "budget"),
        ({"optimizer": "cma"}, "optimizer"),
        ({"composition": "exact"}, "composition"),
        ({"l1": 0.1}, "l1"),
        ({"original_scale": True}, "loss scale"),
        ({"examples": ROWS[:1]}, "examples"),
        ({"options": {"population": 3}}, "options"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_log_of_another_search_is_refused(model, files, tmp_path: Path, change: dict, named: str) -> None:
    change = dict(change)
    examples, settings = change.pop("examples", ROWS), {"optimizer": "random", "budget": 10}
    adapt(model, files, ROWS, SearchConfig(**settings), folder=tmp_path)
    before = lines(tmp_path)
    with pytest.raises(CourseError, match=rf"holds another search \(different: {named}\)"):
        adapt(model, files, examples, SearchConfig(**settings | change), folder=tmp_path)
    assert lines(tmp_path) == before


def test_other_modules_are_another_search(model, files, tmp_path: Path) -> None:
    adapt(model, files, ROWS, SearchConfig("random", budget=5), folder=tmp_path)
    with pytest.raises(CourseError, match=r"different: modules\)"):
        adapt(model, files[::-1], ROWS, SearchConfig("random", budget=5), folder=tmp_path)


def test_another_dtype_of_the_base_is_another_search(model, files, tmp_path: Path) -> None:
    adapt(model, files, ROWS, SearchConfig("random", budget=5), folder=tmp_path)
    with pytest.raises(CourseError, match=r"different: base model\)"):
        adapt(tiny.model().to(torch.bfloat16), files, ROWS, SearchConfig("random", budget=5), folder=tmp_path)


def test_a_log_of_other_candidates_or_no_log_at_all_is_refused(model, files, tmp_path: Path) -> None:
    adapt(model, files, ROWS, SearchConfig("random", budget=5), folder=tmp_path)
    header, batch = lines(tmp_path)
    entry = json.loads(batch)
    moved = [[w + 1e-3 for w in candidate] for candidate in entry["weights"]]
    for weights in (moved, entry["weights"][:2]):
        (tmp_path / LOG_FILE).write_text(header + json.dumps(entry | {"weights": weights}) + "\n", encoding="utf-8")
        with pytest.raises(CourseError, match="written by another version of the search: delete its folder"):
            adapt(model, files, ROWS, SearchConfig("random", budget=5), folder=tmp_path)
    (tmp_path / LOG_FILE).write_text("my notes\nof today\n", encoding="utf-8")
    with pytest.raises(CourseError, match="holds another search"):
        adapt(model, files, ROWS, SearchConfig("random", budget=5), folder=tmp_path)
    assert (tmp_path / LOG_FILE).read_text(encoding="utf-8") == "my notes\nof today\n"


def test_a_folder_that_cannot_be_written(model, files, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(CourseError, match="Can't write .*search.jsonl.*Choose another folder"):
        adapt(model, files, ROWS, SearchConfig("random", budget=5), folder=tmp_path / "file")
