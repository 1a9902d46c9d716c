"""BIG-Bench Hard by the paper's design: what is drawn, what is fetched first, what a second run still has to do."""

from __future__ import annotations

import ast
import importlib.util
import pickle
import shutil
from pathlib import Path

import bbh_stand_ins
import peft_modules
import pytest
import tiny_t5
from huggingface_hub import constants
from stand_ins import closed_address
from t5_stand_ins import cached_base, fetched_modules

from lorahub_edu.data import bbh
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_edu.hub import zoo
from lorahub_edu.models import pretrained, tiny
from lorahub_studies import adapting
from lorahub_studies import big_bench as study
from lorahub_studies.adapting import Trial

TASKS = ("boolean_expressions", "object_counting")
QUICK = ("zero_shot", "average", "single")


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, a hub where nobody answers, and the two stand-in tasks in the local folder."""
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setenv(assets.LOCAL_VARIABLE, str(bbh_stand_ins.write(tmp_path / "stick", count=20)))
    monkeypatch.setenv("HF_ENDPOINT", closed_address())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    adapting.bench.cache_clear()
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modules")
    peft_modules.save_modules(tiny_t5.model, folder, count=3, targets=("q", "v"), std=0.3)
    return folder


def small_plan(modules: Path, **settings: object) -> list[Trial]:
    settings = {"methods": QUICK, "test_items": 6, "profile": "tiny", "base_model": tiny_t5.folder()} | settings
    return study.plan(TASKS, 2, modules=(str(modules),), **settings)


def without_times(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def test_the_whole_study_is_27_tasks_in_5_draws_of_20_published_modules() -> None:
    plan = study.plan(profile="gpu24")
    assert len(plan) == len(set(plan)) == 27 * 5 * len(study.STUDIED)
    assert len({(trial.target, trial.draw) for trial in plan}) == 27 * 5
    assert [trial.draw for trial in plan] == sorted(trial.draw for trial in plan)  # a draw's modules are loaded once
    assert {trial.target for trial in plan} == {f"bbh/{name}" for name in bbh.names()}
    drawn = {trial.draw: trial.modules for trial in plan}
    assert all(trial.modules == drawn[trial.draw] for trial in plan)
    assert all(len(set(names)) == 20 and set(names) <= set(zoo.published_modules()) for names in drawn.values())
    assert len(set(drawn.values())) == 5
    assert plan == study.plan(profile="gpu24")
    assert {(trial.base_model, trial.profile, trial.shots) for trial in plan} == {("flan-t5-large", "gpu24", 5)}
    assert {"zero_shot", "in_context", "lora", "ia3", "full", "cma_40", "ngopt_40", "auto"} <= {
        trial.method for trial in plan
    }
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_the_published_names_are_the_originals() -> None:
    names = zoo.published_modules()
    assert len(set(names)) == len(names) == 196
    assert all(name.startswith("lorahub/flan_t5_large-") and zoo.is_on_hub(name) for name in names)
    original = importlib.util.find_spec("lorahub")
    if original is None:
        pytest.skip("the original LoRAHub is not installed")
    # read, not imported: importing it loads pandas and datasets
    source = (Path(original.submodule_search_locations[0]) / "constant.py").read_text(encoding="utf-8")
    assert sorted(ast.literal_eval(source.partition("=")[2].strip())) == list(names)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base_model": "flan-t5"}, "Did you mean 'flan-t5-large'"),
        ({"base_model": tiny_t5.folder()}, "are for flan-t5-large, not for .*tiny-random-t5-.*: give --modules"),
        ({"profile": "gpu"}, "Did you mean 'gpu24'"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(settings: dict, words: str) -> None:
    with pytest.raises(CourseError, match=words):
        study.plan(**{"profile": "tiny"} | settings)


def test_a_killed_study_goes_on_with_what_is_missing_and_ends_alike(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(modules)
    whole = study.run(plan, tmp_path / "whole")
    assert len(whole) == 2 * 2 * len(QUICK)
    measure, measured = adapting.run, []

    def killed_at_the_third(trial: Trial) -> dict:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(trial)
        return measure(trial)

    monkeypatch.setattr(adapting, "run", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        study.run(plan, tmp_path / "killed")
    assert len(measured) == 2

    def counted(trial: Trial) -> dict:
        measured.append(trial)
        return measure(trial)

    lines: list[str] = []
    monkeypatch.setattr(adapting, "run", counted)
    again = study.run(plan, tmp_path / "killed", report=lines.append)
    assert measured == plan  # each once
    assert "2 of 12 trials are measured already" in lines[0] and lines[-1].startswith("trial 10 of 10")
    assert without_times(again) == without_times(whole)

    # A method that is added later is the only one measured, and only for the trials asked for.
    more = small_plan(modules, methods=("zero_shot", "random_weights"))[:2]
    rows = study.run(more, tmp_path / "killed")
    assert measured[12:] == more[1:] and more[1].method == "random_weights"
    assert [row["method"] for row in rows] == ["zero_shot", "random_weights"]


def test_nothing_is_fetched_or_loaded_for_a_study_that_is_measured(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(modules, folder)
    plan = small_plan(folder, methods=("zero_shot",))
    rows = study.run(plan, tmp_path / "out")
    shutil.rmtree(folder)
    monkeypatch.delenv(assets.LOCAL_VARIABLE)
    assert study.run(plan, tmp_path / "out") == rows


def test_without_the_hub_it_says_what_to_do_before_anything_is_measured(tmp_path: Path) -> None:
    plan = study.plan(TASKS, 2, profile="tiny")
    zoo.hub_folder(study.drawn_modules(0)[0]).mkdir(parents=True)  # fetching it was killed
    with pytest.raises(CourseError) as refusal:
        study.run(plan, tmp_path / "out")
    words = str(refusal.value)
    count = len(set(study.drawn_modules(0)) | set(study.drawn_modules(1)))
    assert words.startswith(f"{count} modules are on the hub only, such as lorahub/flan_t5_large-")
    for advice in ("refused", "run the same command again", str(zoo.own_zoo() / "hub"), "--modules"):
        assert advice in words
    with pytest.raises(CourseError, match="Can't get navigate of BIG-Bench Hard"):
        study.run(study.plan(["navigate"], 1, profile="tiny"), tmp_path / "out")
    assert not (tmp_path / "out" / "rows.jsonl").exists()


def test_a_missing_gpu_is_named_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.torch.cuda, "is_available", lambda: False)
    with pytest.raises(CourseError, match="needs an NVIDIA GPU"):
        study.run(study.plan(TASKS, 1, profile="gpu24"), tmp_path / "out")


def test_published_names_and_the_hubs_base_run_from_their_caches(no_hub: Path, tmp_path: Path) -> None:
    cached_base(no_hub, "google/flan-t5-large", tiny_t5.model())
    plan = study.plan(TASKS[:1], 1, methods=("zero_shot", "single"), test_items=5, profile="tiny")
    fetched_modules(plan[0].modules)
    rows = study.run(plan, tmp_path / "out")
    assert [row["modules"] for row in rows] == [20, 20] and rows[1]["evaluations"] == 20
    assert rows[1]["top"][0][0].removeprefix("lorahub--") in {n.removeprefix("lorahub/") for n in plan[0].modules}
    assert rows[1]["loss"] != rows[0]["loss"]


def test_a_fetched_module_that_is_cut_short_is_named_at_the_start(no_hub: Path, tmp_path: Path) -> None:
    plan = study.plan(TASKS[:1], 1, methods=("zero_shot",), profile="tiny")
    broken = fetched_modules(plan[0].modules)[7] / "adapter_model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(CourseError, match="cut short") as refusal:
        study.run(plan, tmp_path / "out")
    assert str(broken) in str(refusal.value)


def test_modules_of_another_base_do_not_fit(tmp_path: Path) -> None:
    peft_modules.save_modules(tiny.model, tmp_path / "llama", count=2)
    with pytest.raises(CourseError, match="self_attn.q_proj, which this model does not have"):
        study.run(small_plan(tmp_path / "llama", methods=("single",)), tmp_path / "out")


def test_settings_for_the_record_hold_each_draws_modules() -> None:
    plan = study.plan(TASKS, 2, methods=("zero_shot",), profile="tiny")
    settings = study.settings(plan)
    assert settings["modules"] == {str(draw): list(study.drawn_modules(draw)) for draw in (0, 1)}
    assert settings["tasks"] == [f"bbh/{name}" for name in TASKS] and settings["methods"] == ["zero_shot"]
