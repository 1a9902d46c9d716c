"""Intruder dimensions on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from lorahub_edu.cli.terminal import ProfileOption, console, listed
from lorahub_edu.errors import CourseError

SHOW = "show"


class ShowsByDefault(TyperGroup):
    """What follows `intruders` is an adapter unless it is a subcommand."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [SHOW, *args]
        return super().parse_args(ctx, args)


intruders_app = typer.Typer(
    cls=ShowsByDefault,
    no_args_is_help=True,
    help="Intruder dimensions: lorahub-edu intruders ADAPTER, or a subcommand.",
)

AdapterArgument = Annotated[
    str,
    typer.Argument(help="A module of the zoo, an adapter's folder, owner/name on the hub, or a tuned model's folder."),
]
BaseOption = Annotated[str, typer.Option("--base", help="The base model or its folder; default the one it names.")]
FolderOption = Annotated[Path | None, typer.Option("--folder", help="Another folder of modules than the shipped zoo.")]
KOption = Annotated[int, typer.Option("--k", help="How many of a matrix's strongest vectors are looked at.")]


@intruders_app.command(SHOW)
def show(
    adapter: AdapterArgument,
    base: BaseOption = "",
    k: KOption = 10,
    epsilon: Annotated[str, typer.Option(help="A vector below this cosine is an intruder; several by commas.")] = "0.5",
    exact: Annotated[bool, typer.Option("--exact/--fast", help="Prove every count, or trust the search.")] = True,
    folder: FolderOption = None,
    profile: ProfileOption = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Write every matrix's figures there as JSON.")] = None,
) -> None:
    """How many intruder dimensions an adapter or a fine-tuned model has, by layer and projection."""
    from lorahub_edu import results
    from lorahub_edu.hub import zoo
    from lorahub_edu.spectra.examine import examine

    with console.status("matrix by matrix; a new base takes a minute or more, once …"):
        found = examine(
            zoo.open_source(adapter, folder or zoo.SHIPPED), name=adapter, base=base, k=k,
            epsilons=_numbers(epsilon), certified=exact, profile=profile, device=device,
        )  # fmt: skip
    console.print(str(found), markup=False)
    if out:
        console.print(f"written to {results.write_json(out, found.rows())}")


@intruders_app.command("scale")
def scale(
    adapter: AdapterArgument,
    out: Annotated[Path, typer.Option(help="The folder that the new adapter is written to.")],
    factor: Annotated[float, typer.Option(help="What the singular values are multiplied by.")] = 0.7,
    part: Annotated[str, typer.Option(help="intruders; or, as controls, others or update.")] = "intruders",
    base: BaseOption = "",
    k: KOption = 10,
    epsilon: Annotated[float, typer.Option(help="A vector below this cosine is an intruder.")] = 0.5,
    folder: FolderOption = None,
    profile: ProfileOption = None,
) -> None:
    """Make an adapter's intruder dimensions weaker, or a control, and save it as an adapter in PEFT's layout."""
    from lorahub_edu.hub import zoo
    from lorahub_edu.spectra.examine import save_scaled

    made = save_scaled(
        zoo.open_source(adapter, folder or zoo.SHIPPED),
        out,
        factor,
        part,
        base=base,
        k=k,
        epsilon=epsilon,
        profile=profile,
    )
    ranks = sorted({config.rank for config in made.configs.values()})
    console.print(f"{part} scaled by {factor}; ranks {', '.join(map(str, ranks))}; written to {out}")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in listed(text))
    except ValueError as error:
        raise CourseError(f"ε is a number between 0 and 1, or several by commas, but it is {text!r}.") from error
