"""Counting intruder dimensions: ours, with the base's spectra on disk, against two full SVDs a matrix and against PEFT.

python benchmarks/intruders.py --scratch FOLDER [--repeats 3] [--sizes 576,1024,2048,4096] [--save | --quick]

The adapter (every projection of SmolLM2-135M, rank 16) is trained once and kept in the scratch folder, and so are the
spectra of the bases. An hour on one core; most of it is the peers' time.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import common
import peak
import torch
from torch import Tensor

K, EPSILON = 10, 0.5
EPSILONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, SCALE, STEPS, LEARNING_RATE = 16, 8.0, 30, 5e-3
BASE = "SmolLM2-135M-Instruct"
# Matrices of a 7B LLaMA: (out, in) and how many of them.
QUICK = {"repeats": 1, "sizes": "576"}
LLAMA_7B = {"4096x4096": ((4096, 4096), 128), "11008x4096": ((11008, 4096), 64), "4096x11008": ((4096, 11008), 32)}
PLANNED_MINUTES = 15  # for all of them, at most
MOST_MATRICES = 3  # of memory beside the matrix that is examined, at most


def trained_adapter(scratch: Path) -> Path:
    """An adapter of every projection, trained with a learning rate and a scale that give some intruders."""
    from lorahub_edu.models.profiles import get_profile
    from lorahub_edu.runs.finetune import finetune

    adapter = scratch / "run" / "adapter"
    if not adapter.is_dir():
        profile = replace(
            get_profile("cpu"),
            target_modules=PROJECTIONS,
            rank=RANK,
            alpha=SCALE * RANK,
            batch_size=4,
            validation_rows=8,
        )
        changes = {"train_steps": STEPS, "learning_rate": LEARNING_RATE}
        finetune(profile, changes, out=scratch / "run", progress=False, offline=True)
    return adapter


def two_svds(base: Tensor, tuned: Tensor) -> Tensor:
    """The largest cosines as the released code and PEFT compute them: two full SVDs in float32."""
    left0 = torch.linalg.svd(base.float(), full_matrices=False).U
    left = torch.linalg.svd(tuned.float(), full_matrices=False).U
    return (left.T @ left0).abs().max(dim=1).values[:K]


def whole_model(variant: str, scratch: Path) -> dict:
    """All 210 matrices of a real adapter: seconds, and what each matrix was found to have."""
    from lorahub_edu.spectra import updates
    from lorahub_edu.spectra.bases import BaseSpectra
    from lorahub_edu.spectra.intruders import count

    adapter = trained_adapter(scratch)
    if variant == "peft":
        return with_peft(adapter)
    base, spectra = updates.base_weights(BASE, offline=True), BaseSpectra(scratch / "spectra")
    peak.forget()
    before, started = peak.gigabytes(), time.perf_counter()
    if variant == "two_svds":
        cosines = {one.name: two_svds(one.base, one.weight()).tolist() for one in updates.iter_updates(adapter, base)}
        decided = {}
    else:
        epsilons = EPSILONS if variant == "every_epsilon" else (EPSILON,)
        rows = count(updates.iter_updates(adapter, base), spectra, K, epsilons).rows
        cosines = {row.name: row.cosines for row in rows}
        ways = [row.decided for row in rows]
        decided = {way: ways.count(way) for way in sorted(set(ways))}
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "cosines": cosines, "decided": decided, "gigabytes": peak.gigabytes() - before}


def with_peft(adapter: Path) -> dict:
    """The same by PEFT's `reduce_intruder_dimension`, which also makes the smaller adapter."""
    import peft
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    from lorahub_edu.models import pretrained

    model = peft.PeftModel.from_pretrained(pretrained.load("cpu", offline=True)[0], adapter)
    said: list[str] = []
    started = time.perf_counter()
    reduce_intruder_dimension(model, top_k=K, threshold_epsilon=EPSILON, logging_sink=said.append)
    seconds = time.perf_counter() - started
    counts = {}
    for line in said:
        name, found, what = line.removeprefix("base_model.model.").partition(": ")
        if found:
            counts[name] = int(what.rpartition(": ")[2]) if "Intruders" in what else 0
    return {"seconds": seconds, "counts": counts}


def spiked(m: int, n: int):  # noqa: ANN201 - an Update, whose room is imported below
    """A random matrix with a rank-16 update, some of whose directions reach the base's ten strongest ones."""
    from lorahub_edu.spectra.measures import factored_singular_values
    from lorahub_edu.spectra.updates import Update

    generator = torch.Generator().manual_seed(m + n)
    base = torch.randn(m, n, generator=generator)
    A = torch.randn(RANK, n, generator=generator)
    B = torch.randn(m, RANK, generator=generator) * torch.logspace(0, -0.7, RANK)
    # The largest singular value of a random matrix is about √m + √n.
    return Update("spiked", base, A, B, 1.3 * (m**0.5 + n**0.5) / float(factored_singular_values(B, A)[0]))


def one_matrix(m: int, n: int, scratch: Path, repeats: int, peers: int) -> dict:
    """Seconds for one matrix, ours and two SVDs taking turns; memory beside the matrix itself."""
    from lorahub_edu.spectra.bases import BaseSpectra, compute
    from lorahub_edu.spectra.intruders import count

    update, spectra = spiked(m, n), BaseSpectra(scratch / "spectra")
    base_seconds = seconds_of(lambda: compute(update.base))[0] if peers else 0.0
    ways: dict[str, Callable] = {
        "ours": lambda: count([update], spectra).rows[0].cosines,
        "two_svds": lambda: two_svds(update.base, update.weight()).tolist(),
    }
    ways["ours"]()
    peak.forget()
    before = peak.gigabytes()
    ways["ours"]()
    matrices = (peak.gigabytes() - before) * 1e9 / (update.base.numel() * 4)
    times: dict[str, list[float]] = {way: [] for way in ways}
    found = {}
    for repeat in range(repeats):
        for way, run in ways.items():
            if way != "two_svds" or repeat < peers:
                seconds, found[way] = seconds_of(run)
                times[way].append(seconds)
    counts = {way: sum(cosine < EPSILON for cosine in cosines) for way, cosines in found.items()}
    medians = {way: statistics.median(taken) for way, taken in times.items() if taken}
    return {"seconds": medians, "counts": counts, "base_seconds": base_seconds, "matrices": matrices}


def seconds_of(run: Callable) -> tuple[float, object]:
    """How long a call takes, and what it gives."""
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def judged(scratch: Path, ours: dict, peer: dict) -> dict:
    """Ours against the two SVDs in float32, decision by decision; where they differ, float64 decides."""
    from lorahub_edu.spectra import measures, updates

    differing = {
        name
        for name, cosines in ours.items()
        for mine, theirs in zip(cosines, peer[name], strict=True)
        if any((mine < epsilon) != (theirs < epsilon) for epsilon in EPSILONS)
    }
    wrong = 0
    base = updates.base_weights(BASE, offline=True)
    for one in updates.iter_updates(trained_adapter(scratch), base):
        if one.name in differing:
            exact = measures.largest_cosines(one.base, one.weight(torch.float64), K).tolist()
            wrong += sum(
                (mine < e) != (true < e) for mine, true in zip(ours[one.name], exact, strict=True) for e in EPSILONS
            )
    return {
        "decisions": len(ours) * K * len(EPSILONS),
        "matrices_where_float32_svds_differ": len(differing),
        "wrong_by_float64": wrong,
    }


def plan_7b(squares: dict[int, dict], measure: Callable[[str], dict], repeats: int) -> dict:
    """What all matrices of a 7B LLaMA take, from one of each shape."""
    parts = {label: measure(f"matrix:{m},{n},{repeats},0") for label, ((m, n), _) in LLAMA_7B.items() if m != n}
    parts["4096x4096"] = squares[4096]
    planned = sum(parts[label]["seconds"]["ours"] * many for label, (_, many) in LLAMA_7B.items()) / 60
    print(f"a 7B LLaMA, planned: {planned:.1f} minutes from {parts}", flush=True)
    most = max(part["matrices"] for part in parts.values())
    return {
        "ratios": {"target_llama7b_minutes": PLANNED_MINUTES / planned, "target_memory": MOST_MATRICES / most},
        "ours": {
            "planned_minutes_llama7b": round(planned, 2),
            "seconds_llama7b": {label: round(part["seconds"]["ours"], 3) for label, part in parts.items()},
            "matrices_of_memory": round(most, 2),
        },
    }


def main() -> None:
    options = common.arguments(
        __doc__, QUICK, repeats=3, threads=1, scratch="runs/benchmark_intruders", sizes="576,1024,2048,4096"
    )
    torch.set_num_threads(options.threads)
    scratch = Path(options.scratch)
    if options.measure:
        name, _, shape = options.measure.partition(":")
        if name == "matrix":
            m, n, repeats, peers = map(int, shape.split(","))
            print(json.dumps(one_matrix(m, n, scratch, repeats, peers)))
        else:
            print(json.dumps(whole_model(name, scratch)))
        return
    script = common.script_path(__file__)

    def measure(variant: str) -> dict:
        return common.isolated(script, variant, options)

    first = measure("ours")  # trains, and computes the base's spectra: not what is measured
    print(f"prepared: {first['seconds']:.1f} s, {first['decided']}", flush=True)
    runs: dict[str, list[dict]] = {way: [] for way in ("ours", "two_svds", "peft")}
    for repeat in range(options.repeats):
        for way in runs:
            runs[way].append(measure(way))
            print(f"round {repeat + 1} of {options.repeats}: {way} {runs[way][-1]['seconds']:.1f} s", flush=True)
    seconds = {way: common.median_of(found, "seconds") for way, found in runs.items()}
    ours, peer = runs["ours"][0], runs["two_svds"][0]
    counts = {
        way: {name: sum(cosine < EPSILON for cosine in cosines) for name, cosines in found["cosines"].items()}
        for way, found in (("ours", ours), ("two_svds", peer))
    }
    counts["peft"] = runs["peft"][0]["counts"]
    decisions = judged(scratch, measure("every_epsilon")["cosines"], peer["cosines"])

    squares = {}
    for n in map(int, options.sizes.split(",")):
        peers = options.repeats if n <= 2048 else 1
        squares[n] = measure(f"matrix:{n},{n},{options.repeats},{peers}")
        print(f"{n} × {n}: {squares[n]}", flush=True)
    planned_7b = plan_7b(squares, measure, options.repeats) if 4096 in squares else None

    pairs = {"smollm2": (seconds["ours"], seconds["two_svds"]), "smollm2_peft": (seconds["ours"], seconds["peft"])}
    for n, square in squares.items():
        taken = square["seconds"]
        pairs[f"square_{n}"] = (taken["ours"], taken["two_svds"])
    common.report(
        "intruders",
        ratios={key: theirs / mine for key, (mine, theirs) in pairs.items()}
        | (planned_7b["ratios"] if planned_7b else {}),
        ours={
            "seconds_of": {key: round(mine, 4) for key, (mine, _) in pairs.items()},
            "seconds_base_once": {n: round(square["base_seconds"], 2) for n, square in squares.items()},
            **(planned_7b["ours"] if planned_7b else {}),
            "decided": ours["decided"],
            "intruders": sum(counts["ours"].values()),
        },
        peer={"seconds_of": {key: round(theirs, 3) for key, (_, theirs) in pairs.items()}},
        equal={
            "counts_as_two_svds": counts["ours"] == counts["two_svds"],
            "counts_as_peft": counts["ours"] == counts["peft"],
            "squares": all(len(set(square["counts"].values())) == 1 for square in squares.values()),
            "no_decision_wrong_by_float64": decisions["wrong_by_float64"] == 0,
            **{key: value for key, value in decisions.items() if key != "wrong_by_float64"},
            "tolerance": 0,
        },
        save=options.save,
        settings=f"k = {K}, ε = {EPSILON}, float32 weights, {options.threads} thread(s), rank {RANK}, "
        f"scale {SCALE}, {STEPS} steps at learning rate {LEARNING_RATE}, medians of {options.repeats} rounds "
        "(one SVD pair at 4096)",
    )


if __name__ == "__main__":
    main()
