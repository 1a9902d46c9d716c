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
# # 06 · Composing: one module out of many
#
# **Promise.** You add LoRA modules that others trained, as LoRAHub does. You find out what that sum really computes,
# where it gives a surprise, and which way is simpler.
#
# **You will be able to**
# - compose modules by hand, in LoRAHub's way and exactly, and say what the difference is made of,
# - predict from the algebra alone that $w$ and $-w$ give one module and that a search can't leave $w = 0$ by its gradient,
# - show that LoRAHub's result depends on the *basis* of each module, which nobody chose,
# - compose modules of different ranks, and choose candidates better than by a draw.
#
# **You need** lesson 01: $A$, $B$, rank, scaling, SVD.
#
# **It covers** the COMPOSE half of *LoraHub* (Huang et al. 2023, arXiv 2307.13269, section 3.2, and the choice of
# candidates in section 4.1): claims H1 to H3. The other half, ADAPT, is lesson 07.
#
# **It takes:**

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import html
import itertools
import statistics
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

from lorahub_edu import evaluation
from lorahub_edu.data import fewshot, tasks
from lorahub_edu.data.fewshot import rows_for
from lorahub_edu.errors import CourseError
from lorahub_edu.hub import candidates, compose, stand_ins
from lorahub_edu.hub.population import Population
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
    verdict,
)

open_lesson("06_composing")

# %% [markdown]
# ## Step 1. A zoo
#
# - A **module** here is a trained LoRA adapter, apart from its base model: an $A$ and a $B$ for every query and value
#   projection. A **zoo** is a collection of modules of *one* base model, each trained on one task.
# - Each module has a **card**. The card says what the module was trained on and how much the training changed.
#
# The tasks are tiny on purpose: one word in, one word out. So a module takes less than a megabyte, and a score about a
# second. **Loss** is the mean over the answer's tokens, in nats. **Exact match** is counted in two ways: **strict**,
# the model writes the answer *and then stops*; **answer-only**, the model writes the answer, and any text may follow.

# %%
profile = get_profile()
model, tokenizer = pretrained.load(profile)
model.requires_grad_(False)
files = stand_ins.modules_for(profile)
names = [file.path.name for file in files]
cards = stand_ins.cards_for(profile)
print(f"{len(files)} modules for {profile.base_model}; {cards[names[0]].device}")
table = tuple(
    (name, card.instruction, f"{card.loss_before:.2f} → {card.loss_after:.2f}",
     f"{card.strict_before:.0%} → {card.strict_after:.0%}",
     f"{card.answer_only_before:.0%} → {card.answer_only_after:.0%}")
    for name, card in cards.items()
)  # fmt: skip
header = ("module", "instruction", "loss", "strict", "answer-only")
Table(header, table, "Base model → with the module, on words it was not trained on.")

# %% [markdown]
# ### A composition that works
#
# No module of this zoo was trained to write the first of three words. Lesson 07's search found weights for it on five
# examples. We take its three largest: `num2words` (7 → seven), `capital` (France → Paris), and `words2num` (seven → 7)
# with a negative weight. We chose this draw of examples because its weights work. So the number below is an example of
# what a composition can do. Lesson 07 has the averages.

# %%
predict("06.a", "First words that this composition gets right, in percent; the base model gets none", low=0, high=100)

# %% tags=["hide-output"] jupyter={"outputs_hidden": true}
recipe = {"num2words": 1.0, "capital": 0.9, "words2num": -0.3}
three = compose.stack([files[names.index(name)] for name in recipe], composition="exact")
first_word = tasks.get("first_word")
questions = rows_for(model, tokenizer, first_word.instructions[0], first_word.test[:40])
with Population(model, three, "exact") as population:
    scored = population.score(np.array([[0, 0, 0], list(recipe.values())]), questions)
    population.use(np.array([list(recipe.values())]))
    prompts = [tasks.prompt(first_word.instructions[0], item.input) for item in first_word.test[:5]]
    written = evaluation.generate(model, tokenizer, prompts, max_new_tokens=6).texts
compare("06.a", 100 * scored.strict[1].mean())
lines = [(item.input, item.output, text.strip()[:20]) for item, text in zip(first_word.test, written, strict=False)]
summary = f"Strict exact match on 40 rows: base {scored.strict[0].mean():.0%}, composed {scored.strict[1].mean():.0%}."
Table(("input", "wanted", "written"), tuple(lines), summary)

# %% [markdown]
# **Read it.** Three modules for other tasks make a fourth skill, on part of the rows. What do they share with it? Each
# reads a short input and answers with one word. The rest of this lesson shows why a composition more often fails.
#
# A card says what a module does to *its own* task. What does it do to others?
#
# **Predict.** Put the module `past` (walk → walked) on the task `upper` (walk → WALK). Is the loss lower than the base
# model's, or higher? And the other way round?


# %%
def encoded(task: str, items: list[tasks.Item]) -> list:
    """Items of a task as rows with its first instruction."""
    return rows_for(model, tokenizer, tasks.get(task).instructions[0], items)


def score(modules: compose.ModuleStack, weights: object, rows: list, composition: str):
    """Loss and exact match of every row of weights (P, N): all compositions in one batched forward."""
    with Population(model, modules, composition) as population:
        return population.score(weights, rows)


# %%
def answers(modules: compose.ModuleStack, weights: np.ndarray, prompts: list[str], composition: str) -> list[list[str]]:
    """The first line written after each prompt, for every row of weights (P, N); all of them in one batch."""
    with Population(model, modules, composition) as population:
        population.use(weights)
        texts = evaluation.generate(model, tokenizer, prompts * len(weights), max_new_tokens=8).texts  # P times b
    lines = [(text.strip().splitlines() or [""])[0][:24] or "(nothing)" for text in texts]
    return [lines[i : i + len(prompts)] for i in range(0, len(lines), len(prompts))]


# %%
few = ["past", "upper", "plural", "gerund", "num2words", "words2num"]
exact_stack = compose.stack(files, composition="exact")
few_stack = compose.stack([files[names.index(name)] for name in few], composition="exact")
single = np.vstack([np.zeros(len(few)), np.eye(len(few))])  # (1 + 6, 6): the base model, then one module at a time
alone = {task: score(few_stack, single, encoded(task, tasks.get(task).test[:10]), "exact") for task in few}
losses = np.stack([alone[task].losses for task in few], 1)  # (module, task)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, axes = plt.subplots(figsize=(6.4, 4))
bright = np.log(losses)
axes.imshow(bright, cmap="cividis")
for row, column in np.ndindex(losses.shape):
    shade = "white" if bright[row, column] < (bright.min() + bright.max()) / 2 else "black"
    axes.text(column, row, f"{losses[row, column]:.2g}", ha="center", va="center", color=shade, fontsize=8)
axes.set(xlabel="task", ylabel="module", title="loss (nats a token of the answer)")
axes.set_xticks(range(len(few)), few, rotation=30)
axes.set_yticks(range(len(few) + 1), ["none", *few])
axes.grid(False)
helped = int((losses[1:] < losses[0]).sum() - (np.diag(losses[1:]) < losses[0]).sum())
others = len(few) * (len(few) - 1)
own_lowest = int((losses[1:].argmin(1) == np.arange(len(few))).sum())
panels.show(
    figure,
    alt=f"A table of losses, modules down, tasks across. Each module's own task has the lowest loss of its row in "
    f"{own_lowest} of {len(few)} rows. A foreign module lowers the loss in {helped} of {others} cases.",
)

# %%
strict, only = (np.stack([getattr(alone[task], kind).mean(1) for task in few], 1) for kind in ("strict", "answer_only"))
foreign = ~np.eye(len(few), dtype=bool)
print(f"a module lowers the loss of a task that it was not trained on in {helped} of {others} cases")
print(f"strict exact match on its own task: {np.diag(strict[1:]).mean():.0%}; ", end="")
print(f"on the others: {strict[1:][foreign].mean():.0%}, answer-only {only[1:][foreign].mean():.0%}")

# %% [markdown]
# **Read it.** Compare each column with its first row. A module of another task can lower the loss although it never
# gives the right answer. It has learned the *form*: one short answer, then stop. All our tasks share this form, so many
# compositions have a low loss. Look at exact match too.

# %% [markdown]
# ## Step 2. Compose by hand
#
# LoRAHub makes one module $\hat m = \hat B \hat A$ from $N$ (its equation 1). Each module has one weight $w_i$ for all
# layers:
#
# $$\hat A = \sum_i w_i A_i, \qquad \hat B = \sum_i w_i B_i.$$
#
# The weights may be negative. The scaling $\alpha / r$ is applied once, as for any module.
#
# **Predict.** We put *one* module alone on the model, with weight ½. How strong is its update: ½ of the trained one?

# %%
past, upper = (files[names.index(name)] for name in ("past", "upper"))
site = list(past.weights)[-1]  # one of the layers
(A1, B1), (A2, B2) = (tuple(t.double() for t in file.weights[site]) for file in (past, upper))  # (r, in), (out, r)
scaling = past.configs[site].scaling
w1, w2 = 0.8, -0.3
A_hat, B_hat = w1 * A1 + w2 * A2, w1 * B1 + w2 * B2
update = scaling * B_hat @ A_hat  # (out, r) @ (r, in) -> (out, in)
print(f"{site}: A {tuple(A_hat.shape)}, B {tuple(B_hat.shape)}, update {tuple(update.shape)}")
half = (0.5 * B1) @ (0.5 * A1)
print(f"one module at weight 1/2: its update has {half.norm() / (B1 @ A1).norm():.4f} of the trained one's size")

# %% [markdown]
# **Read it.** A quarter. The weight is in *both* factors, so a module alone counts with $w^2$. Now we compare the library's
# `compose`, on all layers, with the sums written out in 64-bit numbers:

# %%
pair = compose.stack([past, upper])
composed = compose.compose(pair, [w1, w2])
differences = []
for name, (A, B) in composed.weights.items():
    (A1, B1), (A2, B2) = (tuple(t.double() for t in file.weights[name]) for file in (past, upper))
    by_hand = (w1 * B1 + w2 * B2) @ (w1 * A1 + w2 * A2)
    differences.append(((B.double() @ A.double() - by_hand).norm() / by_hand.norm()).item())
print(f"{len(differences)} layers; largest relative difference {max(differences):.1e}")

# %% [markdown]
# ### Try it 06.1: compose two or more
# *Difficulty 2 of 5, five minutes. Common bug: adding up the updates $w_i B_i A_i$, which is something else.*
#
# Return the update that LoRAHub's composition adds to a weight matrix.


# %%
def composed_update(As: list[torch.Tensor], Bs: list[torch.Tensor], weights: list[float], scaling: float) -> torch.Tensor:
    """The update (out, in) of the composed module."""
    raise NotImplementedError


check("06.1", composed_update)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def composed_update(As, Bs, weights, scaling):
#     A = sum(w * A for w, A in zip(weights, As))
#     B = sum(w * B for w, B in zip(weights, Bs))
#     return scaling * B @ A
# ```
# </details>

# %% [markdown]
# ## Step 3. What the algebra implies
#
# Expand the product of the two sums:
#
# $$\hat B \hat A = \underbrace{\sum_i w_i^2\, B_i A_i}_{\text{own terms}} \;+\; \underbrace{\sum_{i \ne j} w_i w_j\, B_i A_j}_{\text{cross-terms}}$$
#
# - The **own terms** are the trained updates, weighted with *squares*: never negative.
# - A **cross-term** $B_i A_j$ reads with one module's $A$ and writes with another one's $B$. Nobody trained it. There are
#   $N$ own terms and $N(N-1)$ cross-terms.
# - You may have expected the **exact composition** $\sum_i w_i B_i A_i$. It has no squares and no cross-terms.
#
# **Predict.** How large is a cross-term $B_i A_j$ beside an own term $B_i A_i$: negligible, a tenth, a half, as large?
#
# To measure all of them at once, we need the inner products of all $B_i A_j$ with all $B_k A_l$. These cost little:
# $B_i^\top B_k$ and $A_j A_l^\top$ are matrices of $r \times r$. Multiply them entry by entry: the sum is $\langle B_i
# A_j, B_k A_l \rangle$.

# %%
modules = compose.stack(files)
N = len(modules)
K = torch.zeros(N, N, N, N, dtype=torch.float64)  # K[i, j, k, l] = <B_i A_j, B_k A_l>, over all layers
for A, B in modules.split(modules.flat.double()).values():  # (N, r, in), (N, out, r)
    BB = torch.einsum("ior,kos->ikrs", B, B)
    AA = torch.einsum("jrd,lsd->jlrs", A, A)
    K += torch.einsum("ikrs,jlrs->ijkl", BB, AA)


def size(C: torch.Tensor) -> float:
    """Norm over all layers of the update Σ C[i, j] B_i A_j."""
    return torch.einsum("ij,ijkl,kl->", C, K, C).clamp(min=0).sqrt().item()

# %%
norms = torch.einsum("ijij->ij", K).sqrt()  # (N, N) sizes of B_i A_j
off = ~torch.eye(N, dtype=torch.bool)
cross_size = (norms / norms.diag()[:, None])[off]  # against the own term of the same B
likeness = (torch.einsum("ijii->ij", K) / (norms * norms.diag()[:, None]))[off]  # cosine of B_i A_j and B_i A_i
for what, values in (("size of a cross-term beside its own term", cross_size), ("cosine of the two", likeness)):
    print(f"{what}: median {values.median():.2f} ({values.min():.2f} to {values.max():.2f})")

# %%
figure, axes = plt.subplots(figsize=(5.6, 4.6))
image = axes.imshow(norms / norms.diag()[:, None], cmap="cividis", vmin=0)
figure.colorbar(image, label="size of $B_i A_j$ / size of $B_i A_i$")
axes.set_xticks(range(N), names, rotation=90, fontsize=7)
axes.set_yticks(range(N), names, fontsize=7)
axes.set(xlabel="A of", ylabel="B of")
axes.grid(False)
panels.show(
    figure,
    alt=f"A square of {N} by {N} modules: off the diagonal the sizes are {cross_size.min():.2f} to "
    f"{cross_size.max():.2f} of the own terms, which are 1 on the diagonal.",
)

# %% [markdown]
# **Read it.** If the diagonal is hardly larger than the rest, the cross-terms matter: with $N$ modules they are most of
# what LoRAHub adds. The cosine explains why the result is not noise. A zoo that is trained from *one* starting $A$ (the
# card's `init_seed`) has similar $A$s, so $B_i A_j$ partly does what $B_i A_i$ does. Step 5 removes this similarity.
#
# How far apart are the two compositions as a whole? In the square of coefficients $C$, the paper's composition is
# $C = w w^\top$, the exact one is the diagonal $C = \operatorname{diag}(w)$.


# %%
def relative_difference(w: torch.Tensor) -> float:
    """|paper's - exact| / |exact|, over all layers."""
    return size(torch.outer(w, w) - torch.diag(w)) / size(torch.diag(w))


unit = torch.eye(N, dtype=torch.float64)
of_pairs = [relative_difference(unit[i] + unit[j]) for i, j in itertools.combinations(range(N), 2)]
of_random = [relative_difference(torch.tensor(np.random.default_rng(seed).uniform(-1.5, 1.5, N))) for seed in range(5)]
low, middle, high = min(of_pairs), statistics.median(of_pairs), max(of_pairs)
print(f"two modules, both weights 1: median {middle:.2f} ({low:.2f} to {high:.2f}), {len(of_pairs)} pairs")
print(f"all modules, weights drawn from -1.5 to 1.5: {', '.join(f'{d:.1f}' for d in of_random)} (five draws)")

# %% [markdown]
# **Read it.** A relative difference of 1 means that the difference is as large as the update itself. The two compositions are
# different methods with the same name for their weights.
#
# **Predict.** Three more things follow from $\hat B \hat A$ alone. Write them down before you run the cells. (a) One
# module alone has a loss of 0.1 at $w = +1$: what is its loss at $w = -1$? (b) What is the gradient of the loss with
# respect to $w$ at $w = 0$? (c) What happens to the loss a small step away from 0?

# %%
signs = np.array([[1.0, 0.0], [-1.0, 0.0], [0.7, 0.4], [-0.7, -0.4]])
pair_exact = compose.stack([past, upper], composition="exact")
rows = encoded("past", tasks.get("past").test[:10])
by_sign = {how: score(m, signs, rows, how).losses for how, m in (("paper", pair), ("exact", pair_exact))}
sign_difference = max(abs(by_sign["paper"][[0, 2]] - by_sign["paper"][[1, 3]]))
for w, paper_loss, exact_loss in zip(signs.tolist(), by_sign["paper"], by_sign["exact"], strict=True):
    print(f"w = {w}: loss on past {paper_loss:.4f} in the paper's composition, {exact_loss:.4f} in the exact one")

# %% [markdown]
# **Read it.** $(-B)(-A) = BA$: in the paper's composition $w$ and $-w$ are the same module. A negative weight *alone*
# removes nothing. Only signs *relative to each other* matter. So half of the space that LoRAHub searches is a mirror of
# the other half. In the exact composition $-1$ really subtracts.

# %%
five = encoded("past_upper", tasks.draw(tasks.get("past_upper"), seed=0))  # LoRAHub's setting: five examples
batch = fewshot.batches(model.config, five)[0]
gradient = {}
for how, m in (("paper", modules), ("exact", exact_stack)):
    w = torch.zeros(1, N, requires_grad=True)
    with Population(model, m, how) as population:
        population.loss(w, batch).sum().backward()
    gradient[how] = w.grad.norm().item()
    print(f"{how:6s} |gradient of the loss with respect to w| at w = 0: {gradient[how]:.3g}")

# %%
directions = np.random.default_rng(0).normal(size=(4, N))
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
base_loss = score(modules, np.zeros((1, N)), [batch], "paper").losses[0]
steps = (0.01, 0.02)
for how, m in (("paper", modules), ("exact", exact_stack)):
    losses = score(m, np.vstack([step * directions for step in steps]), [batch], how).losses.reshape(2, -1)
    once, twice = losses - base_loss  # change of the loss in each direction after a step, and after twice that step
    print(f"{how:6s} loss {base_loss:.3f}, changed by {np.round(once, 4).tolist()}", end="; ")
    print(f"twice the step: {statistics.median(twice / once):.1f} times that")

# %%
tiny_step = 1e-3
w = (tiny_step * torch.eye(N)).requires_grad_()  # (N, N): a small step along each weight
with Population(model, modules, "paper") as population:
    population.loss(w, batch).sum().backward()
curvature = torch.linalg.eigvalsh((w.grad + w.grad.T) / (2 * tiny_step))  # (N,) of the second derivatives at 0
down, up = int((curvature < 0).sum()), int((curvature > 0).sum())
print(f"curvature at w = 0: {curvature.min():.1f} to {curvature.max():.1f}; downhill in {down} directions, uphill in {up}")

# %% [markdown]
# **Read it.** In the paper's composition every term of $\hat B \hat A$ is a product of two weights. So the gradient at
# 0 is *exactly* zero. Twice the step changes the loss four times as much, not twice. The second derivatives tell what
# kind of point it is. If some are negative and some positive, it is a **saddle**: the loss falls in some directions and
# rises in others. LoRAHub's released code starts its search exactly there. A method without gradients (lesson 07) tries
# points around the saddle and leaves it. Plain gradient descent would never leave it.

# %% [markdown]
# ## Step 4. The surface
#
# Two weights make a plane, so we can draw all of it. The **target** is a task that no module was trained on:
# `past_upper` (walk → WALKED), on five examples. We try all pairs of weights for `past` and `upper`, in both
# compositions, each grid in one call.
#
# **Predict.** Sketch the two pictures. Where are the valleys? Which symmetry does the left picture have?

# %%
grid = [round(w, 2) for w in np.arange(-1.5, 1.51, 0.25)]
points = np.array(list(itertools.product(grid, grid)))  # (169, 2): w_past, w_upper
surface = {
    how: score(m, points, [batch], how).losses.reshape(len(grid), -1)  # (w_past, w_upper)
    for how, m in (("paper", pair), ("exact", pair_exact))
}
best = {how: points[values.argmin()] for how, values in surface.items()}
mirror_difference = abs(surface["paper"] - surface["paper"][::-1, ::-1]).max()
for how, values in surface.items():
    lowest = f"lowest loss {values.min():.2f} at past {best[how][0]:+.2f}, upper {best[how][1]:+.2f}"
    print(f"{how:6s} {lowest}; base model: {base_loss:.2f}")
print(f"largest difference between w and -w in the paper's composition: {mirror_difference:.1e}")


# %% tags=["hide-input"] jupyter={"source_hidden": true}
def draw_surfaces(figure: plt.Figure, w_past: float | None = None, w_upper: float | None = None) -> None:
    """Both surfaces as contour pictures with their lowest point (and a star at the chosen weights)."""
    top = np.quantile(np.concatenate([values.ravel() for values in surface.values()]), 0.8)
    levels = np.linspace(min(values.min() for values in surface.values()), top, 9)
    for axes, (how, values) in zip(figure.subplots(1, 2, sharey=True), surface.items(), strict=True):
        filled = axes.contourf(grid, grid, values, levels=levels, cmap="cividis", extend="both")
        axes.clabel(axes.contour(grid, grid, values, levels=levels[::2], colors="white", linewidths=0.7), fontsize=7)
        axes.plot(*best[how][::-1], "v", color="white", markeredgecolor="black", markersize=9)
        if w_past is not None:
            axes.plot(w_upper, w_past, "*", color=figures.COLOURS[1], markeredgecolor="white", markersize=15)
        axes.set(title=f"{how} composition", xlabel="weight of upper", aspect="equal")
        axes.grid(False)
    figure.axes[0].set_ylabel("weight of past")
    figure.colorbar(filled, ax=figure.axes, label="loss (nats)")


figure = plt.figure(figsize=(9, 3.8))
draw_surfaces(figure)
panels.show(
    figure,
    alt="Two contour pictures of the loss over the two weights. Left, the paper's composition: the same when turned by "
    f"180 degrees, lowest {surface['paper'].min():.2f}. Right, the exact one: no symmetry, lowest "
    f"{surface['exact'].min():.2f} at past {best['exact'][0]:+.2f}, upper {best['exact'][1]:+.2f}. Triangles mark the "
    "lowest points.",
)

# %% [markdown]
# **Read it.** The left picture looks the same when it is turned by half a circle. Every valley occurs twice, and the
# saddle is in the middle. The right picture has no such symmetry. The triangles are the lowest points of the grid. Are
# they where you expected them, at weights near (1, 1)?
#
# Move the star, and see what the model writes there. (It writes with the model, so give it a second.)

# %%
asked = tasks.get("past_upper").test[:2]
prompts = [tasks.prompt(tasks.get("past_upper").instructions[0], item.input) for item in asked]
wanted = ", ".join(item.output for item in asked)


def written(weights: np.ndarray) -> dict[str, list[str]]:
    """What both compositions answer at each of these weights (P, 2), joined by commas."""
    both = {how: answers(m, weights, prompts, how) for how, m in (("paper", pair), ("exact", pair_exact))}
    return {how: [", ".join(texts) for texts in found] for how, found in both.items()}


# %% tags=["hide-input"] jupyter={"source_hidden": true}
def draw_at(figure: plt.Figure, w_past: float, w_upper: float) -> str:
    """The surfaces with a star, and the losses there."""
    draw_surfaces(figure, w_past, w_upper)
    place = grid.index(w_past), grid.index(w_upper)
    return ", ".join(f"{how}: loss {surface[how][place]:.2f}" for how in ("paper", "exact"))


def answers_at(w_past: float, w_upper: float) -> str:
    """What is wanted, and what both compositions write."""
    texts = written(np.array([[w_past, w_upper]]))
    return html.escape(f"; wanted {wanted}; " + "; ".join(f"{how}: {text}" for how, (text,) in texts.items()), quote=False)


sliders = {"w past": grid, "w upper": grid}
panels.sliders_panel(
    sliders, draw_at, start={"w past": 1.0, "w upper": 0.5}, size=(9, 3.8), continuous=False, then=answers_at
)

# %% [markdown]
# The same without a kernel, for a few weights:

# %%
few_weights = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 0.5), (1.0, 1.0), (-1.0, -1.0), (1.0, -0.5)]
texts = written(np.array(few_weights))
table = []
for number, (w_past, w_upper) in enumerate(few_weights):
    place = grid.index(w_past), grid.index(w_upper)
    cells = [(f"{surface[how][place]:.2f}", texts[how][number]) for how in ("paper", "exact")]
    table.append((f"{w_past:+.1f}, {w_upper:+.1f}", *cells[0], *cells[1]))
header = ("w past, w upper", "loss, paper", "answers, paper", "loss, exact", "answers, exact")
Table(header, tuple(table), f"Wanted: {wanted}.")

# %% [markdown]
# **Read it.** The rows (1, 1) and (−1, −1) are equal under the paper's composition and very different under the exact
# one. A low loss is not yet a right answer. Both compositions can make the answer's tokens more likely long before they
# write them.

# %% [markdown]
# ## Step 5. A basis that nobody chose
#
# - Take any **orthogonal** matrix $Q$ ($r \times r$, $Q^\top Q = I$): a rotation, perhaps with a reflection. Replace
#   $A$ by $QA$ and $B$ by $BQ^\top$. Then $BQ^\top Q A = BA$: *the same module*. Every training run ends in one such
#   **basis** of rank space. Which one depends on its random starting $A$.
# - In the exact composition only the products $B_i A_i$ occur, so the basis drops out.
#
# **Predict.** We rotate `upper` at random and change nothing else. What will the loss of `upper` alone do, and what the
# loss of `past` and `upper` composed?

# %%
ROTATIONS = 8


def rotated(file, generator: torch.Generator):
    """The same module in another basis: in every layer a random orthogonal Q of its own."""
    turned = {}
    for name, (A, B) in file.weights.items():
        Q, _ = torch.linalg.qr(torch.randn(len(A), len(A), generator=generator, dtype=torch.float64))  # (r, r)
        turned[name] = ((Q @ A.double()).float(), (B.double() @ Q.T).float())
    return replace(file, weights=turned)

# %%
generator = torch.Generator().manual_seed(0)
turned = [rotated(upper, generator) for _ in range(ROTATIONS)]
labels = ["past", "upper", *(f"upper {k}" for k in range(ROTATIONS))]
bases = compose.stack([past, upper, *turned], labels, dtype=torch.float32)
of_upper = np.eye(len(labels))[1:]  # (1 + 8, 2 + 8): upper as trained, then in eight other bases
together = 0.5 * of_upper + np.eye(len(labels))[:1]  # past at 1, one of the uppers at 1/2
basis = {
    (what, how): score(bases, w, [batch], how).losses
    for what, w in (("upper alone", of_upper), ("past + upper / 2", together))
    for how in ("paper", "exact")
}

# %%
for (what, how), values in basis.items():
    low, high = values[1:].min(), values[1:].max()
    print(f"{what:16s} {how:6s} as trained {values[0]:.4f}; rotated {low:.4f} to {high:.4f}, {high - low:.1e} apart")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, axes = plt.subplots(figsize=(7, 2.8))
composed_losses = {how: basis["past + upper / 2", how] for how in ("paper", "exact")}
for place, (how, values) in enumerate(composed_losses.items()):
    style = figures.line_style(place)
    axes.plot(values[1:], [place] * ROTATIONS, style["marker"], color=style["color"], alpha=0.6, label=f"{how}, rotated")
    axes.plot(values[0], place, "*", color="black", fillstyle="none", markersize=16, label=None if place else "as trained")
axes.set_yticks((0, 1), ("paper", "exact"))
axes.set(xlabel="loss of past + upper / 2 on past_upper (nats)", ylim=(-0.6, 1.6))
axes.legend(frameon=False, fontsize=8)
basis_spread = {how: float(np.ptp(values)) for how, values in composed_losses.items()}
panels.show(
    figure,
    alt="Losses of the composition in nine bases of one and the same module: spread over "
    f"{basis_spread['paper']:.2f} nats in the paper's composition, one single point in the exact one.",
)

# %% [markdown]
# **Read it.** Alone, the module is the same in every basis, to rounding. Composed in the paper's way, each basis gives
# another model. The trained basis usually gives the best result, because our modules started from one $A$. Modules from
# other people have different seeds, so their bases are as unrelated as these. A search for $w$ cannot change that.

# %% [markdown]
# ### Try it 06.2: rotate a module
# *Difficulty 2 of 5, five minutes. Common bug: `B @ Q`, which gives another module.*
#
# Return the same module with its $A$ turned by the orthogonal matrix $Q$.


# %%
def rotate(A: torch.Tensor, B: torch.Tensor, Q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The turned A (r, in), and the B (out, r) that goes with it."""
    raise NotImplementedError


check("06.2", rotate)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def rotate(A, B, Q):
#     return Q @ A, B @ Q.T
# ```
# </details>

# %% [markdown]
# ## Step 6. Two skills are not a sum
#
# `past` knows the past tense. We keep it at weight 1 and mix `upper` in, from 0 to 1.
#
# **Predict.** At which weight of `upper` does the model still form past tenses? And where does it write WALKED?

# %%
predict("06.b", "Strict exact match of past_upper at the best weight, in percent, in the paper's composition", low=0, high=100)

# %%
amounts = [round(a, 1) for a in np.arange(0, 1.01, 0.2)]
mixes = np.array([(1.0, a) for a in amounts])  # (6, 2)
mixed_tasks = ("past", "upper", "past_upper")
mixing = {
    (task, how): score(m, mixes, encoded(task, tasks.get(task).test[:16]), how)
    for task in mixed_tasks
    for how, m in (("paper", pair), ("exact", pair_exact))
}

# %% tags=["hide-output"] jupyter={"outputs_hidden": true}
figure, plots = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for axes, how in zip(plots, ("paper", "exact"), strict=True):
    series = {task: (amounts, 100 * mixing[task, how].strict.mean(1)) for task in mixed_tasks}
    figures.plot_series(axes, series, "weight of upper (past: 1)", "strict exact match (%)")
    axes.set(title=f"{how} composition", ylim=(-4, 104))
ends = {how: 100 * mixing["past", how].strict.mean(1)[[0, -1]] for how in ("paper", "exact")}
panels.show(
    figure,
    alt="Strict exact match of past, upper and past_upper against the weight of upper. On past it goes from "
    f"{ends['paper'][0]:.0f} to {ends['paper'][1]:.0f} percent in the paper's composition, from "
    f"{ends['exact'][0]:.0f} to {ends['exact'][1]:.0f} in the exact one.",
)
for how, (first, last) in ends.items():
    target = 100 * mixing["past_upper", how].strict.mean(1).max()
    print(f"{how:6s} past {first:.0f} % → {last:.0f} %; past_upper reaches {target:.0f} % at best")

# %% tags=["hide-output"] jupyter={"outputs_hidden": true}
compare("06.b", 100 * mixing["past_upper", "paper"].strict.mean(1).max())
verb = tasks.get("past").test[0]
asked = [tasks.prompt(tasks.get(task).instructions[0], verb.input) for task in ("past", "past_upper")]
some = mixes[[0, 2, 3, 5]]
both = [answers(m, some, asked, how) for how, m in (("paper", pair), ("exact", pair_exact))]
table = tuple((f"{w[1]:.1f}", *first, *second) for w, first, second in zip(some, *both, strict=True))
header = ("w upper", "paper: past", "paper: past_upper", "exact: past", "exact: past_upper")
expected = f"past {verb.output}, past_upper {verb.output.upper()}"
Table(header, table, f"What the model writes for {verb.input!r}; wanted: {expected}.")

# %% [markdown]
# **Read it.** Adding a module does not add a skill. On the way from 0 to 1 the first skill is lost, and the combined skill may
# never appear. The exact composition changes less, because the update of `past` stays as it was. In the paper's composition
# `upper` also changes what `past`'s own $B$ is multiplied with.

# %% [markdown]
# ## Step 7. Ranks
#
# LoRAHub's modules must share one rank: $\sum_i w_i A_i$ adds matrices of shape $(r, in)$. Here is what happens when
# one module has half the rank. We make it by `refactor`, which gives the best copy of a lower rank:

# %%
thin = compose.refactor(upper, upper.configs[site].rank // 2)
labels = ["past", "upper of half the rank"]
refused = 0
try:
    compose.stack([past, thin], labels, dtype=torch.float32)
except CourseError as error:
    refused = 1
    print(error)

# %% [markdown]
# In the exact composition the ranks add up. Stack the $A$s on top of each other and the $B$s side by side. The product of
# the two blocks *is* the sum of products:
#
# $$\sum_i w_i B_i A_i = \begin{pmatrix} w_1 B_1 & w_2 B_2 \end{pmatrix} \begin{pmatrix} A_1 \\ A_2 \end{pmatrix}$$

# %%
stacked = compose.stack([past, thin], labels, composition="exact", dtype=torch.float32)
mixed = compose.compose(stacked, [1.0, 0.5], "exact")
rank_errors = []
for name, (A, B) in mixed.weights.items():
    (A1, B1), (A2, B2) = ((t[0].double(), t[1].double()) for t in (past.weights[name], thin.weights[name]))
    expected = past.configs[name].scaling * B1 @ A1 + 0.5 * thin.configs[name].scaling * B2 @ A2
    made = mixed.configs[name].scaling * B.double() @ A.double()
    rank_errors.append(((made - expected).norm() / expected.norm()).item())
ranks = [file.configs[site].rank for file in (past, thin, mixed)]
print(f"ranks {ranks[0]} and {ranks[1]}, stored as rank {ranks[2]}; largest relative error {max(rank_errors):.1e}")

# %% [markdown]
# ### Try it 06.3: the exact composition as one module
# *Difficulty 3 of 5, ten minutes. Common bug: the weight on both $A_i$ and $B_i$, so that it counts squared.*
#
# Return one $A$ and one $B$ whose product is $\sum_i w_i B_i A_i$. The modules may have different ranks.


# %%
def exact_composition(As: list[torch.Tensor], Bs: list[torch.Tensor], weights: list[float]) -> tuple:
    """A (sum of ranks, in) and B (out, sum of ranks)."""
    raise NotImplementedError


check("06.3", exact_composition)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def exact_composition(As, Bs, weights):
#     return torch.cat(As), torch.cat([w * B for w, B in zip(weights, Bs)], dim=1)
# ```
# </details>

# %% [markdown]
# A module of rank $N r$ takes more space. `refactor` reduces it to a low rank by SVD, which gives the closest copy.
#
# **Predict.** An exact sum of two modules of rank 8 has rank 16. How much of the loss does it cost to keep only 8?

# %%
partners = ("upper", "plural", "gerund")
full_rank = 2 * past.configs[site].rank
kept_ranks = sorted({max(1, full_rank // k) for k in (8, 4, 2, 1)})
rank_losses = {}
for partner in partners:
    both = compose.stack([files[names.index(name)] for name in ("past", partner)], composition="exact")
    whole = compose.compose(both, [1.0, 0.5], "exact")
    copies = [replace(compose.refactor(whole, r), path=past.path) for r in kept_ranks]
    stacked = compose.stack(copies, [f"rank {r}" for r in kept_ranks], composition="exact", dtype=torch.float32)
    rank_losses[partner] = score(stacked, np.eye(len(copies)), rows, "exact").losses
for partner in partners:
    pairs = zip(kept_ranks, rank_losses[partner], strict=True)
    print(f"past + {partner} / 2 on past: " + ", ".join(f"rank {r} loss {loss:.3f}" for r, loss in pairs))
cost_of_8 = [float(values[-2] - values[-1]) for values in rank_losses.values()]

# %% [markdown]
# **Read it.** The last number of each line is the whole sum. The number before it has the rank of a single module again.
# Modules rarely use all their directions equally, so a sum of two modules can fit into the rank of one at almost no cost.
# You can measure the cost before you publish the module. The rule of one rank belongs to the paper's formula, not to modules.

# %% [markdown]
# ## Step 8. Which candidates?
#
# LoRAHub draws 20 **candidates** at random from about 200 modules, and searches weights for them. The authors leave a
# better choice to others. We have fewer modules, so we choose 5. `candidates.choose` offers these ways:
#
# - **random**, the source's;
# - **loss**: every module alone is scored on the five examples, all in one batched forward. Those with the lowest loss
#   are kept;
# - **embedding**: no example at all. The *instruction* of the new task is compared with those on the cards, as vectors.
#   A vector is the mean of the tokens' input embeddings, or of the model's last hidden states.
#
# **Predict.** How likely is it that a draw of 5 contains the best one? And is 20 of 200 better?

# %%
CHOSEN = min(5, N - 1)
targets, draws = ("third_person", "plural_upper", "first_word"), (0, 1, 2)
held_out = {target: encoded(target, tasks.get(target).test[:12]) for target in targets}
judged = {target: candidates.single_losses(model, exact_stack, rows) for target, rows in held_out.items()}  # (N,) each
instructions = {name: card.instruction for name, card in cards.items()}
picked = {method: {} for method in ("loss", "input_embedding", "hidden_embedding")}  # names by (target, draw)
for target, seed in itertools.product(targets, draws):
    examples = encoded(target, tasks.draw(tasks.get(target), seed))
    text = tasks.get(target).instructions[0]
    question = candidates.Question(names, seed, model, tokenizer, exact_stack, examples, text, instructions)
    for method, chosen in picked.items():
        chosen[target, seed] = candidates.choose(method, CHOSEN, question)
print(f"the best of {N} is among {CHOSEN} drawn with probability {CHOSEN / N:.0%}; among 20 of 200 with {20 / 200:.0%}")


# %%
def best_of(chosen: list[str], target: str) -> float:
    """Held-out loss of the best single module among the chosen."""
    return min(judged[target][names.index(name)] for name in chosen)


luck = {t: [best_of(candidates.random_candidates(names, CHOSEN, seed), t) for seed in range(200)] for t in targets}

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, plots = plt.subplots(1, len(targets), figsize=(9, 3.2))
for axes, target in zip(plots, targets, strict=True):
    spread = {"random (200 draws)": luck[target]}
    spread |= {m.replace("_", " "): [best_of(c[target, s], target) for s in draws] for m, c in picked.items()}
    for place, values in enumerate(spread.values()):
        apart = place + np.linspace(-0.25, 0.25, len(values))  # so that equal values don't hide each other
        style = {"color": figures.COLOURS[place], "markersize": 7 if place else 4, "alpha": 1 if place else 0.35}
        axes.plot(apart, values, figures.MARKERS[place], **style)
    axes.set_xticks(range(len(spread)), spread, rotation=25, ha="right", fontsize=7)
    axes.set_title(target, fontsize=9)
plots[0].set_ylabel("held-out loss of the\nbest one chosen (nats)")
gap = {m: [statistics.median(luck[t]) - best_of(c[t, s], t) for t in targets for s in draws] for m, c in picked.items()}
by_loss, by_text = gap["loss"], gap["hidden_embedding"]
panels.show(
    figure,
    alt="For three targets, the held-out loss of the best module among those chosen. Against the median random draw, "
    f"choice by loss is better by {min(by_loss):.2f} to {max(by_loss):.2f} nats, by hidden states by "
    f"{min(by_text):.2f} to {max(by_text):.2f}.",
)

# %%
for target in targets:
    print(f"{target}: by loss {picked['loss'][target, 0]}; by hidden states {picked['hidden_embedding'][target, 0]}")
for method, values in gap.items():
    middle, wins = statistics.median(values), sum(v > 0 for v in values)
    print(f"{method:17s} better than the median random draw by {middle:+.2f} nats", end=" ")
    print(f"({min(values):+.2f} to {max(values):+.2f}); better in {wins} of {len(values)}")

# %% [markdown]
# **Read it.** A random draw leaves out the best module most of the time. Retrieval by loss costs five examples and one forward
# with all modules as candidates. Retrieval by text costs nothing, but similar instructions can mean different things. The
# module that is best *alone* may not be best *in a composition*: lesson 07 lets a search decide.

# %% [markdown]
# ## Findings
#
# One card for each claim of this lesson. The verdicts are computed from the values. With the profile `tiny` the model
# and the modules are random, so your run gives no verdict.


# %% tags=["hide-input"] jupyter={"source_hidden": true}
apart_from_mirror = [sign_difference, mirror_difference]
no_slope = gradient["paper"] == 0 < gradient["exact"]
basis_counts = basis_spread["paper"] > 100 * basis_spread["exact"]
wins = {method: sum(v > 0 for v in values) for method, values in gap.items()}
cells = len(targets) * len(draws)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
found = [
    Row(
        "H1.difference_of_both_compositions", of_pairs, "of the exact one's size", verdict(min(of_pairs) > 0.1, True),
        f"all pairs at weights 1, 1; by hand equals the library within {max(differences):.0e}",
    ),
    Row(
        "H1.cross_term", cross_size.tolist(), "of an own term's size", verdict(min(cross_size.tolist()) > 0.1, True),
        f"all ordered pairs, N(N-1) of them; median cosine with the own term {likeness.median():.2f}",
    ),
    Row(
        "H1.loss_of_minus_w", apart_from_mirror, "nats apart from w", verdict(max(apart_from_mirror) < 1e-3, True),
        "a negative weight counts only relative to the others",
    ),
    Row(
        "H1.gradient_at_zero", [gradient["paper"]], "nats per unit of w", verdict(no_slope, True),
        f"zero where the released code starts, downhill in {down} directions, uphill in {up}; {gradient['exact']:.2g} in the exact one",
    ),
    Row(
        "H1.loss_range_over_bases", [basis_spread["paper"]], "nats", verdict(basis_counts),
        f"{ROTATIONS} rotations that leave the module the same; {basis_spread['exact']:.0e} in the exact composition",
    ),
    Row(
        "H2.mixed_ranks_refused", [refused], "of 1 pair", verdict(refused == 1, True), "by the paper's composition"
    ),
    Row(
        "H2.mixed_ranks_composed_exactly", rank_errors, "relative error", "",
        "another formula, which takes any ranks: it says nothing about the source's", claim="H2",
    ),
    Row(
        "H3.gain_of_choosing_by_loss", gap["loss"], "nats over the median draw",
        verdict(wins["loss"] == cells),
        f"{CHOSEN} of {N}; better in {wins['loss']} of {cells} (target, draw)", seeds=draws,
    ),
    Row(
        "H3.gain_of_choosing_by_embedding", gap["hidden_embedding"], "nats over the median draw",
        verdict(wins["hidden_embedding"] == cells),
        f"last hidden states: better in {wins['hidden_embedding']} of {cells}; input embeddings in {wins['input_embedding']}", seeds=draws,
    ),
]  # fmt: skip

# %%
measured = [Row("cost_of_one_rank_again", cost_of_8, "nats on past")]
for how, (first, last) in ends.items():
    lost = float(first - last)
    measured.append(Row(f"past_lost_by_adding_upper.{how}", lost, "points of strict match"))
publish("06", [*found, *measured], profile)

# %% [markdown]
# ## Do you know it?
#
# Three questions on this lesson, and two on earlier ones. Answer first, then open. Nothing is graded.

# %%
recall("06")

# %% [markdown]
# ## What to remember
#
# - LoRAHub adds *factors*. $\hat B \hat A$ has squared weights and $N(N-1)$ cross-terms that nobody trained. It is the same
#   for $w$ and $-w$, and it has no slope at $w = 0$.
# - The result depends on each module's basis, which is random. The exact sum $\sum_i w_i B_i A_i$ does not depend on
#   it, and takes modules of any rank.
# - Modules add up; skills do not. Look at answers, not at loss alone. Choose candidates; do not draw them at random.
#
# ## Go further
#
# - Huang et al. 2023, *LoraHub*, arXiv 2307.13269: section 3.2 for COMPOSE, section 4.1 for the candidates.
# - Ilharco et al. 2023, *Editing models with task arithmetic*, arXiv 2212.04089: exact sums of full updates, and what
#   subtracting one does.
# - Zhao et al. 2024, *LoraRetriever*, arXiv 2402.09997: choosing modules by a text's embedding.
# - Your own modules: `lorahub-edu zoo train`, then `stand_ins.modules_for(profile, folder=...)` in this notebook.
#
# **Next:** lesson 07, *Adapting*: find the weights from five examples, without gradients.
