"""The methods that the course compares: what each trains, its settings, and PEFT's configuration for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import peft
from peft import PeftConfig
from transformers import PreTrainedModel

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.lora import adapters

# What a method is built from; at most one of each kind can be combined on one model.
LAYERS, PROMPT, BOTTLENECK, WHOLE = "changed layers", "tokens before the prompt", "bottleneck adapters", "every weight"
KINDS = (LAYERS, BOTTLENECK, PROMPT, WHOLE)  # the order in which a combination is attached
SIZES = ("rank", "length", "bottleneck", "hidden", "layers")  # settings that count something


@dataclass(frozen=True)
class Method:
    """A way of fine-tuning.

    Attributes:
        label: what it is called on a page.
        kind: one of `KINDS`.
        trains: what it trains, in a phrase.
        settings: every setting with its default; None is worked out from the model.
        size: the setting that the number of trained parameters grows with, in equal steps; "" where it is fixed.
        config: PEFT's configuration for a model and settings; None where PEFT has no such method.
        same_start: whether the untrained method leaves the model's output as it is.
        source: who proposed it.
    """

    label: str
    kind: str
    trains: str
    settings: Mapping[str, object] = field(default_factory=dict)
    size: str = ""
    config: Callable[[PreTrainedModel, Mapping], PeftConfig] | None = None
    same_start: bool = True
    source: str = ""

    @property
    def made_by(self) -> str:
        """Whose code it is."""
        return "lorahub_edu" if self.kind == BOTTLENECK else "torch" if self.kind == WHOLE else "PEFT"


def _task(model: PreTrainedModel) -> str:
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def _targets(model: PreTrainedModel, wanted: str | Sequence[str] | None) -> str | list[str] | None:
    """Target modules as PEFT wants them, every name being found in the model; None leaves the choice to PEFT."""
    if wanted is None:
        return None
    adapters.find_targets(model, wanted)
    return wanted if isinstance(wanted, str) else list(wanted)


def _lora(model: PreTrainedModel, settings: Mapping, **kind: bool) -> PeftConfig:
    alpha = settings["alpha"]
    return peft.LoraConfig(
        task_type=_task(model),
        r=settings["rank"],
        lora_alpha=2.0 * settings["rank"] if alpha is None else alpha,
        lora_dropout=settings["dropout"],
        target_modules=_targets(model, settings["target_modules"]),
        **kind,
    )


def _rank_stabilised(model: PreTrainedModel, settings: Mapping) -> PeftConfig:
    return _lora(model, settings, use_rslora=True)


def _decomposed(model: PreTrainedModel, settings: Mapping) -> PeftConfig:
    return _lora(model, settings, use_dora=True)


def _biases(model: PreTrainedModel, _settings: Mapping) -> PeftConfig:
    # PEFT has no BitFit, but BEFT (arXiv 2509.15974), which adds a bias that starts at zero to the
    # layers it is given. Given every linear layer, it is BitFit.
    return peft.BeftConfig(task_type=_task(model), target_modules=adapters.find_targets(model, adapters.ALL_LINEAR))


def _norms(model: PreTrainedModel, _settings: Mapping) -> PeftConfig:
    return peft.LNTuningConfig(task_type=_task(model))


def _scales(model: PreTrainedModel, _settings: Mapping) -> PeftConfig:
    return peft.IA3Config(task_type=_task(model))


def _prompt(model: PreTrainedModel, settings: Mapping) -> PeftConfig:
    # From random words of the vocabulary, which Lester et al. found better than random numbers.
    return peft.PromptTuningConfig(
        task_type=_task(model), num_virtual_tokens=settings["length"], prompt_tuning_init="SAMPLE_VOCAB"
    )


def _prompt_encoder(model: PreTrainedModel, settings: Mapping) -> PeftConfig:
    return peft.PromptEncoderConfig(
        task_type=_task(model), num_virtual_tokens=settings["length"], encoder_hidden_size=settings["hidden"]
    )


def _prefix(model: PreTrainedModel, settings: Mapping) -> PeftConfig:
    # It starts from standard normal numbers, which `attached` multiplies by the setting "scale".
    return peft.PrefixTuningConfig(task_type=_task(model), num_virtual_tokens=settings["length"])


def _adaption_prompt(model: PreTrainedModel, settings: Mapping) -> PeftConfig:
    # Zhang et al. leave LLaMA's first two of 32 layers alone.
    layers = settings["layers"] or max(1, model.config.num_hidden_layers - 2)
    return peft.AdaptionPromptConfig(task_type=_task(model), adapter_len=settings["length"], adapter_layers=layers)


_LORA = {"rank": 8, "alpha": None, "dropout": 0.0, "target_modules": None}

METHODS: dict[str, Method] = {
    "full": Method("full fine-tuning", WHOLE, "every weight", {"keep_base": True}),
    "bitfit": Method(
        "BitFit", LAYERS, "a bias on every linear layer, added at zero where there is none (LLaMA)", {}, "", _biases,
        source="Ben Zaken et al. 2021, arXiv 2106.10199",
    ),
    "ln_tuning": Method(
        "norm tuning", LAYERS, "the gains of the normalisation layers", {}, "", _norms,
        source="Zhao et al. 2023, arXiv 2312.11420",
    ),
    "ia3": Method(
        "IA3", LAYERS, "a factor for each key, value and inner activation", {}, "", _scales,
        source="Liu et al. 2022, arXiv 2205.05638",
    ),
    "prompt": Method(
        "prompt tuning", PROMPT, "embeddings of tokens before the prompt", {"length": 20}, "length", _prompt, False,
        source="Lester et al. 2021, arXiv 2104.08691",
    ),
    "p_tuning": Method(
        "P-tuning", PROMPT, "embeddings of tokens before the prompt, and a network that makes them",
        {"length": 20, "hidden": 128}, "length", _prompt_encoder, False, source="Liu et al. 2021, arXiv 2103.10385",
    ),
    "prefix": Method(
        "prefix tuning", PROMPT, "keys and values of tokens before the prompt, in every layer",
        {"length": 20, "scale": 1.0}, "length", _prefix, False, source="Li and Liang 2021, arXiv 2101.00190",
    ),
    "llama_adapter": Method(
        "LLaMA-Adapter", LAYERS, "tokens that the upper layers attend to, each layer behind a gate that starts at zero",
        {"length": 10, "layers": None}, "length", _adaption_prompt, source="Zhang et al. 2023, arXiv 2303.16199",
    ),
    "houlsby": Method(
        "adapters (Houlsby)", BOTTLENECK, "a bottleneck behind attention and one behind feed-forward, in every layer",
        {"bottleneck": 8}, "bottleneck", None, False, source="Houlsby et al. 2019, arXiv 1902.00751",
    ),
    "pfeiffer": Method(
        "adapters (Pfeiffer)", BOTTLENECK, "a bottleneck behind the feed-forward, in every layer",
        {"bottleneck": 16}, "bottleneck", None, False, source="Pfeiffer et al. 2020, arXiv 2005.00247",
    ),
    "lora": Method(
        "LoRA", LAYERS, "A and B beside frozen weights (by default query and value)", _LORA, "rank", _lora,
        source="Hu et al. 2021, arXiv 2106.09685",
    ),
    "rslora": Method(
        "rsLoRA", LAYERS, "as LoRA, scaled by α / √rank instead of α / rank", _LORA, "rank", _rank_stabilised,
        source="Kalajdzievski 2023, arXiv 2312.03732",
    ),
    "dora": Method(
        "DoRA", LAYERS, "as LoRA, and the length of every row of the weight", _LORA, "rank", _decomposed,
        source="Liu et al. 2024, arXiv 2402.09353",
    ),
    "qlora": Method(
        "QLoRA", LAYERS, "A and B beside weights held in 4 bits", _LORA | {"keep_base": True}, "rank", _lora, False,
        source="Dettmers et al. 2023, arXiv 2305.14314",
    ),
}  # fmt: skip


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        CourseError: there is none.
    """
    if name not in METHODS:
        raise CourseError(f"There is no method {name!r}. {near_matches(name, METHODS)}")
    return METHODS[name]


def parts_of(
    method: str | Sequence[str] | Mapping[str, Mapping], settings: Mapping[str, object]
) -> dict[str, dict[str, object]]:
    """A method or a combination with all settings filled in, in the order in which they are attached.

    Args:
        method: a name, several, or several with settings each: {"lora": {"rank": 4}, "prefix": {"length": 10}}.
        settings: those of a single method.

    Returns:
        Per method every setting.

    Raises:
        CourseError: an unknown method or setting, a size below 1, or methods that can't stand together.
    """
    if isinstance(method, str):
        given = {method: settings}
    elif settings:
        raise CourseError(
            "Settings of a combination belong to one method each: write "
            "attach(model, {'lora': {'rank': 4}, 'prefix': {'length': 10}})."
        )
    else:
        given = dict(method) if isinstance(method, Mapping) else {name: {} for name in method}
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
    kinds = [METHODS[name].kind for name in names]
    for kind in KINDS:
        same = [name for name, other in zip(names, kinds, strict=True) if other == kind]
        if len(same) > 1:
            raise CourseError(
                f"{' and '.join(same)} can't stand together: they are of one kind ({kind}), and a model takes one "
                f"method of each. Combine for example lora with prefix, or with houlsby."
            )
    if WHOLE in kinds and len(names) > 1:
        raise CourseError(f"Full fine-tuning trains every weight already: attach {' and '.join(names)} apart.")
