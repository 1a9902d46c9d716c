"""The methods of fine-tuning on the command line: which there are."""

from __future__ import annotations

import typer

from lorahub_edu.cli.terminal import ProfileOption, console

methods_app = typer.Typer(no_args_is_help=True, help="Methods of fine-tuning: list them.")


@methods_app.command("list")
def methods_list(profile: ProfileOption = None) -> None:
    """Every method: what it trains, how many parameters of the profile's model, whose code it is."""
    from lorahub_edu.methods import overview

    console.print(str(overview.overview(profile)))
