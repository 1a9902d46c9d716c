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
# # 00 · Start here
#
# **This course shows what LoRA is, what it can be composed into, and what it does to a model. You measure the claims of
# its sources on your own machine. The findings mark those that need a larger one.**
#
# After this page you will be able to
#
# - say what the lessons show and in which order;
# - tell whether your machine is ready, and choose a profile;
# - use checks, predictions and findings tables;
# - read the notation.
#
# *You need:* Python and a little PyTorch. *Sources:* the LoRA paper (Hu et al. 2021, arXiv 2106.09685) with Raschka's
# articles on LoRA and LLaMA; LoRAHub (Huang et al. 2023, arXiv 2307.13269); LoRA against full fine-tuning (Shuttleworth
# et al. 2024, arXiv 2410.21228).

# %%
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from lorahub_edu.cli import doctor
from lorahub_edu.models import pretrained
from lorahub_edu.show import lessons
from lorahub_edu.show.notebook import PROFILES, Table, check, figures, get_profile, open_lesson, panels, recall

profile = get_profile()
open_lesson("00_start_here")

# %% [markdown]
# ## 1 · What the course shows
#
# - A large pretrained model can be adapted by training two thin matrices beside each of a few large ones: **LoRA**.
# - Many such adapters can be **composed** into one for a new task: **LoRAHub**.
# - LoRA often leaves a mark in the weights, **intruder dimensions**. In this course's runs full fine-tuning left none.
#   Does the mark matter? You will measure that, too.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
stations = [
    ("LoRA", "lessons 01, 02", "W stays, B·A is added", "01"),
    ("LLaMA on Alpaca", "lessons 03-05", "an adapter learns\nto follow instructions", "03"),
    ("LoRAHub", "lessons 06, 07", "w₁·ΔW₁ + w₂·ΔW₂ + …\nfor a task none has seen", "06"),
    ("Intruder dimensions", "lessons 08, 09", "new directions in W:\nwhat do they cost?", "08"),
]
figure, axes = plt.subplots(figsize=(9, 2.2))
axes.set(xlim=(0, 4), ylim=(0, 1))
axes.axis("off")
for i, (name, where, idea, _) in enumerate(stations):
    colour = figures.COLOURS[i]
    axes.add_patch(FancyBboxPatch((i + 0.05, 0.12), 0.78, 0.76, boxstyle="round,pad=0.02", facecolor="white", edgecolor=colour,
                                  linewidth=2, linestyle=figures.LINES[i]))  # fmt: skip
    axes.text(i + 0.44, 0.74, name, ha="center", va="center", weight="bold", fontsize=10)
    axes.text(i + 0.44, 0.47, idea, ha="center", va="center", fontsize=8)
    axes.text(i + 0.44, 0.2, where, ha="center", va="center", fontsize=8, color="#555555")
    if i:
        axes.add_patch(
            FancyArrowPatch((i - 0.13, 0.5), (i + 0.02, 0.5), arrowstyle="-|>", mutation_scale=12, color="#555555")
        )
panels.show(figure, alt="Four stations from left to right: LoRA, LLaMA on Alpaca, LoRAHub, intruder dimensions.")

# %% [markdown]
# Each station builds on the one before. These lessons are in this edition:

# %%
print("\n".join(lessons.names()))

# %% [markdown]
# ## 2 · Is your machine ready?
#
# - The **doctor** looks at everything that the course needs. Where something is missing, it says what to do. On the
#   command line it is `lorahub-edu doctor`.
# - **Predict:** which line will not be ok on your machine?

# %%
checks = doctor.diagnose(profile.name)
Table(
    ("", "question", "answer", "what to do"),
    tuple(
        (
            "ok" if c.ok else "MISSING" if c.required else "optional",
            c.name,
            c.detail.replace("\n", " "),
            "" if c.ok else c.advice,
        )
        for c in checks
        if c.name in ("Python", "torch", "Device", "Model", "Data")
    ),
    "Run `lorahub-edu doctor` for all lines.",
)

# %% [markdown]
# ## 3 · Three profiles, one course
#
# - A **profile** carries every number that differs between machines: the model, the batch, the steps. The lessons read
#   these numbers; their code is the same everywhere. Choose one with the environment variable `LORAHUB_EDU_PROFILE`.
# - To try other numbers in a lesson, change its line to `profile = get_profile().changed(rank=4, train_steps=20)` and run
#   the lesson again from there. You can run any cell twice, and you can stop a cell (■) and run it again.

# %%
print(f"This run uses the profile {profile.name!r}.")
shown = ["base_model", "dtype", "device", "train_rows", "block_size"]
shown += ["batch_size", "train_steps", "learning_rate", "rank"]
Table(
    ("", *PROFILES),
    tuple((key, *(str(getattr(p, key)) for p in PROFILES.values())) for key in shown),
    "tiny: random weights, for tests. cpu: a real pretrained LLaMA on a laptop. gpu24: one GPU with 24 GB.",
)

# %% [markdown]
# **Predict:** how many parameters does the profile's model have, and how many bytes is that?

# %%
model, tokenizer = pretrained.load(profile)
parameters = sum(p.numel() for p in model.parameters())
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(
    f"{type(model).__name__} {profile.base_model}: {parameters:,} parameters, {size / 1e6:,.0f} MB in {profile.dtype}"
)
print(tokenizer.tokenize("Low-rank adaptation."))

# %% [markdown]
# That is a real `LlamaForCausalLM` of the transformers library (with `tiny`, one with random weights), and the
# tokenizer that cuts text into the pieces it reads. Lesson 02 opens it up.

# %% [markdown]
# ## 4 · How a lesson works
#
# - Before every result there is a **prediction**: write it down, on paper if you like. Being wrong is how this course
#   works. Some predictions have a panel with a *Keep* button. The saved result is folded until you run its cell, or click
#   on its dots. Your guess then stands beside the measured value, and lesson 10 shows all your guesses.
# - A **check** looks at something you wrote. It tests properties on fresh inputs, says what it saw, names the probable
#   mistake, and gives one more hint for each new answer. "Public checks passed" is a good sign, not a proof.
#
# **00.1 The scaling factor** · difficulty 1 of 5 · 2 minutes · *common bug:* forgetting to divide.
#
# LoRA adds (α / r) · B · A to a weight matrix. Write `scaling(alpha, rank)`: the factor in front of B · A.


# %%
def scaling(alpha: float, rank: int) -> float:
    raise NotImplementedError


check("00.1", scaling)

# %% [markdown]
# The function is still empty, so the check says *not tried yet*. Here is what it says to a wrong answer; click to read
# the hint:

# %%
check("00.1", lambda alpha, rank: alpha)

# %% [markdown]
# <details><summary>One solution</summary>
#
# ```python
# def scaling(alpha, rank):
#     return alpha / rank
# ```
# </details>
#
# - Every lesson ends with **findings**, one card a claim: the source's figure, what this course measured (with its day),
#   and what *your* run measured. A dash means that your run did not measure it. Most figures have a verdict: **shown**,
#   **not shown here**, or **refuted here**. **Exploratory** means that no rule which fits the claim was written before
#   the data. A figure about which the source claims nothing has no verdict. Open a card to read what its verdicts rest
#   on. If a claim does not hold at this size, the card says so. No claim is tuned until it holds.

# %% [markdown]
# ## 5 · Where you are
#
# - The course notes on your own machine which lessons you have run to their end, which checks you have passed, and the
#   points of assignments that you graded yourself. There is no account and nothing is sent. `lorahub-edu progress`
#   shows the same; set `LORAHUB_EDU_PROGRESS=off` if you want nothing kept.

# %%
of_lessons, of_assignments = lessons.progress_tables()
of_lessons

# %%
of_assignments

# %% [markdown]
# ## 6 · Notation
#
# The course writes what the PEFT library writes. The sources differ:

# %%
Table(
    ("here", "shape", "LoRA paper", "the article on LoRA", "LoRAHub's text"),
    (
        ("W", "(out, in)", "W₀", "W, (in, out): it multiplies x·W", "W₀"),
        ("A", "(r, in)", "A", "W_A, (in, r)", "B"),
        ("B", "(out, r)", "B", "W_B, (r, out)", "A"),
        ("ΔW = (α/r)·B·A", "(out, in)", "(α/r)·B·A", "α·W_A·W_B, transposed", "A·B"),
        ("r, rank", "number", "r", "r", "r"),
        ("α, alpha", "number", "α", "alpha, not divided by r", "(1)"),
    ),
)

# %% [markdown]
# The product is the same everywhere: a tall matrix times a flat one. Only the names change: what one source calls A,
# another calls B. Every term is in the [glossary](../docs/glossary.md).

# %% [markdown]
# ## Do you know it?
#
# Three questions. Answer first, then open. Nothing is graded.

# %%
recall("00")

# %% [markdown]
# ## What to remember
#
# - `lorahub-edu doctor` says what is missing. A profile adapts the course to the machine.
# - Predict first, then run.
# - ΔW = (α/r)·B·A, with A (r, in) and B (out, r).
#
# **Go further:** all lessons without a browser: `make course`. **Next:** 01, LoRA from scratch.
