"""``kd-bench data``."""

from __future__ import annotations

from typing import Annotated

import typer

from kd_bench.cli import completion
from kd_bench.cli.command_group import CommandGroup
from kd_bench.cli.options import Data

data_app = typer.Typer(help="Fetch data sets.", cls=CommandGroup, rich_markup_mode=None)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[
        str, typer.Argument(help="The data set; see: kd-bench list datasets.", autocompletion=completion.datasets)
    ],
    data: Data = None,
) -> None:
    """Download a data set into the data folder and verify its checksum."""
    from kd_bench.config.data import Dataset
    from kd_bench.data import registry as datasets

    datasets.download(Dataset(name=name), data)
    typer.echo(f"{name}: {datasets.locate(Dataset(name=name), data)}")
