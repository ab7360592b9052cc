"""What a whole epoch takes on a GPU beyond its steps, and what Lightning's loop takes by itself."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from benchmarks import gpu_device, pairs
from benchmarks.gpu_cohort import Context, with_settings
from benchmarks.markdown import Promise, Section, Table
from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.training.build import build_student
from kd_bench.training.callbacks import MidEpochCheckpoint, ProgressReporter
from kd_bench.training.cohort import CohortModule
from kd_bench.training.fit import CHECKPOINT_SECONDS, RECORDED_BLOCK, fit
from kd_bench.training.loaders import loaders
from kd_bench.training.result_writer import ResultWriter
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.lease import LeaseMonitor, acquire_lease
from kd_bench.trials.result_writer import TrialResultWriter
from kd_bench.types import Batch

PAIR = "VGG13 -> MobileNet-V2"
#: Aim: time of a whole epoch relative to that of its steps, at most.
AIM = 1.15


class _EpochTimer(pl.Callback):
    """Times the second epoch, a checkpoint of all members and the steps, and ends the training.

    ``fit`` calls it after the callback that writes the results.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._start = self._train_end = 0.0
        self._batch: Batch | None = None
        self.result: dict[str, Any] = {}

    def _now(self) -> float:
        gpu_device.synchronize(self._context.device)
        return time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, cohort: CohortModule) -> None:
        self._start = self._now()

    def on_train_batch_end(
        self, trainer: pl.Trainer, cohort: CohortModule, outputs: Any, batches: tuple[Batch, ...], batch_idx: int
    ) -> None:
        self._batch = self._batch or batches[0]

    def on_validation_start(self, trainer: pl.Trainer, cohort: CohortModule) -> None:
        self._train_end = self._now()

    def on_train_epoch_end(self, trainer: pl.Trainer, cohort: CohortModule) -> None:
        end = self._now()
        if trainer.current_epoch == 0:
            self.result["first_epoch_seconds"] = end - self._start
            self._start = end
            return
        for member in cohort.members:
            member.writer.write_epoch(member)
        self.result |= {
            "steps": len(trainer.train_dataloader.loader),
            "training_seconds": self._train_end - self._start,
            "epoch_seconds": end - self._start,
            "checkpoint_seconds": self._now() - end,
            "peak": gpu_device.peak_bytes(self._context.device),
        }
        trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, cohort: CohortModule) -> None:
        """Times the steps on one batch, before Lightning moves the networks away."""
        batch, sizes = self._batch, self._context.sizes
        assert batch is not None
        recorded = cohort.recorded
        if recorded is None:
            self.result["step_seconds"] = [self.result["training_seconds"] / self.result["steps"]]
            return

        def step() -> None:
            recorded.train(batch, list(cohort.members))

        self.result["step_seconds"] = gpu_device.step_seconds(step, sizes.steps, sizes.rounds, self._context.device)


def measure_epoch(context: Context) -> dict[str, Any]:
    """Trains a large cohort for two epochs as a worker does, and times the second one.

    Returns:
        "pair" and "members"; "steps"; "step_seconds" per step in each round, with nothing but steps;
        "training_seconds" and "epoch_seconds" of the epoch before its evaluation and with all that belongs to it;
        "checkpoint_seconds"; "ratio" of the epoch to its steps; "first_epoch_seconds"; "peak" in bytes.
    """
    device, sizes = context.device, context.sizes
    title = PAIR if PAIR in context.trials else next(iter(context.trials))
    trials = [
        with_settings(trial, compile="off")
        for trial in pairs.kd_at_temperatures(context.trials[title]["kd"], sizes.students)
    ]
    images = context.images if sizes.epoch is None else context.images.subset(*sizes.epoch)
    gpu_device.reset_memory(device)
    timer = _EpochTimer(context)
    with tempfile.TemporaryDirectory() as folder:
        writers = [_open_writer(Path(folder), trial, images) for trial in trials]
        network, view = pairs.build_teacher(trials[0], images)
        members = [build_student(trial, images, network, writer) for trial, writer in zip(trials, writers, strict=True)]
        cohort = CohortModule(members, network, view, recorder=context.make_recorder(device, trials[0]))
        callbacks = [ProgressReporter(lambda *_: None), MidEpochCheckpoint(1e9), timer]
        fit(cohort, *loaders(trials[0], images, device), device, callbacks)
    result = timer.result
    checkpoint = result["checkpoint_seconds"] * min(1.0, result["epoch_seconds"] / CHECKPOINT_SECONDS)
    steps = result["steps"] * statistics.median(result["step_seconds"])
    return result | {"pair": title, "members": len(trials), "ratio": (result["epoch_seconds"] + checkpoint) / steps}


def _open_writer(root: Path, trial: Trial, images: ArrayDataset) -> ResultWriter:
    folder = TrialFolder(root / trial.id)
    folder.create(trial)
    lease = acquire_lease(folder.path, LeaseMonitor())
    assert lease is not None, "no other process knows the folder"
    return TrialResultWriter(folder, lease, lambda *_, **__: None, None, len(images.train_labels))


class _IdleLoader:
    """Yields one batch again and again, and notes the time at the beginning of each iteration."""

    def __init__(self, batch: Batch, count: int) -> None:
        self._batch, self._count = batch, count
        self.corrupt: dict[Path, str] = {}
        self.times: list[float] = []

    def set_epoch(self, epoch: int) -> None:
        pass

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self._count):
            self.times.append(time.perf_counter())
            yield self._batch


class _IdleCohort(CohortModule):
    """A cohort whose epochs go on although all members have stopped."""

    def on_train_batch_start(self, batches: Sequence[Batch], batch_idx: int) -> int | None:
        return None


def measure_facts(context: Context) -> dict[str, Any]:
    """Returns the seconds to start an operation, and those of an iteration of Lightning's loop that does nothing."""
    device, count = context.device, context.sizes.idle
    images = pairs.random_images(64, 8)
    trial = next(iter(context.trials.values()))["none"].model_copy(update={"compile": "off", "epochs": 1})
    member = build_student(trial, images, None, ResultWriter())
    member.stopped = True  # so that a step does nothing
    train, test = loaders(trial, images, device)
    idle: Any = _IdleLoader(next(iter(train)), count)
    fit(_IdleCohort([member]), idle, test, device)
    gaps = [after - before for before, after in zip(idle.times, idle.times[1:], strict=False)]
    return {
        "start_seconds": gpu_device.start_seconds(device, count),
        "iteration_seconds": statistics.median(gaps[len(gaps) // 10 :]),
    }


def facts_section(environment: Mapping[str, Any], facts: Mapping[str, Any]) -> Section:
    """Returns the table of the machine."""
    tf32 = environment["tf32"] or {}
    rows = [
        ["card", environment["device_name"]],
        ["memory", f"{environment['memory'] / 2**30:.0f} GiB" if "memory" in environment else "-"],
        *([name, environment[name] or "-"] for name in ("driver", "cuda", "cudnn")),
        ["TF32", ", ".join(f"{name} {'on' if value else 'off'}" for name, value in tf32.items()) or "-"],
        *([name, version] for name, version in environment["packages"].items()),
        ["queues for streams", environment["queues"]],
        ["images", environment["images"]],
    ]
    if facts:
        rows += [
            ["starting an operation from Python", f"{1e6 * facts['start_seconds']:.1f} us"],
            ["an iteration of Lightning's loop", f"{1e3 * facts['iteration_seconds']:.2f} ms"],
            ["of which a recorded step has", f"{1e3 * facts['iteration_seconds'] / RECORDED_BLOCK:.3f} ms"],
        ]
    return Section("The machine", "", [Table(["", ""], rows)])


def epoch_section(result: Mapping[str, Any], busy: Mapping[str, float | None]) -> Section:
    """Returns the table of a whole epoch, and the aim.

    Args:
        result: Of ``measure_epoch``.
        busy: Fractions of the steps' time in which the GPU runs a kernel, by pair.
    """
    step = statistics.median(result["step_seconds"])
    rows = [
        [f"{result['steps']} steps of {1e3 * step:.2f} ms", f"{result['steps'] * step:.2f}"],
        ["the epoch before its evaluation", f"{result['training_seconds']:.2f}"],
        ["with evaluation and metrics", f"{result['epoch_seconds']:.2f}"],
        [f"a checkpoint of all members, every {CHECKPOINT_SECONDS:.0f} s", f"{result['checkpoint_seconds']:.2f}"],
        ["the first epoch, in which steps are recorded", f"{result['first_epoch_seconds']:.2f}"],
    ]
    promise = Promise(
        "a whole epoch, relative to its steps", f"at most {AIM}", f"{result['ratio']:.3f}", result["ratio"] <= AIM
    )
    introduction = (
        f"{result['pair']}, KD x {result['members']}, float32, trained by `fit` with loader, evaluation, rows of "
        "metrics and checkpoints, as a worker does."
    )
    if result["peak"] is not None:
        introduction += f" torch has reserved at most {result['peak'] / 2**30:.2f} GiB."
    if (fraction := busy.get(result["pair"])) is not None:
        steps = 100 * fraction * result["steps"] * step / result["epoch_seconds"]
        introduction += f" The steps keep the card busy for {steps:.0f} % of the epoch."
    return Section("A whole epoch", introduction, [Table(["", "seconds"], rows)], [promise])
