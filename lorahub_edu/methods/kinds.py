"""The methods that the course compares: what each trains, its settings, and PEFT's configuration for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lorahub_edu.errors import CourseError, near_matches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# PEFT and torch are imported where they are used, so that a mistyped method is answered at once.

# What a method is built from; a combination has at most one method of each kind.
LAYERS, PROMPT, BOTTLENECK, WHOLE = "changed layers", "tokens before the prompt", "bottleneck adapters", "every weight"
KINDS = (LAYERS, BOTTLENECK, PROMPT, WHOLE)  # the order in which a combination is attached
SIZES = ("rank", "length", "bottleneck", "hidden", "layers")  # settings that count something


@dataclass(frozen=True)
class Method:
    """A way of fine-tuning."""

    label: str  # what it is called on a page
    kind: str  # one of `KINDS`
    trains: str  # what it trains, in a phrase
    settings: Mapping[str, object] = field(default_factory=dict)  # with their defaults; None: worked out from the model
    size: str = ""  # the setting that the number of trained parameters grows with, in equal steps; "": it is fixed
    config: str = ""  # the name of PEFT's class; "" where PEFT has no such method
    fields: Callable[[PreTrainedModel, Mapping], dict] = lambda _model, _settings: {}  # of the configuration
    source: str = ""  # who proposed it

    @property
    def made_by(self) -> str:
        """Whose code it is."""
        return "lorahub_edu" if self.kind == BOTTLENECK else "torch" if self.kind == WHOLE else "PEFT"


def _lora_fields(model: PreTrainedModel, settings: Mapping) -> dict:
    rank, alpha, targets = settings["rank"], settings["alpha"], settings["target_modules"]
    if targets is not None:  # PEFT chooses them otherwise
        from lorahub_edu.lora import adapters

        adapters.find_targets(model, targets)
        targets = targets if isinstance(targets, str) else list(targets)
    alpha = 2.0 * rank if alpha is None else alpha
    return {"r": rank, "lora_alpha": alpha, "lora_dropout": settings["dropout"], "target_modules": targets}


def _bias_fields(model: PreTrainedModel, _settings: Mapping) -> dict:
    # PEFT has no BitFit, but BEFT (arXiv 2509.15974), which adds a bias that starts at zero to the layers it is given.
    # Given every linear layer, it is BitFit.
    from lorahub_edu.lora import adapters

    return {"target_modules": adapters.find_targets(model, adapters.ALL_LINEAR)}


def _adaption_fields(model: PreTrainedModel, settings: Mapping) -> dict:
    # Zhang et al. leave LLaMA's first two of 32 layers alone.
    layers = settings["layers"] or max(1, model.config.num_hidden_layers - 2)
    return {"adapter_len": settings["length"], "adapter_layers": layers}


_LORA = {"rank": 8, "alpha": None, "dropout": 0.0, "target_modules": None}

METHODS: dict[str, Method] = {
    "full": Method("full fine-tuning", WHOLE, "every weight", {"keep_base": True}),
    "bitfit": Method(
        "BitFit", LAYERS, "a bias on every linear layer, added at zero where there is none (LLaMA)", {}, "",
        "BeftConfig", _bias_fields, source="Ben Zaken et al. 2021, arXiv 2106.10199",
    ),
    "ln_tuning": Method(
        "norm tuning", LAYERS, "the gains of the normalisation layers", {}, "", "LNTuningConfig",
        source="Zhao et al. 2023, arXiv 2312.11420",
    ),
    "ia3": Method(
        "IA3", LAYERS, "a factor for each key, value and inner activation", {}, "", "IA3Config",
        source="Liu et al. 2022, arXiv 2205.05638",
    ),
    "prompt": Method(
        "prompt tuning", PROMPT, "embeddings of tokens before the prompt", {"length": 20}, "length",
        # From random words of the vocabulary, which Lester et al. found better than random numbers.
        "PromptTuningConfig",
        lambda _, settings: {"num_virtual_tokens": settings["length"], "prompt_tuning_init": "SAMPLE_VOCAB"},
        source="Lester et al. 2021, arXiv 2104.08691",
    ),
    "p_tuning": Method(
        "P-tuning", PROMPT, "embeddings of tokens before the prompt, and a network that makes them",
        {"length": 20, "hidden": 128}, "length", "PromptEncoderConfig",
        lambda _, settings: {"num_virtual_tokens": settings["length"], "encoder_hidden_size": settings["hidden"]},
        source="Liu et al. 2021, arXiv 2103.10385",
    ),
    "prefix": Method(
        "prefix tuning", PROMPT, "keys and values of tokens before the prompt, in every layer",
        # It starts from standard normal numbers, which `attach` multiplies by the setting "scale".
        {"length": 20, "scale": 1.0}, "length", "PrefixTuningConfig",
        lambda _, settings: {"num_virtual_tokens": settings["length"]},
        source="Li and Liang 2021, arXiv 2101.00190",
    ),
    "llama_adapter": Method(
        "LLaMA-Adapter", LAYERS, "tokens that the upper layers attend to, each layer behind a gate that starts at zero",
        {"length": 10, "layers": None}, "length", "AdaptionPromptConfig", _adaption_fields,
        source="Zhang et al. 2023, arXiv 2303.16199",
    ),
    "houlsby": Method(
        "adapters (Houlsby)", BOTTLENECK, "a bottleneck behind attention and one behind feed-forward, in every layer",
        {"bottleneck": 8}, "bottleneck", source="Houlsby et al. 2019, arXiv 1902.00751",
    ),
    "pfeiffer": Method(
        "adapters (Pfeiffer)", BOTTLENECK, "a bottleneck behind the feed-forward, in every layer",
        {"bottleneck": 16}, "bottleneck", source="Pfeiffer et al. 2020, arXiv 2005.00247",
    ),
    "lora": Method(
        "LoRA", LAYERS, "A and B beside frozen weights (by default query and value)", _LORA, "rank",
        "LoraConfig", _lora_fields, source="Hu et al. 2021, arXiv 2106.09685",
    ),
    "rslora": Method(
        "rsLoRA", LAYERS, "as LoRA, scaled by α / √rank instead of α / rank", _LORA, "rank", "LoraConfig",
        lambda model, settings: _lora_fields(model, settings) | {"use_rslora": True},
        source="Kalajdzievski 2023, arXiv 2312.03732",
    ),
    "dora": Method(
        "DoRA", LAYERS, "as LoRA, and the length of every row of the weight", _LORA, "rank", "LoraConfig",
        lambda model, settings: _lora_fields(model, settings) | {"use_dora": True},
        source="Liu et al. 2024, arXiv 2402.09353",
    ),
    "qlora": Method(
        "QLoRA", LAYERS, "A and B beside weights held in 4 bits", _LORA | {"keep_base": True}, "rank",
        "LoraConfig", _lora_fields, source="Dettmers et al. 2023, arXiv 2305.14314",
    ),
}  # fmt: skip


def get_method(name: str) -> Method:
    """The method of that name. Raises CourseError: there is none."""
    if name not in METHODS:
        raise CourseError(f"There is no method {name!r}. {near_matches(name, METHODS)}")
    return METHODS[name]


def parts_of(method: str | Sequence[str] | Mapping[str, Mapping], settings: Mapping[str, object]) -> dict[str, dict]:
    """A method or a combination with all settings of each, in the order in which they are attached.

    `method` is a name, several, or several with settings each: {"lora": {"rank": 4}, "prefix": {"length": 10}}.
    `settings` are those of a single method.
    Raises CourseError: an unknown method or setting, a size below 1, or methods that can't stand together.
    """
    if isinstance(method, str):
        given = {method: settings}
    elif settings:
        raise CourseError(
            "Settings of a combination belong to one method each: write "
            "attach(model, {'lora': {'rank': 4}, 'prefix': {'length': 10}})."
        )
    else:
        given = method if isinstance(method, Mapping) else {name: {} for name in method}
    given = {str(name).replace("-", "_").lower(): values for name, values in given.items()}
    if not given:
        raise CourseError("Attach what? Give a method: " + ", ".join(METHODS) + ".")
    parts = {name: _settings(name, values) for name, values in given.items()}
    _check_together(list(parts))
    return {name: parts[name] for name in sorted(parts, key=lambda name: KINDS.index(METHODS[name].kind))}


def _settings(name: str, values: Mapping[str, object]) -> dict[str, object]:
    method = get_method(name)
    for key, value in values.items():
        if key not in method.settings:
            known = near_matches(key, method.settings) if method.settings else "It has no settings."
            raise CourseError(f"{method.label} has no setting {key!r}. {known}")
        whole = isinstance(value, int) and not isinstance(value, bool)
        if key in SIZES and value is not None and not (whole and value >= 1):
            raise CourseError(f"{key} of {method.label} must be a whole number of at least 1, but it is {value!r}.")
    return {**method.settings, **values}


def _check_together(names: Sequence[str]) -> None:
    for kind in KINDS:
        same = [name for name in names if METHODS[name].kind == kind]
        if len(same) > 1:
            raise CourseError(
                f"{' and '.join(same)} can't stand together: they are of one kind ({kind}), and a model takes one "
                f"method of each. Combine for example lora with prefix, or with houlsby."
            )
        if kind == WHOLE and same and len(names) > 1:
            raise CourseError(f"Full fine-tuning trains every weight already: attach {' and '.join(names)} apart.")
