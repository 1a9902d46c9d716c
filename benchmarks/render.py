"""Write the table of benchmarks into the README from results/: python benchmarks/render.py"""

from __future__ import annotations

import json
from pathlib import Path

from lorahub_edu import results

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
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
    "intruders.square_2048_uncertified": "the same without the proof (`--fast`)",
    "intruders.square_4096": "one 4096 × 4096 matrix, proven",
    "grading.cpu_seconds": "processor time of grading a submission, against nbgrader autograde",
}
FIGURES = {
    "seconds_of": "{:.2f} s",
    "milliseconds": "{:.2f} ms",
    "evaluations_per_second": "{:.1f} candidates/s",
    "loss": "{:.2f} nats a token",
}


def table() -> str:
    """The rows of the README's table, from every committed benchmark that it names."""
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


def render(text: str) -> str:
    """The README's text with its table renewed."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
