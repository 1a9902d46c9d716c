"""Compositions against plain float64 sums, PEFT's own combination of adapters, and the singular value decomposition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hub_modules
import numpy as np
import peft_modules
import pytest
import torch
from hub_modules import deltas, random_module, random_modules
from peft import PeftModel

from lorahub_edu.errors import CourseError
from lorahub_edu.hub.compose import COMPOSITIONS, compose, refactor, stack
from lorahub_edu.lora import adapter_files
from lorahub_edu.lora.adapter_files import AdapterFile, read_adapter
from lorahub_edu.models import tiny

WEIGHTS = (0.7, -1.2, 0.4)
IDS = torch.arange(3, 27).view(2, 12)


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def files(model) -> list[AdapterFile]:
    return random_modules(model)


def update_of(module: AdapterFile) -> dict[str, np.ndarray]:
    """Per layer scaling · B @ A in float64."""
    return deltas([module], [1.0], "exact")


def assert_same_update(found: AdapterFile, expected: dict[str, np.ndarray], atol: float = 1e-6) -> None:
    assert found.weights.keys() == expected.keys()
    for site, delta in update_of(found).items():
        np.testing.assert_allclose(delta, expected[site], atol=atol, rtol=0)


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("weights", [WEIGHTS, (1, 0, 0), (0, 0, 1), (0, 0, 0), (-1.5, 1.5, 1.5)])
def test_a_composition_is_the_plain_sum(files, composition: str, weights) -> None:
    found = compose(stack(files), weights, composition)
    assert_same_update(found, deltas(files, weights, composition))
    for site, (A, B) in found.weights.items():
        rank = found.configs[site].rank
        assert A.shape[0] == B.shape[1] == rank
        assert rank == 4 if composition == "paper" else rank == 4 * max(1, np.count_nonzero(weights))


def test_the_papers_factors_are_the_sums_of_the_factors(files) -> None:
    found = compose(stack(files), WEIGHTS, "paper")
    for site, pair in found.weights.items():
        for place in (0, 1):
            expected = sum(w * file.weights[site][place].double() for w, file in zip(WEIGHTS, files, strict=True))
            torch.testing.assert_close(pair[place].double(), expected, atol=1e-6, rtol=0)


def test_the_papers_composition_is_not_the_sum_of_updates_but_equal_for_one_module(files) -> None:
    paper, exact = (update_of(compose(stack(files), WEIGHTS, how)) for how in COMPOSITIONS)
    assert all(np.abs(paper[site] - exact[site]).max() > 1e-2 for site in paper)
    one = [update_of(compose(stack(files[:1]), [0.5], how)) for how in COMPOSITIONS]
    assert_same_update(compose(stack(files[:1]), [1.0]), update_of(files[0]))
    for site in paper:
        np.testing.assert_allclose(one[0][site], one[1][site] / 2, atol=1e-6)  # w enters the paper's way squared


@pytest.mark.parametrize("weights", [WEIGHTS, (-0.3, 1.5, -1.5)])
def test_minus_w_is_the_same_module_in_the_papers_composition_only(files, weights) -> None:
    minus = [-w for w in weights]
    paper = update_of(compose(stack(files), weights, "paper"))
    assert_same_update(compose(stack(files), minus, "paper"), paper, atol=1e-9)
    exact = update_of(compose(stack(files), weights, "exact"))
    assert_same_update(compose(stack(files), minus, "exact"), {site: -delta for site, delta in exact.items()})


def test_a_rotated_basis_changes_the_papers_composition_and_not_the_exact_one(files) -> None:
    """The same module written in another basis of its rank space: A becomes Q A, and B becomes B Q⁻¹."""
    Q, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64))
    turned = {site: ((Q @ A.double()).float(), (B.double() @ Q.T).float()) for site, (A, B) in files[0].weights.items()}
    other = [replace(files[0], weights=turned), *files[1:]]
    assert_same_update(other[0], update_of(files[0]))
    assert_same_update(compose(stack(other), WEIGHTS, "exact"), deltas(files, WEIGHTS, "exact"))
    paper = update_of(compose(stack(other), WEIGHTS, "paper"))
    assert all(np.abs(paper[site] - delta).max() > 1e-2 for site, delta in deltas(files, WEIGHTS, "paper").items())


def test_the_exact_composition_is_pefts_cat(tmp_path: Path, model) -> None:
    folders = peft_modules.save_modules(tiny.model, tmp_path)
    theirs = PeftModel.from_pretrained(tiny.model(), folders[0], adapter_name="0")
    for number, folder in enumerate(folders[1:], start=1):
        theirs.load_adapter(folder, adapter_name=str(number))
    theirs.add_weighted_adapter(["0", "1", "2"], list(WEIGHTS), "sum", combination_type="cat")
    theirs.set_adapter("sum")
    ours = tiny.model()
    module = compose(stack([read_adapter(folder) for folder in folders], composition="exact"), WEIGHTS, "exact")
    adapter_files.put_adapter(ours, module)
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=2e-5, rtol=1e-4)
        assert not torch.allclose(ours(IDS).logits, model(IDS).logits, atol=1e-2)


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_a_composed_module_loads_in_peft(tmp_path: Path, files, composition: str) -> None:
    ours = tiny.model()
    adapter_files.put_adapter(ours, compose(stack(files), WEIGHTS, composition))
    folder = adapter_files.save_adapter(ours, tmp_path / "composed")
    theirs = PeftModel.from_pretrained(tiny.model(), folder).eval()
    twin = hub_modules.merged(tiny.model(), deltas(files, WEIGHTS, composition))
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits.double(), twin(IDS).logits, atol=1e-4, rtol=1e-4)


def test_the_stack_gives_back_what_went_in(files) -> None:
    stacked = stack(files, names=("a", "b", "c"))
    assert len(stacked) == 3 and stacked.names == ("a", "b", "c") and stacked.rank == 4
    assert stacked.flat.shape == (3, sum(A.numel() + B.numel() for A, B in files[0].weights.values()))
    for site, (A, B) in stacked.split(stacked.flat).items():
        assert torch.equal(A, torch.stack([file.weights[site][0] for file in files]))
        assert torch.equal(B, torch.stack([file.weights[site][1] for file in files]))
        assert A.untyped_storage().data_ptr() == stacked.flat.untyped_storage().data_ptr()  # views, no copy
    assert stack(files).names == ("m0", "m1", "m2")


def test_the_exact_composition_mixes_ranks_and_scalings(model) -> None:
    mixed = [
        random_module(model, 0, rank=2, alpha=8.0),
        random_module(model, 1, rank=6, alpha=3.0),
        random_module(model, 2, rank=4, alpha=4.0),
    ]
    stacked = stack(mixed, composition="exact")
    assert stacked.rank == 6
    assert_same_update(compose(stacked, WEIGHTS, "exact"), deltas(mixed, WEIGHTS, "exact"))


def test_half_precision_modules_are_composed_in_float32(model) -> None:
    halves = random_modules(model, dtype=torch.float16)
    stacked = stack(halves)
    assert stacked.flat.dtype == torch.float32
    assert_same_update(compose(stacked, WEIGHTS), deltas(halves, WEIGHTS, "paper"))


def test_float64_stays_float64(model) -> None:
    doubles = random_modules(model, dtype=torch.float64)
    assert_same_update(compose(stack(doubles), WEIGHTS), deltas(doubles, WEIGHTS, "paper"), atol=1e-14)


def test_dropout_of_the_parts_is_not_the_compositions(files) -> None:
    dropping = [replace(file, configs={s: replace(c, dropout=0.1) for s, c in file.configs.items()}) for file in files]
    assert {config.dropout for config in compose(stack(dropping), WEIGHTS).configs.values()} == {0.0}


@pytest.mark.parametrize("rank", [1, 4, 7, 12])
def test_refactoring_leaves_the_error_of_eckart_and_young(files, rank: int) -> None:
    exact = compose(stack(files), WEIGHTS, "exact")
    found = refactor(exact, rank)
    for site, delta in update_of(exact).items():
        A, B = found.weights[site]
        assert A.shape[0] == B.shape[1] == found.configs[site].rank == rank
        U, S, Vt = np.linalg.svd(delta)
        error = np.linalg.norm(update_of(found)[site] - delta)
        assert error == pytest.approx(np.sqrt((S[rank:] ** 2).sum()), abs=1e-5)
        nearest = (U[:, :rank] * S[:rank]) @ Vt[:rank]
        np.testing.assert_allclose(update_of(found)[site], nearest, atol=1e-5)
        np.testing.assert_allclose((A @ A.mT).diagonal(), (B.mT @ B).diagonal(), rtol=1e-3, atol=1e-6)  # shared evenly


def test_a_half_precision_module_is_refactored_in_float32(files) -> None:
    """Modules are shipped in half precision, in which torch decomposes nothing."""
    halves = {site: (A.half(), B.half()) for site, (A, B) in files[0].weights.items()}
    half = replace(
        files[0], weights=halves, configs={s: replace(c, dtype=torch.float16) for s, c in files[0].configs.items()}
    )
    found = refactor(half, next(iter(half.configs.values())).rank)
    assert all(A.dtype == B.dtype == torch.float32 for A, B in found.weights.values())
    assert all(config.dtype == torch.float32 for config in found.configs.values())
    assert_same_update(found, update_of(half), atol=1e-5)


def test_a_refactored_module_loads(files) -> None:
    model = tiny.model()
    module = refactor(compose(stack(files), WEIGHTS, "exact"), 12)
    adapter_files.put_adapter(model, module)
    twin = hub_modules.merged(tiny.model(), deltas(files, WEIGHTS, "exact"))
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits.double(), twin(IDS).logits, atol=1e-4, rtol=1e-4)


def test_an_exact_composition_of_more_than_a_layers_rank_still_fits_the_model(model) -> None:
    many = random_modules(model, 20)  # 20 · 4 is above the 64 that v_proj can have, and below q_proj's 128
    weights = np.linspace(-1.5, 1.5, 20)
    found = compose(stack(many), weights, "exact")
    assert {config.rank for site, config in found.configs.items() if "v_proj" in site} == {64}
    assert {config.rank for site, config in found.configs.items() if "q_proj" in site} == {80}
    assert_same_update(found, deltas(many, weights, "exact"), atol=1e-5)
    adapter_files.put_adapter(tiny.model(), found)


def test_layers_of_different_rank_and_scaling_in_one_module(model) -> None:
    """PEFT's rank_pattern and alpha_pattern."""
    mixed = []
    for seed in range(2):
        wide, narrow = (
            random_module(model, seed),
            random_module(model, seed + 5, rank=2, alpha=3.0, targets=("v_proj",)),
        )
        mixed.append(replace(wide, weights=wide.weights | narrow.weights, configs=wide.configs | narrow.configs))
    for composition in COMPOSITIONS:
        found = compose(stack(mixed), (0.5, -1.2), composition)
        assert_same_update(found, deltas(mixed, (0.5, -1.2), composition))


# Bad input.


@pytest.mark.parametrize("rank", [0, 13])
def test_a_rank_that_refactoring_cannot_reach(files, rank: int) -> None:
    with pytest.raises(CourseError, match=f"rank 12 can be brought to a rank from 1 to 12, not to {rank}"):
        refactor(compose(stack(files), WEIGHTS, "exact"), rank)


def test_empty_and_single_lists(files) -> None:
    with pytest.raises(CourseError, match="no module to compose"):
        stack([])
    assert len(stack(files[:1])) == 1


def test_weights_that_do_not_fit(files) -> None:
    for weights in ([1.0], [1.0, 2.0, float("nan")], [1.0, 2.0, float("inf")]):
        with pytest.raises(CourseError, match="3 modules need 3 finite weights"):
            compose(stack(files), weights)
    with pytest.raises(CourseError, match="no composition 'papper'. Did you mean 'paper'"):
        compose(stack(files), WEIGHTS, "papper")
    with pytest.raises(CourseError, match="no composition 'sum'"):
        stack(files, composition="sum")


def test_names_must_differ(files) -> None:
    with pytest.raises(CourseError, match="3 modules need 3 different names"):
        stack(files, names=("a", "b", "a"))
    with pytest.raises(CourseError, match="3 modules need 3 different names"):
        stack(files, names=("a", "b"))


def test_names_come_from_as_much_of_the_path_as_makes_them_differ(files) -> None:
    for folders in (("runs/a/adapter", "runs/b/adapter"), ("x/checkpoint-500", "y/checkpoint-500"), ("m0", "m1")):
        moved = [replace(file, path=Path("/home") / folder) for file, folder in zip(files, folders, strict=False)]
        wanted = tuple(folder.removeprefix("runs/") for folder in folders)
        assert stack(moved).names == wanted


@pytest.mark.parametrize("name", [None, "", "./out", "/home/me/models/tiny-random-llama", r"C:\models\mine", "a/b/c"])
def test_a_base_without_a_name_or_with_its_path_is_not_another_base(model, files, name: str | None, caplog) -> None:
    stacked = stack([random_module(model, 7, base=(name, None)), files[0]])
    assert len(stacked) == 2 and stacked.base_model == "tiny-random-llama"
    assert [record.getMessage() for record in caplog.records] == [
        "m7: the base is not known, so only the shapes of the layers were compared."
    ]


@pytest.mark.parametrize("name", ["tiny-random-llama/", "someone/tiny-random-llama"])
def test_a_base_has_one_name_here_and_on_the_hub(model, files, name: str, caplog) -> None:
    assert len(stack([files[0], random_module(model, 7, base=(name, None))])) == 2
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 2, "alpha": 4.0}, "'m0' and 'm7' can't be composed: their ranks differ, 4 and 2"),
        ({"alpha": 16.0}, r"'m0' and 'm7' .* scalings differ, 2.0 and 4.0"),
        (
            {"targets": ("q_proj", "k_proj")},
            r"'m0' and 'm7' .* target modules differ: 8 layers are .* such as model.layers.0.self_attn.k_proj",
        ),
        ({"targets": ("q_proj",)}, "'m0' and 'm7' .* differ: 4 layers are .* such as model.layers.0.self_attn.v_proj"),
        ({"dtype": torch.bfloat16}, "'m0' and 'm7' .* .* dtypes differ, .*float32.* and .*bfloat16"),
        ({"base": ("other", None)}, "'m0' and 'm7' .* different base models, tiny-random-llama .* and other"),
    ],
    ids=["rank", "scaling", "both targets", "one target", "dtype", "base"],
)
def test_modules_that_do_not_belong_together(model, files, change: dict, message: str) -> None:
    with pytest.raises(CourseError, match=message):
        stack([*files, random_module(model, 7, **change)])


def test_a_given_dtype_settles_a_difference(model, files) -> None:
    mixed = [files[0], random_module(model, 7, dtype=torch.bfloat16)]
    stacked = stack(mixed, dtype=torch.float32)
    assert_same_update(compose(stacked, (1.0, 0.5)), deltas(mixed, (1.0, 0.5), "paper"))


def test_the_bases_hash_counts_for_more_than_its_name(model) -> None:
    here, there = (random_module(model, n, base=(name, "ab" * 32)) for n, name in ((0, "base"), (1, "/data/base")))
    assert stack([here, there]).base_model_sha256 == "ab" * 32
    with pytest.raises(CourseError, match="different base models, base .SHA-256 abababababab. and base .SHA-256 cdcd"):
        stack([here, random_module(model, 2, base=("base", "cd" * 32))])


def test_layers_of_another_size_are_another_base(model, files) -> None:
    cut = {site: (A[:, :64].contiguous(), B) for site, (A, B) in files[1].weights.items()}
    with pytest.raises(CourseError, match=r"q_proj is \(128, 128\) in the first and \(128, 64\) in the second"):
        stack([files[0], replace(files[1], weights=cut)])


def test_a_module_that_is_not_finite_is_named(files) -> None:
    A, B = files[1].weights["model.layers.2.self_attn.q_proj"]
    spoilt = files[1].weights | {"model.layers.2.self_attn.q_proj": (A, B.index_fill(0, torch.tensor([3]), torch.inf))}
    with pytest.raises(CourseError, match="Module 'm1' holds NaN or infinite values"):
        stack([files[0], replace(files[1], weights=spoilt), files[2]])


def test_a_module_file_cut_short(files, tmp_path: Path) -> None:
    where = hub_modules.write(files[0], tmp_path) / "adapter_model.safetensors"
    where.write_bytes(where.read_bytes()[:5000])
    with pytest.raises(CourseError, match="m0.*can't be read as safetensors.*cut short"):
        read_adapter(where.parent)
