"""The shared form of every benchmark: isolated runs, interleaved repeats, medians, one JSON object as the last line."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path

from lorahub_edu import results


def arguments(
    description: str, quick: Mapping[str, int | str] | None = None, **defaults: int | str
) -> argparse.Namespace:
    """The options of a benchmark: --save, --quick where it has one, numbers and words by name with their defaults.

    Args:
        description: the benchmark's docstring.
        quick: settings with which the ratio is there within three minutes; such a run is never saved.
        defaults: the settings of a whole run.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--save", action="store_true", help="write the last line to results/ as well")
    if quick:
        parser.add_argument("--quick", action="store_true", help="the ratio within three minutes; can't be saved")
    parser.add_argument("--measure", metavar="VARIANT", help=argparse.SUPPRESS)
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    if quick and "--quick" in sys.argv:
        if "--save" in sys.argv:
            parser.error("a quick run is not saved: leave out --quick or --save")
        parser.set_defaults(**quick)
    return parser.parse_args()


def isolated(script: str, variant: str, options: argparse.Namespace) -> dict:
    """Measure one variant in a process of its own, so that peak memory and caches are its alone."""
    own = {name: value for name, value in vars(options).items() if name not in ("save", "quick", "measure")}
    passed = [f"--{name.replace('_', '-')}={value}" for name, value in own.items()]
    command = [sys.executable, script, "--measure", variant, *passed]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{variant} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def interleaved(variants: Sequence[str], repeats: int, measure: Callable[[str], dict]) -> dict[str, list[dict]]:
    """Every variant once a round, so that a slow minute of the machine hits all of them."""
    measured: dict[str, list[dict]] = {variant: [] for variant in variants}
    for repeat in range(repeats):
        for variant in variants:
            measured[variant].append(measure(variant))
            print(f"round {repeat + 1} of {repeats}: {variant} {measured[variant][-1]}", flush=True)
    return measured


def median_of(runs: Sequence[Mapping[str, float]], key: str) -> float:
    """The median of one figure over repeats."""
    return statistics.median(run[key] for run in runs)


def report(
    name: str, *, ratios: dict[str, float], ours: dict, peer: dict, equal: dict, save: bool, **more: object
) -> None:
    """Print the benchmark's last line and, if asked, write it to results/.

    Args:
        name: the benchmark's.
        ratios: each above 1 where ours is better.
        ours: our medians.
        peer: the peer's medians.
        equal: whether the results agree, the difference and the tolerance.
        save: write results/benchmark_<name>.json.
        more: settings worth keeping.
    """
    line = {
        "name": name,
        "ratios": {key: round(value, 3) for key, value in ratios.items()},
        "ours": ours,
        "peer": peer,
        "equal": equal,
        **more,
        "versions": results.library_versions(),
        "device": results.describe_device(),
        "date": date.today().isoformat(),
    }
    if save:
        results.write_json(results.committed_folder() / f"benchmark_{name}.json", line)
    print(json.dumps(line))


def script_path(file: str) -> str:
    """The absolute path of a benchmark, for `isolated`."""
    return str(Path(file).resolve())
