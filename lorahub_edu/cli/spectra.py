"""One adapter measured on the command line: intruders and report."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import typer
from typer.core import TyperGroup

from lorahub_edu import results
from lorahub_edu.cli.hub import AdapterArgument, BaseOption, ZooOption
from lorahub_edu.cli.terminal import (
    COUNT,
    FileOption,
    OutOption,
    ProfileOption,
    console,
    finite,
    known_device,
    known_task,
    listed,
    quiet_work,
)
from lorahub_edu.errors import CourseError
from lorahub_edu.hub import zoo


class ShowsByDefault(TyperGroup):
    """What follows `intruders` is an adapter unless it is a subcommand."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


intruders_app = typer.Typer(
    cls=ShowsByDefault,
    no_args_is_help=True,
    help="Intruder dimensions: lorahub-edu intruders ADAPTER, or a subcommand.",
)

Part = Literal["intruders", "others", "update"]
KOption = Annotated[int, typer.Option("--k", **COUNT, help="How many of a matrix's strongest vectors are compared.")]


@intruders_app.command("show")
def show(
    adapter: AdapterArgument,
    base: BaseOption = "",
    k: KOption = 10,
    epsilon: Annotated[str, typer.Option(help="A vector below this cosine is an intruder; several by commas.")] = "0.5",
    folder: ZooOption = zoo.SHIPPED,
    profile: ProfileOption = None,
    device: Annotated[str, typer.Option(callback=known_device, help="cpu or cuda.")] = "cpu",
    out: FileOption = None,
) -> None:
    """How many intruder dimensions an adapter, or a fine-tuned model in a folder, has by layer and projection.

    --out writes every matrix's figures as JSON.
    """
    zoo.find_source(adapter, folder)
    epsilons = _numbers(epsilon)
    from lorahub_edu.spectra.intruders import examine

    with quiet_work("matrix by matrix; the first run with a base takes a minute or more"):
        report, page = examine(
            zoo.open_source(adapter, folder), name=adapter, base=base, k=k,
            epsilons=epsilons, profile=profile, device=device,
        )  # fmt: skip
    console.print(page)
    if out:
        console.print(f"written to {results.write_json(out, [asdict(row) for row in report.rows])}")


@intruders_app.command("scale")
def scale(
    adapter: AdapterArgument,
    out: OutOption,
    factor: Annotated[float, typer.Option(min=0, callback=finite, help="Factor on the singular values.")] = 0.7,
    part: Annotated[Part, typer.Option(help="What is scaled; the last two are controls.")] = "intruders",
    base: BaseOption = "",
    k: KOption = 10,
    epsilon: Annotated[float, typer.Option(min=0, max=1, callback=finite, help="An intruder is below it.")] = 0.5,
    folder: ZooOption = zoo.SHIPPED,
    profile: ProfileOption = None,
) -> None:
    """Weaken an adapter's intruder dimensions, or a control, and save the result as an adapter in PEFT's layout."""
    zoo.find_source(adapter, folder)
    from lorahub_edu.spectra.interventions import save_scaled

    with quiet_work("matrix by matrix; the first run with a base takes a minute or more"):
        source = zoo.open_source(adapter, folder)
        scaled = save_scaled(source, out, factor, part, base=base, k=k, epsilon=epsilon, profile=profile)
    ranks = sorted({config.rank for config in scaled.configs.values()})
    console.print(f"{part} scaled by {factor}; ranks {', '.join(map(str, ranks))}; written to {out}")


def report(
    adapter: AdapterArgument,
    task: Annotated[str, typer.Option(callback=known_task, help="A word task to score before and after.")] = "",
    base: BaseOption = "",
    test_items: Annotated[int, typer.Option(**COUNT, help="Test items of the task, at most.")] = 60,
    sequences: Annotated[int, typer.Option(**COUNT, help="Sequences of plain text.")] = 64,
    out: FileOption = None,
    profile: ProfileOption = None,
) -> None:
    """Everything that the course measures of one adapter: contents, scores, intruder dimensions, forgetting.

    --out writes the page as Markdown.
    """
    zoo.find_source(adapter)
    from lorahub_edu.show.adapter_report import examine

    with quiet_work("scoring the base, the adapter and its control"):
        source = zoo.open_source(adapter)
        page = examine(source, task=task, test_items=test_items, sequences=sequences, profile=profile, base_model=base)
    console.print(str(page))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page._repr_markdown_() + "\n", encoding="utf-8")
        console.print(f"written to {out}")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in listed(text))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < 1 for number in numbers):
        raise CourseError(f"ε is a number between 0 and 1, or several by commas, but it is {text!r}.")
    return numbers
