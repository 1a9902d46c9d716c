"""Base models and tokenizers: find, convert once, load in about a second."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerFast as Tokenizer
from transformers.utils import logging as transformers_logging

from lorahub_edu.data.batching import PACKED_ATTENTION  # importing it registers this attention
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets, save
from lorahub_edu.files.sources import hub_address, why_unreachable
from lorahub_edu.models import tiny
from lorahub_edu.models.profiles import BASE_MODELS, BaseModel, Profile, access, get_base, get_profile

MARKER = "prepared.json"
HUB_ADVICE = "Check the network and free disk space, or set HF_HOME to a folder that holds the model."


@cache
def quick_dtype() -> torch.dtype:
    """What training computes in here: bfloat16, or float32 where that multiplies faster.

    A processor without 16-bit instructions can take 60 times as long for a gradient in bfloat16.
    """
    if torch.cuda.is_available():
        return torch.bfloat16
    return min((torch.bfloat16, torch.float32), key=_product_seconds)


def _product_seconds(dtype: torch.dtype) -> float:
    """Time of a product's input gradient, the best of three: the slowest product of a step in 16 bits."""
    gradient, weight = torch.ones(128, 512, dtype=dtype), torch.ones(512, 256, dtype=dtype)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        torch.mm(gradient, weight)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def folder(name: str) -> Path:
    """The folder of the converted model."""
    return assets.home() / "models" / name


def is_prepared(name: str) -> bool:
    """Whether the model can be loaded without fetching or converting anything."""
    base = get_base(name)
    if base.asset is None:
        return base.name == tiny.NAME
    return _marker(name) == _wanted_marker(base)


def is_here(name: str) -> bool:
    """Whether the model can be loaded without the network."""
    base = get_base(name)
    if base.asset or base.name == tiny.NAME:
        return is_prepared(name) or assets.locate(base.asset) is not None
    if base.is_folder:
        return Path(base.repo).is_dir()
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(base.repo, "config.json", revision=base.revision), str)


def base_sha256(name: str) -> str | None:
    """The hash of the file that a base model comes from; adapters carry it so that a wrong base is noticed."""
    base = get_base(name)
    return assets.ASSETS[base.asset].editions[0].sha256 if base.asset else None


def _marker(name: str) -> dict | None:
    """How this folder was prepared; None unless the weights still have the size that was written."""
    try:
        marker = json.loads((folder(name) / MARKER).read_text(encoding="utf-8"))
        intact = (folder(name) / "model.safetensors").stat().st_size == marker.pop("bytes")
    except (OSError, ValueError, KeyError):
        return None
    return marker if intact else None


def _wanted_marker(base: BaseModel) -> dict:
    return {"source_sha256": base_sha256(base.name), "format": 1}


def prepare(name: str, *, source: str = "auto", offline: bool = False) -> Path:
    """The folder to load a base model from; the first call fetches its file and converts it to safetensors.

    The folder appears whole: a conversion that is killed leaves nothing behind that loads. `source` is as for
    `assets.fetch`.
    Raises CourseError: the file can't be had, or the disk is full.
    """
    base = get_base(name)
    target = folder(name)
    if base.asset is None or is_prepared(name):
        return target
    file = assets.fetch(base.asset, source=source, offline=offline)
    what = "the converted model (0.6 GB, in LORAHUB_EDU_HOME)"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{name}.lock"):
            if is_prepared(name):  # another process was first
                return target
            save.remove_unfinished(target)
            with save.replacing(target, what) as unfinished:
                _convert(base, file, unfinished)
                shutil.rmtree(target, ignore_errors=True)
    except OSError as error:  # of the folder or its lock
        raise CourseError(f"Can't write {what} to {target}: {error}. Choose another folder.") from error
    return target


def _convert(base: BaseModel, file: Path, folder: Path) -> None:
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        # The weights are plain float32 from here on; with these two left, loading would look for the GGUF again.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.config._name_or_path = base.name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    marker = _wanted_marker(base) | {"bytes": (folder / "model.safetensors").stat().st_size}
    (folder / MARKER).write_text(json.dumps(marker), encoding="utf-8")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' bars and notes: a learner's page shows the course's own."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def check_device(profile: Profile, device: str | None = None) -> None:
    """Raise a CourseError unless this machine has the profile's device, or the given one."""
    if (device or profile.device).startswith("cuda") and not torch.cuda.is_available():
        raise CourseError(
            f"Profile {profile.name!r} needs an NVIDIA GPU, and torch finds none. Choose --profile cpu, or install the "
            f"CUDA build of torch on the machine with the GPU."
        )


def load(
    profile: Profile | str | None = None,
    *,
    base: str = "",
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    attention: str = "sdpa",
    offline: bool = False,
    revision: str = "",
) -> tuple[PreTrainedModel, Tokenizer]:
    """A base model in evaluation mode, and its fast tokenizer with a padding token.

    `profile` None is the environment's. `base`, `dtype`, `device` and the hub's `revision` are the profile's and the
    course's unless they are given. `attention` is "sdpa", "eager", or "packed" for a causal model.
    Raises CourseError: the model or the device can't be had, or the model can't run with these settings.
    """
    profile = profile if isinstance(profile, Profile) else get_profile(profile)
    dtype = getattr(torch, dtype or profile.dtype) if not isinstance(dtype, torch.dtype) else dtype
    device = device or profile.device
    check_device(profile, device)
    base = get_base(base or profile.base_model)
    base = replace(base, revision=revision) if revision and base.repo else base
    if base.kind == "encoder-decoder" and dtype == torch.float16:  # T5's activations exceed its largest number
        raise CourseError(f"{base.name} overflows in float16 and answers nonsense: load it in bfloat16 or float32.")
    if base.kind == "encoder-decoder" and attention == PACKED_ATTENTION:
        raise CourseError(f'{base.name} is an encoder-decoder, whose rows are not packed: take attention="sdpa".')
    if base.name == tiny.NAME:
        model, tokenizer = tiny.model(attention=attention), tiny.tokenizer()
    else:
        model, tokenizer = _load_pretrained(base, dtype, attention, offline)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device=device, dtype=dtype).eval(), tokenizer


def _load_pretrained(
    base: BaseModel, dtype: torch.dtype, attention: str, offline: bool
) -> tuple[PreTrainedModel, Tokenizer]:
    options = {} if base.asset else {"revision": base.revision}
    source = prepare(base.name, offline=offline) if base.asset else _repo_or_cached(base, offline)
    auto = AutoModelForSeq2SeqLM if base.kind == "encoder-decoder" else AutoModelForCausalLM
    try:
        with quiet_transformers():
            model = auto.from_pretrained(source, dtype=dtype, attn_implementation=attention, **options)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:  # transformers raises many kinds here, OSError and SafetensorError among them
        advice = f"The prepared model in {source} may be damaged: delete that folder and run lorahub-edu fetch."
        if base.asset is None:
            advice = "Save model and tokenizer there again." if base.is_folder else access(base) or HUB_ADVICE
        raise CourseError(f"Can't load {base.name}: {type(error).__name__}: {str(error)[:300]}. {advice}") from error
    model.config._name_or_path = base.repo or base.name  # not the folder it came from, which is this machine's
    return model, tokenizer


def _repo_or_cached(base: BaseModel, offline: bool) -> str:
    """The model's name on the hub or its own folder; its folder in the hub's cache when the hub can't be asked."""
    if base.is_folder:
        return base.repo
    reason = "offline was chosen" if offline else why_unreachable(hub_address())
    if reason is None:
        return base.repo
    from huggingface_hub import snapshot_download

    # Asked by name, transformers would try each file again and again for a minute, even of a model that is here.
    try:
        return snapshot_download(base.repo, revision=base.revision, local_files_only=True)
    except Exception as error:
        raise CourseError(
            f"Can't load {base.name}: {base.repo} is not in the hub's cache on this machine, and the hub was not asked "
            f"({reason}). {HUB_ADVICE} {access(base)}".rstrip()
        ) from error


def name_of(model: PreTrainedModel) -> str | None:
    """The course's name of the base model that this was loaded as; None for another model."""
    name = getattr(model.config, "_name_or_path", None)
    return next((base.name for base in BASE_MODELS.values() if name in (base.name, base.repo)), None)


def load_config(name: str) -> PreTrainedConfig:
    base = get_base(name)
    if base.name == tiny.NAME:
        return tiny.config()
    if base.asset:
        return AutoConfig.from_pretrained(prepare(name))
    return AutoConfig.from_pretrained(base.repo, revision=base.revision)
