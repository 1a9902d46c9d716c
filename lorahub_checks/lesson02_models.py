"""Checks of lesson 02's assignment: layers found in a whole model, adapters put into them, and what trains counted.

The models are LLaMAs of a few thousand parameters; `there` makes them where the answer runs. Source: Hu et al. 2021,
arXiv 2106.09685, sections 4.1 and 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lorahub_checks.draws import integer
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.show import objects
from lorahub_edu.show.objects import there

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
UPDATE_UNSCALED = "the scaling alpha / r is left out"
UPDATE_BY_ALPHA = "the update is multiplied by alpha, not by alpha / r"


def small_llama(answer: object, generator: torch.Generator) -> tuple[object, LlamaForCausalLM]:
    """A small LLaMA where the answer lives, and one with the same drawn weights here."""
    here = LlamaForCausalLM(LlamaConfig(**SIZES))
    with torch.no_grad():
        for parameter in here.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model = there(answer, LlamaForCausalLM, there(answer, LlamaConfig, **SIZES))
    there(answer, objects.assign, model, {name: p.detach() for name, p in here.named_parameters()})
    return model, here


def _ids(generator: torch.Generator) -> Tensor:
    return torch.randint(1, SIZES["vocab_size"], (2, 5), generator=generator)


@problem(
    "02.5",
    "find the layers",
    hints=(
        "model.named_modules() gives every module with its dotted name. Which part of the name is asked for?",
        "The last part, behind the last dot, must be one of the endings as a whole, and the module an nn.Linear.",
        "The last part of layers.0.self_attn.q_proj is q_proj, which rpartition of a dot cuts off. named_modules() "
        "gives names and modules together.",
    ),
)
def find_targets(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """find_targets(model, endings) -> dotted names of the linear layers whose last part is one of the endings."""
    for name, endings in {"one ending": ["q_proj"], "two endings": ["v_proj", "q_proj"]}.items():
        blocks = torch.randperm(9, generator=generator)[:3].tolist()
        kinds = {}
        for block in blocks:
            for part in ("norm.norm", "attention.q_proj", "attention.kq_proj", "attention.v_proj", "q_proj_norm.scale"):
                kinds[f"blocks.{block}.{part}"] = "norm" if part == "norm.norm" else "linear"
        kinds |= {"tokens.q_proj": "embedding", "tail.v_proj.inner": "linear", "q_proj": "linear"}
        linear = [layer for layer, kind in kinds.items() if kind == "linear"]
        expected = [layer for layer in linear if layer.split(".")[-1] in endings]
        wrong = {
            "the ending is looked for anywhere in the name: q_proj_norm.scale isn't a q_proj": [
                layer for layer in linear if any(ending in layer for ending in endings)
            ],
            "names that merely end with these letters are taken, such as kq_proj: compare the whole last part": [
                layer for layer in linear if layer.endswith(tuple(endings))
            ],
            "not only linear layers are taken: an embedding of that name can't be adapted like this": [
                layer for layer in kinds if layer.split(".")[-1] in endings
            ],
            "only one layer is found: every block has its own": expected[:1],
            "only the last part of each name is returned: give the whole dotted name": [
                layer.split(".")[-1] for layer in expected
            ],
            "a layer at the top has no dot in its name: it is missing": [e for e in expected if "." in e],
        }
        seen = answer(there(answer, objects.tree, kinds), endings)
        if isinstance(seen, list | tuple) and sorted(map(str, seen)) == sorted(expected):
            wrong["the order is another: keep the model's own"] = list(seen)
        yield equals(f"{name}: the right layers in the model's order", seen, expected, misconceptions=wrong)


@problem(
    "02.6",
    "inject adapters",
    hints=(
        "Three things: freeze what is there, find the layers, and put a new layer into each one's parent.",
        "A module is replaced in its parent: setattr on the model itself with a dotted name replaces nothing. Freeze "
        "first, or the new matrices are frozen too. Make the list of names before you change anything.",
        "For layers.0.q_proj the parent is layers.0. get_submodule(name) reads a dotted name, set_submodule(name, "
        "new) replaces what it finds there.",
    ),
)
def inject(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """inject(model, endings, rank, alpha): every such layer becomes a LoRALayer of its own, in place."""
    rank, alpha = integer(2, 3, generator), float(integer(5, 9, generator))
    model, here = small_llama(answer, generator)
    ids = _ids(generator)
    before = objects.logits(here, ids)
    names = adapters.find_targets(here, ("q_proj", "v_proj"))
    answer(model, ["q_proj", "v_proj"], rank, alpha)
    found = there(answer, objects.parameters, model)
    trained = {name: shape for name, (shape, trains) in found.items() if trains}
    wanted = {}
    for name in names:
        layer = here.get_submodule(name)
        wanted |= {f"{name}.lora_A": (rank, layer.in_features), f"{name}.lora_B": (layer.out_features, rank)}
    yield holds(
        "trained are lora_A and lora_B of each q_proj and v_proj", trained == wanted, *_wrongly_trained(wanted, trained)
    )
    if trained != wanted:
        return
    start = there(answer, objects.logits, model, ids)
    yield equals("at the start the model computes what it did", start, before)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in wanted.items()}
    there(answer, objects.assign, model, drawn)
    updated = {}
    for factor in (alpha / rank, 1.0, alpha, 0.0):
        deltas = {name: factor * drawn[f"{name}.lora_B"] @ drawn[f"{name}.lora_A"] for name in names}
        updated[factor] = _logits_with(here, deltas, ids)
    yield equals(
        "with A and B filled, every layer adds (alpha / r) B A",
        there(answer, objects.logits, model, ids),
        updated[alpha / rank],
        misconceptions={
            "the adapters have no effect: the model still runs through the old layers. A dotted name given to setattr "
            "on the model replaces nothing: set it on the layer's parent": updated[0.0],
            UPDATE_UNSCALED: updated[1.0],
            UPDATE_BY_ALPHA: updated[alpha],
        },
    )


def _wrongly_trained(wanted: dict, trained: dict) -> tuple[str, str]:
    """What is trained instead of what should be, and the mistake that it comes from."""
    seen = f"{len(trained)} tensors, such as {next(iter(trained), 'none')}"
    if not trained:
        return seen, "nothing is trained: freeze the model first, then inject, so that A and B stay trainable"
    if not any("lora_" in name for name in trained):
        return seen, "no layer was replaced: is the new layer put into its parent?"
    if any("lora_" not in name for name in trained):
        return seen, "the base model is trained too: freeze it with requires_grad_(False)"
    if set(trained) < set(wanted):
        return seen, "some layers have no adapter of their own: each needs a new LoRALayer"
    if set(trained) > set(wanted):
        return seen, "layers are adapted that were not asked for"
    return seen, "A is (r, in) and B is (out, r), under the name of the layer that they stand in for"


def _logits_with(model: LlamaForCausalLM, deltas: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The logits of a model whose weights have these updates added, the reference for adapters; it stays as it is."""
    state = model.state_dict()
    changed = {f"{name}.weight": state[f"{name}.weight"] + delta for name, delta in deltas.items()}
    with torch.no_grad():
        return torch.func.functional_call(model, changed, kwargs={"input_ids": ids, "use_cache": False}).logits


@problem(
    "02.7",
    "count what trains",
    hints=(
        "A parameter knows whether it is trained, and how many numbers it has.",
        "requires_grad and numel(). The output head shares its tensor with the embedding: it must count once. "
        "model.parameters() lists a shared one once; state_dict() lists it under both names.",
        "A head of 10 × 4 that is tied to its embedding counts 40, not 80. Go through model.parameters() twice: with "
        "the condition requires_grad, and without.",
    ),
)
def count(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """count(model) -> (numbers that are trained, all numbers), a tied weight once."""
    for targets, everything in ((("q_proj", "v_proj"), False), (("down_proj",), False), (("o_proj",), True)):
        rank = integer(2, 5, generator)
        model, here = small_llama(answer, generator)
        adapters.inject(here, LoRAConfig(rank=rank, target_modules=targets), seed=0)
        there(answer, adapters.inject, model, there(answer, LoRAConfig, rank=rank, target_modules=targets), seed=0)
        right = adapters.count_parameters(here)
        if everything:  # also the first and the last of the parameters
            here.requires_grad_(True)
            there(answer, nn.Module.requires_grad_, model, True)
            right = adapters.count_parameters(here)
        listed = list(here.parameters())
        tied = here.get_input_embeddings().weight.numel()
        only_a = sum(p.numel() for name, p in here.named_parameters() if "lora_A" in name)
        both = torch.tensor([right.trainable, right.total])
        wrong = {
            "the tied weight is counted twice: embedding and output head are one tensor": [both[0], both[1] + tied],
            "tensors are counted, not the numbers in them": [sum(p.requires_grad for p in listed), len(listed)],
            "the second number is what is frozen: give all": [both[0], both[1] - both[0]],
            "the two numbers changed places": [both[1], both[0]],
            "A is counted without B": [only_a, both[1]],
            "everything is counted as trained: ask each parameter for requires_grad": [both[1], both[1]],
            "the embedding is left out, but it is a weight like any other": [both[0], both[1] - tied],
        }
        seen = answer(model)
        tensors = {words: torch.tensor([int(n) for n in pair]) for words, pair in wrong.items()}
        yield equals(
            f"adapters on {' and '.join(targets)}" + ", and all weights train" * everything,
            seen,
            both,
            misconceptions=tensors,
        )
