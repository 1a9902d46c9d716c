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
# # 03 · Alpaca: teach a LLaMA to follow instructions
#
# **In this lesson you fine-tune a real pretrained LLaMA on real instruction rows with LoRA, on your own machine, and
# find out how to tell whether it got better.**
#
# You will be able to
#
# - say where Alpaca's 52,000 rows come from and what that means for their quality and licence;
# - turn a row into tokens with a prompt, a loss mask and an end, and pack rows without a single padding token;
# - run, interrupt and resume a LoRA training run, and read its curve;
# - name what perplexity, BLEU and ROUGE each miss.
#
# *You need:* lesson 01 (LoRA). *Sources covered:* Raschka 2023, "LoRA & LLaMA", "Computational performance",
# "Evaluating"; Wang et al. 2022 (Self-Instruct, arXiv 2212.10560); Taori et al. 2023 (Stanford Alpaca). Claims R9,
# R12-R15.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import os
import statistics

import matplotlib.pyplot as plt

from lorahub_edu import evaluation
from lorahub_edu.data import alpaca, batching, tasks
from lorahub_edu.hub import stand_ins
from lorahub_edu.lora import adapter_files, adapters
from lorahub_edu.models import pretrained
from lorahub_edu.runs import finetune
from lorahub_edu.show.notebook import (
    PROFILES,
    Row,
    Table,
    chat,
    check,
    compare,
    figures,
    get_profile,
    mixing,
    open_lesson,
    panels,
    predict,
    publish,
    recall,
    results,
    verdict,
)
from lorahub_edu.training.loop import train

profile = get_profile()
open_lesson("03_alpaca")

# %% [markdown]
# ## 1 · Where the rows come from
#
# - **Alpaca** is a set of *instruction rows*: an instruction, sometimes an input, and an output. No person wrote most
#   of them. Another language model did, by a method called **Self-Instruct**, in four steps.
#
# | step | what happens |
# |---|---|
# | 1. seed | people write 175 tasks, each with an instruction and an example answer |
# | 2. kind | the model is shown a few tasks, writes a new instruction, and says whether it is a classification; Alpaca's makers left this question out |
# | 3. answer | given a new instruction, the model writes an input, if one is needed, and an output |
# | 4. filter | rows that are too long, too short or too similar to an earlier row are removed; the others join the pool, and the steps start again |
#
# So the outputs carry that model's mistakes. Alpaca's makers allow the rows for non-commercial use only (CC BY-NC 4.0).
# This page shows only rows that the course itself wrote; numbers are measured on the rows that were loaded:

# %%
rows, source = alpaca.load_rows(profile.rows)
print(f"Loaded: {source}.")
print(f"With an input: {sum(bool(row.input) for row in rows) / len(rows):.0%} of the rows.")
shown = alpaca.shipped_examples()
example = next(row for row in shown if row.input and len(row.output) < 120)
Table(("field", "one of the course's own rows"), tuple((k, repr(v)) for k, v in vars(example).items()))

# %% [markdown]
# **Predict.** The source trains on 49,759 rows and keeps 2,000 apart. The public file holds 52,002. Do the numbers add
# up? Write down what you think happened to the rest.

# %%
train_size, validation_size = PROFILES["gpu24"].train_rows, PROFILES["gpu24"].validation_rows
public = range(52_002)  # the split needs row numbers only
kept, held_back = alpaca.split(public, validation_size, seed=42, train_rows=train_size)
missing = len(public) - len(kept) - len(held_back)
print(f"{len(kept):,} + {len(held_back):,} = {len(kept) + len(held_back):,}; not used: {missing} of {len(public):,}")
apart = not set(kept) & set(held_back)

# %% [markdown]
# The split can be made, but its two sizes add up to fewer rows than the public file has: the source must have used a
# cleaned edition. The seed makes the split the same for everyone. **Held-back rows are never trained on**; without them
# a falling loss could mean memorising.

# %% [markdown]
# ## 2 · From a row to tokens
#
# - The row is put into a **prompt** with a fixed form; the model has to continue it. Rows without an input get a
#   shorter form.
# - The model should learn to *answer*, not to write prompts. So the loss is taken on the response only: every prompt
#   token gets the **label** −100, which the loss skips. The end-of-sequence token is a label too, or it never stops.

# %%
model, tokenizer = pretrained.load(profile, attention=batching.PACKED_ATTENTION)
encoded = alpaca.encode(example, tokenizer, profile.block_size)
print(alpaca.format_prompt(example) + example.output)
learnt = [token for token, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != -100]
print("\nlearnt:", tokenizer.convert_ids_to_tokens(learnt))
assert tokenizer.decode(learnt) == example.output + tokenizer.eos_token

# %% [markdown]
# Only the answer and the end token are learnt. Prompt and response are tokenised separately. Otherwise a token could
# cross the boundary, and no mask would be exact.
#
# **Predict.** What share of all tokens carries a label: a third, a half, four fifths? And how uneven are the lengths?

# %%
training, validation = alpaca.split(rows, profile.validation_rows, seed=0)
train_rows = alpaca.encode_rows(training, tokenizer, profile.block_size, too_long="drop")
validation_rows = alpaca.encode_rows(validation, tokenizer, profile.block_size, too_long="drop")
lengths = [len(row.input_ids) for row in train_rows]
labelled = sum(label != -100 for row in train_rows for label in row.labels) / sum(lengths)
cut = sum(length == profile.block_size for length in lengths) / len(lengths)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, axes = plt.subplots()
prompts = [row.labels.count(-100) for row in train_rows]
axes.hist([prompts, [n - p for n, p in zip(lengths, prompts, strict=True)]], bins=24, label=["prompt", "response"],
          color=figures.COLOURS[:2], hatch=["", "//"])  # fmt: skip
axes.set(xlabel="tokens", ylabel="rows")
axes.legend(frameon=False)
panels.show(figure, alt="Histogram of prompt and response lengths in tokens: responses spread far wider than prompts.")
print(f"{labelled:.0%} of the tokens carry a label; lengths run from {min(lengths)} to {max(lengths)} tokens, "
      f"median {statistics.median(lengths):.0f}; {cut:.0%} of the rows fill the block of {profile.block_size} and may be cut.")  # fmt: skip

# %% [markdown]
# Prompts are much alike; responses spread widely. That unevenness is what makes padding expensive, as the next step
# shows.

# %% [markdown]
# ## 3 · Batches without padding
#
# - Rows in a batch must have one length, so short ones are **padded**, and the machine computes on nothing.
# - **Grouping** rows of like length pads less. **Packing** lays rows end to end in one sequence and pads nothing. Then
#   attention must not look across a boundary (a *block-diagonal* mask). And positions must start at 0 in every row.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
step = [train_rows[i] for i in batching.step_rows(len(train_rows), 16, step=0, seed=0)]


def draw_batches(figure, size: int) -> str:
    """Each strategy's micro-batches as bars; returns the sentence that reads them."""
    sentence = []
    for axes, strategy in zip(figure.subplots(1, 3, sharey=True), batching.STRATEGIES, strict=True):
        made = batching.make_batches(step, strategy, size, tokenizer.pad_token_id)
        computed = sum(batch.input_ids.numel() for batch in made)
        padding = 1 - sum(batch.num_tokens for batch in made) / computed
        figures.plot_batches(axes, made).set_title(f"{strategy}: {padding:.0%} padding")
        sentence.append(f"{strategy} {computed:,} positions")
    return f"{len(step)} rows, {size} a micro-batch: " + ", ".join(sentence) + " to compute."


panels.slider_panel("rows a micro-batch", [2, 4, 8, 16], draw_batches, start=4, size=(9, 3.4))

# %% [markdown]
# Move the slider. Where no kernel runs, here is the same picture for 4 rows a micro-batch:

# %%
figure = plt.figure(figsize=(9, 3.4))
print(draw_batches(figure, 4))
panels.show(
    figure,
    alt="Three panels of horizontal bars. Padded micro-batches have long hatched padding, grouped ones little, packed none.",
)

# %% [markdown]
# Packing computes on rows only. But is it still the same training? **Predict** how far the losses will differ.

# %%
from lorahub_edu.training.losses import mean_loss

by_strategy = {
    strategy: mean_loss(model, batching.make_batches(step[:8], strategy, 4, tokenizer.pad_token_id))
    for strategy in batching.STRATEGIES
}
difference = max(by_strategy.values()) - min(by_strategy.values())
print({name: round(value, 6) for name, value in by_strategy.items()})
print(f"largest difference: {difference:.1e} nats")
assert difference < 1e-5, "packing must not change the loss"

# %% [markdown]
# The same loss to rounding, so packing costs nothing: only the waste is gone.

# %% [markdown]
# ### Try it
#
# **03.1 The loss mask** · difficulty 2 of 5 · 5 minutes · *common bug:* masking one token too many, so that the first
# word of the answer is never learnt.
#
# Write `labels_for(prompt_ids, response_ids, eos_id)`: the labels of the whole sequence prompt + response + end, with
# −100 where no loss is taken. Labels are *not* shifted here.


# %%
def labels_for(prompt_ids: list[int], response_ids: list[int], eos_id: int) -> list[int]:
    raise NotImplementedError


check("03.1", labels_for)

# %% [markdown]
# <details><summary>One solution</summary>
#
# ```python
# def labels_for(prompt_ids, response_ids, eos_id):
#     return [-100] * len(prompt_ids) + response_ids + [eos_id]
# ```
# </details>
#
# **03.2 Positions in a packed sequence** · difficulty 2 of 5 · 5 minutes · *common bug:* letting positions run on from
# one row into the next.
#
# Write `packed_positions(lengths)`: the position of every token when rows of these lengths are packed.


# %%
def packed_positions(lengths: list[int]) -> list[int]:
    raise NotImplementedError


check("03.2", packed_positions)

# %% [markdown]
# <details><summary>One solution</summary>
#
# ```python
# def packed_positions(lengths):
#     return [position for length in lengths for position in range(length)]
# ```
# </details>

# %% [markdown]
# ## 4 · Train
#
# - The base is frozen; A and B of the chosen matrices learn. The optimizer is AdamW, the learning rate rises over a few
#   *warm-up* steps and then falls.
# - Stop it with the stop button (■): the last whole step is kept. With a `folder`, you can stop a run at any time: it
#   continues from its last checkpoint and ends with the same weights, bit for bit.

# %%
prompt_raw = "Please explain how weight decay works"
prompt_alpaca = alpaca.format_prompt(alpaca.Example(prompt_raw + ".", "", "-"))
before = {
    "base, bare prompt": evaluation.generate(model, tokenizer, [prompt_raw], profile.max_new_tokens),
    "base, Alpaca prompt": evaluation.generate(model, tokenizer, [prompt_alpaca], profile.max_new_tokens),
}
questions = validation[: profile.evaluation_rows]
answers_before = evaluation.generate(
    model, tokenizer, [alpaca.format_prompt(q) for q in questions], profile.max_new_tokens
)
loss_before = evaluation.loss(model, validation_rows)
print(
    f"validation loss of the base: {loss_before:.3f} nats a token, perplexity {evaluation.perplexity(loss_before):.2f}"
)

# %% [markdown]
# **Predict** the perplexity after training. And: will the training loss fall smoothly, or jump from step to step?

# %%
predict("03.a", "The perplexity on the validation rows after training", low=1, high=100, log=True)

# %%
adapters.remove(model, "default")  # the cell may run again, with other values
adapters.inject(model, finetune.lora_config(profile), seed=0)
count = adapters.count_parameters(model)
print(f"trainable: {count.trainable:,} of {count.total:,} parameters ({count.trainable_share:.2%})")
config = finetune.training_config(profile, validate_every=max(1, profile.train_steps // 2))
run = train(
    model, train_rows, config, validation=validation_rows, progress=False, on_step=panels.LiveCurve(config.steps)
)

# %% tags=["hide-output"] jupyter={"outputs_hidden": true}
figure, axes = plt.subplots()
figures.plot_training(axes, run.history)
axes.axhline(loss_before, color="#555555", linewidth=1, linestyle=":")
axes.annotate("validation before", (config.steps, loss_before), ha="right", va="bottom", fontsize=8)
panels.show(figure, alt="Training loss jumps from step to step; the few points of validation loss lie close together.")
loss_after = evaluation.loss(model, validation_rows) if run.stopped else run.validation_losses[-1][1]
compare("03.a", evaluation.perplexity(loss_after))
speed = statistics.median(record["tokens_per_second"] for record in run.history)
print(f"validation loss {loss_before:.3f} → {loss_after:.3f}, perplexity {evaluation.perplexity(loss_before):.2f} → "
      f"{evaluation.perplexity(loss_after):.2f}; {speed:,.0f} tokens/s, {run.seconds:.0f} s in all")  # fmt: skip

# %% [markdown]
# The training loss jumps because every step sees other rows, some harder; the validation loss is always taken on the
# same rows, so it alone can be compared. This run saw a tiny part of Alpaca. In so few rows the adapter learns the
# *form* of an answer, not facts.
#
# One run could be luck. The same run with other seeds (another split, other rows, another A), measured once for this
# course:

# %%
for finding in results.read("alpaca_seeds", results.committed_folder()):
    print(f"{finding.name}: {finding}, seeds {finding.seeds}")
gains = next(f for f in results.read("alpaca_seeds", results.committed_folder()) if f.name == "validation_gain")
print("every seed gains" if min(gains.values) > 0 else "not every seed gains")

# %% [markdown]
# Save what was trained. An adapter is a small folder in PEFT's layout; the base model is not in it.

# %%
adapter_folder = adapter_files.save_adapter(
    model,
    results.folder().parent / "runs" / "lesson_03",
    base_model=profile.base_model,
    base_model_sha256=pretrained.base_sha256(profile.base_model),
)
sizes = {file.name: file.stat().st_size for file in sorted(adapter_folder.iterdir())}
print(f"{os.path.relpath(adapter_folder)}: {', '.join(sizes)}, {sum(sizes.values()) / 1e6:.1f} MB")

# %% [markdown]
# ### Where a small model succeeds
#
# Alpaca asks for everything, and 135 million parameters can't do everything. Give the same loop *one* narrow task, and
# the success is plain to see. This adapter was trained on verbs for 30 steps; the verbs below were not among them.
#
# The texts are written [**greedily**](../docs/glossary.md): each time the token that the model finds likeliest.

# %%
verbs, words = tasks.get("past"), {file.path.name: file for file in stand_ins.modules_for(profile)}
asked = [tasks.prompt(verbs.instructions[0], item.input) for item in verbs.test[:6]]
adapters.remove(model, "past")
adapter_files.put_adapter(model, words["past"], "past")
written = {}
for label, adapter in (("base", None), ("with the adapter", "past")):
    adapters.set_adapter(model, adapter)
    texts = evaluation.generate(model, tokenizer, asked, 6).texts
    written[label] = [" ".join(text.split())[:24] for text in texts]
adapters.remove(model, "past")
adapters.set_adapter(model, "default")

# %%
card = stand_ins.cards_for(profile)["past"]
Table(
    ("verb", "wanted", *written),
    tuple((item.input, item.output, *texts) for item, *texts in zip(verbs.test, *written.values(), strict=False)),
    f"On {card.test_items} verbs the base model is right in {card.strict_before:.0%}, with the adapter in {card.strict_after:.0%}.",
)

# %% [markdown]
# ## 5 · The same prompt before and after
#
# - The source asks the base model, then the LoRA model: *Please explain how weight decay works*.
# - **Predict:** which is fastest: the base, the base with A and B unmerged, or with A and B merged?

# %%
measured = {"base": [], "LoRA, apart": [], "LoRA, merged": []}
for _ in range(3):  # in turns, so that a busy moment of the machine hits all three
    for name, outs in measured.items():
        adapters.set_adapter(model, None if name == "base" else "default")
        if name == "LoRA, merged":
            adapters.merge(model)
        outs.append(evaluation.generate(model, tokenizer, [prompt_alpaca], profile.max_new_tokens))
        adapters.unmerge(model)
adapters.set_adapter(model, "default")
answers_after = evaluation.generate(
    model, tokenizer, [alpaca.format_prompt(q) for q in questions], profile.max_new_tokens
)

# %%
if list(adapters.lora_layers(model)):
    bytes_apart = sum(p.numel() * p.element_size() for p in model.parameters())
    adapters.merge_and_unload(model)  # for good: LoRA layers become plain linear layers again
    bytes_merged = sum(p.numel() * p.element_size() for p in model.parameters())
texts = {name: outs[0].texts[0].strip() for name, outs in measured.items()}
for name, generation in before.items():
    print(f"--- {name} ({generation.new_tokens} tokens, {generation.seconds:.1f} s)\n{generation.texts[0].strip()}\n")
print(f"--- LoRA, Alpaca prompt\n{texts['LoRA, apart']}\n")
print(f"--- merged, Alpaca prompt: the same text: {texts['LoRA, merged'] == texts['LoRA, apart']}")

# %%
weights_of = {"base": bytes_merged, "LoRA, apart": bytes_apart, "LoRA, merged": bytes_merged}
rates = {name: [out.tokens_per_second for out in outs] for name, outs in measured.items()}
Table(
    ("model", "seconds", "tokens/s", "weights in memory"),
    tuple(
        (name, f"{outs[0].seconds:.1f}", f"{statistics.median(rates[name]):.1f}", f"{weights_of[name] / 1e6:,.1f} MB")
        for name, outs in measured.items()
    ),
    f"Greedy decoding of the Alpaca prompt; tokens/s is the median of three turns. Peak memory of the whole process: "
    f"{max(out.memory.peak for outs in measured.values() for out in outs) / 1e9:.1f} GB, training before it included.",
)  # fmt: skip

# %%
relative = {
    name: [r / b for r, b in zip(rates[name], rates["base"], strict=True)] for name in ("LoRA, apart", "LoRA, merged")
}
typical = {name: statistics.median(values) for name, values in relative.items()}
saved = bytes_apart / bytes_merged - 1
print(
    f"Apart, LoRA decodes at {typical['LoRA, apart']:.2f} of the base's speed; merged at {typical['LoRA, merged']:.2f}."
)
print(f"Merging saves {saved:.2%} of the weights' memory.")
same = texts["LoRA, apart"] == texts["base"]

# %% [markdown]
# Read the table against your prediction, and the differences against the spread in the findings: a few percent are the
# machine's noise. A and B add two thin products to every adapted matrix, and merging removes these products.
# But A and B are small, so merging cannot halve the memory. What could? Count the bytes of a 7B model:

# %%
llama_7b = 6.74e9  # parameters
print(
    f"LLaMA-7B in 16 bit: {2 * llama_7b / 1e9:.1f} GB, in 32 bit: {4 * llama_7b / 1e9:.1f} GB; the source: 13.56 and 27.65 GB"
)

# %% [markdown]
# The source gives 13.56 GB for its LLaMA-Adapter and 27.65 GB for LoRA, unmerged. It gives no merged figure. The two are
# close to the weights of a 7B in 16 and in 32 bit. That would explain the factor of two better than the adapter does;
# the article does not say which it was.
#
# ### Talk to it
#
# Ask both models. The slider is the weight of the adapter that you saved: at 0 it is the base, at 1 what you trained,
# below 0 the opposite. Where no kernel runs, the two texts above are the answers at 0 and 1. The same in a terminal:
# `lorahub-edu chat`, with the folder that was printed when you saved it.

# %%
talk = chat.open_chat([adapter_folder], profile=profile.name)
mixing.chat_panel(talk, start=prompt_raw + ".", max_new_tokens=profile.max_new_tokens)

# %% [markdown]
# ## 6 · Three scores, and what each misses
#
# - **Perplexity** is exp(mean loss): the number of tokens between which the model hesitates. It never looks at
#   generated text.
# - **BLEU** counts runs of one to four words shared with a reference; **ROUGE** counts shared words (1), pairs (2) and
#   the longest common sequence (L). Neither knows what the words mean.
#
# **Predict** the order of these four answers under each score, from best to worst:

# %%
question = alpaca.Example("When does water boil at sea level?", "", "Water boils at 100 degrees Celsius at sea level.")
answers = {
    "same words": "Water boils at 100 degrees Celsius at sea level.",
    "wrong by one word": "Water boils at 10 degrees Celsius at sea level.",
    "right, other words": "By the ocean you need 212 °F before a pot starts to bubble.",
    "shuffled": "level sea Celsius at Water degrees at 100 boils.",
}

# %%
lines = []
for name, answer in answers.items():
    row = alpaca.encode(alpaca.Example(question.instruction, "", answer), tokenizer, profile.block_size)
    rouge = evaluation.rouge([answer], [question.output])
    lines.append((name, evaluation.perplexity(evaluation.loss(model, [row])), evaluation.bleu([answer], [question.output]),
                  rouge["rouge1"], rouge["rougeL"]))  # fmt: skip
Table(
    ("answer", "perplexity (less is better)", "BLEU", "ROUGE-1", "ROUGE-L"),
    tuple((name, *(f"{value:.1f}" for value in values)) for name, *values in lines),
)

# %%
scores = {name: dict(zip(("perplexity", "bleu", "rouge1", "rougeL"), values, strict=True)) for name, *values in lines}
wrong, right, shuffled = scores["wrong by one word"], scores["right, other words"], scores["shuffled"]
misses = {
    "BLEU prefers a wrong answer to a right one": wrong["bleu"] > right["bleu"],
    "ROUGE-1 gives a shuffled answer full marks": shuffled["rouge1"] > 99,
    "perplexity prefers a wrong answer to a right one": wrong["perplexity"] < right["perplexity"],
}
for words, happened in misses.items():
    print(f"{words}: {'yes' if happened else 'no'}")

# %% [markdown]
# An answer that a person would judge at once can fool each score. Together, and on many rows, the scores are still
# useful for comparing two models that answer in a similar way. On the held-back rows:

# %%
references = [q.output for q in questions]
after = {"base": answers_before.texts, "LoRA": answers_after.texts}
summary = []
for name, texts in after.items():
    rouge = evaluation.rouge(texts, references)
    loss = loss_before if name == "base" else loss_after
    summary.append((name, f"{evaluation.perplexity(loss):.2f}", f"{evaluation.bleu(texts, references):.1f}",
                    f"{rouge['rouge1']:.1f}", f"{rouge['rougeL']:.1f}"))  # fmt: skip
caption = f"{len(validation_rows)} rows for perplexity, {len(questions)} for the generated texts: too few for BLEU and ROUGE to settle anything."
Table(("model", "perplexity", "BLEU", "ROUGE-1", "ROUGE-L"), tuple(summary), caption)

# %% [markdown]
# ### Try it
#
# **03.3 Perplexity of a set** · difficulty 3 of 5 · 5 minutes · *common bug:* averaging the rows' perplexities, so that
# a row of three tokens weighs as much as one of three hundred.
#
# Write `perplexity_of(losses, tokens)`: `losses[i]` is the mean loss of row i in nats, `tokens[i]` its number of
# labels.


# %%
def perplexity_of(losses: list[float], tokens: list[int]) -> float:
    raise NotImplementedError


check("03.3", perplexity_of)

# %% [markdown]
# <details><summary>One solution</summary>
#
# ```python
# import math
#
# def perplexity_of(losses, tokens):
#     total = sum(loss * n for loss, n in zip(losses, tokens))
#     return math.exp(total / sum(tokens))
# ```
# </details>

# %% [markdown]
# ## 7 · The real size: a 7B LLaMA on one 24 GB GPU
#
# - The profile `gpu24` carries the source's settings. The same code runs; only the numbers differ.
# - The source gives no number of iterations for LoRA. The profile takes that of lit-llama's LoRA script of that time:
#   50,000 x 3 / 4 = 37,500. (The 62,400 iterations in the article are LLaMA-Adapter's.)

# %%
big = PROFILES["gpu24"]
weights = llama_7b * 2  # two bytes each in bfloat16
adapter = 32 * 2 * adapters.lora_parameter_count(4096, 4096, big.rank)
held = 4 + 4 + 8  # bytes a trainable parameter: float32 value, gradient, AdamW's two moments
print(f"""lorahub-edu train --profile gpu24 --out runs/alpaca-7b

learning rate {big.learning_rate}, {big.batch_size} rows a step in micro-batches of {big.micro_batch_size}, block {big.block_size},
rank {big.rank}, alpha {big.alpha:.0f}, dropout {big.dropout}, warm-up {big.warmup_steps} steps, weight decay {big.weight_decay}, {big.dtype}

weights of a 7B in bfloat16        {weights / 1e9:5.1f} GB
adapter, gradient, optimizer       {adapter * held / 1e9:5.2f} GB for {adapter:,} parameters
full fine-tuning would hold        {llama_7b * held / 1e9:5.1f} GB for the same three
iterations: {big.train_steps:,} steps x {big.batch_size // big.micro_batch_size} micro-batches = {big.train_steps * big.batch_size // big.micro_batch_size:,}, three times through 50,000 rows""")

# %% [markdown]
# The count leaves room for activations on a 24 GB card, and none for full fine-tuning. How large activations get, and
# how to know before a run fails, is lesson 05's subject.
#
# **Another data set, the same code.** Databricks' Dolly-15k calls its fields instruction, context and response; the
# reader maps them. Here with three of the course's own rows written in Dolly's form:

# %%
import json
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "dolly.jsonl"
    lines = [
        {"instruction": r.instruction, "context": r.input, "response": r.output, "category": "qa"} for r in shown[:3]
    ]
    file.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    assert alpaca.read_rows(file) == shown[:3]
print("lorahub-edu train --data my_rows.jsonl takes Alpaca's and Dolly's form alike")

# %% [markdown]
# ## Findings

# %% tags=["hide-input"] jupyter={"source_hidden": true}
r15_saves = saved > 0.05
publish("03", [
    Row(
        "split_training_rows", len(kept), "training rows",
        verdict(apart and (len(kept), len(held_back)) == (49_759, 2_000), True),
        f"with {len(held_back):,} others held back; {missing} of the public rows are in neither part",
        claim="R12", seeds=(42,), circumstances={"model": "", "profile": ""},
    ),
    Row("packing_loss_difference", difference, "nats"),
    Row(
        "lora_text_differs", not same, "of 1 text differs", verdict(not same, True),
        "judge the two texts above yourself: more fluent need not be more right", claim="R14",
    ),
    Row(
        "lora_decoding_speed", relative["LoRA, apart"], "x base", "",
        "the source prints 11.95 tokens/s for its base and 30.76 for LoRA, from two scripts, and claims nothing", claim="R14",
    ),
    Row(
        "merging_saves_memory", 100 * saved, "% of the weights", verdict(r15_saves, True),
        "it saves A and B, nothing more; refuted below 5 %. The source gives no merged figure", claim="R15",
    ),
    Row(
        "scores_fooled", sum(misses.values()), "of 3 scores fooled", verdict(all(misses.values())),
        "one constructed question", claim="R13",
    ),
    Row(
        "gpu24_weights", weights / 1e9, "GB of weights", "not shown here",
        "needs a 24 GB GPU; weights and optimizer fit by this count, activations are lesson 05's subject", claim="R9",
    ),
    Row("validation_loss_before", loss_before, "nats", seeds=(0,)),
    Row("validation_loss_after", loss_after, "nats", seeds=(0,)),
    Row("training_tokens_per_second", speed, "tokens/s", seeds=(0,)),
], profile)  # fmt: skip

# %% [markdown]
# ## Do you know it?
#
# Three questions on this lesson, and two on earlier ones. Answer first, then open. Nothing is graded.

# %%
recall("03")

# %% [markdown]
# ## What to remember
#
# - Mask the prompt, keep the end token, never pad what you can pack: same loss, less work.
# - A validation loss on the same held-back rows is the one curve to trust; text scores can be fooled.
# - Merging removes A's and B's small cost in time; it saves little memory, because A and B are small.
#
# **Go further:** Self-Instruct (arXiv 2212.10560) sections 2 and 3; Krell et al. 2021 (arXiv 2107.02027) on packing;
# the full run: `lorahub-edu train --profile gpu24`. **Next:** 04, LoRA among its rivals.
