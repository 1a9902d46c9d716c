"""Claims of the sources, and a lesson's tables: the claim, what this course measured, what this run measured."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from importlib import resources
from typing import Any

from lorahub_edu import results
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.models.profiles import Profile, get_profile
from lorahub_edu.results import VERDICTS, Finding, Table
from lorahub_edu.show import progress


@dataclass(frozen=True)
class Claim:
    """A claim by its id (R: LoRA on LLaMA; H: LoRAHub; I: intruders; X: beyond), its statement, the source's figure."""

    id: str
    statement: str
    source_figure: str = ""


_DATA = resources.files("lorahub_edu.data")
CLAIMS = {
    id: Claim(id, *texts) for id, texts in json.loads((_DATA / "claims.json").read_text(encoding="utf-8")).items()
}
RULES = json.loads((_DATA / "rules.json").read_text(encoding="utf-8"))
"""Verdicts on committed studies by a finding's name or its beginning: rule, commit and study, or why there is none."""


def get_claim(claim: str) -> Claim:
    """The claim of that id.

    Raises:
        CourseError: there is none.
    """
    if claim not in CLAIMS:
        raise CourseError(f"There is no claim {claim!r}. {near_matches(claim, CLAIMS)}")
    return CLAIMS[claim]


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
        values: one a seed, run or matrix, or a single number.
        unit: of the values.
        verdict: of `results.VERDICTS`, mostly by `verdict`; "" for a value that is recorded without one.
        note: what the verdict rests on.
        claim: the claim's id, where the name does not begin with it.
        seeds: that this run used; None takes those of the study, where there is one.
        study: the committed study that the values come from; None means this run.
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
    circumstances: Mapping[str, Any] | None = None

    def finding(self, profile: Profile) -> Finding:
        """The finding that this row records."""
        prefix = self.name.partition(".")[0]
        claim = self.claim if self.claim is not None else prefix if self.verdict and prefix in CLAIMS else ""
        values = tuple(map(float, self.values if isinstance(self.values, Iterable) else [self.values]))
        fields: dict[str, Any] = {"model": profile.base_model, "profile": profile.name}
        if self.study is not None:
            fields = _of_study(self.study)
        if self.seeds is not None:
            fields["seeds"] = tuple(self.seeds)
        fields |= self.circumstances or {}
        finding = Finding(self.name, values, self.unit, claim, self.verdict, self.note, **fields)
        return finding if self.study is None else ruled(finding)


def publish(lesson: str, rows: Sequence[Row | Finding], profile: Profile) -> Table:
    """Record a lesson's findings and show those with a claim beside the committed ones.

    Args:
        lesson: its number, for example "01".
        rows: the declared table, in the order in which it is shown; a finding of a sweep is taken with its rule.
    """
    found = [ruled(row) if isinstance(row, Finding) else row.finding(profile) for row in rows]
    results.record(found, f"lesson_{lesson}")
    return findings_table(f"lesson_{lesson}", [finding for finding in found if finding.claim])


def _of_study(study: Mapping[str, Any]) -> dict[str, Any]:
    """Device, versions, date, seeds, model and profile of a committed study."""
    profile = get_profile(study["settings"].get("profile", "cpu"))
    runs = [row.get("run", row) for row in study["rows"]]
    seeds = {run["seed"] for run in runs if "seed" in run}
    made_with = {key: study[key] for key in ("device", "versions", "date")}
    return made_with | {"seeds": tuple(sorted(seeds)), "model": profile.base_model, "profile": profile.name}


def findings_table(group: str, mine: Sequence[Finding]) -> Table:
    """The findings of a lesson: one row a claim, the course's committed figure beside the one just measured.

    It stands at a lesson's end, so the lesson counts as run from then on. Where a claim has several findings, each says
    which it is.
    """
    progress.lesson_run(group.rpartition("_")[2])
    committed = {finding.name: finding for finding in _committed(group)}
    of_claim = Counter(finding.claim for finding in mine)
    rows = []
    for finding in mine:
        claim, course = get_claim(finding.claim), committed.get(finding.name)
        statement, measured = f"{claim.id}. {claim.statement}", "not yet measured"
        if of_claim[claim.id] > 1:
            which = re.sub(r"\.(?!\d)", ", ", finding.name.partition(".")[2]).replace("_", " ")
            statement += f" [{which}]" if which else ""
        if course:
            measured = f"{course} [{', '.join(filter(None, (course.model, course.device)))}]"
        verdict = f"**{finding.verdict or 'a figure, no verdict'}**" + (f": {finding.note}" if finding.note else "")
        verdict += f". Rule: {finding.rule}" if finding.rule else ""
        rows.append((statement, claim.source_figure or "none given", measured, str(finding), verdict))
    return Table(("claim", "the source", "this course", "this run", "verdict of this run"), tuple(rows))


def costs_table(lesson: str) -> Table:
    """Minutes and memory of a lesson ("01_lora_from_scratch") by profile, from the committed runs."""
    costs = {finding.name: finding for finding in _committed("lessons")}
    rows = []
    for profile in sorted({finding.profile for finding in costs.values()}):
        minutes, memory = (costs.get(f"{lesson}.{profile}.{quantity}") for quantity in ("minutes", "memory"))
        if minutes and memory:
            row = (profile, minutes.model, f"{minutes.value:.1f} min", f"{memory.value:.1f} GB", minutes.device)
            rows.append(row)
    return Table(("profile", "model", "time", "peak memory", "measured on"), tuple(rows))


def _committed(group: str) -> list[Finding]:
    """The committed findings of a group; none where it was not measured yet."""
    try:
        return results.read(group, results.committed_folder())
    except CourseError:
        return []
