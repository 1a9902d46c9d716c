"""Write tables of benchmarks, panels, mutants, proofs, architectures and claims into the pages of docs/: render.py"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from lorahub_edu import results
from lorahub_edu.show import findings

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("measured", "teaching", "claims", "scale")
MEASURED, TEACHING, CLAIMS, SCALE = (ROOT / "docs" / f"{page}.md" for page in PAGES)
ZOO = ROOT / "lorahub_edu" / "data" / "zoo"
ZOOS, PLANS = ("<!-- zoo:begin -->", "<!-- zoo:end -->"), ("<!-- plans:begin -->", "<!-- plans:end -->")
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
ARCHITECTURES = "<!-- architectures:begin -->", "<!-- architectures:end -->"
CERTIFICATE = "<!-- certificate:begin -->", "<!-- certificate:end -->"
PANELS = "<!-- panels:begin -->", "<!-- panels:end -->"
WORDS = {
    "train_step.tokens_per_second": "training on Alpaca, useful tokens/s, against PEFT + Trainer with dynamic padding",
    "train_step.peak_memory": "the same, peak memory of the process",
    "train_step.tokens_per_second_block": "training, useful tokens/s, against padding to the block as the sources do",
    "train_step.peak_memory_block": "the same, peak memory of the process",
    "lora_layer.smollm2_q": "one LoRA layer forward and backward against PEFT's, SmolLM2's q",
    "lora_layer.llama7b_q": "the same, q of a 7B LLaMA",
    "load.seconds": "loading the model again, against reading the GGUF file each time",
    "adapt_eval.bfloat16": "scoring 20-module LoRAHub candidates, ours in bfloat16, the original in float32",
    "adapt_eval.float32": "the same, both in float32",
    "adapt_eval.both_bfloat16": "the same, both in bfloat16",
    "adapt_eval.composing": "composing one candidate into the adapter, against the original",
    "adapt_memory.peak_memory": "peak memory of scoring a population, against the original",
    "adapt_quality.auto": "loss on the five examples after equal time, against the original's search",
    "adapt_quality.cma": "the same, CMA-ES in the paper's composition",
    "intruders.smollm2": "counting intruder dimensions in SmolLM2's 210 matrices, proven, against two full SVDs each",
    "intruders.smollm2_peft": "the same, against PEFT's reduce_intruder_dimension",
    "intruders.square_2048": "the same in one 2048 × 2048 matrix, against two full SVDs",
    "intruders.square_4096": "one 4096 × 4096 matrix, proven",
    "sweep.study": "a study of the real model on 2 workers × 1 thread, against 1 worker × 2 threads",
    "grading.cpu_seconds": "processor time of grading a submission, against nbgrader autograde",
}
FIGURES = {
    "seconds_of": "{:.2f} s",
    "milliseconds": "{:.2f} ms",
    "evaluations_per_second": "{:.1f} candidates/s",
    "loss": "{:.2f} nats a token",
}


def table() -> str:
    """The rows of the benchmarks' table, from every committed benchmark that it names."""
    lines = ["| what | ours is better by | ours | peer | measured on |", "|---|---|---|---|---|"]
    for key, words in WORDS.items():
        name, _, ratio = key.partition(".")
        path = results.committed_folder() / f"benchmark_{name}.json"
        if not path.is_file():
            continue
        line = json.loads(path.read_text(encoding="utf-8"))
        ours, peer = (_figure(line[side], ratio) for side in ("ours", "peer"))
        lines.append(
            f"| {words} | {line['ratios'][ratio]:.2f} × | {ours} | {peer} | {line['device']}, {line['date']} |"
        )
    return "\n".join(lines)


def _figure(side: dict, ratio: str) -> str:
    """The figure of one side that belongs to a ratio, with its unit."""
    for quantity, form in FIGURES.items():
        if ratio in side.get(quantity, {}):
            return form.format(side[quantity][ratio])
    block = "_block" if ratio.endswith("_block") else ""
    if ratio.startswith("peak_memory"):
        return f"{side.get('peak_gb' + block, side['peak_gb']):.2f} GB"
    if ratio.startswith("tokens_per_second"):
        return f"{side.get('tokens_per_second' + block, side['tokens_per_second']):.0f} tokens/s"
    return f"{side['seconds']:.2f} s"


def mutants() -> str:
    """The rows of the teaching page's table: each lesson's mutants, and how they were refused."""
    found = json.loads((ROOT / "results" / "mutants.json").read_text(encoding="utf-8"))["problems"]
    lines = [
        "| lesson | mutants | no mistakes | accepted | refused | of these explained |",
        "|---|---|---|---|---|---|",
    ]
    for lesson in [*sorted({id.partition(".")[0] for id in found}), "all"]:
        own = [counts for id, counts in found.items() if lesson in (id.partition(".")[0], "all")]
        made, equal, left = (sum(counts[key] for counts in own) for key in ("mutants", "equivalent", "survivors"))
        told = sum(sum(counts["diagnoses"][kind] for kind in ("named", "input", "line")) for counts in own)
        refused = made - equal - left
        lines.append(f"| {lesson} | {made:,} | {equal} | {left} | {refused:,} | {told / max(1, refused):.0%} |")
    return "\n".join(lines)


def claims() -> str:
    """The rows of the claims page: each committed finding of a claim, the source's figure, the verdict and its rule."""
    lines = ["| claim | the source | finding | this course | verdict | lesson |", "|---|---|---|---|---|---|"]
    found = [
        (lesson, finding)
        for lesson in (f"{number:02}" for number in range(1, 11))
        for finding in results.read(f"lesson_{lesson}", results.committed_folder())
        if finding.claim
    ]
    for id, claim in findings.CLAIMS.items():
        first = (f"{id}. {claim.statement}", claim.source_figure or "none given")
        for lesson, of in (row for row in found if row[1].claim == id):
            rule = f"Rule: {of.rule}" if of.rule else ""
            told = ". ".join(filter(None, (f"**{of.verdict or 'a figure, no verdict'}**", of.note, rule)))
            cells = (*first, of.name.removeprefix(f"{id}.").replace("_", " "), str(of), told, lesson)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
            first = (id, "")
    return "\n".join(lines)


def certificate() -> str:
    """The rows of the table of adversarial matrices by kind, and how many of them needed two full SVDs."""
    found = json.loads((ROOT / "results" / "certificate.json").read_text(encoding="utf-8"))
    flawed = sum(found[flaw] for flaw in ("wrong", "proven_though_tied", "bounds_broken"))
    lines = [
        f"{found['matrices']:,} matrices: {found['decided']['certified']:,} counts were proven by a search, "
        f"{found['decided']['decomposed']:,} by one decomposition. "
        f"{flawed} of them were wrong, tied, or outside their bounds.",
        "",
        "| kind | matrices | needed two SVDs |",
        "|---|---|---|",
    ]
    shares = ((kind, row["matrices"], row["two_svds"]) for kind, row in found["by_kind"].items())
    lines += [f"| {kind} | {many} | {'·' if share is None else f'{share:.0%}'} |" for kind, many, share in shares]
    return "\n".join(lines)


def panels() -> str:
    """The rows of the table of panels: from a key to the change, in a browser."""
    found = json.loads((ROOT / "results" / "panels.json").read_text(encoding="utf-8"))
    lines = ["| lesson and panel | keys | median | worst | load a core | measured on |", "|---|---|---|---|---|---|"]
    for panel, row in found.items():
        took = row["milliseconds"]
        figures = f"{len(took)} | {statistics.median(took):.0f} ms | {max(took):.0f} ms | {row.get('load', '–')}"
        lines.append(f"| {panel} | {figures} | {row['device']}, profile {row['profile']}, {row['date']} |")
    return "\n".join(lines)


def architectures() -> str:
    """The rows of a table: architectures with the same outcomes stand together."""
    found = json.loads((ROOT / "results" / "architectures.json").read_text(encoding="utf-8"))["types"]
    ways = list(next(iter(found.values())))
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, outcomes in found.items():
        groups.setdefault(tuple(outcomes[way].partition(":")[0] for way in ways), []).append(f"`{name}`")
    lines = [f"| architecture | {' | '.join(ways)} |", "|---" * (len(ways) + 1) + "|"]
    return "\n".join(lines + [f"| {' '.join(names)} | {' | '.join(cells)} |" for cells, names in groups.items()])


def zoo() -> str:
    """The rows of the table of zoos by size."""
    found = _line("zoo_scale")
    lines = ["| modules | listed | memory for it | draw | instruction | loss | memory for these | adapt over 20 |"]
    lines.append("|---" * 8 + "|")
    for size, row in found["by_size"].items():
        seconds = [f"{row[f'{how}_seconds']:.2f} s" for how in ("draw", "instruction", "loss")]
        cells = [f"{int(size):,}", f"{row['open_seconds']:.2f} s", f"{row['open_mb']:.0f} MB", *seconds]
        lines.append(f"| {' | '.join(cells)} | {row['prefilter_mb']:.0f} MB | {row['adapt_seconds']:.0f} s |")
    return "\n".join(
        [
            *lines,
            "",
            f"{found['device'].partition(',')[0]} with two threads, {found['date']}, beside other programs.",
        ]
    )


def plans() -> str:
    """The plans of 100,000 submissions and 100,000 modules: measured figures of one, times 100,000."""
    grading, zoos, sweep = _line("grading_class_cluster"), _line("zoo_scale"), _line("sweep")
    many, cores, price = 100_000, 64, 0.05
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(ZOO.glob("*/card.json"))]
    training = sum(card["seconds"] for card in cards) / len(cards)  # on two threads
    size, queue = zoos["peer"]["modules"], sweep["ours"]["beyond_ms"] / 1000

    def row(what: str, one: float, threads: int = 1) -> str:
        hours = one * threads * many / 3600
        return (
            f"| {what} | {one:.3g} s | {hours:,.0f} core hours | {hours / cores:,.1f} h on {cores} cores | "
            f"{hours * price:,.0f} |"
        )

    grade, module = grading["ours"], zoos["peer"]["module_bytes"]
    return "\n".join(
        [
            f"| {many:,} of | one | all | with {cores} cores | at {price} a core hour |",
            "|---|---|---|---|---|",
            row("submissions graded (processor time)", grade["cpu_seconds_each"]),
            row("modules trained on two threads", training, 2),
            row("modules scored on one example, two threads", zoos["ours"]["loss_seconds"] / size, 2),
            "",
            f"The queue adds {1000 * queue:.1f} ms a job: one scheduler hands out {many:,} short jobs in "
            f"{queue * many / 60:,.0f} minutes. Gradebook, journal and feedback take "
            f"{grade['bytes_each'] / 1000:,.0f} kB a submission, {grade['bytes_each'] * many / 1e9:,.1f} GB in all.",
            f"A module takes {module / 1e6:.2f} MB, all {module * many / 1e9:,.0f} GB. If both stay linear, listing "
            f"takes {zoos['ours']['open_seconds'] / size * many:,.0f} s, and choosing by instruction "
            f"{zoos['ours']['instruction_seconds'] / size * many / 60:,.1f} minutes. The price is an assumption.",
        ]
    )


def _line(name: str) -> dict:
    return json.loads((ROOT / "results" / f"benchmark_{name}.json").read_text(encoding="utf-8"))


def render(text: str, made: str | None = None, begin: str = BEGIN, end: str = END) -> str:
    """A page's text with the table between its two marks renewed; the default is the benchmarks'."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{table() if made is None else made}\n{end}{after}"


if __name__ == "__main__":
    page = render(MEASURED.read_text(encoding="utf-8"))
    page = render(page, architectures(), *ARCHITECTURES)
    page = render(page, panels(), *PANELS)
    MEASURED.write_text(render(page, certificate(), *CERTIFICATE), encoding="utf-8")
    page = render(TEACHING.read_text(encoding="utf-8"), mutants(), "<!-- mutants:begin -->", "<!-- mutants:end -->")
    TEACHING.write_text(page, encoding="utf-8")
    page = render(CLAIMS.read_text(encoding="utf-8"), claims(), "<!-- claims:begin -->", "<!-- claims:end -->")
    CLAIMS.write_text(page, encoding="utf-8")
    page = render(SCALE.read_text(encoding="utf-8"), zoo(), *ZOOS)
    SCALE.write_text(render(page, plans(), *PLANS), encoding="utf-8")
