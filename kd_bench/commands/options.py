"""The options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Only = Annotated[list[str] | None, typer.Option("--only", help="KEY=VALUE[,VALUE]: method, student, teacher or seed.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the recipe, e.g. epochs=2.")]
Trials = Annotated[int | None, typer.Option("--trials", min=1, help="Seeds a cell, over the recipe's.")]
Out = Annotated[Path, typer.Option("--out", envvar="KD_BENCH_OUT", help="Results folder.")]
Data = Annotated[Path | None, typer.Option("--data", envvar="KD_BENCH_DATA", help="Folder of data sets.")]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Cohorts at once; by default as many as fit.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of a cohort; results are bitwise for one.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
CohortSize = Annotated[int, typer.Option("--cohort-size", min=1, help="Most students that share one process.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Train again what failed before.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that decode images not held in memory.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events as well.")]
Format = Annotated[str, typer.Option("--format", help="terminal, markdown, plain, latex or csv.")]
RecipeName = Annotated[str, typer.Argument(help="A recipe's file, or the name of one that comes with kd-bench.")]

Weights = Annotated[
    str | None, typer.Option("--weights", help="The teacher's weights: a file, or: published (see teacher fetch).")
]

OUT = Path("runs")
