"""Claims of the sources, and a card for each that a lesson tests: what this course measured, and what your run did."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from importlib import resources
from typing import Any, NamedTuple

from lorahub_edu import results
from lorahub_edu.errors import CourseError
from lorahub_edu.models.profiles import Profile, get_profile
from lorahub_edu.results import VERDICTS, Finding, Table
from lorahub_edu.show import predictions, progress


class Claim(NamedTuple):
    """What a source claims, and the figure that it gives."""

    statement: str
    source_figure: str = ""


def _data(file: str) -> dict[str, Any]:
    return json.loads((resources.files("lorahub_edu.data") / file).read_text(encoding="utf-8"))


CLAIMS = {id: Claim(*texts) for id, texts in _data("claims.json").items()}
"""By id. R: LoRA on LLaMA; H: LoRAHub; I: intruders; X: beyond the sources."""
RULES = _data("rules.json")
"""Verdicts on committed studies by a finding's name or its beginning: rule, commit and study, or why there is none."""
NONE = "–"
YARDSTICK = "yardstick"


def ruled(finding: Finding) -> Finding:
    """A finding of a committed study with the rule of its verdict; "exploratory" where no such rule came first."""
    if finding.verdict in ("", VERDICTS[-1]):
        return finding
    names = [name for name in RULES if f"{finding.name}.".startswith(f"{name}.")]
    entry = RULES[max(names, key=len)] if names else {"why": "no rule was written before the data"}
    if "rule" in entry:
        return replace(finding, rule=f"{entry['rule']} ({entry['commit']})")
    note = f"{entry['why']}; the values alone would say {finding.verdict}" + (
        f". {finding.note}" if finding.note else ""
    )
    return replace(finding, verdict=VERDICTS[-1], note=note)


def verdict(shown: bool, refuted: bool = False) -> str:
    """What a measured condition leads to: "shown", else "refuted here", else "not shown here"."""
    return "shown" if shown else "refuted here" if refuted else "not shown here"


@dataclass(frozen=True)
class Row:
    """One line of a lesson's findings, declared where the lesson ends.

    Attributes:
        name: the part before the first dot is the claim, where there is a claim of that id ("R3.error_at_rank_8").
        values: one a seed, run or matrix, or a single number, in `unit`.
        verdict: of `results.VERDICTS`, mostly by `verdict`; "" for a value that is recorded without one.
        note: what the verdict rests on.
        claim: the claim's id, where the name does not begin with it.
        seeds: that this run used; None takes those of the study, where there is one.
        study: the committed study that the values come from; None means this run.
        here: whether this run computed the values; a row of a study never has values of this run.
        circumstances: fields of `results.Finding` that differ from the table's.
    """

    name: str
    values: float | Sequence[float]
    unit: str = ""
    verdict: str = ""
    note: str = ""
    _: KW_ONLY
    claim: str | None = None
    seeds: tuple[int, ...] | None = None
    study: Mapping[str, Any] | None = None
    here: bool = True
    circumstances: Mapping[str, Any] | None = None

    def finding(self, profile: Profile) -> Finding:
        prefix = self.name.partition(".")[0]
        claim = self.claim if self.claim is not None else prefix if self.verdict and prefix in CLAIMS else ""
        values = tuple(map(float, self.values if isinstance(self.values, Iterable) else [self.values]))
        own = {"model": profile.base_model, "profile": profile.name}
        fields = own if self.study is None else _of_study(self.study)
        if self.seeds is not None:
            fields["seeds"] = tuple(self.seeds)
        fields |= self.circumstances or {}
        judged = "" if self.mine and profile.name == "tiny" else self.verdict  # random weights show nothing
        finding = Finding(self.name, values, self.unit, claim, judged, self.note, **fields)
        return finding if self.study is None else ruled(finding)

    @property
    def mine(self) -> bool:
        return self.here and self.study is None


def publish(lesson: str, rows: Sequence[Row | Finding], profile: Profile) -> Cards:
    """Record what a lesson ("01") measured in this run, and show a card for each claim, in the rows' order.

    It stands at a lesson's end, so the lesson counts as run from then on. When the course itself is published, all rows
    are recorded and no run is "yours". A finding of a sweep is taken with its rule.
    """
    found = [(ruled(row), False) if isinstance(row, Finding) else (row.finding(profile), row.mine) for row in rows]
    edition = results.folder() == results.committed_folder()
    results.record([finding for finding, mine in found if mine or edition], f"lesson_{lesson}")
    progress.lesson_run(lesson)
    made = cards(f"lesson_{lesson}", [(finding, mine and not edition) for finding, mine in found])
    guessed = predictions.table(lesson)
    return Cards((*made.cards, Card("**Your predictions**", guessed))) if guessed.rows else made


def _of_study(study: Mapping[str, Any]) -> dict[str, Any]:
    """Device, versions, date, seeds, model and profile of a committed study."""
    profile = get_profile(study["settings"].get("profile", "cpu"))
    runs = [row.get("run", row) for row in study["rows"]]
    seeds = {run["seed"] for run in runs if "seed" in run}
    made_with = {key: study[key] for key in ("device", "versions", "date")}
    return made_with | {"seeds": tuple(sorted(seeds)), "model": profile.base_model, "profile": profile.name}


@dataclass(frozen=True)
class Card:
    """What there is on one claim: its title, a table of figures, and what its verdicts rest on."""

    title: str
    figures: Table
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cards:
    """One card a claim, which Jupyter shows as Markdown and a terminal as text."""

    cards: tuple[Card, ...]

    def _repr_markdown_(self) -> str:
        parts = []
        for card in self.cards:
            parts += [card.title, card.figures._repr_markdown_()]
            if card.notes:
                notes = "\n".join(f"- {note}" for note in card.notes)
                parts.append(f"<details><summary>The verdicts rest on</summary>\n\n{notes}\n\n</details>")
        return "\n\n".join(parts)

    def __str__(self) -> str:
        return "\n\n".join("\n".join([card.title, str(card.figures), *card.notes]) for card in self.cards)

    __repr__ = __str__


def cards(group: str, found: Sequence[tuple[Finding, bool]]) -> Cards:
    """A card for each claim: the source's figure, the course's committed ones with their day, and those of this run.

    `group` is of the committed findings ("lesson_01"); each finding comes with whether this run computed it. Findings
    whose names differ only after the second dot share a line.
    """
    committed = {finding.name: finding for finding in _committed(group)}
    by_claim: dict[str, dict[str, list[tuple[Finding, bool]]]] = {}
    for finding, mine in found:
        if finding.claim:
            line = finding.name.removeprefix(f"{finding.claim}.").partition(".")[0]
            by_claim.setdefault(finding.claim, {}).setdefault(line, []).append((finding, mine))
    made = []
    for id, lines in by_claim.items():
        claim, days, rows, notes = CLAIMS[id], set(), [], []
        for line, entries in lines.items():
            words, unit = line.replace("_", " "), entries[0][0].unit
            course = [committed.get(finding.name, None if mine else finding) for finding, mine in entries]
            days |= {finding.date for finding in course if finding}
            yours = [finding if mine else None for finding, mine in entries]
            rows.append((f"{words} ({unit})" if unit else words, _cell(course, "not yet measured"), _cell(yours, NONE)))
            for finding in course:
                if finding and (finding.note or finding.rule):
                    rule = f"Rule: {finding.rule}" if finding.rule else ""
                    notes.append(f"{words}: " + ". ".join(filter(None, (finding.note, rule))))
        title = f"**{id}. {claim.statement}**" + (f" The source: {claim.source_figure}." if claim.source_figure else "")
        header = ("", f"this course, {' and '.join(sorted(days))}" if days else "this course", "your run")
        made.append(Card(title, Table(header, tuple(rows)), tuple(dict.fromkeys(notes))))
    return Cards(tuple(made))


def _cell(of: Sequence[Finding | None], empty: str) -> str:
    """The figures of one line and their verdicts: once where all agree, else after each."""
    there = [finding for finding in of if finding]
    if not there:
        return empty
    verdicts = [f"**{finding.verdict}**" if finding.verdict else "no verdict" for finding in there]
    parts = []
    for finding, verdict in zip(there, verdicts, strict=True):
        which = re.sub(r"\.(?!\d)", ", ", finding.name.removeprefix(f"{finding.claim}.").partition(".")[2])
        told = f"{which.replace('_', ' ')}: {finding.rounded()}" if which else finding.rounded()
        parts.append(told if len(set(verdicts)) == 1 else f"{told}, {verdict}")
    return "; ".join(parts) + (f", {verdicts[0]}" if len(set(verdicts)) == 1 else "")


def costs_table(lesson: str) -> Table:
    """Minutes and memory of a lesson ("01_lora_from_scratch") by profile, from the committed runs.

    Where the doctor measured this machine, the published time comes with what it means here.
    """
    costs, slower = {finding.name: finding for finding in _committed("lessons")}, slowness()
    rows = []
    for profile in sorted({finding.profile for finding in costs.values()} - {""}):
        minutes, memory = (costs.get(f"{lesson}.{profile}.{quantity}") for quantity in ("minutes", "memory"))
        if minutes and memory:
            took = f"{minutes.value:.1f} min"
            if slower and minutes.device == costs[YARDSTICK].device:
                took += f" (≈ {slower * minutes.value:.2g} min on this machine)"
            rows.append((profile, minutes.model, took, f"{memory.value:.1f} GB", minutes.device))
    return Table(("profile", "model", "time", "peak memory", "measured on"), tuple(rows))


def yardstick_seconds() -> float:
    """`gradient_seconds` in a process whose threads sleep when they wait, as a lesson's do in `lessons.run`."""
    command = [sys.executable, "-c", "from lorahub_edu.show import findings; print(findings.gradient_seconds())"]
    quiet = os.environ | {"OMP_WAIT_POLICY": "passive"}
    return float(subprocess.run(command, env=quiet, capture_output=True, text=True, check=True).stdout)


def gradient_seconds() -> float:
    """Seconds of a gradient through plain layers as wide as SmolLM2's, the best of some: what machines differ by."""
    import torch  # with the base models' file, for whoever only reads findings
    from torch import nn

    from lorahub_edu.models.pretrained import quick_dtype

    dtype, seconds = quick_dtype(), []
    blocks = [nn.Sequential(nn.Linear(576, 1536), nn.SiLU(), nn.Linear(1536, 576)) for _ in range(4)]
    layers, tokens = nn.Sequential(*blocks).to(dtype), torch.ones(256, 576, dtype=dtype)
    for _ in range(20):
        started = time.perf_counter()
        layers(tokens).float().mean().backward()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def slowness() -> float | None:
    """How many times as long as the machine of the published times this one takes; None where it was not measured."""
    published = [finding for finding in _committed("lessons") if finding.name == YARDSTICK]
    here = progress.read().machine.get(results.describe_device())
    return here / published[0].value if published and here else None


def _committed(group: str) -> list[Finding]:
    """The committed findings of a group; none where it was not measured yet."""
    try:
        return results.read(group, results.committed_folder())
    except CourseError:
        return []
