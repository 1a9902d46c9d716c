"""Right and wrong answers to the problems of lesson 02's assignment on whole models: 02.5 to 02.7."""

import math
import re

import torch
from torch import nn


class LoRALayer(nn.Module):
    """The layer that the assignment gives; `own` is False for a mistake."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.scaling = base, alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x):
        return self.base(x) + self.scaling * (x @ self.lora_A.T @ self.lora_B.T)


class AlphaOnly(LoRALayer):
    def __init__(self, base, rank, alpha):
        super().__init__(base, rank, alpha * rank)


class Unscaled(LoRALayer):
    def __init__(self, base, rank, alpha):
        super().__init__(base, rank, rank)


def find(model, endings):
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.split(".")[-1] in endings]


def find_by_pattern(model, endings):
    pattern = re.compile(r"(.*\.)?(" + "|".join(map(re.escape, endings)) + ")")
    return [n for n, m in model.named_modules() if type(m) is nn.Linear and pattern.fullmatch(n)]


def find_by_walking(model, endings, path=""):
    found = []
    for name, child in model.named_children():
        if isinstance(child, nn.Linear) and name in endings:
            found.append(path + name)
        found += find_by_walking(child, endings, f"{path}{name}.")
    return found


def linear(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def put(model, name, layer):
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)


def inject_by_parents(model, endings, rank, alpha):
    for parameter in model.parameters():
        parameter.requires_grad = False
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in endings and isinstance(child, nn.Linear):
                setattr(parent, name, LoRALayer(child, rank, alpha))


def inject_then_thaw(model, endings, rank, alpha):
    for name in find(model, endings):
        put(model, name, LoRALayer(model.get_submodule(name), rank, alpha))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def inject_with(layer=LoRALayer, freeze="first", finds=find, puts=put):
    """An injection with one place for each mistake."""

    def inject(model, endings, rank, alpha):
        if freeze == "first":
            model.requires_grad_(False)
        for name in finds(model, endings):
            puts(model, name, layer(model.get_submodule(name), rank, alpha))
        if freeze == "last":
            model.requires_grad_(False)

    return inject


def inject_one_shared(model, endings, rank, alpha):
    model.requires_grad_(False)
    shared = {}
    for name in find(model, endings):
        last = name.split(".")[-1]
        put(model, name, shared.setdefault(last, LoRALayer(model.get_submodule(name), rank, alpha)))


def numbers(parameters):
    return sum(p.numel() for p in parameters)


def count_by_identity(model):
    own = {id(p): p for _, p in model.named_parameters(remove_duplicate=False)}
    return [numbers(p for p in own.values() if p.requires_grad), numbers(own.values())]


RIGHT = {
    "02.5": {
        "by a pattern": find_by_pattern,
        "by walking": find_by_walking,
        "as a tuple": lambda model, endings: tuple(find(model, list(endings))),
    },
    "02.6": {
        "by the parents": inject_by_parents,
        "frozen afterwards by name": inject_then_thaw,
        "with setattr on the parent": inject_with(),
    },
    "02.7": {
        "by identity": count_by_identity,
        "as tensors": lambda model: torch.tensor(
            [numbers(p for p in model.parameters() if p.requires_grad), numbers(model.parameters())]
        ),
        "frozen and trained": lambda model: (
            numbers(p for p in model.parameters() if p.requires_grad),
            numbers(p for p in model.parameters() if p.requires_grad)
            + numbers(p for p in model.parameters() if not p.requires_grad),
        ),
    },
}

WRONG = {
    "02.5": {
        "contains": (lambda m, e: [n for n in linear(m) if any(x in n for x in e)], "anywhere in the name"),
        "ends with": (lambda m, e: [n for n in linear(m) if n.endswith(tuple(e))], "compare the whole last part"),
        "any module": (
            lambda m, e: [n for n, _ in m.named_modules() if n.split(".")[-1] in e],
            "not only linear layers",
        ),
        "the first only": (lambda m, e: find(m, e)[:1], "every block has its own"),
        "last part": (lambda m, e: [n.split(".")[-1] for n in find(m, e)], "the whole dotted name"),
        "needs a dot": (lambda m, e: [n for n in linear(m) if n.endswith(tuple("." + x for x in e))], "at the top"),
        "sorted by ending": (lambda m, e: find(m, e)[::-1], "keep the model's own"),
        "no return": (lambda m, e: None, "is a return missing"),
    },
    "02.6": {
        "dotted name": (inject_with(puts=lambda m, name, layer: setattr(m, name, layer)), "replaces nothing"),
        "not frozen": (inject_with(freeze=""), "the base model is trained too"),
        "frozen last": (inject_with(freeze="last"), "freeze the model first"),
        "one layer only": (inject_with(finds=lambda m, e: find(m, e)[:1]), "some layers have no adapter"),
        "every layer": (inject_with(finds=lambda m, e: linear(m)), "not asked for"),
        "one shared": (inject_one_shared, "each needs a new LoRALayer"),
        "nothing": (lambda m, e, r, a: None, "no layer was replaced"),
        "alpha only": (inject_with(AlphaOnly), "not by alpha / r"),
        "unscaled": (inject_with(Unscaled), "alpha / r is left out"),
        "rank and alpha exchanged": (
            lambda m, e, r, a: inject_with()(m, e, int(a), r),
            "A is (r, in) and B is (out, r)",
        ),
    },
    "02.7": {
        "tied twice": (
            lambda m: (
                numbers(p for p in m.parameters() if p.requires_grad),
                numbers(m.state_dict().values()),
            ),
            "counted twice",
        ),
        "tensors": (
            lambda m: (sum(p.requires_grad for p in m.parameters()), len(list(m.parameters()))),
            "not the numbers in them",
        ),
        "frozen": (
            lambda m: (
                numbers(p for p in m.parameters() if p.requires_grad),
                numbers(p for p in m.parameters() if not p.requires_grad),
            ),
            "give all",
        ),
        "exchanged": (
            lambda m: (numbers(m.parameters()), numbers(p for p in m.parameters() if p.requires_grad)),
            "changed places",
        ),
        "A only": (
            lambda m: (numbers(p for n, p in m.named_parameters() if "lora_A" in n), numbers(m.parameters())),
            "A is counted without B",
        ),
        "all train": (lambda m: (numbers(m.parameters()),) * 2, "everything is counted as trained"),
        "no embedding": (
            lambda m: (
                numbers(p for p in m.parameters() if p.requires_grad),
                numbers(p for n, p in m.named_parameters() if "embed" not in n),
            ),
            "the embedding is left out",
        ),
        "no return": (lambda m: None, "is a return missing"),
    },
}
