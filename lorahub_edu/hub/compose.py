"""COMPOSE: several LoRA modules become one, by weights that may be negative.

The paper adds the factors, A = Σ wᵢAᵢ and B = Σ wᵢBᵢ, so the update is B·A with all cross-terms wᵢwⱼBᵢAⱼ. The exact
composition adds the updates, Σ wᵢBᵢAᵢ, which is one module of rank N·r.

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 3.2, equation 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.lora.layer import LoRAConfig

COMPOSITIONS = ("paper", "exact")


@dataclass(frozen=True)
class ModuleStack:
    """N modules of one shape in one flat matrix, so that one product composes every layer.

    Attributes:
        names: the N modules' names, in the order of the weights.
        flat: (N, total) all A and B of each module, site after site.
        shapes: per site (out, in) of the layer it adapts.
        rank: of every module; a smaller one was padded with zeros, which add nothing (exact composition only).
        config: the config that all modules share, and that a module composed the paper's way gets.
        base_model: name of the base they were trained on.
        base_model_sha256: its hash, where the files carry one.
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
        parts, offset = {}, 0
        lead = composed.shape[:-1]
        for site, (outputs, inputs) in self.shapes.items():
            middle, end = offset + self.rank * inputs, offset + self.rank * (inputs + outputs)
            A = composed[..., offset:middle].unflatten(-1, (self.rank, inputs))  # (..., r·in) -> (..., r, in)
            B = composed[..., middle:end].unflatten(-1, (outputs, self.rank))  # (..., out·r) -> (..., out, r)
            parts[site] = (A.view(*lead, self.rank, inputs), B.view(*lead, outputs, self.rank))
            offset = end
        return parts

    def choose(self, names: Sequence[str]) -> ModuleStack:
        """The stack of some of the modules, in this order."""
        for name in names:
            if name not in self.names:
                raise CourseError(f"There is no module {name!r} in the stack. {near_matches(name, self.names)}")
        rows = [self.names.index(name) for name in names]
        return replace(self, names=tuple(names), flat=self.flat[rows])


def stack(
    files: Sequence[AdapterFile],
    names: Sequence[str] | None = None,
    *,
    composition: str = "paper",
    dtype: torch.dtype | None = None,
) -> ModuleStack:
    """Modules that were read from disk, stacked once for composing.

    Args:
        files: at least one module, as `adapter_files.read_adapter` gives it.
        names: None takes the folders'.
        composition: "paper" needs equal ranks and scalings; for "exact" they may differ.
        dtype: of the stack; None needs all modules to have one dtype and takes it, in float32 at least.

    Raises:
        CourseError: no module, a module that is not finite, or modules of different base model, target modules, rank,
            scaling, or dtype.

    Source: Huang et al. 2023, section 3.2 (the modules must share one rank); claim H2.
    """
    check_composition(composition)
    if not files:
        raise CourseError("There is no module to compose: give at least one.")
    names = tuple(names if names is not None else (Path(file.path).name for file in files))
    if len(names) != len(files) or len(set(names)) != len(names):
        raise CourseError(f"{len(files)} modules need {len(files)} different names, but these were given: {names}.")
    _check_alike(files, names, composition, dtype)
    rank = max(config.rank for file in files for config in file.configs.values())
    config = next(c for file in files for c in file.configs.values() if c.rank == rank)
    sites = list(files[0].weights)
    shapes = {site: (B.shape[0], A.shape[1]) for site, (A, B) in files[0].weights.items()}
    dtype = dtype or torch.promote_types(next(iter(files[0].weights.values()))[0].dtype, torch.float32)
    rows = []
    for file, name in zip(files, names, strict=True):
        parts = []
        for site in sites:
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
    return ModuleStack(names, torch.stack(rows), shapes, rank, shared, files[0].base_model, files[0].base_model_sha256)


def check_composition(composition: str) -> None:
    """Raise a CourseError unless this is a composition that exists."""
    if composition not in COMPOSITIONS:
        raise CourseError(f"There is no composition {composition!r}. {near_matches(str(composition), COMPOSITIONS)}")


def _check_alike(
    files: Sequence[AdapterFile], names: Sequence[str], composition: str, dtype: torch.dtype | None
) -> None:
    first, first_name = files[0], names[0]
    for file, name in zip(files[1:], names[1:], strict=True):
        pair = f"Modules {first_name!r} and {name!r} can't be composed: "
        hashes = first.base_model_sha256, file.base_model_sha256
        known = all(hashes)
        if (known and hashes[0] != hashes[1]) or (not known and first.base_model != file.base_model):
            theirs = [f"{f.base_model} (SHA-256 {(f.base_model_sha256 or 'unknown')[:12]})" for f in (first, file)]
            raise CourseError(f"{pair}they were trained on different base models, {theirs[0]} and {theirs[1]}.")
        only = [sorted(set(a.weights) - set(b.weights)) for a, b in ((first, file), (file, first))]
        if only[0] or only[1]:
            examples = " and ".join(
                f"{len(sites)} layers only in {owner!r} (such as {sites[0]})"
                for sites, owner in zip(only, (first_name, name), strict=True)
                if sites
            )
            raise CourseError(f"{pair}their target modules differ, {examples}. Choose modules of the same layers.")
        for site, (A, B) in file.weights.items():
            expected = first.weights[site]
            if (B.shape[0], A.shape[1]) != (expected[1].shape[0], expected[0].shape[1]):
                raise CourseError(
                    f"{pair}{site} is ({expected[1].shape[0]}, {expected[0].shape[1]}) in the first and "
                    f"({B.shape[0]}, {A.shape[1]}) in the second: they belong to different base models."
                )
        ranks, scalings = ([_common(f, key) for f in (first, file)] for key in ("rank", "scaling"))
        if composition == "paper" and ranks[0] != ranks[1]:
            raise CourseError(
                f"{pair}their ranks differ, {ranks[0]} and {ranks[1]}: Σ wᵢAᵢ needs one rank. Compose with "
                f'composition="exact", or choose modules of one rank.'
            )
        if composition == "paper" and scalings[0] != scalings[1]:
            raise CourseError(
                f"{pair}their scalings alpha/r differ, {scalings[0]} and {scalings[1]}, and the paper's composition "
                f'has one. Compose with composition="exact", which carries the scaling in B.'
            )
        dtypes = [_dtype(f) for f in (first, file)]
        if dtype is None and dtypes[0] != dtypes[1]:
            raise CourseError(
                f"{pair}their dtypes differ, {dtypes[0]} and {dtypes[1]}. Choose the dtype to compose in, for example "
                f"dtype=torch.float32."
            )


def _common(file: AdapterFile, what: str) -> float | tuple[float, ...]:
    """A module's rank or scaling: one number, or all of them where its layers differ."""
    values = sorted({getattr(config, what) for config in file.configs.values()})
    return values[0] if len(values) == 1 else tuple(values)


def _dtype(file: AdapterFile) -> str:
    kinds = sorted({str(tensor.dtype) for pair in file.weights.values() for tensor in pair})
    return " and ".join(kinds)


def compose(modules: ModuleStack, weights: Sequence[float] | Tensor, composition: str = "paper") -> AdapterFile:
    """One module from N: the paper's sum of factors, or the exact sum of updates.

    Args:
        weights: (N,) any real numbers.
        composition: "paper": A = Σ wᵢAᵢ (r, in), B = Σ wᵢBᵢ (out, r); "exact": Σ wᵢBᵢAᵢ as one module of rank N·r
            (modules of weight 0 are left out; a layer smaller than N·r gets the largest rank that it can have).

    Raises:
        CourseError: unknown composition, or not N finite weights.

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

    Returns:
        A module of that rank (a smaller layer gets the largest rank that it can have) in float32 at least, with the
        singular values shared evenly between A and B.

    Raises:
        CourseError: the rank is below 1 or above the module's.

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
    """The config of another rank with the same factor before B·A."""
    return replace(config, rank=rank, alpha=config.scaling * rank, rank_stabilised=False)


def _as_file(modules: ModuleStack, pairs: dict[str, tuple[Tensor, Tensor]], config: LoRAConfig) -> AdapterFile:
    return AdapterFile(
        Path("composed"), pairs, dict.fromkeys(pairs, config), modules.base_model, modules.base_model_sha256
    )
