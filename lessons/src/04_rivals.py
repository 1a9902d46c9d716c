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
# # 04 · LoRA among its rivals
#
# **Promise.** You put a dozen ways of fine-tuning on one model with one call. You build two of them from scratch. You see
# what each trains, costs and reaches when all are treated alike.
#
# **You will be able to**
# - say for each method *where* in a block it acts: beside a weight, behind a layer, in front of the text, on a scale,
# - build a bottleneck adapter and LLaMA-Adapter's gated attention, and check them against the library,
# - give every method the same number of trained parameters, and say for which that is impossible,
# - read a comparison: with the spread of its seeds, and with its learning rates chosen by one rule.
#
# **You need** lessons 01 and 02: LoRA, attention, grouped heads.
#
# **It covers** claims R7, R8, R10 and R11 of *Understanding Parameter-Efficient Finetuning* (Raschka 2023), whose table
# is table 4 of Hu et al. 2021. What a 7B needs on a 24 GB card (R9, and R11 again) is lesson 05.
#
# **It takes:**

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import matplotlib.pyplot as plt
import torch
from IPython.display import display

from lorahub_edu.data.batching import make_batches
from lorahub_edu.errors import CourseError
from lorahub_edu.methods.attach import attach, attached, detach
from lorahub_edu.methods.overview import methods_table
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
from lorahub_edu.training.losses import last_hidden_states
from lorahub_studies import comparison, comparison_tables

open_lesson("04_rivals")

# %% [markdown]
# ## Step 1. One call
#
# **Parameter-efficient fine-tuning** (PEFT) trains few parameters and leaves the **base model** frozen. `attach` puts a
# method on a model in place, and `detach` removes it. Most methods come from the library PEFT. PEFT has no bottleneck
# adapters, so the course has its own. Here are all methods, with their size on this profile's model:

# %%
profile = get_profile()
methods_table(profile.name)

# %% [markdown]
# **Predict.** BitFit trains biases. A LLaMA has none. What can `attach(model, "bitfit")` do, and what must the model
# answer right after it?

# %%
model, tokenizer = pretrained.load(profile, dtype=torch.float32)
text = tokenizer("The capital of France is", return_tensors="pt").input_ids  # (1, T)


@torch.no_grad()
def logits_of(some_model) -> torch.Tensor:
    """The logits after the text's last token, (vocabulary,)."""
    return some_model(input_ids=text, attention_mask=torch.ones_like(text), use_cache=False).logits[0, -1]

# %%
plain = logits_of(model)
shifts = {}
starts = {name: (name, {}) for name in ("bitfit", "ln_tuning", "ia3", "lora", "dora", "llama_adapter", "houlsby", "prompt")}
starts |= {f"prefix, scale {scale}": ("prefix", {"scale": scale}) for scale in (1.0, 0.1)}
for label, (method, options) in starts.items():
    with attached(model, method, **options) as made:
        shifts[label] = ((logits_of(made.model) - plain).norm() / plain.norm()).item()
for label, shift in shifts.items():
    print(f"{label:18s} untrained, it changes the logits by {shift:.1e} of their size")
restored = (logits_of(model) - plain).abs().max().item()
print(f"after detaching: largest difference {restored}")

# %% [markdown]
# **Read it.** BitFit adds a bias of zero to every linear layer. Most methods start *as* the base model: a product with
# a factor at zero (LoRA, a gate), a scale at one, a copy. The bottleneck starts near it. Tokens in front of the text
# change the output from the start, and must first learn not to disturb. PEFT draws a prefix from a normal distribution;
# a tenth of that disturbs less. This lesson starts every prefix with this tenth.

# %% [markdown]
# ## Step 2. Behind a layer: the bottleneck adapter
#
# Houlsby et al. put two small layers behind the attention and behind the feed-forward:
#
# $$f(x) = x + U\,\mathrm{relu}(D x), \qquad D: (m, d),\; U: (d, m).$$
#
# LoRA stands *beside* one weight and can be merged into it. The adapter stands *behind* a layer, with a nonlinearity
# inside, so nothing can absorb it.
#
# ### Try it 04.1: a bottleneck adapter
# *Difficulty 1 of 5, five minutes. Common bug: forgetting to add the input. (Biases are left out here.)*


# %%
def bottleneck(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """What the next layer sees: x (..., d), down (m, d), up (d, m) -> (..., d)."""
    raise NotImplementedError


check("04.1", bottleneck)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def bottleneck(x, down, up):
#     return x + torch.relu(x @ down.T) @ up.T
# ```
# </details>
#
# **Predict.** Without the relu, is it a LoRA? Which weight would it have to be merged into?
#
# Without the relu, $x + UDx = (I + UD)x$, and with the layer's own weight this is $(I + UD)W$. One could merge that,
# and it would be a low-rank update too: $\Delta W = UDW$. The relu is the part that LoRA can't have.

# %% [markdown]
# ## Step 3. In front of the text
#
# - **Prompt tuning** trains the *embeddings* of a few tokens that stand before every text.
# - **Prefix tuning** trains their *keys and values* in every layer. They are no longer computed from embeddings, so
#   they need not belong to any text.
#
# **Predict.** We give a prompt the embeddings of real words. What is the model's output then?

# %%
front = tokenizer("Answer in one word.", add_special_tokens=False).input_ids
ids = text[0].tolist()
with attached(model, "prompt", length=len(front)) as made:
    words = model.get_input_embeddings()(torch.tensor(front)).detach()
    made.model.prompt_encoder["default"].embedding.weight.data = words.clone()
    by_prompt = logits_of(made.model)
with torch.no_grad():
    by_text = model(input_ids=torch.tensor([front + ids]), use_cache=False).logits[0, -1]
prompt_difference = ((by_prompt - by_text).norm() / by_text.norm()).item()
print(f"a prompt made of real words, against those words in the text: relative difference {prompt_difference:.0e}")

# %% [markdown]
# **Read it.** The same output. So a trained prompt is a text that no tokenizer can write. It also costs as much as a
# text: its tokens go through every layer in every query. A prefix saves that, but attention still reads more positions.

# %% [markdown]
# ## Step 4. LLaMA-Adapter from scratch
#
# LLaMA-Adapter also gives each of the upper layers a few tokens of its own, but reads them *separately*. A second
# attention reads only these tokens, and its result is multiplied by a **gate** before it is added. The gate starts at
# zero, so training starts at the base model.
#
# ### Try it 04.2: what a gated prompt adds
# *Difficulty 3 of 5, ten minutes. Common bug: the gate inside the softmax.*


# %%
def gated_prompt(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, gate: float) -> torch.Tensor:
    """What is added to the heads' outputs: queries (heads, T, size), keys and values (heads, P, size)."""
    raise NotImplementedError


check("04.2", gated_prompt)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def gated_prompt(queries, keys, values, gate):
#     weights = torch.softmax(queries @ keys.mT / queries.shape[-1] ** 0.5, -1)
#     return gate * weights @ values
# ```
# </details>
#
# Now the whole method, on one attention layer of the model: queries with their positions (RoPE), keys and values of the
# prompt without any, grouped heads.


# %%
def zero_init_attention(attention, hidden, cos, sin, prompt, gate):
    """What LLaMA-Adapter adds to an attention layer's output: hidden (b, T, d), trained prompt (P, d) and gate."""
    size = attention.head_dim

    def heads(layer, x):  # (..., tokens, d) -> (..., heads, tokens, size)
        return layer(x).unflatten(-1, (-1, size)).transpose(-3, -2)

    queries, keys, values = heads(attention.q_proj, hidden), heads(attention.k_proj, prompt), heads(attention.v_proj, prompt)
    turned = torch.cat([-queries[..., size // 2 :], queries[..., : size // 2]], -1)
    queries = queries * cos[:, None] + turned * sin[:, None]  # RoPE, as in the layer itself; cos, sin (b, T, size)
    groups = queries.shape[1] // len(keys)
    keys, values = (x.repeat_interleave(groups, 0) for x in (keys, values))  # (heads, P, size): grouped heads share
    weights = torch.softmax(queries @ keys.mT / size**0.5, -1)  # (b, heads, T, P), over the prompt alone
    read = gate * weights @ values  # (b, heads, T, size)
    return attention.o_proj(read.transpose(1, 2).flatten(2))  # (b, T, d)

# %%
layer = model.model.layers[-1].self_attn
hidden = 0.5 * torch.randn(1, 7, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
cos, sin = model.model.rotary_emb(hidden, torch.arange(7)[None])
arguments = {"hidden_states": hidden, "position_embeddings": (cos, sin), "attention_mask": None}

# %%
differences = {}
with torch.no_grad():
    output = layer(**arguments)[0]  # the layer without any adapter
    made = attach(model, "llama_adapter")
    library = model.model.layers[-1].self_attn  # PEFT's layer around the same one
    for gate in (0.0, 0.25, 1.0, -2.0):
        library.adaption_gate.fill_(gate)
        expected = library(**arguments)[0]
        ours = output + zero_init_attention(layer, hidden, cos, sin, library.adaption_prompt[0], gate)
        differences[gate] = (ours - expected).abs().max().item(), ((expected - output).norm() / output.norm()).item()
detach(made)
for gate, (difference, change) in differences.items():
    print(f"gate {gate:5.2f}: from scratch against PEFT {difference:.0e}; the layer's output changes by {change:.2f} of its size")
assert max(difference for difference, _ in differences.values()) < 1e-5

# %% [markdown]
# Put it on the whole model now, untrained, and open all its gates together: what comes after the text?

# %%
GATES = [0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 1.0]
opened = {}
with attached(model, "llama_adapter") as made, torch.no_grad():
    for gate in GATES:
        for name, parameter in model.named_parameters():
            if name.endswith("adaption_gate"):
                parameter.fill_(gate)
        opened[gate] = torch.softmax(logits_of(made.model), -1)
favourites = opened[0.0].topk(6).indices.tolist()


# %% tags=["hide-input"] jupyter={"source_hidden": true}
def draw_gate(figure: plt.Figure, gate: float) -> str:
    """Probabilities of the base model's favourite next tokens with all gates at one value."""
    axes = figure.subplots()
    labels = [repr(tokenizer.decode([token])) for token in favourites]
    axes.barh(labels, opened[gate][favourites].tolist(), color=figures.COLOURS[0], hatch="//", edgecolor="white")
    axes.invert_yaxis()
    axes.set(xlim=(0, max(1e-3, 1.05 * opened[0.0].max().item())), xlabel="probability of the next token")
    apart = (opened[0.0] * (opened[0.0] / opened[gate]).log()).sum().item()
    return f"gates at {gate}: {max(0.0, apart):.3f} nats from the base model's answer (Kullback-Leibler)"


panels.slider_panel("gate", GATES, draw_gate, start=0.0, size=(7, 2.6))

# %% [markdown]
# Where no kernel runs, here are two positions of the slider, closed and a little open:

# %%
figure = plt.figure(figsize=(10, 2.6))
sentences = [draw_gate(part, gate) for part, gate in zip(figure.subfigures(1, 2), (0.0, 0.02), strict=True)]
panels.show(figure, alt=f"Bars: the probabilities of six next tokens. {'; '.join(sentences)}")
print(*sentences, sep="\n")

# %% [markdown]
# **Read it.** With the gate at zero nothing changes, and the first gradient reaches only the gate. The tokens behind it
# get a gradient as soon as the gate opens. (The paper has one gate for each head, through a tanh. PEFT has one number a
# layer.)

# %% [markdown]
# ## Step 5. The same budget for all
#
# Methods are compared fairly at equal numbers of trained parameters, their **budget**. `attach(..., budget=n)` computes
# the size.
#
# **Predict.** LoRA trains about a third of a percent of the model. How many tokens of a *prompt* would that be?

# %%
with attached(model, "lora") as made:
    budget = made.trainable
table = []
for method in ("lora", "houlsby", "pfeiffer", "prefix", "llama_adapter", "prompt", "bitfit", "ia3"):
    try:
        with attached(model, method, budget=budget) as made:
            settings = made.parts[method]
            size = next((f"{key} {settings[key]}" for key in ("rank", "bottleneck", "length") if key in settings), "fixed")
            table.append((method, size, f"{made.trainable:,}", f"{made.trainable / budget - 1:+.1%}"))
    except CourseError as error:
        table.append((method, "impossible", "–", str(error).partition(": ")[2]))
Table(("method", "size", "trains", "against the budget"), tuple(table), f"Budget: LoRA's {budget:,}.")

# %% [markdown]
# **Read it.** Some methods have no size at all. And hundreds of prompt tokens before a text of twenty would cost too
# much, whatever they learn. So "at equal budget" is a fair question for some methods only, and the comparison below
# keeps the others at their usual size.
#
# ### Try it 04.3: a size for a budget
# *Difficulty 2 of 5, five minutes. Common bug: forgetting that there are many adapters.*
#
# An adapter of width $d$ and bottleneck $m$ has two matrices and two biases. Return the $m$ (at least 1) at which
# `places` of them train about `budget` parameters.


# %%
def size_for(budget: int, width: int, places: int) -> int:
    """The bottleneck whose count comes nearest to the budget."""
    raise NotImplementedError


check("04.3", size_for)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def size_for(budget, width, places):
#     m = (budget / places - width) / (2 * width + 1)
#     return max(1, round(m))
# ```
# </details>

# %% [markdown]
# ## Step 6. A short race
#
# Five methods, one task (say the opposite of a word), a few steps of 8 rows each. Everything else is the same: the
# rows, their order, the loop, the loss, the number formats. What is trained is in float32. The base is in bfloat16
# where the processor is quick in it, else in float32 too.
#
# **Predict.** Put them in order: which learns fastest? Which step is the most expensive?

# %%
predict("04.a", "Which has the lowest held-out loss?", ["lora", "ia3", "houlsby", "prefix", "llama_adapter"])

# %% tags=["hide-output"] jupyter={"outputs_hidden": true}
RACE = {"lora": 3e-3, "ia3": 1e-2, "houlsby": 3e-3, "prefix": 3e-2, "llama_adapter": 3e-2}
STEPS, TASK = 5, "antonym"
race = {
    name: comparison.run(comparison.MethodRun(name, TASK, rate, seed=0, steps=STEPS, profile=profile.name, test_items=40))
    for name, rate in RACE.items()
}
table = [
    (comparison.get_variant(name).label, f"{row['trainable']:,}", f"{row['training_losses'][0]:.2f} → {row['training_losses'][-1]:.2f}",
     f"{row['loss']:.2f}", f"{row['strict']:.0%}", f"{row['cpu_seconds'] / STEPS:.2f}")
    for name, row in race.items()
]  # fmt: skip
compare("04.a", min(race, key=lambda name: race[name]["loss"]))
header = ("method", "trains", "loss of a step, first → last", "held-out loss", "strict match", "processor s a step")
Table(header, tuple(table), f"{STEPS} steps on {TASK}, at a usual learning rate for each.")

# %% [markdown]
# **Read it.** A few steps show which method *starts* fast, not which ends well. A gate at zero and tokens that disturb
# need more steps. And here each learning rate was chosen by hand, which decides such a race. The comparison below does
# better.

# %% [markdown]
# ## Step 7. The comparison
#
# `lorahub-edu methods sweep` measured every method on two tasks: writing numbers in words, and words in capitals. They
# were chosen before any rival was measured. The base answers no item of either task. After the few steps that a laptop
# has time for, LoRA is neither at the bottom nor at the top. For each method and task *three learning rates*, half a
# decade apart, were tried at the first seed. The rate with the lowest loss on separate rows was then run at all seeds.
# The test items are others, which no run has seen. Memory was measured in a process of its own for each method; seconds
# and tokens are those of the processor, on one thread.

# %%
measured = results.committed_study("methods")
if measured:
    settings = measured["settings"]
    steps = ", ".join(f"{task}: {n} steps of {settings['batch_size']} rows" for task, n in settings["tasks"].items())
    caption = f"Strict exact match in %, mean of {len(settings['seeds'])} seeds (lowest–highest). {settings['base_model']}; {steps}."
    display(comparison_tables.table(measured["summary"], "strict", caption))
    at_edge = [task["edge"] for entry in measured["summary"] for task in entry["tasks"].values()]
    print(f"in {sum(at_edge)} of {len(at_edge)} searches the best of the three rates was the lowest or the highest")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
FAMILIES = {
    "LoRA and kin": ("lora", "rslora", "dora", "qlora"),
    "bottleneck adapters": ("houlsby", "pfeiffer"),
    "tokens in front": ("prompt", "p_tuning", "prefix"),
    "scales, biases, norms": ("ia3", "bitfit", "ln_tuning"),
    "LLaMA-Adapter": ("llama_adapter",),
    "every weight": ("full",),
    "combined": ("lora+prefix", "lora+houlsby"),
}
entries = comparison_tables.by_variant(measured["summary"]) if measured else {}
if entries:
    where = comparison_tables.points(measured["summary"])  # per label: trained, mean, low, high
    groups = {
        family: {name: where[entries[name]["label"]] for name in names if name in entries}
        for family, names in FAMILIES.items()
    }
    figure, axes = plt.subplots(figsize=(11, 5))
    figures.plot_methods(axes, groups, "strict exact match (%), mean of the tasks")
    ranked = sorted(where.items(), key=lambda point: -point[1][1])
    best, last = ranked[0], ranked[-1]
    panels.show(
        figure,
        alt=f"Exact match against the number of trained parameters, one marker a method. The highest is {best[0]} with "
        f"{best[1][1]:.0%} at {best[1][0]:,} parameters, the lowest {last[0]} with {last[1][1]:.0%} at {last[1][0]:,}.",
    )

# %% [markdown]
# **Read it.** Methods that train about as many parameters stand side by side. Look for what this number does *not*
# explain. Adapters and a prefix of LoRA's size stand far apart. Training only the norms' scales, a small part of LoRA's
# count, reaches LoRA's score. Training every weight scores higher than LoRA on one task, and no higher on the other. Tokens
# in front of the text are last. They also start farthest from the base (step 1), and the steps are few. That is a result
# for short runs on a small model, and no more. Then look at the bars before you call one the winner: three seeds are few.
# And where the best rate was at an edge of its search, a wider one may find better.
#
# Now the costs. Freezing the base saves most of the memory: it has no gradients and no optimizer state. It saves
# a part of a step's time: the forward pass and the way back through the activations remain. Prompts cost the time of the
# tokens that they add.

# %% [markdown]
# ## Step 8. Combining
#
# The source says that LoRA can be combined with prefix tuning and with adapters. It is quickly shown that they *can*
# be combined. Whether it helps is another question. At the same total budget each part gets half, and the pair is
# compared with the better of its two parts at full size.

# %%
rows = comparison.rows_of(TASK, tokenizer, 4).test
batch = make_batches([row.encoded() for row in rows], "padded", len(rows), 0)[0]
combined = {}
for pair in (["lora", "prefix"], ["lora", "houlsby"]):
    with attached(model, pair, budget=budget) as made:
        states = last_hidden_states(made.model, batch)
        states.sum().backward()
        trained = sum(p.grad is not None for p in made.model.parameters() if p.requires_grad)
        everything = sum(p.requires_grad for p in made.model.parameters())
        combined[" + ".join(pair)] = trained == everything
        print(f"{' + '.join(pair)}: {made.trainable:,} parameters, {trained} of {everything} tensors get a gradient")
if entries:
    for pair, gain in comparison_tables.gains(measured["summary"], ("lora+prefix", "lora+houlsby")).items():
        scores = {name: 100 * comparison_tables.mean_score(entries[name]) for name in (*pair.split("+"), pair) if name in entries}
        print(", ".join(f"{name} {score:.0f} %" for name, score in scores.items()) + f": {100 * gain:+.0f} points")

# %% [markdown]
# **Read it.** Both pairs train. Here neither beats its better part, and the difference lies within the spread of the
# seeds.
#
# ## Findings
#
# One card for each claim that this lesson covers. Most figures are those of the comparison in step 7, so your run has
# a dash there. With the profile `tiny` the model is random, so your run gives no verdict. The source's table is
# for GPT-3 with 175 billion parameters: LoRA (37.7 million) 74.0 / 91.6 / 53.4 on WikiSQL, MNLI and SAMSum, full
# fine-tuning 73.8 / 89.5 / 52.0, Houlsby's adapters (40.1 million) 73.2 / 91.5 / 53.2.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
rows = [
    Row(
        "R8.combinations_train", sum(combined.values()), f"of {len(combined)} pairs",
        verdict(all(combined.values()), True), "every tensor of both methods gets a gradient",
    ),
    Row(
        "R10.race_llama_adapter", race["llama_adapter"]["cpu_seconds"] / race["lora"]["cpu_seconds"],
        "of LoRA's processor time, in this run's race",
    ),
    Row(
        "R17.share_of_parameters", 100 * 37.7 / 175_255.8, "% of GPT-3's parameters", "refuted here",
        "counted from the source's own table; its text says 2 %. And ROUGE, of which it says translation, was made for "
        "summaries (Lin 2004): SAMSum is a set of summaries",
    ),
]  # fmt: skip
if "lora" in entries:
    duels, by_loss = comparison_tables.duels(measured["summary"]), comparison_tables.duels(measured["summary"], measure="loss")
    alone = {name: tasks for name, tasks in duels.items() if "+" not in name and name not in FAMILIES["LoRA and kin"]}
    every = [value for tasks in alone.values() for value in tasks.values()]
    losses = [value for name in alone for value in by_loss[name].values()]
    better, worse = sum(v > 0 for v in every), sum(v < 0 for v in every)
    ahead = ", ".join(comparison.get_variant(name).label for name, tasks in alone.items() if max(tasks.values()) < 0)
    gains = comparison_tables.gains(measured["summary"], ("lora+prefix", "lora+houlsby"))
    (time, memory), (full_time, full_memory) = (
        [comparison_tables.ratio(measured["summary"], name, "lora", key) for key in ("step_cpu_seconds", "peak_bytes")]
        for name in ("llama_adapter", "full")
    )
    rows += [
        Row(
            "R7.lora_against_rivals", better - worse, f"wins less losses of {len(every)} (rival, task)",
            comparison_tables.best_verdict(alone),
            f"beyond the spread of the seeds LoRA is better in {better}, worse in {worse}; by held-out loss in "
            f"{sum(v > 0 for v in losses)} and {sum(v < 0 for v in losses)}; ahead on both tasks: {ahead or 'none'}",
            study=measured,
        ),
        *(
            Row(
                f"R7.{name}", [100 * task["strict"]["mean"] for task in entry["tasks"].values()],
                "% strict match, by task", study=measured,
            )
            for name, entry in entries.items()
        ),
    ]  # fmt: skip
    if gains:
        rows.append(Row(
            "R8.gain_of_combining", [100 * gain for gain in gains.values()],
            "points over the better part, at equal budget", verdict(min(gains.values()) > 0),
            f"{', '.join(gains)}; each part at half its size", study=measured,
        ))  # fmt: skip
    if time and memory:
        rows.append(Row(
            "R10.cost_of_llama_adapter", time, "of LoRA's processor time a step",
            verdict(abs(time - 1) < 0.3 and abs(memory - 1) < 0.3),
            f"and {memory:.2f} of its peak memory, the source's {22 / 21:.2f}. The source times whole runs of unequal length "
            "(162 and 192 min), never a step", study=measured,
        ))  # fmt: skip
    if full_time and full_memory:
        rows.append(Row(
            "R11.cost_of_full", full_time, "of LoRA's processor time a step", "",
            f"and {full_memory:.1f} of its peak memory, on one machine that needs no second: the source's factor, "
            f"{4 * 1956 / 192:.0f}, is of four GPUs that share one 7B. The verdict is lesson 05's", claim="R11", study=measured,
        ))  # fmt: skip
if not measured:
    print("R7, R10, R11, and what combining brings: not measured yet")
publish("04", rows, profile)

# %% [markdown]
# ## Do you know it?
#
# Three questions on this lesson, and two on earlier ones. Answer first, then open. Nothing is graded.

# %%
recall("04")

# %% [markdown]
# ## What to remember
#
# - Methods differ in *where* they act: beside a weight (LoRA, mergeable), behind a layer (adapters), in front of the
#   text (prompt, prefix), on scales, biases or norms. Most start exactly at the base model.
# - A budget in parameters fixes some methods' size, and says little about cost: prompt tokens are few parameters and
#   much work in every query.
# - A comparison is only as good as its learning rates, seeds and spread. Ask for all three.
#
# ## Go further
#
# - Hu et al. 2021, *LoRA*, arXiv 2106.09685: table 4, and appendix E on combining with prefixes.
# - Houlsby et al. 2019, arXiv 1902.00751; Li and Liang 2021, arXiv 2101.00190; Lester et al. 2021, arXiv 2104.08691;
#   Liu et al. 2022 (IA3), arXiv 2205.05638; Zhang et al. 2023 (LLaMA-Adapter), arXiv 2303.16199.
# - On your own: `lorahub-edu methods sweep --methods lora,houlsby --tasks reverse --steps 30 --out runs/mine`.
#
# **Next:** lesson 05, *Will it fit in 24 GB?*
