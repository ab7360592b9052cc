"""Trains networks of the paper's Table 6 in the published protocol, in pieces of a few minutes on one GPU.

The steps come in the order of ``STEPS``: a teacher, its first pair with one seed, the next teachers and pairs, then the
methods on features, then more seeds. Everything is trained by the product's own functions and resumes where it was
stopped. A teacher that is trained is rounded to half precision, in ``OUT/rounded``, with its accuracy after rounding
beside it; the students learn from that file, which is small enough to be kept. After ``--minutes`` the training is
stopped, which saves checkpoints, and the state of all steps is printed.

A results folder can be carried between machines: ``--pack`` writes it as a few files of at most 15 MiB, and
``--unpack`` reads them. Packing takes up to half a minute, and so does stopping; neither is part of the minutes.

    python benchmarks/campaign.py --out OUT --data DIR --minutes 8 --pack PARTS                    # the first piece
    python benchmarks/campaign.py --out OUT --data DIR --minutes 8 --pack PARTS --unpack PARTS     # each further piece
    python benchmarks/campaign.py --out OUT --data DIR --minutes 0 --unpack PARTS                  # only the state
"""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import campaign_archive
from benchmarks.markdown import Table, argument_parser
from kd_bench import api
from kd_bench.config.selection import select
from kd_bench.config.trial import PlannedTrial
from kd_bench.launch.options import RunOptions
from kd_bench.launch.run_recipe import PlannedRecipe, train
from kd_bench.plan import plan_teacher
from kd_bench.trials.folder import TEACHERS, TrialFolder
from kd_bench.trials.reader import TrialRecord, read_trial
from kd_bench.utils.errors import RunFailed, Terminated, UserError

DATASET = "cifar100"
#: Folder of compiled code, in the results folder. Compiling a teacher takes up to a minute, and without this folder
#: every piece on a new machine would compile it again.
COMPILED = "compiled"
#: Folder of the rounded teachers, in the results folder.
ROUNDED = "rounded"
#: Number of steps that have not begun that are named.
_NAMED = 3


@dataclass(frozen=True)
class Settings:
    """How the campaign is run.

    Attributes:
        options: How to train.
        changes: Settings that replace those of all trainings, each ``key=value``.
        of_students: The same for students only.
    """

    options: RunOptions
    changes: tuple[str, ...] = ()
    of_students: tuple[str, ...] = ()


@cache
def _plan_teacher(network: str, changes: tuple[str, ...]) -> PlannedRecipe:
    return api.plan_teachers(network, DATASET, trials=1, overrides=changes)


@cache
def _plan_recipe(recipe: str, changes: tuple[str, ...]) -> PlannedRecipe:
    return api.plan(recipe, overrides=changes)


@dataclass(frozen=True)
class TeacherStep:
    """Trains a teacher and rounds it."""

    network: str

    @property
    def title(self) -> str:
        return f"teacher {self.network}"

    def plan(self, settings: Settings) -> PlannedRecipe:
        return _plan_teacher(self.network, settings.changes)

    def file(self, settings: Settings) -> Path:
        """Returns the file of the rounded weights."""
        (planned,) = self.plan(settings).planned
        return settings.options.out / ROUNDED / f"{self.network}-{planned.trial_id}.safetensors"

    def is_done(self, settings: Settings) -> bool:
        return _report_of(self.file(settings)).is_file()  # which is written last

    def run(self, settings: Settings) -> dict[str, str]:
        """Trains what is missing and returns why trainings have no result."""
        failed = _train_missing(self.plan(settings), settings, self.title)
        if not failed:
            round_teacher(self, settings)
        return failed


@dataclass(frozen=True)
class StudentsStep:
    """Trains students of one pair. They learn side by side from one pass of the teacher, which a step before trains."""

    recipe: str
    teacher: str
    student: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)

    @property
    def title(self) -> str:
        return f"{self.teacher} to {self.student}, {', '.join(self.methods)}, seed {', '.join(map(str, self.seeds))}"

    def plan(self, settings: Settings) -> PlannedRecipe:
        """Plans the trials, whose teacher is the rounded one, or the one that will be trained if that is missing."""
        teacher = TeacherStep(self.teacher)
        file = teacher.file(settings)
        weights = (f"teachers.{self.teacher}.weights={json.dumps(str(file))}",) if teacher.is_done(settings) else ()
        part = _plan_recipe(self.recipe, (*weights, *settings.changes, *settings.of_students))
        only = {"teacher": self.teacher, "student": self.student, "method": ",".join(self.methods)}
        only |= {"seed": ",".join(map(str, self.seeds))}
        return replace(part, planned=select(part.planned, [f"{key}={value}" for key, value in only.items()]))

    def is_done(self, settings: Settings) -> bool:
        if not TeacherStep(self.teacher).is_done(settings):
            return False
        part = self.plan(settings)
        return not _missing(part, settings.options.out)

    def run(self, settings: Settings) -> dict[str, str]:
        """Trains what is missing and returns why trainings have no result."""
        if not TeacherStep(self.teacher).is_done(settings):
            return {self.title: "its teacher is missing"}
        return _train_missing(self.plan(settings), settings, self.title)


Step = TeacherStep | StudentsStep

LOGITS = ("none", "kd", "dkd", "ikl_kd")
#: Methods on features that are trained side by side: the state of CRD and that of ReviewKD are large.
FEATURES = (("fitnet", "rkd", "ofd"), ("reviewkd",), ("crd",))
_VGG = ("cifar100/table6", "vgg13", "mobilenet_v2")
_RESNET = ("cifar100/other_pairs", "resnet32x4", "resnet8x4")
_WRN = ("cifar100/table6", "wrn_40_2", "shufflenet_v1")

STEPS: tuple[Step, ...] = (
    TeacherStep("vgg13"),
    StudentsStep(*_VGG, LOGITS),
    TeacherStep("wrn_40_2"),
    TeacherStep("resnet32x4"),
    StudentsStep(*_RESNET, LOGITS),
    StudentsStep(*_WRN, LOGITS),
    *(StudentsStep(*pair, methods) for pair in (_VGG, _RESNET, _WRN) for methods in FEATURES),
    *(
        StudentsStep(*pair, methods, (seed,))
        for seed in (1, 2)
        for methods in (LOGITS, *FEATURES)
        for pair in (_VGG, _RESNET, _WRN)
    ),
)


def _missing(part: PlannedRecipe, out: Path) -> list[PlannedTrial]:
    """Returns the trials without a result. Those that are finished need no weights, and those that diverged stay so."""
    records = {cell.trial_id: read_trial(out / part.recipe.name / cell.trial_id) for cell in part.planned}
    return [cell for cell in part.planned if records[cell.trial_id].verdict not in ("done", "failed")]


def _train_missing(part: PlannedRecipe, settings: Settings, title: str) -> dict[str, str]:
    missing = _missing(part, settings.options.out)
    if not missing:
        return {}
    return train(replace(part, planned=missing), settings.options, title)


def _report_of(file: Path) -> Path:
    return file.with_suffix(".txt")


def round_teacher(step: TeacherStep, settings: Settings) -> None:
    """Rounds a trained teacher to half precision, measures its accuracy on the test set, and keeps both.

    A tensor with numbers that are too large for half precision is not rounded.

    Raises:
        UserError: If the weights are missing.
    """
    import torch

    from kd_bench.evaluation.verify_teacher import verify_teacher
    from kd_bench.launch.devices import find_devices
    from kd_bench.models import weights

    def rounded(value: torch.Tensor) -> torch.Tensor:
        half = value.half()
        return half if value.is_floating_point() and bool(half.isfinite().all()) else value

    options, file = settings.options, step.file(settings)
    (planned,) = step.plan(settings).planned
    folder = TrialFolder(options.out / TEACHERS / planned.trial_id)
    state = {key: rounded(value) for key, value in weights.read(folder.weights).state.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    weights.write(file, state, {"model": planned.student, "trial": planned.trial_id})
    recipe, model, context = api.teacher_recipe(
        step.network, DATASET, weights=str(file), overrides=settings.changes, trials=1
    )
    teacher, _ = plan_teacher(recipe, model, context)
    report = verify_teacher(teacher, file, options.out, options.data, find_devices(options.device)[0])
    trained = (folder.result() or {})["top1_last"]
    report = f"{report}\n  {trained:.2f} % after training, before the weights were rounded to half precision\n"
    _report_of(file).write_text(report, encoding="utf-8")
    print(f"campaign: {file}, {file.stat().st_size / 1e6:.1f} MB\n{report}", end="", flush=True)


def run_steps(steps: Sequence[Step], settings: Settings) -> dict[str, str]:
    """Runs the steps in their order. Returns why trainings have no result; other steps go on."""
    failed: dict[str, str] = {}
    for step in steps:
        if not step.is_done(settings):
            print(f"campaign: {step.title}", flush=True)
            try:
                failed |= step.run(settings)
            except (UserError, RunFailed) as error:
                failed[step.title] = str(error)
    return failed


def state_table(steps: Sequence[Step], settings: Settings) -> str:
    """Returns a table of the trainings that have begun, and the steps that have not."""
    rows: list[list[Any]] = []
    waiting = []
    for step in steps:
        part = step.plan(settings)
        lines = [
            [step.title.partition(", ")[0], f"{cell.label}, seed {cell.seed}", *cells]
            for cell in part.planned
            if (cells := _state(read_trial(settings.options.out / part.recipe.name / cell.trial_id), cell))
        ]
        rows += [line for line in lines if line not in rows]
        if not lines:
            waiting.append(step.title)
    headers = ["step", "training", "state", "top-1, %", "best, %", "s an epoch", "own", "card"]
    caption = "s an epoch: of the training alone; own: without images and teacher, which several students share"
    parts = [Table(headers, rows, caption).markdown()] if rows else []
    further = f" and {len(waiting) - _NAMED} further steps" if len(waiting) > _NAMED else ""
    return "\n\n".join([*parts, *([f"Not begun: {'; '.join(waiting[:_NAMED])}{further}."] if waiting else [])])


def _state(record: TrialRecord, cell: PlannedTrial) -> list[str]:
    """Returns state, accuracies, seconds and card of a training; empty if it has not begun."""
    metrics, result = record.metrics, record.result or {}
    if record.verdict in ("damaged", "changed"):
        return [record.verdict, "", "", "", "", ""]
    if metrics is None:
        return []

    def mean(name: str) -> str:
        values = [value for value in metrics.columns.get(name, ()) if value is not None]
        return f"{sum(values) / len(values):.2f}" if values else ""

    top1 = [value for value in metrics.columns["top1"] if value is not None]
    state = record.verdict if result else f"epoch {metrics.rows} of {cell.trial.epochs}"
    accuracies = [f"{value:.2f}" for value in (top1[-1], max(top1))] if top1 else ["", ""]
    return [state, *accuracies, mean("seconds"), mean("own_seconds"), str(record.environment.get("device_name", ""))]


def result_tables(steps: Sequence[Step], settings: Settings) -> Iterator[str]:
    """Yields the table of each recipe with finished trials: measured numbers, and the published ones beside them."""
    from kd_bench.report.summary_text import write_summary

    parts: dict[str, list[PlannedRecipe]] = {}
    for step in steps:
        if isinstance(step, StudentsStep):
            part = step.plan(settings)
            if len(_missing(part, settings.options.out)) < len(part.planned):
                parts.setdefault(part.recipe.name, []).append(part)
    for of_recipe in parts.values():
        text = io.StringIO()
        write_summary(api.table(of_recipe, settings.options.out), "markdown", text)
        yield text.getvalue()


def _unrounded(steps: Sequence[Step], settings: Settings) -> set[Path]:
    """Returns the weights of trained teachers that have not been rounded yet."""
    teachers = [step for step in steps if isinstance(step, TeacherStep) and not step.is_done(settings)]
    planned = [cell for step in teachers for cell in step.plan(settings).planned]
    return {TrialFolder(settings.options.out / TEACHERS / cell.trial_id).weights for cell in planned}


def _terminate(*_: Any) -> None:
    raise Terminated


@contextmanager
def _keeping_compiled_code(out: Path) -> Iterator[None]:
    """Inside, new processes keep compiled code in the results folder, unless the user has chosen another folder."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(out.resolve() / COMPILED)
    try:
        yield
    finally:
        del os.environ[name]


def main(argv: Sequence[str] | None = None, steps: Sequence[Step] = STEPS) -> int:
    """Runs a piece of the campaign and prints the state.

    Args:
        argv: Arguments; None for those of the command.
        steps: The steps. Tests give small ones.

    Returns:
        0; 1 if a training has no result, although there was time for it; 2 if an option is wrong.
    """
    parser = argument_parser(__doc__, quick=False)
    parser.add_argument("--out", type=Path, required=True, help="the results folder")
    parser.add_argument("--data", type=Path, help="folder with CIFAR-100 (default: KD_BENCH_DATA, else ./data)")
    parser.add_argument("--minutes", type=float, help="after which training is stopped; 0 trains nothing")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="where to write the results folder as few files")
    parser.add_argument("--unpack", type=Path, metavar="DIR", help="where these are, if the results folder is not here")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes all trainings")
    parser.add_argument("--set-students", action="append", default=[], metavar="KEY=VALUE", help="changes the students")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = parser.parse_args(arguments)
    options = RunOptions(out=chosen.out, data=chosen.data, device=chosen.device, jobs=1)
    settings = Settings(options, tuple(chosen.set), tuple(chosen.set_students))
    timer = threading.Timer(60 * (chosen.minutes or 0), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    failed: dict[str, str] = {}
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        if chosen.unpack is not None and not campaign_archive.unpack(chosen.unpack, chosen.out):
            print(f"campaign: {chosen.out} has results already, so nothing is unpacked", flush=True)
        if chosen.minutes:
            timer.start()
        if chosen.minutes != 0:
            with _keeping_compiled_code(chosen.out):
                failed = run_steps(steps, settings)
    except Terminated:
        print("campaign: stopped", flush=True)
    except UserError as error:
        print(f"campaign: {error}", file=sys.stderr)
        return 2
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)
    _print_state(steps, settings, failed)
    if chosen.pack is not None:
        files = campaign_archive.pack(chosen.out, chosen.pack, _unrounded(steps, settings))
        size = sum(file.stat().st_size for file in files) / campaign_archive.MIB
        print(f"\ncampaign: packed into {len(files)} files, {size:.1f} MiB, in {chosen.pack}")
    if not all(step.is_done(settings) for step in steps):
        unpack = [] if chosen.pack is None or chosen.unpack == chosen.pack else ["--unpack", str(chosen.pack)]
        print(f"campaign: go on with: python benchmarks/campaign.py {shlex.join([*arguments, *unpack])}")
    return int(bool(failed))


def _print_state(steps: Sequence[Step], settings: Settings, failed: dict[str, str]) -> None:
    print(f"\n{state_table(steps, settings)}")
    for table in result_tables(steps, settings):
        print(f"\n{table}", end="")
    for reports in sorted((settings.options.out / ROUNDED).glob("*.txt")):
        print(f"\n{reports.read_text(encoding='utf-8')}", end="")
    for name, reason in failed.items():
        print(f"campaign: no result: {name}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
