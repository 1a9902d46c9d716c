"""Tasks in a row: heads beside scikit-learn's, states beside the model's own, merges, and intervals of made-up rows."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lorahub_edu.data import tasks
from lorahub_edu.data.rows import Example
from lorahub_edu.models import pretrained
from lorahub_studies import engine, forgetting_sweep, text_tasks
from lorahub_studies import task_sequences as study
from lorahub_studies.task_sequences import SequenceRun


def test_a_head_is_the_regression_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(0)
    states, labels = generator.normal(size=(60, 5)), np.arange(60) % 3
    states[:, 0] += labels
    penalty = 0.1
    head = study.fit_head(torch.tensor(states).float(), torch.tensor(labels), 3, penalty)
    inputs = (states - states.mean(0)) / states.std(0, ddof=1)
    theirs = linear_model.LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-8, max_iter=5000)
    theirs.fit(inputs, labels)
    np.testing.assert_allclose(head[2].numpy(), theirs.coef_, atol=1e-3)
    found = study.predict(head, torch.tensor(states).float()).numpy()
    np.testing.assert_array_equal(found, theirs.predict(inputs))


def test_states_are_those_of_each_prompts_last_token() -> None:
    model, tokenizer = pretrained.load("tiny", dtype=torch.float32, attention="eager")
    rows = study._rows(tasks.get("is_a"), tasks.get("is_a").test[:5], tokenizer)
    states = study.states_of(model, rows)
    for row, state in zip(rows, states, strict=True):
        alone = model.get_decoder()(input_ids=torch.tensor([row.prompt_ids])).last_hidden_state[0, -1]
        torch.testing.assert_close(state, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [2, 0])
def test_a_sequence_is_trained_merged_and_tested(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    real = study._train

    def watched(model, weights: dict[str, torch.Tensor], *arguments) -> None:
        before = {name: value.clone() for name, value in weights.items()}
        real(model, weights, *arguments)
        rounded = {name: value.to(model.dtype) for name, value in weights.items()}
        parameters = dict(model.named_parameters())
        assert parameters.keys() == before.keys() and not any(p.requires_grad for p in parameters.values())
        assert all(torch.equal(parameters[name], value) for name, value in rounded.items())
        seen.append({name: weights[name] - before[name] for name in before})

    monkeypatch.setattr(study, "_train", watched)
    monkeypatch.setattr(study, "HEAD_ITEMS", 32)
    run = SequenceRun(("is_a", "greater", "bool"), rank, 1e-3, 0, steps=2, profile="tiny")
    row = json.loads(json.dumps(study.run(run)))
    assert [list(stage["accuracies"]) for stage in row["stages"]] == [
        ["is_a", "greater", "bool"], ["is_a"], ["greater"], ["is_a", "greater", "bool"],
    ]  # fmt: skip
    assert all(0 <= share <= 1 for stage in row["stages"] for share in stage["accuracies"].values())
    for change in seen:
        ranks = [int(torch.linalg.matrix_rank(c, tol=1e-6)) for c in change.values() if c.ndim == 2 and c.any()]
        assert max(ranks) == 2 if rank else max(ranks) > 2
    assert len(seen) == 3 and "is_a > greater > bool" in forgetting_sweep.line(row)


def test_a_sequence_that_diverges_is_a_row_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "HEAD_ITEMS", 16)
    row = study.run(SequenceRun(("is_a",), 0, 1e30, 0, steps=4, profile="tiny"))
    assert "nan" in row["diverged"] and row["stages"] == [] and "diverged" in forgetting_sweep.line(row)


def made(rank: int, rate: float, seed: int, just: float, end: float, base: float = 0.5) -> dict:
    """A row of the study: every task has `just` after its training and `end` after the last task."""
    names = study.TASKS
    stages = [{"task": "", "accuracies": dict.fromkeys(names, base)}]
    stages += [{"task": name, "accuracies": {name: just}} for name in names]
    stages[-1]["accuracies"] = dict.fromkeys(names, end)
    run = SequenceRun(names, rank, rate, seed)
    return {"run": json.loads(json.dumps(asdict(run))), "diverged": "", "stages": stages, "loss": 1.0}


def rows(end_of_low: float) -> list[dict]:
    ends = {(1, 2e-3): end_of_low, (8, 1e-3): 0.7, (64, 5e-4): 0.8, (0, 1e-4): 0.8, (1, 1e-3): 0.6, (64, 1e-3): 0.75}
    return [made(*arm, seed, 0.9, end) for seed in range(3) for arm, end in ends.items()]


def test_drops_and_verdicts_of_made_up_rows() -> None:
    summary = study.summary(rows(0.4))
    drops = {name: of["mean"] for name, of in summary["drops"].items()}
    assert drops == pytest.approx({"own rates": 50 - 10, "one rate": 30 - 15, "full": 50 - 10})
    assert summary["below_base"]["mean"] == pytest.approx(-10)
    assert study.verdicts(summary) == ("shown", "shown")
    assert study.verdicts(study.summary(rows(0.85))) == ("refuted here", "refuted here")
    lines = study.table(rows(0.4)).rows
    assert lines[0][:2] == ("the base", "50") and lines[1][:2] == ("r = 1, rate 0.002", "90 → 40")
    assert lines[1][-1].startswith("50.0")


def test_rates_are_chosen_by_loss_and_the_arms_follow() -> None:
    settled = [made(rank, rate, 0, 1, 1) for rank, rate in ((1, 5e-3), (8, 1e-3), (64, 1e-3), (0, 1e-4))]
    worse = made(1, 5e-4, 0, 1, 1)
    worse["loss"] = 9.0
    lost = {"run": settled[1]["run"] | {"learning_rate": 1.0}, "stages": [], "diverged": "yes"}
    assert study.chosen([worse, *settled, lost]) == {1: 5e-3, 8: 1e-3, 64: 1e-3, 0: 1e-4}
    jobs = study.jobs([worse, *settled, lost])
    assert [(job.rank, job.learning_rate) for job in jobs if job.seed == 0] == [
        (1, 5e-3), (8, 1e-3), (64, 1e-3), (0, 1e-4), (1, 1e-3),
    ]  # fmt: skip
    assert len(jobs) == 15 and len(study.settling_jobs()) == 8


def test_the_study_goes_from_rates_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "TASKS", ("is_a", "greater", "bool", "less"))
    monkeypatch.setattr(study, "SEEDS", 2)
    for name in ("HEAD_ITEMS", "TEST_ITEMS"):
        monkeypatch.setattr(study, name, 8)
    for name, before in (("sequence_rates", study.settling_jobs), ("sequences", study.jobs)):

        def small(*given, plan=before) -> list:
            return [replace(job, steps=1, profile="tiny", rank=min(job.rank, 9)) for job in plan(*given)]

        monkeypatch.setitem(forgetting_sweep.STUDIES, name, replace(forgetting_sweep.STUDIES[name], jobs=small))
    made_rows = forgetting_sweep.run("sequences", tmp_path / "runs")
    forgetting_sweep.write("sequences", made_rows, tmp_path)
    content = engine.read("intruders_sequences", tmp_path)
    assert set(content["summary"]["drops"]) == {"own rates", "one rate", "full"}
    assert len(study.table(content["rows"]).rows) >= 4


ARTICLES = ["The old town has a long stone wall. It was built on a small hill. x."] * 4
PAGES = ["We love to bake bread in our shop. Please come and see us all today."] * 4


def examples(count: int) -> list[Example]:
    return [Example(f"Name the number that is called {i}", "", f"It is surely number {i}.") for i in range(count)]


def test_text_tasks_are_balanced_and_share_no_document() -> None:
    made_tasks = text_tasks.make(ARTICLES, PAGES, examples(30))
    for name, labels in {"source": {"article", "page"}, "order": {"right", "wrong"}, "reply": {"Yes", "No"}}.items():
        task = made_tasks[name]
        for items in (task.train, task.test):
            assert {item.output for item in items} == labels
            assert len({len([i for i in items if i.output == label]) for label in labels}) == 1
    reply = made_tasks["reply"]
    assert not {i.input for i in reply.train} & {i.input for i in reply.test}
    for item in reply.train:
        asked, told = re.findall(r"\d+", item.input)
        assert (asked == told) == (item.output == "Yes")
    right = [i.input for i in made_tasks["order"].train if i.output == "right"]
    wrong = [i.input for i in made_tasks["order"].train if i.output == "wrong"]
    assert sorted(" ".join(sorted(s.split())) for s in right) == sorted(" ".join(sorted(s.split())) for s in wrong)
    assert not set(right) & set(wrong)
