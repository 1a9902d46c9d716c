"""COMPOSE: several LoRA modules become one, by weights that may be negative.

The paper adds the factors, A = Σ wᵢAᵢ and B = Σ wᵢBᵢ, so the update is B·A with all cross-terms wᵢwⱼBᵢAⱼ. The exact
composition adds the updates, Σ wᵢBᵢAᵢ, which is one module of rank N·r.
Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 3.2, equation 1.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.lora.layer import LoRAConfig

logger = logging.getLogger(__name__)

COMPOSITIONS = ("paper", "exact")


@dataclass(frozen=True)
class ModuleStack:
    """N modules of one shape in one flat matrix, so that one product composes every layer.

    Attributes:
        names: of the N modules, in the order of the weights.
        flat: (N, total) all A and B of each module, site after site.
        shapes: per site (out, in) of the layer it adapts.
        rank: of every module; a smaller one was padded with zeros, which add nothing (exact composition only).
        config: the config that all modules share, and that a module composed the paper's way gets.
    """

    names: tuple[str, ...]
    flat: Tensor
    shapes: dict[str, tuple[int, int]]
    rank: int
    config: LoRAConfig
    base_model: str | None
    base_model_sha256: str | None

    def __len__(self) -> int:
        return len(self.names)

    def split(self, composed: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Views of rows of `flat`, or of their weighted sums, (..., total), as A (..., r, in) and B (..., out, r)."""
        sizes = [self.rank * side for outputs, inputs in self.shapes.values() for side in (inputs, outputs)]
        parts = composed.split(sizes, -1)
        return {
            site: (A.unflatten(-1, (self.rank, inputs)), B.unflatten(-1, (outputs, self.rank)))
            for (site, (outputs, inputs)), A, B in zip(self.shapes.items(), parts[::2], parts[1::2], strict=True)
        }


def stack(
    files: Sequence[AdapterFile],
    names: Sequence[str] | None = None,
    *,
    composition: str = "paper",
    dtype: torch.dtype | None = None,
) -> ModuleStack:
    """Modules that were read from disk, stacked once for composing.

    Args:
        names: None takes the folders', with as many of their parents as make them differ.
        composition: "paper" needs equal ranks and scalings; for "exact" they may differ.
        dtype: of the stack; None needs all modules to have one dtype and takes it, in float32 at least.
    Raises CourseError: no module, a module that is not finite, or modules of different base model, target modules,
        rank, scaling, or dtype.
    Source: Huang et al. 2023, section 3.2 (the modules must share one rank); claim H2.
    """
    check_composition(composition)
    if not files:
        raise CourseError("There is no module to compose: give at least one.")
    names = tuple(names if names is not None else _shortest_names([Path(file.path) for file in files]))
    if len(names) != len(files) or len(set(names)) != len(names):
        raise CourseError(f"{len(files)} modules need {len(files)} different names, but these were given: {names}.")
    for other, name in zip(files[1:], names[1:], strict=True):
        if difference := _difference(files[0], other, composition, dtype):
            raise CourseError(f"Modules {names[0]!r} and {name!r} can't be composed: {difference}")
    known = all(file.base_model_sha256 for file in files) or all(file.base_name for file in files)
    if not known and len({file.base_model for file in files}) > 1:
        unnamed = ", ".join(name for file, name in zip(files, names, strict=True) if not file.base_name)
        logger.warning("%s: the base is not known, so only the shapes of the layers were compared.", unnamed)
    best = max(files, key=lambda file: (bool(file.base_model_sha256), bool(file.base_name)))
    config = max((c for file in files for c in file.configs.values()), key=lambda c: c.rank)
    rank = config.rank
    shapes = files[0].shapes
    dtype = dtype or torch.promote_types(next(iter(files[0].weights.values()))[0].dtype, torch.float32)
    rows = []
    for file, name in zip(files, names, strict=True):
        parts = []
        for site in shapes:
            A, B = (tensor.detach().to("cpu", dtype) for tensor in file.weights[site])
            own = file.configs[site]
            missing = rank - own.rank
            parts.append(F.pad(A, (0, 0, 0, missing)).flatten())  # (r, in) -> (r·in,)
            # The stack has one scaling: a module of another scaling carries the ratio in its B.
            parts.append((F.pad(B, (0, missing)) * (own.scaling / config.scaling)).flatten())
        rows.append(torch.cat(parts))
        if not torch.isfinite(rows[-1]).all():  # even a weight of 0 would make NaN of it, in every candidate
            raise CourseError(f"Module {name!r} holds NaN or infinite values: leave it out, or train it again.")
    shared = replace(config, dtype=dtype, dropout=0.0)
    return ModuleStack(names, torch.stack(rows), shapes, rank, shared, best.base_model, best.base_model_sha256)


def _shortest_names(paths: Sequence[Path]) -> list[str]:
    """The end of each path, of as many folders as make all ends differ: a/adapter and b/adapter."""
    names = [path.name for path in paths]
    for parts in range(2, max((len(path.parts) for path in paths), default=0) + 1):
        if len(set(names)) == len(names):
            break
        names = ["/".join(path.parts[-parts:]) for path in paths]
    return names


def check_composition(composition: str) -> None:
    if composition not in COMPOSITIONS:
        raise CourseError(f"There is no composition {composition!r}. {near_matches(str(composition), COMPOSITIONS)}")


def _difference(one: AdapterFile, two: AdapterFile, composition: str, dtype: torch.dtype | None) -> str:
    """How two modules differ in what a composition needs to be equal; "" where they don't."""
    hashes, names = (one.base_model_sha256, two.base_model_sha256), (one.base_name, two.base_name)
    if hashes[0] != hashes[1] if all(hashes) else all(names) and names[0] != names[1]:
        bases = [f"{f.base_model} (SHA-256 {(f.base_model_sha256 or 'unknown')[:12]})" for f in (one, two)]
        hint = "" if all(hashes) else " If it is one base, --base names it."
        return f"they were trained on different base models, {bases[0]} and {bases[1]}.{hint}"
    if only := sorted(one.shapes.keys() ^ two.shapes.keys()):
        return f"their target modules differ: {len(only)} layers are in one of them only, such as {only[0]}."
    for site, shape in one.shapes.items():
        if shape != two.shapes[site]:
            sizes = f"{site} is {shape} in the first and {two.shapes[site]} in the second"
            return f"{sizes}: they belong to different base models."
    advice = 'The paper\'s composition needs equal ones. Compose with composition="exact", or choose other modules.'
    for setting in ("rank", "scaling") if composition == "paper" else ():
        values = [_listed(getattr(config, setting) for config in f.configs.values()) for f in (one, two)]
        if values[0] != values[1]:
            return f"their {setting}s differ, {values[0]} and {values[1]}. {advice}"
    dtypes = [_listed(str(tensor.dtype) for pair in f.weights.values() for tensor in pair) for f in (one, two)]
    if dtype is None and dtypes[0] != dtypes[1]:
        return f"their dtypes differ, {dtypes[0]} and {dtypes[1]}. Choose the dtype of the stack: dtype=torch.float32."
    return ""


def _listed(values: Iterable[object]) -> str:
    """Each value once, in order: one where all layers have the same."""
    return ", ".join(map(str, sorted(set(values))))


def compose(modules: ModuleStack, weights: Sequence[float] | Tensor, composition: str = "paper") -> AdapterFile:
    """One module from N, by N real weights: the paper's sum of factors, or the exact sum of updates.

    "paper" is A = Σ wᵢAᵢ (r, in), B = Σ wᵢBᵢ (out, r). "exact" is Σ wᵢBᵢAᵢ as one module of rank N·r, without modules
    of weight 0; a layer smaller than N·r gets the largest rank that it can have.
    Raises CourseError: unknown composition, or not N finite weights.
    Source: Huang et al. 2023, section 3.2, equation 1; claim H1.
    """
    check_composition(composition)
    w = torch.as_tensor(weights, dtype=modules.flat.dtype).reshape(-1)
    if len(w) != len(modules) or not torch.isfinite(w).all():
        raise CourseError(f"{len(modules)} modules need {len(modules)} finite weights, but these are {w.tolist()}.")
    if composition == "paper":
        return _as_file(modules, modules.split(w @ modules.flat), modules.config)  # (N,) @ (N, total) -> (total,)
    used = w.nonzero().flatten() if w.any() else torch.tensor([0])
    pairs = {}
    for site, (A, B) in modules.split(modules.flat[used]).items():  # (n, r, in), (n, out, r)
        scaled = B * w[used][:, None, None]
        pairs[site] = (A.flatten(0, 1), scaled.transpose(0, 1).flatten(1))  # (n·r, in), (out, n·r)
    rank = len(used) * modules.rank
    composed = _as_file(modules, pairs, _of_rank(modules.config, rank))
    return composed if rank <= min(min(shape) for shape in modules.shapes.values()) else refactor(composed, rank)


def refactor(module: AdapterFile, rank: int) -> AdapterFile:
    """The nearest module of a lower rank: the truncated SVD of each layer's B·A, by way of its thin factors.

    It is in float32 at least, with the singular values shared evenly between A and B. A smaller layer gets the largest
    rank that it can have.
    Raises CourseError: the rank is below 1 or above the module's.
    Source: Eckart & Young 1936; the QR step as in PEFT's `add_weighted_adapter(combination_type="svd")`.
    """
    largest = max(config.rank for config in module.configs.values())
    if not 1 <= rank <= largest:
        raise CourseError(f"A module of rank {largest} can be brought to a rank from 1 to {largest}, not to {rank}.")
    pairs, configs = {}, {}
    for site, (A, B) in module.weights.items():
        dtype = torch.promote_types(A.dtype, torch.float32)  # torch decomposes no half-precision matrix
        A, B = A.to(dtype), B.to(dtype)
        Qb, Rb = torch.linalg.qr(B)  # (out, R), (R, R)
        Qa, Ra = torch.linalg.qr(A.mT)  # (in, R), (R, R)
        U, S, Vt = torch.linalg.svd(Rb @ Ra.mT, full_matrices=False)  # the core: B·A = Qb (Rb Raᵀ) Qaᵀ
        root = S[:rank].sqrt()  # (k,), k below `rank` where the layer is smaller
        pairs[site] = ((root[:, None] * Vt[:rank]) @ Qa.mT, Qb @ (U[:, :rank] * root))  # (k, in), (out, k)
        configs[site] = replace(_of_rank(module.configs[site], len(root)), dtype=dtype)
    return replace(module, weights=pairs, configs=configs)


def _of_rank(config: LoRAConfig, rank: int) -> LoRAConfig:
    return replace(config, rank=rank, alpha=config.scaling * rank, rank_stabilised=False)


def _as_file(modules: ModuleStack, pairs: dict[str, tuple[Tensor, Tensor]], config: LoRAConfig) -> AdapterFile:
    return AdapterFile(
        Path("composed"), pairs, dict.fromkeys(pairs, config), modules.base_model, modules.base_model_sha256
    )
