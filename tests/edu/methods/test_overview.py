"""The page of all methods, and the commands that print it and run the comparison."""

from __future__ import annotations

import json

import pytest
from attached_methods import TRAINED
from typer.testing import CliRunner

from lorahub_edu import results
from lorahub_edu.cli.app import app
from lorahub_edu.errors import CourseError
from lorahub_edu.methods import kinds
from lorahub_edu.methods.overview import methods_table
from lorahub_studies import engine


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["methods", *arguments])


def test_every_method_stands_there_with_its_count() -> None:
    table = methods_table("tiny")
    assert [row[0] for row in table.rows] == list(kinds.METHODS)
    assert [row[3] for row in table.rows] == [f"{TRAINED[row[0]]:,}" for row in table.rows]
    shares = {row[0]: row[4] for row in table.rows}
    assert shares["full"] == "100.000%" and shares["lora"] == f"{TRAINED['lora'] / TRAINED['full']:.3%}"
    made_by = {row[0]: row[5] for row in table.rows}
    assert made_by["houlsby"] == "lorahub_edu" and made_by["bitfit"] == made_by["lora"] == "PEFT"


def test_list_prints_the_page() -> None:
    done = invoke("list", "--profile", "tiny")
    assert done.exit_code == 0 and str(methods_table("tiny")) in done.stdout


def test_sweep_runs_writes_and_prints(tmp_path) -> None:
    arguments = ("sweep", "--methods", "ia3", "--tasks", "upper", "--steps", "1", "--seeds", "2", "--test-items", "3",
                 "--profile", "tiny", "--no-costs", "--out", str(tmp_path / "runs"))  # fmt: skip
    planned = invoke(*arguments, "--plan")
    assert planned.exit_code == 0 and "4 runs" in planned.stdout and "4 still to be done" in planned.stdout
    done = invoke(*arguments)
    assert done.exit_code == 0, done.exception
    assert done.stdout.count("IA3, upper, rate") == 4
    rows = (tmp_path / "runs" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum(json.loads(row)["row"]["variant"] == "ia3" for row in rows) == 4
    found = engine.read("methods", results.folder())
    assert found["summary"][0]["variant"] == "ia3" and found["summary"][0]["tasks"]["upper"]["seeds"] == 2
    assert "0 still to be done" in invoke(*arguments, "--plan").stdout


def test_a_misspelt_line_is_said() -> None:
    done = invoke("sweep", "--methods", "lroa", "--plan")
    assert isinstance(done.exception, CourseError) and "Did you mean 'lora'" in str(done.exception)


@pytest.mark.parametrize("name", kinds.METHODS)
def test_every_method_says_who_proposed_it(name: str) -> None:
    method = kinds.get_method(name)
    assert method.trains and (method.source or name == "full")
