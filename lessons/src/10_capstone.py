# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · Capstone: two open questions, and one of yours
#
# **Promise.** You use both halves of the course, composing modules and reading spectra, on questions that none of the three
# sources answers. Then you examine any adapter with all instruments of the course.
#
# **You will be able to**
# - say what composing does to the singular vectors of a model, and which control tells that,
# - state hypotheses before the runs, and test them by rank correlations with intervals,
# - say what a measure adds to another one, and what it only repeats,
# - write a one-page report on an adapter that says what it does, what it did to the weights, and what that cost.
#
# **You need** lessons 06 and 07 (compositions, searches) and 08 and 09 (intruder dimensions, forgetting).
#
# **It covers** the questions X1 and X4 of this course; the definitions are those of Shuttleworth et al. 2024
# (arXiv 2410.21228) and Huang et al. 2023 (arXiv 2307.13269).
#
# **It takes:**

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from lorahub_edu.forgetting import texts
from lorahub_edu.hub import compose, stand_ins
from lorahub_edu.lora import adapter_files, adapters
from lorahub_edu.models import pretrained
from lorahub_edu.show.adapter_report import examine, intruder_counter, text_loss
from lorahub_edu.show.notebook import (
    Row,
    Table,
    check,
    compare,
    figures,
    get_profile,
    open_lesson,
    panels,
    predict,
    predictions,
    publish,
    recall,
    results,
)
from lorahub_studies import forgetting_sweep, forgetting_tables
from lorahub_studies.composed_spectra import VARIANTS
from lorahub_studies.correlation import MEASURES, correlate, judge

open_lesson("10_capstone")

# %% [markdown]
# ## Step 1. Does composing make intruders?
#
# - Lesson 08: a module whose update is strong beside the base's tenth singular value puts *intruder dimensions* into a
#   matrix.
# - Lesson 06: a composition adds up modules. Their weights may be negative, and in the paper's composition every $B_i$
#   meets every $A_j$.
#
# **Predict.** The modules of the zoo are weak: few have any intruder. Take all of them with weight 1, then half of them
# with −1. More intruders than the parts, or fewer? Which of the two compositions has more?

# %%
profile = get_profile()
model, tokenizer = pretrained.load(profile, dtype="float32")
model.requires_grad_(False)
files = stand_ins.modules_for(profile)
names = [file.path.name for file in files]
# Of every matrix of a module or composition: its intruders at ε = 0.5, and how strong and large its update is.
measure = intruder_counter(model)

# %%
alone = {name: measure(file) for name, file in zip(names, files, strict=True)}
parts = [report.intruders[0] for report in alone.values()]
vectors = 10 * len(next(iter(alone.values())).rows)
print(f"{len(files)} modules, {vectors} vectors looked at in each: {statistics.fmean(parts):.1f} intruders on average,")
print(f"from {min(parts)} to {max(parts)}; {sum(n == 0 for n in parts)} modules have none")

# %%
N = len(files)
stacks = {way: compose.stack(files, composition=way) for way in ("exact", "paper")}
signs = np.where(np.random.default_rng(0).permutation(N) % 2, 1.0, -1.0)
compositions = {"all +1": np.ones(N), "half +1, half −1": signs, "average, all 1/N": np.full(N, 1 / N)}


def strength(report) -> float:
    """Median over the matrices of σ₁(ΔW)/σ₁₀(W₀)."""
    return statistics.median(row.spike_ratio for row in report.rows)

# %%
lines = []
for label, w in compositions.items():
    for way, stack in stacks.items():
        found = measure(compose.compose(stack, w, way))
        lines.append((label, way, f"{found.intruders[0]}", f"{strength(found):.2f}"))
Table(("weights", "composition", f"intruders of {vectors} vectors", "median σ₁(ΔW)/σ₁₀(W₀)"), tuple(lines))

# %% [markdown]
# **Read it.** Intruders begin where the strength passes about one half (lesson 08's rule). The cause of the strength does not
# matter. Equal signs add what the modules have in common; opposite signs subtract it. In the paper's composition the sum is
# multiplied with itself, so a common part grows with the square of the number of modules.
#
# Now take one direction of weights, with its signs and without them, and make it larger:

# %%
drawn = np.random.default_rng(1).uniform(-1, 1, N)
sizes = (0.25, 0.5, 1.0, 1.5, 2.0)
curves = {}
for label, w in {"weights of both signs": drawn, "the same, all positive": np.abs(drawn)}.items():
    found = [measure(compose.compose(stacks["exact"], size * w, "exact")) for size in sizes]
    curves[label] = ([strength(report) for report in found], [report.intruders[0] for report in found])


# %% tags=["hide-input"] jupyter={"source_hidden": true}
def draw_curves(figure: plt.Figure, chosen: float) -> str:
    """Intruders against size, with one size marked, and the sentence that reads it."""
    axes, place = figure.subplots(), sizes.index(chosen)
    for i, (label, (_, intruders)) in enumerate(curves.items()):
        axes.plot(sizes, intruders, label=label, **figures.line_style(i))
        axes.plot(chosen, intruders[place], "k*", markersize=13)
    axes.set(xlabel="factor on the weights", ylabel=f"intruders of {vectors} vectors", title="exact composition")
    axes.legend(frameon=False)
    (_, both), (_, positive) = curves.values()
    return f"At {chosen:g} times the weights: {both[place]} intruders, without the signs {positive[place]}."


figure = plt.figure()
draw_curves(figure, 1.0)
panels.show(
    figure,
    alt="Intruders against the factor on the weights. "
    + "; ".join(f"{label}: from {counted[0]} to {counted[-1]}" for label, (_, counted) in curves.items())
    + ".",
)

# %%
panels.slider_panel("factor on the weights", list(sizes), draw_curves, start=1.0)

# %% [markdown]
# ## Step 2. The compositions that searches found
#
# In practice a search chooses the weights. Do its compositions have intruders? Each composition of the study below was
# searched on five examples (lesson 07). It is compared with compositions that differ from it in **one** thing. This is
# the signs, the order of the weights among the modules, the weights, the directions of the update, or its size.
#
# **Predict.** Order the rows: which has the most intruders, which the fewest?


# %%
def spread(entry: dict, form: str) -> str:
    return f"{entry['mean']:{form}} ({entry['low']:{form}} to {entry['high']:{form}})"


composed = results.committed_study("composed_intruders") or {"rows": [], "summary": [], "settings": {"parts": []}}
shipped_parts = [part["intruders"][0] for part in composed["settings"]["parts"]]
lines = tuple(
    (entry["search"], VARIANTS[entry["variant"]], spread(entry["intruders"], ".0f"),
     spread(entry["relative_size"], ".3f"), spread(entry["spike_ratio"], ".2f"))
    for entry in composed["summary"]
)  # fmt: skip
if shipped_parts:
    print(f"single modules: {statistics.fmean(shipped_parts):.1f} intruders on average (0 to {max(shipped_parts)})")
Table(("search", "composition", "intruders", "mean ‖ΔW‖/‖W₀‖", "median σ₁(ΔW)/σ₁₀(W₀)"), lines)


# %%
def paired(variant: str, search: str | None = None) -> list[float]:
    """Intruders of the found composition minus those of a variant, one value a composition."""
    by_key: dict[tuple, dict[str, int]] = {}
    for row in composed["rows"]:
        if search in (None, row["search"]):
            by_key.setdefault((row["search"], row["target"], row["draw"]), {})[row["variant"]] = row["intruders"][0]
    return [found["found"] - found[variant] for found in by_key.values()]


for search in sorted({row["search"] for row in composed["rows"]}):
    for variant in list(VARIANTS)[1:]:
        gaps = paired(variant, search)
        wins = sum(gap > 0 for gap in gaps)
        print(f"{search}: found minus {VARIANTS[variant]!r}: median {statistics.median(gaps):+.0f}, more in {wins} of {len(gaps)}")

# %% [markdown]
# **Read it.** Compare *found* with three rows. *The same weights, all positive* shows how many intruders the signs
# remove. *Random directions* shows whether the directions matter, or the size alone. *Shrunk to the mean size of a
# single module* shows what is left when composing does not make the update larger.
#
# ### Try it 10.1: a random update of the same spectrum
# *Difficulty 3 of 5, ten minutes. Common bug: a random matrix of the same norm, which has different singular values.*
#
# The control *random directions* keeps every singular value and draws new vectors at random. Write it.


# %%
def random_twin(delta: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A matrix of delta's shape (out, in) and singular values, whose singular vectors are random."""
    raise NotImplementedError


check("10.1", random_twin)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def random_twin(delta, generator):
#     S = torch.linalg.svdvals(delta)
#     U, V = (torch.linalg.qr(torch.randn(size, len(S), generator=generator)).Q for size in delta.shape)
#     return (U * S) @ V.T
# ```
# </details>

# %% [markdown]
# ## Step 3. Can forgetting be predicted from the weights alone?
#
# If so, no text has to be scored. In lesson 09 forgetting and intruders rose together. But the size of the update rose too, and
# sizes are easier to compute. **Which of them predicts forgetting, and what do the others add?**
#
# It is easy to answer such a question wrongly: look at the runs, find a correlation, and write it down. Therefore the
# hypotheses were fixed first, and the runs are new: another task, and rank, learning rate, scaling and length drawn at random.

# %%
for key, text in forgetting_sweep.HYPOTHESES.items():
    print(f"{key:12s} {text}")

# %% [markdown]
# **Predict.** Which of H1 to H5 will hold? (These five are this lesson's own. LoRAHub's claims H1 to H5 are others.)

# %%
predict("10.a", "Which of these predicts forgetting best?", [forgetting_tables.LABELS[name] for name in MEASURES])

# %% tags=["hide-output"] jupyter={"outputs_hidden": true}
predicted = results.committed_study("intruders_predict")
runs = forgetting_tables.quantities(predicted["rows"]) if predicted else []
lost = sum(bool(row["diverged"]) for row in predicted["rows"]) if predicted else 0
forgetting_tables.correlations_table(predicted["rows"], caption=f"{len(runs)} runs; {lost} more diverged.") if runs else "not measured yet"

# %% tags=["hide-input", "hide-output"] jupyter={"source_hidden": true, "outputs_hidden": true}
if runs:
    figure, plots = plt.subplots(2, 2, figsize=(7, 5.6), layout="constrained", sharey=True)
    forgotten, rhos = [run["forgetting"] for run in runs], {}
    for axes, name in zip(plots.flat, MEASURES, strict=True):
        values = [run[name] for run in runs]
        rhos[name] = correlate(values, forgotten)
        full = [run["effective_rank"] > 100 for run in runs]  # spread over many directions, as full fine-tuning is
        for broad, marker, colour in ((False, "o", figures.COLOURS[0]), (True, "^", figures.COLOURS[1])):
            chosen = [i for i, is_full in enumerate(full) if is_full == broad]
            axes.scatter([values[i] for i in chosen], [forgotten[i] for i in chosen], s=20, marker=marker, color=colour)
        axes.set(xlabel=forgetting_tables.LABELS[name], title=f"ρ = {rhos[name]}")
    compare("10.a", forgetting_tables.LABELS[max(rhos, key=lambda name: rhos[name].rho)])
    for axes in plots[:, 0]:
        axes.set_ylabel("forgetting (nats)")
    panels.show(
        figure,
        alt="Forgetting against four measures of the update, one point a run; triangles are updates of an effective rank "
        "above 100. Spearman's rho: " + ", ".join(f"{forgetting_tables.LABELS[n]} {rho}" for n, rho in rhos.items()) + ".",
    )

# %% tags=["hide-output"] jupyter={"outputs_hidden": true}
verdicts = judge(runs) if runs else {}
Table(
    ("hypothesis", "held", "because"),
    tuple((f"{key}. {forgetting_sweep.HYPOTHESES[key]}", "yes" if v["held"] else "no", v["because"]) for key, v in verdicts.items()),
)

# %% [markdown]
# **Read it.** A point is a run. Look for runs on the left edge of the first panel, without any intruder: how much did they
# forget? Then for the triangles, which change a matrix in many directions at once: their nuclear norm is large, and they
# forget little. In the first runs the nuclear norm was the best measure. In the new runs it is the worst. This is why
# hypotheses are written down first.
#
# The plain relative size of the update has the largest rho. The mean strength $\sigma_1/\sigma_{10}$ is so close that these
# runs do not separate the two. They show nothing that a count of intruders adds to the size (the middle column of the
# table). No SVD is needed.
#
# ### Try it 10.2 and 10.3: a rank correlation, and what one measure adds
# *Difficulty 2 and 3 of 5, fifteen minutes. Common bug: taking `argsort` for ranks; it lists places.*
#
# Forgetting has a long tail: a few runs lose everything. So take ranks.


# %%
def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rho of two samples of one length; equal values share the mean of their ranks."""
    raise NotImplementedError


check("10.2", rank_correlation)


# %%
def partial_rank_correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """The rank correlation of x and y once a straight line in the ranks of `given` is taken out of both."""
    raise NotImplementedError


check("10.3", partial_rank_correlation)

# %% [markdown]
# <details><summary>Solutions</summary>
#
# ```python
# from scipy.stats import rankdata
#
# def rank_correlation(x, y):
#     return np.corrcoef(rankdata(x), rankdata(y))[0, 1]
#
# def partial_rank_correlation(x, y, given):
#     xy, xz, yz = rank_correlation(x, y), rank_correlation(x, given), rank_correlation(y, given)
#     return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
# ```
# </details>

# %% [markdown]
# ### The same question on modules that nobody trained for it
#
# The zoo's modules all have one rank, one learning rate and one length, and are trained on all thirty layers. They
# differ in their task. Can the same measures order *them*? This part runs here.

# %%
plain = texts.load(tokenizer, sequences=16, fetch=profile.name != "tiny")
print(f"{len(plain.sequences)} sequences of {plain.sequences.shape[1]} tokens: {plain.label}")
judged, _ = pretrained.load(profile, dtype="bfloat16")  # a difference of two losses: bfloat16 does
before = text_loss(judged, plain.sequences)
forgot = {}
for name, file in zip(names, files, strict=True):
    adapter_files.put_adapter(judged, file, name)
    forgot[name] = text_loss(judged, plain.sequences) - before
    adapters.set_adapter(judged, None)
order = sorted(forgot, key=forgot.get)
print(f"loss on text before: {before:.2f}; least forgotten by {order[0]} ({forgot[order[0]]:+.2f}), most by {order[-1]} ({forgot[order[-1]]:+.2f})")

# %%
by_module = {
    "intruders, ε = 0.5": [alone[name].intruders[0] for name in names],
    "mean σ₁(ΔW)/σ₁₀(W₀)": [statistics.fmean(row.spike_ratio for row in alone[name].rows) for name in names],
    "mean ‖ΔW‖/‖W₀‖": [statistics.fmean(row.relative_size for row in alone[name].rows) for name in names],
    "nuclear norm of ΔW": [sum(row.nuclear_norm for row in alone[name].rows) for name in names],
}
zoo_rho = {label: correlate(values, [forgot[name] for name in names]) for label, values in by_module.items()}
Table(
    ("measure", "Spearman's rho with forgetting", "95 % interval"),
    tuple((label, f"{rho.rho:.2f}", f"{rho.low:.2f} to {rho.high:.2f}") for label, rho in zoo_rho.items()),
    f"{len(names)} modules of one recipe.",
)

# %% [markdown]
# **Read it.** Twenty modules make wide intervals: look at the intervals before the values. And look at the size of the
# forgetting itself: these modules have almost no intruders.
#
# ## Step 4. Your own question
#
# Use any adapter: a module of the zoo, your adapter from lesson 03, an adapter that PEFT saved, a composition. The page below
# has everything that the course can measure. Each figure has its control: the base model, the merged model, and the same update
# made smaller.

# %%
ADAPTER: str | Path | adapter_files.AdapterFile = files[names.index("past")]  # or a folder: "runs/train/adapter"
TASK = "past_upper"  # one of lorahub_edu.data.tasks, or "" for none

examine(ADAPTER, task=TASK, test_items=30, sequences=32)

# %% [markdown]
# Questions that this page can answer and nobody has: does an adapter with a rank-stabilised scaling forget less at the same
# loss? Do two adapters of one task share directions? Does DoRA leave fewer intruders than LoRA? Does a smaller factor on the
# whole update cost you anything on *your* task? Write the hypothesis down first.
#
# On the command line: `lorahub-edu report FOLDER --task NAME`, and `lorahub-edu intruders FOLDER` for the matrices.

# %% [markdown]
# ## Your predictions
#
# Here are all the predictions that you made in this course. *Close* means within 15 % of the slider's length, or the
# right choice. Where were you sure and wrong?

# %%
predictions.table()

# %% [markdown]
# The picture shows how far off you were. For a number it is the factor between your guess and the measured value (100
# stands for all larger factors), for a curve the mean distance of its points.

# %%
predictions.calibration()

# %% [markdown]
# ## Findings

# %% tags=["hide-input"] jupyter={"source_hidden": true}
found = []
if composed["rows"]:
    mean_part = statistics.fmean(shipped_parts)
    for search in sorted({row["search"] for row in composed["rows"]}):
        more = [row["intruders"][0] - mean_part for row in composed["rows"] if row["search"] == search and row["variant"] == "found"]
        shown = "shown" if min(more) > 0 else "refuted here" if max(more) <= 0 else "not shown here"
        found.append(Row(f"X1.more_than_its_parts.{search}", more, "intruders above a single module's mean", shown, f"{len(more)} compositions; shown if every one has more", study=composed))
        saved = [-gap for gap in paired("no signs", search)]
        cancel = "shown" if min(saved) > 0 else "refuted here" if statistics.median(saved) <= 0 else "not shown here"
        found.append(Row(f"X1.negative_weights_cancel.{search}", saved, "intruders more without the signs", cancel, "shown if every composition has more intruders once its weights are all positive", study=composed))
for name in MEASURES if runs else ():
    rho = rhos[name]
    found.append(Row(f"X4.rho.{name}", [rho.rho], "Spearman's rho with forgetting over fresh runs", "shown" if rho.low > 0 else "refuted here" if rho.high < 0 else "not shown here", f"{len(runs)} runs, 95 % interval {rho.low:.2f} to {rho.high:.2f}", study=predicted))
for key, v in verdicts.items():
    found.append(Row(f"X4.{key}", [v["held"]], "1 if the hypothesis held as it was written", "shown" if v["held"] else "refuted here", f"{forgetting_sweep.HYPOTHESES[key]}: {v['because']}", study=predicted))
for label, rho in zoo_rho.items():
    sure = "shown" if rho.low > 0 else "refuted here" if rho.high < 0 else "not shown here"
    found.append(Row(f"X4.zoo.{label}", rho.rho, "Spearman's rho over the zoo's modules", sure, f"95 % interval {rho.low:.2f} to {rho.high:.2f}"))

# %%
publish("10", found, profile)

# %% [markdown]
# ## Do you know it?
#
# Three questions on this lesson, and two on earlier ones. Answer first, then open. Nothing is graded.

# %%
recall("10")

# %% [markdown]
# ## What to remember
#
# - An intruder dimension says that an update is strong and concentrated. Everything that makes an update strong makes
#   intruders: a learning rate, a scaling, twenty modules that pull the same way.
# - A control differs in one thing. Without *all positive*, *random directions* and *shrunk*, a count of intruders says
#   nothing about the cause.
# - Fix the hypotheses before the runs, give intervals, and keep the runs that disagree.
#
# ## Go further
#
# - Shuttleworth et al. 2024, *LoRA vs Full Fine-tuning: An Illusion of Equivalence*, arXiv 2410.21228: section 4 for the
#   definition, section 5 for what it costs.
# - Make the studies again: `python benchmarks/composed_intruders.py`, `lorahub-edu intruders sweep --study predict`.
# - On a 24 GB GPU: the same lesson with `LORAHUB_EDU_PROFILE=gpu24`.
#
# **Next:** a question of your own. If a figure of yours disagrees with a published one, that is a finding: keep it, with its spread.
