"""The options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Only = Annotated[list[str] | None, typer.Option("--only", help="KEY=VALUE[,VALUE]: method, student, teacher or seed.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the recipe, e.g. epochs=2.")]
Method = Annotated[
    list[str] | None,
    typer.Option("--method", help="A row more: a method, FILE.py:CLASS or LABEL=FILE.py:CLASS; can be repeated."),
]
Trials = Annotated[int | None, typer.Option("--trials", min=1, help="Seeds a cell, over the recipe's.")]
Out = Annotated[Path, typer.Option("--out", envvar="KD_BENCH_OUT", help="Results folder.")]
Data = Annotated[Path | None, typer.Option("--data", envvar="KD_BENCH_DATA", help="Folder of data sets.")]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Cohorts at once; by default as many as fit.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of a cohort; results are bitwise for one.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
CohortSize = Annotated[int, typer.Option("--cohort-size", min=1, help="Most students that share one process.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Train again what failed before.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that decode images not held in memory.")]
Devices = Annotated[
    int | None,
    typer.Option("--devices", min=1, help="Devices of each machine that share a cohort's batches."),
]
Nodes = Annotated[int | None, typer.Option("--nodes", min=1, help="Machines that do, with torchrun or srun.")]
Retries = Annotated[int, typer.Option("--retries", min=0, help="Tries more for a cohort whose worker died.")]
CheckpointMinutes = Annotated[
    float, typer.Option("--checkpoint-minutes", min=0, help="Training between two checkpoints within an epoch.")
]
ExecutorName = Annotated[str, typer.Option("--executor", help="local, ray or slurm: where cohorts run.")]
ExecutorOption = Annotated[
    list[str] | None, typer.Option("--executor-option", help="KEY=VALUE for ray or slurm, e.g. partition=gpu.")
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events as well.")]
WandB = Annotated[bool, typer.Option("--wandb", help="Show it in Weights & Biases as well (WANDB_MODE=offline: here).")]
Format = Annotated[str, typer.Option("--format", help="terminal, markdown, plain, latex, latex-long, csv.")]
RecipeName = Annotated[str, typer.Argument(help="A recipe's file, or the name of one that comes with kd-bench.")]
RecipeOrNone = Annotated[str | None, typer.Argument(help="A recipe's file, or the name of one of kd-bench's.")]

Weights = Annotated[
    str | None, typer.Option("--weights", help="The teacher's weights: a file, or: published (see teacher fetch).")
]

OUT = Path("runs")


def loggers(tensorboard: bool, wandb: bool) -> tuple[str, ...]:
    """The loggers that the options ask for, by name."""
    return tuple(name for name, wanted in (("tensorboard", tensorboard), ("wandb", wandb)) if wanted)
