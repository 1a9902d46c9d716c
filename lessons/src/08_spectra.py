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
# # 08 · Two ways to move a matrix
#
# **Promise.** You train the same layers twice to the same loss, by LoRA and in full. You look inside the matrices and find out
# what LoRA leaves there, what full fine-tuning does not leave, and when.
#
# **You will be able to**
# - say what the singular vectors of a layer are, and compare those of two matrices in one picture,
# - count *intruder dimensions* by the paper's algorithm, and say what its two settings do to the count,
# - tell beforehand, from one number a matrix, where intruders will appear,
# - count them without a single SVD of the tuned matrix, and prove that none was missed.
#
# **You need** lesson 01 (LoRA's $A$ and $B$, rank, scaling, SVD) and lesson 03 (a training run).
#
# **It covers** *LoRA vs Full Fine-tuning: An Illusion of Equivalence* (Shuttleworth et al. 2024, arXiv 2410.21228),
# sections 3 and 4: claims I1 to I7 and I10, and X6 of Schulman et al. 2025. What it costs a model, sections 5 and 6, is lesson 09.
#
# **It takes:**

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import html
import statistics
import tempfile
import time

import matplotlib.pyplot as plt
import numpy as np
import torch

from lorahub_edu.data import sequence_tasks
from lorahub_edu.forgetting.hidden import Tail
from lorahub_edu.forgetting.lab import scaling
from lorahub_edu.forgetting.tails import Tuning, train
from lorahub_edu.models import pretrained
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
    publish,
    recall,
    results,
    verdict,
)
from lorahub_edu.spectra import measures
from lorahub_edu.spectra.bases import BaseSpectra
from lorahub_edu.spectra.intruders import IntruderCounts, MatrixReport, count
from lorahub_edu.spectra.solver import secular
from lorahub_edu.spectra.updates import Update
from lorahub_studies import forgetting_tables

open_lesson("08_spectra")

# %% [markdown]
# ## Step 1. A matrix as a list of directions
#
# The **singular value decomposition** (SVD) writes a matrix as a sum of parts of rank one:
#
# $$W = \sum_i \sigma_i\, u_i v_i^\top, \qquad \sigma_1 \ge \sigma_2 \ge \dots \ge 0.$$
#
# - A layer computes $Wx$. Part $i$ measures how much of the direction $v_i$ is in $x$. It multiplies this by the **singular
#   value** $\sigma_i$ and writes the result along $u_i$.
# - The $v_i$ are the **right singular vectors**: the directions that the layer reads. The $u_i$ are the **left** ones: the
#   directions that it writes. Each set is orthonormal: length 1, at right angles.
#
# We take the last layer's `down_proj`. Its output goes straight into the output head. So its left vectors can be
# *read*: which tokens does each one make more likely?
#
# **Predict.** How many of the directions carry half of the matrix (of $\sum_i \sigma_i^2$): a handful, a tenth, half?

# %%
profile = get_profile()
model, tokenizer = pretrained.load(profile)
tail = Tail(model, layers=min(6, model.config.num_hidden_layers // 4))  # what we train; its weights kept in float32
name = [n for n in tail.names if n.endswith("down_proj")][-1]
W0 = tail.original[name]  # (out, in)
U0, S0, Vh0 = torch.linalg.svd(W0, full_matrices=False)  # (out, p), (p,), (p, in); vectors are columns of U0, rows of Vh0
assert torch.allclose(W0 @ Vh0[3], S0[3] * U0[:, 3], atol=1e-4), "W0 turns v into σ u"
share = (S0.square().cumsum(0) / S0.square().sum()).numpy()  # (p,)
half = int((share < 0.5).sum()) + 1
print(f"{name}: {tuple(W0.shape)}, {len(S0)} directions; σ₁ {S0[0]:.2f}, σ₁₀ {S0[9]:.2f}, the last {S0[-1]:.2f}")
print(f"half of Σσ² lies in the first {half}")


# %%
@torch.no_grad()
def tokens_along(direction: torch.Tensor, most: int = 6) -> tuple[str, str]:
    """The tokens that a vector of the output space makes more likely, and those that its opposite does."""
    head = model.get_output_embeddings().weight.float()  # (vocabulary, d)
    logits = head @ (model.get_decoder().norm.weight.float() * direction)  # (vocabulary,)
    sides = (logits.topk(most).indices, (-logits).topk(most).indices)
    return tuple(" ".join(tokenizer.decode([token]).strip() or "␣" for token in side.tolist()) for side in sides)


for i in range(6):
    along, against = tokens_along(U0[:, i])
    print(f"{i + 1}. σ = {S0[i]:5.2f}   u: {along:52s} −u: {against}")

# %% [markdown]
# **Read it.** Some lines have a theme and some do not. A direction need not have a meaning that a word can express.
# Look at the two sides: $u_i$ and $-u_i$ are *one* direction, because $(-u_i)(-v_i)^\top$ is the same part. Which of
# the two an SVD returns is arbitrary. So directions are compared by the *absolute value* of their **cosine**. For vectors
# of length 1 the cosine is the inner product: 1 for the same direction, 0 at right angles.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.3), width_ratios=(1, 1.3))
small = np.array([[1.6, 0.9], [0.1, 1.1]])
u, s, vh = np.linalg.svd(small)
signs = np.sign(vh[:, :1])  # an accident, as said: drawn so that they point to the right
u, vh = u * signs.T, vh * signs
circle = np.stack([np.cos(np.linspace(0, 2 * np.pi, 90)), np.sin(np.linspace(0, 2 * np.pi, 90))])  # (2, 90)
left.plot(*circle, "--", color="#888888", linewidth=1)
left.plot(*(small @ circle), color=figures.COLOURS[0])
for i in range(2):
    side = np.sign(vh[i, 0] * u[1, i] - vh[i, 1] * u[0, i])  # which way round from v to u: the labels stand outside
    arrows = ((vh[i], "v_", "#555555", -side), (s[i] * u[:, i], f"\\sigma_{i + 1} u_", figures.COLOURS[1], side))
    for end, text, colour, way in arrows:
        left.annotate("", end, (0, 0), arrowprops={"arrowstyle": "->", "color": colour})
        beside = (end + way * np.array([-end[1], end[0]])) / np.linalg.norm(end)
        where = {"textcoords": "offset points", "ha": "center", "va": "center", "color": colour}
        left.annotate(f"${text}{i + 1}$", end, 9 * beside, **where)
left.set(aspect="equal", title="a 2 × 2 matrix: circle to ellipse")
left.margins(0.25)
right.semilogy(np.arange(1, len(S0) + 1), S0.numpy(), color=figures.COLOURS[0])
right.plot(10, S0[9], "*", color="black", markersize=12)
right.annotate("$\\sigma_{10}$", (10, float(S0[9])), (8, 4), textcoords="offset points")
right.set(xlabel="i", ylabel="singular value", title=f"last down_proj: half of it in the first {half}")
panels.show(
    figure,
    alt="Left: a matrix turns a circle into an ellipse; its axes lie along the left singular vectors and are as long as "
    f"the singular values. Right: the {len(S0)} singular values of a real layer, from {S0[0]:.1f} down to {S0[-1]:.2f}; "
    f"the tenth is {S0[9]:.2f}, and half of the sum of squares lies in the first {half}.",
)

# %%
noise = torch.randn(len(U0), 200, generator=torch.Generator().manual_seed(0))
chance = (U0.T @ (noise / noise.norm(dim=0))).abs().max(0).values  # (200,) of random directions
print(f"largest |cos| of a random direction with any of the {U0.shape[1]} left vectors: {chance.mean():.2f} ({chance.min():.2f} to {chance.max():.2f})")

# %% [markdown]
# **Read it.** Remember that last line. Take a direction that has nothing to do with $W_0$, in a space of so many
# dimensions. Its largest cosine with the vectors of $W_0$ is not quite zero, and far from 1.
#
# ## Step 2. Train twice, to one loss
#
# - **The task** is small and new to the model: reverse the order of the words.
# - **The tail.** We train all matrices of the last layers only. The output of the layers below never changes for a row,
#   so it is computed once.
# - **Full fine-tuning** changes the matrices themselves. **LoRA** adds $\gamma BA$ to each, with the scaling $\gamma =
#   \alpha/r$. We take the lowest rank, $r = 1$, and a high one, $r = 64$. Both follow the paper's rule $\alpha = 2r$,
#   so $\gamma = 2$ at every rank.
# - We train rank 64 three times: in a *hurry* (a high learning rate), with *patience* (a third of that rate), and in a
#   hurry with a smaller $\gamma$. This last one is **rank-stabilised**: $\gamma = 8/\sqrt{r}$, which is 1 here.
# - **Equal loss.** A run stops at the first evaluation where its loss on held-out rows has halved. Then no run has
#   simply learned more than another.

# %%
TASK, STEPS = "reverse", min(60, 5 * profile.train_steps)
LOOKS = range(18, STEPS + 1, 3)
rows = sequence_tasks.split(TASK, train=8 * STEPS, settling=1, validation=64)  # 8 rows a step, none of them twice
rows_to_train = tail.cache(sequence_tasks.encode(tokenizer, rows.train))
held = tail.cache(sequence_tasks.encode(tokenizer, rows.validation)).batches()
base_loss = tail.loss(held)
print(f"{rows.train[0].instruction} {rows.train[0].input!r} → {rows.train[0].output!r}")
print(f"{len(tail.names)} matrices in the last {tail.layers} layers; loss before: {base_loss:.2f} nats, target {base_loss / 2:.2f}")

# %%
R1, HURRY, STABLE, PATIENT, FULL = "r = 1", "r = 64, hurry", "r = 64, stabilised", "r = 64, patience", "full"
RUNS = {
    R1: Tuning(1.5e-2, STEPS, rank=1, scaling=scaling("alpha = 2r", 1)),
    HURRY: Tuning(5e-3, STEPS, rank=64, scaling=scaling("alpha = 2r", 64)),
    STABLE: Tuning(5e-3, STEPS, rank=64, scaling=scaling("rank-stabilised", 64)),
    PATIENT: Tuning(1.5e-3, STEPS, rank=64, scaling=scaling("alpha = 2r", 64)),
    FULL: Tuning(1e-3, STEPS),
}
trained = {
    label: train(tail, rows_to_train, tuning, validation=held, texts=None, at=LOOKS, target_loss=base_loss / 2)
    for label, tuning in RUNS.items()
}

# %%
ended = {label: run.points[-1] for label, run in trained.items()}
lines = [
    (label, f"{RUNS[label].learning_rate:g}", f"{RUNS[label].scaling:g}" if RUNS[label].rank else "–", f"{point.step}", f"{point.validation_loss:.2f}", f"{trained[label].cpu_seconds:.0f} s")
    for label, point in ended.items()
]  # fmt: skip
Table(("run", "learning rate", "scaling", "steps", "held-out loss (nats)", "processor time"), tuple(lines))

# %%
figure, axes = plt.subplots()
curves = {
    label: ([0, *(p.step for p in run.points)], [base_loss, *(p.validation_loss for p in run.points)])
    for label, run in trained.items()
}
figures.plot_series(axes, curves, "optimizer step", "held-out loss (nats a token)")
axes.axhline(base_loss / 2, color="black", linewidth=0.8)
lowest, highest = (pick(point.validation_loss for point in ended.values()) for pick in (min, max))
panels.show(
    figure,
    alt=f"Held-out loss against the step for {len(RUNS)} runs, from {base_loss:.2f} at the start. They end between {lowest:.2f} "
    f"and {highest:.2f}: " + ", ".join(f"{label} after {point.step} steps" for label, point in ended.items()) + ".",
)

# %% [markdown]
# **Read it.** The loss does not distinguish these models.
#
# ## Step 3. Compare the vectors
#
# Take the SVD of a matrix before and after, and the |cosine| of *every* tuned left vector with *every* pretrained one: a
# square picture. If nothing had changed, it would be bright on the diagonal and dark elsewhere.
#
# **Predict.** Five pictures, one loss. Draw what you expect for $r = 1$ and for full fine-tuning. Which of the three runs with
# $r = 64$ is more like the one, which like the other?
#
# We look at the matrix in which LoRA with $r = 1$ has the least familiar vector. The course's `count` finds it among
# all matrices; step 8 shows how `count` works.

# %%
K, EPSILON = 10, 0.5
folder = tempfile.TemporaryDirectory()
one_off: list[float] = []  # seconds
spectra = BaseSpectra(folder.name, report=one_off.append)  # the base's own SVDs: once, then read from disk
report: dict[str, IntruderCounts] = {label: count(run.updates, spectra, k=K) for label, run in trained.items()}
print(f"spectra of {len(one_off)} base matrices, computed once: {sum(one_off):.0f} s")
rows_of = {label: {row.name: row for row in found.rows} for label, found in report.items()}
shown = min(rows_of[R1], key=lambda n: min(rows_of[R1][n].cosines))
tuned = {label: {update.name: update for update in run.updates} for label, run in trained.items()}


# %%
def left_vectors(matrix: torch.Tensor) -> torch.Tensor:
    """The left singular vectors, strongest first: (out, p), columns."""
    return torch.linalg.svd(matrix, full_matrices=False).U


before = left_vectors(tail.original[shown])
pictures = {label: (left_vectors(of[shown].weight()).T @ before).abs() for label, of in tuned.items()}  # (p, p)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
WINDOW = 24
figure, plots = plt.subplots(1, len(pictures), figsize=(12.5, 2.9), sharey=True, layout="none")
figure.subplots_adjust(left=0.06, right=0.92, bottom=0.2, wspace=0.15)
for axes, (label, picture) in zip(plots, pictures.items(), strict=True):
    image = axes.imshow(picture[:WINDOW, :WINDOW], cmap="cividis", vmin=0, vmax=1)
    strange = (picture[:WINDOW].max(1).values < EPSILON).nonzero().flatten().tolist()
    axes.plot([WINDOW + 0.4] * len(strange), strange, "<", color=figures.COLOURS[1], markersize=6, clip_on=False)
    axes.set(title=label, xlabel="pretrained vector", xlim=(-0.5, WINDOW - 0.5))
    axes.title.set_fontsize(9)
    axes.grid(False)
plots[0].set_ylabel("tuned vector\n(0: the strongest)")
figure.colorbar(image, ax=plots, label="|cosine|", fraction=0.012, pad=0.03)
diagonal = {label: float(picture.diagonal()[:WINDOW].mean()) for label, picture in pictures.items()}
likeness = {label: picture.max(1).values for label, picture in pictures.items()}  # (p,) of each tuned vector
unlike = {label: int((best[:WINDOW] < EPSILON).sum()) for label, best in likeness.items()}
panels.show(
    figure,
    alt=f"{len(pictures)} squares of |cosines| for {shown}, the {WINDOW} strongest tuned vectors against the {WINDOW} strongest "
    "pretrained ones. Mean of the diagonal, and rows that resemble no pretrained vector, marked by triangles: "
    + "; ".join(f"{label} {diagonal[label]:.2f}, {n}" for label, n in unlike.items()) + ".",
)  # fmt: skip

# %%
figure, axes = plt.subplots()
FIRST = min(100, len(before.T))
for place, (label, best) in enumerate(likeness.items()):
    style = figures.line_style(place) | {"linestyle": "none"}
    axes.plot(range(1, FIRST + 1), best[:FIRST], label=label, markersize=4, alpha=0.8, **style)
axes.axhline(EPSILON, color="black", linewidth=0.8)
axes.axvline(K + 0.5, color="black", linewidth=0.8, linestyle=":")
axes.set(xlabel="tuned vector, strongest first", ylabel="largest |cosine| with\nany pretrained vector", ylim=(0, 1.03))
axes.legend(frameon=False, fontsize=8)
corner = {label: int((best[:K] < EPSILON).sum()) for label, best in likeness.items()}
panels.show(
    figure,
    alt=f"The largest |cosine| of the first {FIRST} tuned vectors of {shown}. In the corner below {EPSILON} among the first "
    f"{K}: " + ", ".join(f"{label} {n}" for label, n in corner.items()) + ".",
)

# %%
by_matrix = {label: [statistics.fmean(row.cosines) for row in found.rows] for label, found in report.items()}
lines = [
    (label, f"{best.mean():.2f}", f"{best[:K].mean():.2f}", f"{statistics.fmean(by_matrix[label]):.3f}", f"{min(by_matrix[label]):.2f}")
    for label, best in likeness.items()
]  # fmt: skip
print(f"a random direction would have {chance.mean():.2f}")
Table(("run", f"all {len(before.T)} vectors of this matrix", f"its {K} strongest", f"{K} strongest of every matrix, mean", "lowest matrix"), tuple(lines), "Mean of the largest |cosines|.")

# %% [markdown]
# **Read it.** A bright diagonal says: every direction is still there, as strong as it was. Where the diagonal blurs,
# neighbours have mixed. Their singular values lie close together, so a small push turns one into the other. A cosine
# between 0.6 and 1 therefore says little. A row without any bright field says more. So does a point at the bottom
# **left** of the second picture: it is a strong vector that is like nothing the model had before.
#
# ## Step 4. Intruder dimensions
#
# The paper's definition looks at the $k$ strongest singular vectors of a tuned matrix. Such a vector is an **intruder
# dimension** if its largest |cosine| with *all* pretrained vectors is below $\varepsilon$. The paper's released code
# takes $k = 10$ and $\varepsilon = 0.5$, and left vectors.
#
# ### Try it 08.1: the largest cosine of each strong vector
# *Difficulty 2 of 5, five minutes. Common bug: a signed cosine; or the comparison with the vector of the same number only.*


# %%
def largest_cosines(W0: torch.Tensor, W: torch.Tensor, k: int) -> torch.Tensor:
    """For each of the k strongest left vectors of W its largest |cosine| with any left vector of W0: (k,)."""
    raise NotImplementedError


check("08.1", largest_cosines)

# %% [markdown]
# ### Try it 08.2: count the intruders
# *Difficulty 1 of 5, five minutes. Common bug: counting every pair with a small cosine.*
#
# You get the picture of step 3: |cosines|, tuned vectors down, pretrained ones across.


# %%
def count_intruders(picture: torch.Tensor, k: int, epsilon: float) -> int:
    """How many of the k strongest tuned vectors resemble no pretrained one; picture is (tuned, pretrained)."""
    raise NotImplementedError


check("08.2", count_intruders)

# %% [markdown]
# <details><summary>Solutions</summary>
#
# ```python
# def largest_cosines(W0, W, k):
#     U0, U = (torch.linalg.svd(M, full_matrices=False).U for M in (W0, W))
#     return (U[:, :k].T @ U0).abs().max(dim=1).values
#
# def count_intruders(picture, k, epsilon):
#     return int((picture[:k].max(dim=1).values < epsilon).sum())
# ```
# </details>

# %% [markdown]
# Now the paper's algorithm, written out, on **every** matrix of the $r = 1$ run, against the course's `count`. Two SVDs
# for every matrix take some time.
#
# **Predict.** Will the two agree on all of them?


# %%
def count_by_definition(W0: torch.Tensor, W: torch.Tensor, k: int = K, epsilon: float = EPSILON) -> int:
    """Algorithm 1 of the paper: two SVDs, and for each strong vector a look at all pretrained ones."""
    U0, U = left_vectors(W0.double()), left_vectors(W.double())
    intruders = 0
    for i in range(k):
        cosines = (U[:, i] @ U0).abs()  # (p,)
        if cosines.max() < epsilon:
            intruders += 1
    return intruders


# %%
predict("08.a", "Which run leaves the most intruder dimensions?", list(RUNS))

# %%
def total(found: IntruderCounts, k: int = K, epsilon: float = EPSILON) -> int:
    """Intruders of a report at an ε, among the k strongest vectors or all that it looked at."""
    return sum(cosine < epsilon for row in found.rows for cosine in row.cosines[:k])

# %%
started = time.process_time()
slow = [count_by_definition(update.base, update.weight(torch.float64)) for update in trained[R1].updates]
slow_seconds = time.process_time() - started
started = time.process_time()
again = count(trained[R1].updates, spectra, k=K, epsilons=(EPSILON,))
fast_seconds = time.process_time() - started
fast = [row.intruders[0] for row in again.rows]
in_package = [measures.intruder_count(u.base, u.weight(torch.float64), K, EPSILON) for u in trained[R1].updates[:4]]
agreeing = sum(a == b for a, b in zip(slow, fast, strict=True))
print(f"{agreeing} of {len(slow)} matrices agree: {sum(slow)} intruders by definition, {sum(fast)} by count")
print(f"two SVDs a matrix: {slow_seconds:.1f} processor s; count: {fast_seconds:.1f} (and {sum(one_off):.1f} for the base, once)")
assert slow == fast and slow[:4] == in_package

# %% tags=["hide-output"] jupyter={"outputs_hidden": true}
lines = [(label, f"{ended[label].validation_loss:.2f}", str(total(found)), str(sum(any(c < EPSILON for c in row.cosines) for row in found.rows))) for label, found in report.items()]  # fmt: skip
compare("08.a", max(report, key=lambda label: total(report[label])))
Table(("run", "held-out loss", f"intruders of {K * len(tail.names)} vectors", f"matrices of {len(tail.names)} with any"), tuple(lines), f"k = {K}, ε = {EPSILON}.")

# %% [markdown]
# ### What k and ε decide
#
# **Predict.** At $\varepsilon = 0.5$ the runs differ. Is there an ε at which full fine-tuning has intruders too? And at
# what ε would a *random* direction not count as one?

# %%
every_epsilon = [round(float(e), 2) for e in np.arange(0.1, 0.96, 0.05)]
MOST = 30
deeper = {label: count(trained[label].updates, spectra, k=MOST) for label in report}


# %% tags=["hide-input"] jupyter={"source_hidden": true}
def draw_threshold(figure: plt.Figure, epsilon: float) -> str:
    """How many of all strong vectors have a largest cosine below any value, with ε marked, and the counts there."""
    axes = figure.subplots()
    for place, (label, found) in enumerate(report.items()):
        cosines = np.sort([c for row in found.rows for c in row.cosines])
        style = figures.line_style(place) | {"marker": None}
        axes.step([0, *cosines, 1], [0, *range(1, len(cosines) + 1), len(cosines)], where="post", label=label, **style)
    axes.axvline(epsilon, color="black", linewidth=1)
    axes.set(xlabel="largest |cosine|", ylabel=f"vectors below it\n(of {K * len(tail.names)})", yscale="symlog")
    axes.set(xlim=(0, 1), ylim=(0, 2 * K * len(tail.names)))
    axes.legend(frameon=False, fontsize=8)
    counts = ", ".join(f"{label} {total(found, epsilon=epsilon)}" for label, found in report.items())
    return html.escape(f"ε = {epsilon:.2f}: {counts} intruders")


panels.slider_panel("ε", every_epsilon, draw_threshold, start=EPSILON)

# %% [markdown]
# The same without a kernel, and over $k$:

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
over_epsilon = {label: (every_epsilon, [total(found, epsilon=e) for e in every_epsilon]) for label, found in report.items()}
ks = range(1, MOST + 1)
over_k = {label: (ks, [total(found, k) for k in ks]) for label, found in deeper.items()}
figures.plot_series(left, over_epsilon, f"ε (k = {K})", "intruders")
figures.plot_series(right, over_k, f"k (ε = {EPSILON})", "intruders")
left.set_yscale("symlog")
left.legend(frameon=False, fontsize=8)
right.get_legend().remove()  # the left one is for both
first_of_full = next((e for e, n in zip(*over_epsilon[FULL], strict=True) if n), None)
panels.show(
    figure,
    alt="Intruders against ε and against k. At ε = 0.5 and k = 10: "
    + ", ".join(f"{label} {total(found)}" for label, found in report.items())
    + (f". Full fine-tuning has its first at ε = {first_of_full}." if first_of_full else ". Full fine-tuning has none at any ε."),
)  # fmt: skip
print(f"first ε with an intruder in full fine-tuning: {first_of_full}; a random direction counts above {chance.max():.2f}")

# %% [markdown]
# **Read it.** ε is a convention. If it is too low, no vector counts; if it is too high, every vector that moved a little counts.
# The order of the runs matters more than a count at one ε. The counts grow with $k$, because weaker vectors have closer
# singular values and mix more easily. The paper's small $k$ selects the vectors that carry much.
#
# ## Step 5. How many directions does an update use?
#
# The change $\Delta W$ has singular values of its own. LoRA's change has at most $r$ of them, but do they all matter?
# The **effective rank** says how evenly large they are. With $p_i = \sigma_i / \sum_j \sigma_j$,
#
# $$\operatorname{erank} = \exp\Bigl(-\sum_i p_i \log p_i\Bigr),$$
#
# the exponential of the shares' entropy. $r$ equal values give $r$; one large value among small ones gives little more than 1.
#
# **Predict.** The effective rank of $r = 64$: near 64, a half of it, a few? And of full fine-tuning, out of hundreds?

# %%
effective = {label: [row.effective_rank for row in found.rows] for label, found in report.items()}
figure, axes = plt.subplots()
for place, (label, of) in enumerate(tuned.items()):
    values = of[shown].singular_values()
    style = figures.line_style(place) | {"markevery": max(1, len(values) // 8), "markersize": 5}
    axes.loglog(range(1, len(values) + 1), values / values.sum(), label=label, **style)
axes.set(xlabel="i", ylabel="σᵢ of ΔW, share of their sum", title=shown, ylim=(1e-5, 2))
axes.legend(frameon=False, fontsize=8)
panels.show(
    figure,
    alt=f"Shares of the singular values of the change of {shown}. Mean effective rank over all matrices: "
    + ", ".join(f"{label} {statistics.fmean(values):.1f}" for label, values in effective.items()) + ".",
)  # fmt: skip
for label, values in effective.items():
    print(f"{label:20s} effective rank {statistics.fmean(values):6.1f} ({min(values):.1f} to {max(values):.1f} over the matrices)")

# %% [markdown]
# **Read it.** The losses are equal, and the changes are very different. Full fine-tuning changes a little in very many
# directions. LoRA changes much in few. Even with 64 directions, LoRA does not use them evenly.
#
# ### Try it 08.3: the effective rank
# *Difficulty 2 of 5, five minutes. Common bug: $0 \log 0$ is NaN to a computer; or the shares of $\sigma^2$.*


# %%
def effective_rank(values: torch.Tensor) -> torch.Tensor:
    """The effective rank of a matrix with these singular values (n,), some of which may be zero."""
    raise NotImplementedError


check("08.3", effective_rank)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def effective_rank(values):
#     shares = values / values.sum()
#     return torch.exp(torch.special.entr(shares).sum())  # entr(p) = −p log p, and 0 at 0
# ```
# </details>

# %% [markdown]
# ## Step 6. When does an intruder appear?
#
# A part $\sigma u v^\top$ of the update competes with the base's own parts. To be among the ten strongest of $W_0 + \Delta W$,
# it must be about as strong as the tenth of $W_0$. So compare exactly that, one number a matrix, before any SVD of $W$:
#
# $$ s = \sigma_1(\Delta W) \,/\, \sigma_{10}(W_0), $$
#
# the **strength** of the update (the code calls it *spike ratio*). For LoRA $\sigma_1(\Delta W)$ costs next to nothing: it
# comes from $B$ and $A$ alone.
#
# If that is the whole story, no training is needed. Take a *random* direction of rank one, and turn up its strength.
#
# **Predict.** At which $s$ do random directions begin to show up as intruders: 0.1, 0.5, 1, 5?

# %%
STRENGTHS = (0.25, 0.5, 0.75, 0.85, 1.0, 1.25, 1.5, 2.0, 3.0)
PUSHED = tail.names[-14:]  # the matrices of the last layers


def random_push(name: str, strength: float, seed: int) -> Update:
    """A change of rank one in a random direction, `strength` times as strong as the base's tenth singular value."""
    base, generator = tail.original[name], torch.Generator().manual_seed(seed)
    up, down = torch.randn(len(base), 1, generator=generator), torch.randn(1, base.shape[1], generator=generator)
    tenth = float(spectra.get(base).values[K - 1])
    return Update(name, base, down / down.norm(), up / up.norm(), strength * tenth)


# %%
def has_intruder(row: MatrixReport) -> bool:
    """Whether any of a matrix's strong vectors is an intruder."""
    return any(cosine < EPSILON for cosine in row.cosines)


random_share = []
for strength in STRENGTHS:
    pushes = (random_push(n, strength, seed) for seed, n in enumerate(PUSHED))
    random_share.append(statistics.fmean(map(has_intruder, count(pushes, spectra, k=K).rows)))
    print(f"s = {strength:4.2f}: {random_share[-1]:4.0%} of {len(PUSHED)} matrices have an intruder")

# %% [markdown]
# And trained updates? We sort the matrices of all runs by their $s$. They come from this notebook and from the course's
# studies (`lorahub-edu intruders sweep`). The studies have many ranks, learning rates, scalings and lengths, and two
# tasks.
#
# **Predict.** Is a trained direction more of an intruder at the same strength than a random one, or less?


# %%
def strengths_in(study: dict | None) -> list[tuple[float, bool]]:
    """Strength and whether there is an intruder, for every matrix at the end of every run of a study."""
    ends = [row["matrices"] for row in (study or {"rows": []})["rows"] if row["matrices"]]
    return [(s, n > 0) for end in ends for s, n in zip(end["spike_ratio"], end["intruders"][str(EPSILON)], strict=True)]


over_ranks, foretold = results.committed_study("intruders_ranks"), results.committed_study("intruders_predict")
by_source = {
    "this notebook": [(row.spike_ratio, has_intruder(row)) for found in report.values() for row in found.rows],
    "study of ranks": strengths_in(over_ranks),
    "fresh runs, another task": strengths_in(foretold),
}
by_source = {label: pairs for label, pairs in by_source.items() if pairs}
EDGES = (0.0, 0.25, 0.5, 0.85, 1.0, 1.5, 2.0, 1e9)


# %% tags=["hide-input"] jupyter={"source_hidden": true}
def binned(pairs: list[tuple[float, bool]]) -> list[tuple[float, int, float]]:
    """For each interval between two edges that is not empty: the median s, the number of matrices, the share with any."""
    inside = [[pair for pair in pairs if low <= pair[0] < high] for low, high in zip(EDGES, EDGES[1:], strict=False)]
    return [
        (statistics.median(s for s, _ in here), len(here), statistics.fmean(has for _, has in here)) if here else (0.0, 0, 0.0)
        for here in inside
    ]  # fmt: skip


bins = {label: binned(pairs) for label, pairs in by_source.items()}
intervals = [f"{low:g} to {high:g}" if high < 1e9 else f"above {low:g}" for low, high in zip(EDGES, EDGES[1:], strict=False)]
lines = [
    (interval, *(f"{of[i][2]:.0%} of {of[i][1]}" if of[i][1] else "–" for of in bins.values()))
    for i, interval in enumerate(intervals)
]
Table(("s", *bins), tuple(lines), f"Share of the matrices that have an intruder (k = {K}, ε = {EPSILON}).")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, axes = plt.subplots()
axes.plot(STRENGTHS, [100 * x for x in random_share], label="random direction", markersize=6, **figures.line_style(0))
for place, (label, of) in enumerate(bins.items(), 1):
    here = [(s, 100 * x) for s, n, x in of if n >= 5]
    axes.plot(*zip(*here, strict=True), label=f"trained: {label}", markersize=6, **figures.line_style(place))
for s in (0.5, 2.0):
    axes.axvline(s, color="black", linewidth=0.7, linestyle=":")
axes.set(xlabel="strength s = σ₁(ΔW)/σ₁₀(W₀)", ylabel="matrices with an intruder (%)", xlim=(0, 4))
axes.legend(frameon=False, fontsize=8)
pairs = [pair for of in by_source.values() for pair in of]
weak, strong = [has for s, has in pairs if s < 0.5], [has for s, has in pairs if s > 2]
summary = f"{statistics.fmean(weak):.1%} of {len(weak)} matrices below s = 0.5" if weak else "no matrix below s = 0.5"
summary += f", {statistics.fmean(strong):.0%} of {len(strong)} above 2" if strong else ", none above 2 yet"
panels.show(
    figure,
    alt="The share of matrices with an intruder rises with the strength of the update, in random directions from "
    f"{random_share[0]:.0%} at {STRENGTHS[0]} to {random_share[-1]:.0%} at {STRENGTHS[-1]}. In all trained runs: {summary}.",
)
print(f"trained matrices with an intruder: {summary}")

# %% [markdown]
# **Read it.** One number decides almost all of it: how strong the update's strongest direction is. Far below the base's
# tenth singular value no update makes an intruder. Far above it nearly every update does. In between it depends on how
# well the direction fits the base. Nothing about *LoRA* is in that number.
#
# Why then LoRA? Step 5 gives the reason: a low-rank update puts into one direction what full fine-tuning spreads over
# hundreds. So it is strong there, unless learning rate or scaling keep it small. That is the next step.
#
# ## Step 7. Rank, scaling, and the same loss
#
# One run each proves little. The study behind the next table trained every rank under three rules of scaling, with
# three seeds. Each way has its own learning rate. It was chosen *beforehand*, by the lowest loss on rows that are not
# used here. The rules are:
#
# - **α = 2r**, the paper's: $\gamma = 2$ at every rank;
# - **rank-stabilised**, $\gamma = 8/\sqrt r$: what the adapter does to an activation does not grow with the rank;
# - **fixed α** $= 32$, $\gamma = 32/r$, what one gets by raising the rank alone.
#
# Intruders are counted at *one* task loss, the lowest that every run reaches, between two recorded steps of a run.
#
# **Predict.** In which rows are there none? Is it the rank that decides?

# %%
study_rows = forgetting_tables.learned(over_ranks["rows"]) if over_ranks else []
common = forgetting_tables.matched_loss(study_rows) if study_rows else 0.0
forgetting_tables.arms_table(study_rows, common, f"At a task loss of {common:.2f}: mean and range over the seeds.") if study_rows else "not measured yet"

# %% tags=["hide-input"] jupyter={"source_hidden": true}
if study_rows:
    rules = list(dict.fromkeys(row["run"]["rule"] for row in study_rows if row["run"]["rule"]))
    figure, plots = plt.subplots(1, 2, figsize=(9, 3.4))
    for axes, quantity in zip(plots, ("intruders", "spike_ratio"), strict=True):
        for place, rule in enumerate(rules):
            curve = {rank: v for rank, v in forgetting_tables.rank_curve(study_rows, quantity, rule, common).items() if rank}
            middle = [statistics.fmean(values) for values in curve.values()]
            ends = np.array([[m - min(v), max(v) - m] for m, v in zip(middle, curve.values(), strict=True)]).T  # (2, ranks)
            axes.errorbar(list(curve), middle, ends, label=rule, capsize=3, **figures.line_style(place))
        full = forgetting_tables.by_arm(study_rows, quantity, common)[0, ""]
        axes.axhline(statistics.fmean(full), color="black", linewidth=1, label="full fine-tuning")
        axes.set(xlabel="rank", ylabel=forgetting_tables.LABELS[quantity])
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(curve), list(map(str, curve)))
    plots[0].legend(frameon=False, fontsize=8)
    by_rule = {rule: forgetting_tables.rank_curve(study_rows, "intruders", rule, common) for rule in rules}
    panels.show(
        figure,
        alt="Intruders and strength against the rank at one task loss. Mean intruders: "
        + "; ".join(
            f"{rule} " + ", ".join(f"r = {rank} {statistics.fmean(v):.0f}" for rank, v in curve.items() if rank)
            for rule, curve in by_rule.items()
        )
        + f"; full {statistics.fmean(forgetting_tables.by_arm(study_rows, 'intruders', common)[0, '']):.0f}.",
    )

# %% [markdown]
# **Read it.** Read the two panels together. Where the strength is low there are no intruders, at *any* rank. Where it
# is high there are intruders, at any rank too. Learning rate times scaling sets the strength; the rank only says how
# many directions share it. "LoRA has intruder dimensions" is true of a recipe, not of LoRA.
#
# The three runs of this notebook with $r = 64$ say the same. Each differs from the first in one number:

# %%
for label in (HURRY, STABLE, PATIENT):
    tuning, mean_strength = RUNS[label], statistics.fmean(row.spike_ratio for row in report[label].rows)
    print(f"{label:20s} rate × scaling {tuning.learning_rate * tuning.scaling:.4f}: {total(report[label]):3d} intruders, mean strength {mean_strength:.2f}, loss {ended[label].validation_loss:.2f}")

# %% [markdown]
# ### Which learning rate suits which rank?
#
# Schulman et al. 2025 report that LoRA's best learning rate is about ten times that of full fine-tuning, *whatever the
# rank*, where the update is divided by the rank (our fixed α). This study asked on another task, with three seeds.
#
# **Predict.** By what factor does the best rate fall from rank 1 to rank 64?

# %%
over_rates = results.committed_study("intruders_rates")
forgetting_tables.rates_table(over_rates["rows"], "Task loss by learning rate after 20 steps: mean and range over the seeds.")

# %% [markdown]
# **Read it.** The three ranks do best at one rate, in every seed, and full fine-tuning at about a tenth of it. LoRA breaks
# down at four times its best rate. Full fine-tuning only gets a little worse there.
#
# The same source makes three more claims. Attention alone is worse than all layers, at equal parameters. LoRA pays for
# large batches more than full fine-tuning does. And a low rank does as well as a high one until it is used up.
#
# **Predict.** Rank 8 on attention and rank 3 on all layers train equally many numbers. Which ends lower?

# %%
regret = results.committed_study("intruders_regret")
forgetting_tables.regret_table(regret["rows"], "Task loss at each arm's best rate of its grid: mean and range over the seeds.") if regret else "not measured yet"

# %%
forgetting_tables.capacity_table(regret["rows"], "By step, how far rank 1 is behind rank 64, in nats a token.") if regret else "not measured yet"

# %% [markdown]
# **Read it.** The first four lines are two pairs of equal size: 3 beside 8, and 12 beside 32. Attention alone ends higher
# in both. The other lines saw the same rows, in larger and fewer steps. With 8 rows in a step LoRA is ahead of full
# fine-tuning, with 128 it is behind. But there four steps are few, and each batch has two rates a method, so its best
# rate is at an edge. Rank 1 is behind rank 64 after a few steps, and the gap then stays about as large. A capacity that
# runs out would open a gap that grows.
#
# ## Step 8. Counting without an SVD
#
# Two SVDs for each of the 224 matrices of a 7B model keep a processor core busy for hours. Little of that is needed:
#
# - the **base's** SVD never changes: once per base model, then on disk;
# - of the tuned matrix only the $k$ strongest vectors are asked for. They lie nearly in the span of the base's strongest
#   vectors and of $B$, so a short iteration from there finds them.
#
# A search may miss something. So each count comes with a **certificate**. In the base's own coordinates, the squared
# singular values of $W_0 + \gamma BA$ are the eigenvalues of a *diagonal* matrix plus one of rank $2r$. How many of
# those lie above any number $\mu$ can be read off the **signs** in a $2r \times 2r$ matrix (Sylvester's law of
# inertia). If exactly $k$ lie above a place just below our $k$-th, no stronger vector was missed. The error of each
# vector also gives a bound on the error of its cosine. If ε lies within that bound, the matrix is decomposed in full.
#
# **Predict.** Try the counting trick: can it tell how many singular values lie above a number *without* computing one?

# %%
update = tuned[R1][shown]
inside = secular.in_base_coordinates(update, spectra.get(update.base))
exact = torch.linalg.svdvals(update.weight(torch.float64))  # only to compare with
for i in (1, 3, 10, 30):
    mu = (exact[i - 1].square() + exact[i].square()) / 2  # between the i-th and the next
    print(f"above μ = {mu:9.3f}: {inside.count_above(mu)} by the signs of a {2 * inside.rank} × {2 * inside.rank} matrix, {int((exact.square() > mu).sum())} by an SVD")

# %%
ways = {label: [row.decided for row in found.rows] for label, found in report.items()}
lines = [
    (label, ", ".join(f"{of.count(way)} {way}" for way in dict.fromkeys(of)), f"{max(row.uncertainty for row in report[label].rows):.0e}")
    for label, of in ways.items()
]  # fmt: skip
Table(("run", f"how the {len(tail.names)} counts were decided", "a cosine is off by at most"), tuple(lines))

# %% [markdown]
# The search is tried where it is faster: on a factored update, in a matrix whose short side is large beside $k$ and $r$.
# Here that is $r = 1$ in all but the narrow matrices of keys and values. In the others the tuned matrix is decomposed
# once.
#
# **Predict.** A larger matrix, 1024 × 1024, with a strong update of rank 4: how many times as fast, certificate included?

# %%
SIZE, RANK = 1024, 4
generator = torch.Generator().manual_seed(0)
large = torch.randn(SIZE, SIZE, generator=generator) * torch.linspace(2, 0.02, SIZE)  # a falling spectrum
sides = (torch.linalg.qr(torch.randn(SIZE, RANK, generator=generator)).Q for _ in range(2))
up, down = next(sides), next(sides).T
spiked = Update("large", large, down.contiguous(), up, scaling=1.5 * float(torch.linalg.matrix_norm(large, 2)))
started = time.process_time()
base_spectrum = spectra.get(large)
base_once = time.process_time() - started

# %%
timings = {}
for way, job in {
    "two SVDs": lambda: count_by_definition(large, spiked.weight(torch.float64)),
    "certified": lambda: count([spiked], spectra, k=K).intruders[0],
}.items():
    started = time.process_time()
    timings[way] = (job(), time.process_time() - started)
lines = [(way, str(n), f"{seconds:.2f} s", f"{timings['two SVDs'][1] / seconds:.0f}") for way, (n, seconds) in timings.items()]
assert len({n for n, _ in timings.values()}) == 1, "one count, whichever way"
print(f"the base's spectrum, once: {base_once:.2f} s")
Table(("way", "intruders", "processor time", "times as fast"), tuple(lines))

# %% [markdown]
# **Read it.** The counts are the same. Most of the remaining time is spent on reading the matrix and the base's vectors
# once. The project's benchmark (`benchmarks/intruders.py`) goes through sizes up to 4096 and through a whole adapter.
#
# ## Findings
#
# What each verdict asks, in words: if all runs, seeds or matrices in question agree, it is *shown* or *refuted here*.
# If they do not, it is *not shown here*. For the studies:
#
# - **I4** holds if, at one task loss, every LoRA way has an intruder in every seed, and full fine-tuning has none.
# - **I5** holds if every LoRA run that ended *worse* than full of the same seed has an intruder.
# - **I6** would hold if all seeds had intruders below some rank, and no seed any from that rank on. But every rank here
#   has its own learning rate, and the highest is a third of the full rank. So its rows are *exploratory*.
# - **I10** holds if, at every rank above 16, the fixed α ends with a higher loss than both other rules, in every seed.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
LORA = (R1, HURRY, STABLE, PATIENT)
lora_gaps = [statistics.fmean(by_matrix[FULL]) - statistics.fmean(by_matrix[label]) for label in LORA]
gaps = [full - low for full, low in zip(by_matrix[FULL], by_matrix[R1], strict=True)]
apart = max(abs(point.validation_loss - ended[FULL].validation_loss) for point in ended.values())
by_run = {label: total(found) for label, found in report.items()}
highest_rank = max(LORA, key=lambda label: statistics.fmean(effective[label]))
ranks_apart = [full - high for full, high in zip(effective[FULL], effective[highest_rank], strict=True)]
found = [
    Row(
        "I1.rows_like_nothing", [corner[R1] - corner[FULL]], f"of the first {K} rows, r = 1 minus full",
        verdict(corner[R1] > 0 and corner[FULL] == 0, corner[R1] == 0 and corner[FULL] > 0),
        f"{shown}; shown if the picture has such rows for r = 1 and none for full", seeds=(0,),
    ),
    Row(
        "I2.gap_of_r_1", gaps, f"mean cosine of full minus r = 1, {K} strongest", verdict(min(gaps) > 0, max(gaps) < 0),
        f"matrix by matrix, lower after r = 1 in {sum(g > 0 for g in gaps)} of {len(gaps)}; {statistics.fmean(by_matrix[R1]):.3f} against {statistics.fmean(by_matrix[FULL]):.3f} on average", seeds=(0,),
    ),
    Row(
        "I2.gap_of_all_lora_runs", lora_gaps, "mean cosine of full minus a LoRA run", verdict(min(lora_gaps) > 0, max(lora_gaps) < 0),
        f"mean over matrices; {', '.join(f'{label} {gap:+.3f}' for label, gap in zip(LORA, lora_gaps, strict=True))}", seeds=(0,),
    ),
    Row(
        "I3.matrices_that_agree", [agreeing], f"of {len(slow)} matrices", verdict(slow == fast, True),
        f"algorithm 1 by two SVDs in float64 against the certified count; {sum(slow)} intruders", seeds=(0,),
    ),
    Row(
        "I4.r_1_and_full", [by_run[R1] - by_run[FULL]], "intruders, r = 1 minus full",
        verdict(by_run[R1] > 0 and by_run[FULL] == 0 and apart < 0.1, by_run[R1] == 0 and by_run[FULL] > 0),
        f"r = 1 {by_run[R1]}, full {by_run[FULL]}; losses at most {apart:.2f} nats apart (shown if below 0.1)", seeds=(0,),
    ),
    Row(
        "I4.all_lora_runs", [by_run[label] for label in LORA], "intruders",
        verdict(min(by_run[label] for label in LORA) > 0, max(by_run[label] for label in LORA) == 0),
        ", ".join(f"{label} {by_run[label]}" for label in LORA) + "; shown if every run has some", seeds=(0,),
    ),
    Row(
        "I7.effective_rank", ranks_apart, "full minus the highest of LoRA", verdict(min(ranks_apart) > 0, max(ranks_apart) < 0),
        f"every matrix; full {statistics.fmean(effective[FULL]):.0f}, {highest_rank} {statistics.fmean(effective[highest_rank]):.1f} on average", seeds=(0,),
    ),
]  # fmt: skip

# %% tags=["hide-input"] jupyter={"source_hidden": true}
ends_of = {(forgetting_tables.arm(row["run"]), row["run"]["seed"]): forgetting_tables.last(row) for row in study_rows}
if study_rows:
    counts = forgetting_tables.by_arm(study_rows, "intruders", common)  # {(rank, rule): one value a seed}, at the common loss
    of_full = counts.pop((0, ""))
    lora = [n for values in counts.values() for n in values]
    everywhere = sum(min(values) > 0 for values in counts.values())
    found.append(Row(
        "I4.full_at_one_loss", of_full, "intruders", verdict(max(of_full) == 0, min(of_full) > 0), f"full fine-tuning, task loss {common:.2f}", study=over_ranks,
    ))  # fmt: skip
    found.append(Row(
        "I4.lora_at_one_loss", lora, "intruders", verdict(min(lora) > 0, max(lora) == 0),
        f"{len(counts)} ways to train with LoRA, task loss {common:.2f}; {everywhere} of them have intruders in every seed", study=over_ranks,
    ))  # fmt: skip
    worse = [
        end["intruders"] for ((rank, rule), seed), end in ends_of.items() if rank and end["loss"] > ends_of[(0, ""), seed]["loss"]
    ]  # fmt: skip
    if worse:
        found.append(Row(
            "I5.lora_that_learned_less", worse, "intruders", verdict(min(worse) > 0, max(worse) == 0),
            f"{len(worse)} runs ended worse than full of their seed; {sum(n > 0 for n in worse)} of them have intruders", study=over_ranks,
        ))  # fmt: skip
    for rule in rules:
        curve = {rank: values for rank, values in forgetting_tables.rank_curve(study_rows, "intruders", rule).items() if rank}
        none, some = ([rank for rank, v in curve.items() if test(v)] for test in (lambda v: max(v) == 0, lambda v: min(v) > 0))
        vanish = bool(none and some) and len(none) + len(some) == len(curve) and max(some) < min(none)
        back = any(low < high for low in none for high in some)
        found.append(Row(
            f"I6.at_the_highest_rank.{rule}", curve[max(curve)], f"intruders at r = {max(curve)}", verdict(vanish, back),
            f"{rule}: " + ", ".join(f"r = {rank} {forgetting_tables.in_words(values, 0)}" for rank, values in curve.items()) + ", after the last step", study=over_ranks,
        ))  # fmt: skip
    ranks_of_lora = {one: v for one, v in forgetting_tables.by_arm(study_rows, "effective_rank").items() if one[0]}
    of_full = forgetting_tables.by_arm(study_rows, "effective_rank")[0, ""]
    most = max(ranks_of_lora, key=lambda one: max(ranks_of_lora[one]))
    above = [value - max(ranks_of_lora[most]) for value in of_full]
    found.append(Row(
        "I7.over_ranks", above, "full minus the highest of LoRA", verdict(min(above) > 0, max(above) < 0),
        f"mean over matrices; full {forgetting_tables.in_words(of_full, 0)}, at most {max(ranks_of_lora[most]):.0f}: {forgetting_tables.label(*most)}; the full rank would be 192 at the narrowest matrix, 576 at most", study=over_ranks,
    ))  # fmt: skip
    high_ranks = sorted({rank for rank, _ in ranks_of_lora if rank > 16})
    FIXED, OTHERS = "fixed alpha", [rule for rule in rules if rule != "fixed alpha"]
    for quantity, unit in (("loss", "nats"), ("intruders", "intruders")):
        behind = []  # fixed alpha minus the worse of the other two: above zero means that both are better
        for (rank, rule), seed in ends_of:
            rivals = [ends_of.get(((rank, other), seed)) for other in OTHERS]
            if rule == FIXED and rank in high_ranks and None not in rivals:
                behind.append(ends_of[(rank, rule), seed][quantity] - max(end[quantity] for end in rivals))
        if behind:
            found.append(Row(
                f"I10.fixed_alpha.{quantity}", behind, f"{unit}, fixed α minus the worse of the others", verdict(min(behind) > 0, max(behind) <= 0),
                f"ranks {', '.join(map(str, high_ranks))}, every seed, after the last step; each at its own learning rate", study=over_ranks,
            ))  # fmt: skip
else:
    print("I4 to I6 and I10 need the study of ranks: not measured yet.")
if over_rates:
    best = forgetting_tables.best_rates(over_rates["rows"])
    full = best.pop(0)
    apart = [max(rates) / min(rates) for rates in zip(*best.values(), strict=True)]
    ratios = [rate / of_full for rates in best.values() for rate, of_full in zip(rates, full, strict=True)]
    about_ten = [4.99 < ratio < 20.01 for ratio in ratios]
    chosen = "; ".join(f"{forgetting_tables.label(rank, '').rstrip(', ')}: {', '.join(f'{rate:g}' for rate in rates)}" for rank, rates in [*best.items(), (0, full)])
    found += [
        Row("X6.one_rate", apart, "times, the ranks' highest best rate over the lowest", verdict(max(apart) < 2.01, min(apart) > 2.01), f"best rates by seed: {chosen}", study=over_rates),
        Row("X6.ratio", ratios, "times full's best rate", verdict(all(about_ten), not any(about_ten)), "one value a seed and rank", study=over_rates),
    ]  # fmt: skip
to_full = results.committed_study("intruders_full_rank")
if to_full:
    of = to_full["summary"]["I6.full_rank"]
    found.append(Row("I6.full_rank", of["values"], "intruders at r = 576", of["verdict"], "each seed at its own rate, then at one rate; lesson 09, step 3, has the table", study=to_full))
if regret:
    units = {"attention": "nats, attention alone minus all layers", "batch": "nats, growth of the gap to full", "capacity": "the step from which rank 1 is behind"}
    found += [
        Row(name, of["values"], units[name.removeprefix("X6.")], of["verdict"], "one value a seed" + " and pair" * (name == "X6.attention"), study=regret)
        for name, of in regret["summary"].items()
    ]  # fmt: skip

# %%
measured = []
for label, of in by_source.items():
    for key, has in (("below_half", [has for s, has in of if s < 0.5]), ("above_twice", [has for s, has in of if s > 2])):
        if has:
            values = (statistics.fmean(has),)
            measured.append(Row(f"strength.{key}.{label}", values, "share with an intruder", note=f"{len(has)} matrices"))
times = (slow_seconds / fast_seconds,)
measured.append(Row("count.times_as_fast", times, "times two SVDs, the base's spectra being there", note=f"{len(slow)} matrices"))

# %%
publish("08", [*found, *measured], profile)

# %% [markdown]
# ## Do you know it?
#
# Three questions on this lesson, and two on earlier ones. Answer first, then open. Nothing is graded.

# %%
recall("08")

# %% [markdown]
# ## What to remember
#
# - An intruder dimension is a strong direction of a tuned matrix that the base does not have. The count needs a
#   threshold ε and a number k. Both are conventions, so compare runs, not counts.
# - Its cause is strength: the update's largest singular value beside the base's tenth. A low rank concentrates an
#   update, and learning rate times scaling make it strong. That is why a LoRA trained in a hurry has intruders. Full
#   fine-tuning had none in these runs.
# - Singular values of the base need computing once. A count that comes with a proof is worth as much as two SVDs.
#
# ## Go further
#
# - Shuttleworth et al. 2024, arXiv 2410.21228: section 3 for the pictures, section 4 for the definition and the ranks.
# - Kalajdzievski 2023, *A Rank Stabilization Scaling Factor*, arXiv 2312.03732: why $\alpha/\sqrt r$.
# - Roy and Vetterli 2007, *The effective rank*. Benaych-Georges and Nadakuditi 2012, arXiv 1103.2221: when a rank-one
#   push shows in the spectrum of a large random matrix.
# - Any adapter: `lorahub-edu intruders FOLDER`. The study: `lorahub-edu intruders sweep --study ranks`. You can stop it
#   at any time; the same command continues. On a 24 GB GPU both take the 7B model with `--profile gpu24`.
#
# **Next:** lesson 09, *What it costs*: what the same runs forget, whether the intruders are to blame, and the controls that
# tell.
