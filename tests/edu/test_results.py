"""Findings are written whole, read back equal, and rendered from the files alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorahub_edu import results
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.results import Finding
from lorahub_edu.show import findings, lessons, progress

ROOT = Path(__file__).resolve().parents[2]


def test_value_is_the_median_and_spread_the_range() -> None:
    finding = Finding("speed", (3.0, 1.0, 7.0), "tokens/s")
    assert finding.value == 3.0 and finding.spread == (1.0, 7.0)
    assert str(finding) == "3 tokens/s (1 to 7)"
    assert str(Finding("one", (0.25,), "nats")) == "0.25 nats"


def test_round_trip_keeps_everything_and_other_findings(tmp_path: Path) -> None:
    first = Finding("a", (1.0, 2.0), "s", claim="R1", verdict="shown", seeds=(0, 1), model="m", profile="cpu")
    second = Finding("b", (5.0,), "GB")
    results.record([first], "group", tmp_path)
    results.record([second], "group", tmp_path)
    assert results.read("group", tmp_path) == [first, second]
    replaced = Finding("a", (9.0,), "s")
    results.record([replaced], "group", tmp_path)
    assert results.read("group", tmp_path) == [replaced, second]
    assert [path.name for path in tmp_path.iterdir()] == ["group.json"]


def test_a_finding_says_where_and_with_what_it_was_measured() -> None:
    import torch

    finding = Finding("a", (1.0,), "s")
    assert finding.versions["torch"] == torch.__version__ and finding.device and len(finding.date) == 10


def test_findings_of_a_run_stay_out_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(results.FOLDER_VARIABLE)
    assert results.folder() != results.committed_folder()
    monkeypatch.setenv(results.FOLDER_VARIABLE, str(tmp_path))
    assert results.folder() == tmp_path


@pytest.mark.parametrize(
    ("text", "match"), [("{", "not a file of findings"), ('{"a": {"name": "a"}}', "not a file of findings")]
)
def test_damaged_files(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "group.json").write_text(text)
    with pytest.raises(CourseError, match=match):
        results.read("group", tmp_path)
    with pytest.raises(CourseError, match="No measured results"):
        results.read("absent", tmp_path)


def test_a_committed_study_is_read_and_a_missing_one_is_said(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(results, "committed_folder", lambda: tmp_path)
    (tmp_path / "made.json").write_text('{"rows": [1]}')
    assert results.committed_study("made") == results.read_study("made", "a command") == {"rows": [1]}
    assert results.committed_study("other") is None
    assert "'other' has not been measured yet" in capsys.readouterr().out
    with pytest.raises(CourseError, match=r"no study at .*other\.json.*run a command first"):
        results.read_study("other", "a command")


def test_bad_findings() -> None:
    with pytest.raises(CourseError, match="no value"):
        Finding("a", (), "s")
    with pytest.raises(CourseError, match="no verdict"):
        Finding("a", (1.0,), "s", verdict="probably")


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = results.write_json(tmp_path / "x.json", {"old": 1})

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(CourseError, match="No space left"):
        results.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}


def card_of(*found: tuple[Finding, bool], group: str = "nothing") -> str:
    return findings.cards(group, found)._repr_markdown_()


def test_a_card_keeps_the_courses_figure_and_your_runs_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "committed_folder", lambda: tmp_path)
    course = Finding("R5.count", (2_900.0,), "numbers", claim="R5", verdict="shown", note="exactly", date="2026-01-02")
    results.record([course], "lesson_xx", tmp_path)
    mine = Finding("R5.count", (3_000.0,), "numbers", claim="R5")
    title, _, header, _, row, *rest = card_of((mine, True), group="lesson_xx").splitlines()
    assert title.startswith("**R5.") and "50,000 → 3,000" in title
    assert "this course, 2026-01-02" in header and "your run" in header
    assert row == "| count (numbers) | 2,900, **shown** | 3,000, no verdict |"
    assert "- count: exactly" in rest
    assert "not yet measured" in card_of((mine, True)) and "| 3,000, no verdict | – |" in card_of((mine, False))


def test_a_claims_findings_share_a_card_and_alike_ones_a_line() -> None:
    found = [
        Finding(f"R5.{name}", (n,), "x", claim="R5", verdict="shown")
        for n, name in enumerate(("a.b", "a.ε = 0.5", "c"))
    ]
    text = card_of(*((finding, False) for finding in found))
    assert text.count("**R5.") == 1 and "| a (x) | b: 0; ε = 0.5: 1, **shown** | – |" in text and "| c (x) | 2," in text
    other = Finding("R5.a.b", (1.0,), "x", claim="R5", verdict="refuted here")
    assert "b: 1, **refuted here**; ε = 0.5: 1, **shown**" in card_of((other, False), (found[1], False))


@pytest.mark.parametrize("lesson", [f"{number:02}" for number in range(1, 11)])
def test_a_committed_claim_fits_ten_lines(lesson: str) -> None:
    found = results.read(f"lesson_{lesson}", results.committed_folder())
    made = findings.cards(f"lesson_{lesson}", [(finding, False) for finding in found]).cards
    assert len({card.title for card in made}) == len(made) == len({f.claim for f in found if f.claim})
    lines = [2 + len(card.figures.rows) + bool(card.notes) for card in made]
    assert max(lines) <= 10, "title, header, rows, notes folded"


def test_tiny_gives_no_verdict_and_a_study_is_nobodys_run(monkeypatch: pytest.MonkeyPatch) -> None:
    study = {"settings": {}, "rows": [], "device": "a laptop", "versions": {}, "date": "2026-01-02"}
    rows = [
        findings.Row("R5.mine", 1.0, "x", "refuted here"),
        findings.Row("R5.elsewhere", 1.0, "x", "shown", here=False),
        findings.Row("I12.as_written", 1.0, "x", "shown", study=study),
    ]
    text = str(findings.publish("xx", rows, get_profile("tiny")))
    assert "refuted here" not in text and [f.name for f in results.read("lesson_xx")] == ["R5.mine"]
    mine, elsewhere, of_study = (line.rstrip().rpartition("  ")[2] for line in text.splitlines() if "(x)" in line)
    assert (mine, elsewhere, of_study) == ("1, no verdict", "–", "–")
    assert "this course, 2026-01-02" in text
    assert "1, **refuted here**" in str(findings.publish("xx", rows, get_profile("cpu")))
    monkeypatch.setattr(results, "committed_folder", results.folder)
    published = str(findings.publish("xx", rows, get_profile("cpu")))
    assert {f.name for f in results.read("lesson_xx")} == {row.name for row in rows}
    assert all(line.rstrip().endswith("–") for line in published.splitlines() if "(x)" in line), "no run is yours"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((2.44, 0.44, 4.33), "2 (0 to 4)"),
        ((0.6287, 0.6198, 0.6696), "0.63 (0.62 to 0.67)"),
        ((1.1, 1.21, 1.23), "1.21 (1.10 to 1.23)"),
        ((0.5555, 9.87e-17, 6.667), "1 (0 to 7)"),
        ((-0.2, 40.0), "20 (0 to 40)"),
        ((6.761e-16, 5.072e-16, 6.761e-16), "6.76e-16 (5.07e-16 to 6.76e-16)"),
        ((3000.0,), "3,000"),
        ((0.33674,), "0.337"),
    ],
)
def test_figures_have_the_digits_that_their_spread_allows(values: tuple[float, ...], text: str) -> None:
    assert str(Finding("a", values, "")) == text


def test_costs_by_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "committed_folder", lambda: tmp_path)
    common = {"model": "SmolLM2", "profile": "cpu", "device": "a laptop"}
    results.record(
        [
            Finding("01_x.cpu.minutes", (1.5,), "min", **common),
            Finding("01_x.cpu.memory", (2.25,), "GB", **common),
            Finding("02_y.cpu.minutes", (9.0,), "min", **common),
        ],
        "lessons",
        tmp_path,
    )
    assert findings.costs_table("01_x").rows == (("cpu", "SmolLM2", "1.5 min", "2.2 GB", "a laptop"),)


def test_a_published_time_comes_with_what_it_means_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "committed_folder", lambda: tmp_path)
    monkeypatch.delenv(progress.VARIABLE)
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "home"))
    run = lessons.Run("01_x", "cpu", 120.0, 10**9, None)
    monkeypatch.setattr(findings, "yardstick_seconds", lambda: 0.2)
    lessons.record_costs(run, "SmolLM2", tmp_path)
    lessons.record_costs(replace(run, profile="tiny"), "tiny", tmp_path)  # does not change what machines differ by
    times = [row[2] for row in findings.costs_table("01_x").rows]
    assert times == ["2.0 min", "2.0 min"] and findings.slowness() is None
    progress.note("machine", {results.describe_device(): 0.7})
    times = [row[2] for row in findings.costs_table("01_x").rows]
    assert times == ["2.0 min (≈ 7 min on this machine)"] * 2
    monkeypatch.setattr(results, "describe_device", lambda: "the same home, another machine")
    assert [row[2] for row in findings.costs_table("01_x").rows] == ["2.0 min", "2.0 min"]


def test_the_yardstick_is_the_quickest_of_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    products, clock = [], iter(range(1000))
    monkeypatch.setattr(pretrained, "quick_dtype", lambda: torch.float32)
    monkeypatch.setattr(findings.time, "perf_counter", lambda: next(clock) ** 2)  # 1, 5, 9, …
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: products.append(loss.item()))
    assert findings.gradient_seconds() == 1 and len(products) == 20


def test_the_yardstick_is_measured_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "gradient_seconds", lambda: pytest.fail("in this process, whose threads may spin"))
    assert findings.yardstick_seconds() > 0


def study_finding(name: str, verdict: str) -> Finding:
    return Finding(name, (1.0,), "x", claim=name.partition(".")[0], verdict=verdict, note="so many runs")


def test_a_verdict_on_a_study_names_the_rule_that_came_first() -> None:
    told = findings.ruled(study_finding("I12.against.update", "not shown here"))
    assert told.verdict == "not shown here" and told.rule.endswith("(6404113)")
    assert "Rule: " in card_of((told, False))


@pytest.mark.parametrize(("name", "why"), [("I9.least_forgetting.alpha = 2r", "rank and rate"), ("I9x.new", "no rule")])
def test_without_a_rule_a_verdict_on_a_study_is_exploratory(name: str, why: str) -> None:
    told = findings.ruled(study_finding(name, "refuted here"))
    assert told.verdict == "exploratory" and why in told.note and "would say refuted here" in told.note
    assert not told.rule


def test_a_figure_without_a_verdict_says_so() -> None:
    figure = Finding("R14.speed", (1.0,), "x", claim="R14")
    assert findings.ruled(figure) == figure
    assert "1, no verdict" in card_of((figure, False))


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", [name for name, entry in findings.RULES.items() if "rule" in entry])
def test_a_rule_is_older_than_its_data(name: str) -> None:
    entry = findings.RULES[name]
    first = git("log", "--reverse", "--format=%H", "--", f"results/{entry['study']}.json").stdout.split()
    if not first or git("cat-file", "-e", entry["commit"]).returncode:
        pytest.skip("this checkout has no history")
    assert (
        first[0][:7] != entry["commit"] and not git("merge-base", "--is-ancestor", entry["commit"], first[0]).returncode
    )


def test_the_page_of_claims_is_written_from_the_results() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import render

    page = render.CLAIMS.read_text(encoding="utf-8")
    assert render.render(page, render.claims(), "<!-- claims:begin -->", "<!-- claims:end -->") == page
