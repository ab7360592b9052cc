"""Whether recorded steps have the same bits as others, for every method that is not adversarial.

Small networks are trained for two epochs by ``kd_bench.training.fit.fit``: all methods in cohorts, twice, without
recordings, alone, and stopped within the first epoch and resumed. Their states must not differ in a single bit.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from benchmarks.gpu_cohort import Context, collected_messages
from benchmarks.markdown import Section, Table
from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.testing import first_difference
from kd_bench.training.build import build_network, build_student
from kd_bench.training.callbacks import MidEpochCheckpoint, StopRequested
from kd_bench.training.cohort import CohortModule
from kd_bench.training.fit import fit
from kd_bench.training.loaders import loaders
from kd_bench.training.recorder import Lane, Recorder, Replay
from kd_bench.training.result_writer import ResultWriter, serialize_state
from kd_bench.training.student import StudentModule

#: What the training of a method in a cohort is compared with, by the name of the result.
COMPARED = {"again": "twice the same", "eager": "not recorded", "alone": "alone", "resumed": "stopped and resumed"}
SAME = "same"


class RefusingRecorder(Recorder):
    """Has the lanes and generators of another recorder, and records nothing."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def lanes(self, count: int, one_queue: bool) -> list[Lane]:
        return [_RefusingLane(lane) for lane in self._recorder.lanes(count, one_queue)]

    def generator(self) -> torch.Generator:
        return self._recorder.generator()

    def synchronize(self) -> None:
        self._recorder.synchronize()


class _RefusingLane(Lane):
    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def running(self) -> AbstractContextManager[None]:
        return self._lane.running()

    def join(self) -> None:
        self._lane.join()

    def record(self, function: Callable[[], None], generators: Sequence[torch.Generator]) -> Replay:
        raise RuntimeError("steps are run without recordings, for a comparison")


class StateWriter(ResultWriter):
    """Keeps the last state, the last state within an epoch, notes, and the reason if training ends early."""

    def __init__(self) -> None:
        self.state: bytes | None = None
        self.mid_epoch: bytes | None = None
        self.notes: list[str] = []
        self.failure: str | None = None

    def write_epoch(self, member: StudentModule) -> None:
        self.state = serialize_state(member.state())

    def write_mid_epoch(self, member: StudentModule, step: int, states: list[bytes]) -> None:
        (self.mid_epoch,) = states

    def write_divergence(self, member: StudentModule, reason: str) -> None:
        self.failure = reason

    def report_crash(self, member: StudentModule, reason: str) -> None:
        self.failure = reason

    def report_note(self, member: StudentModule, text: str) -> None:
        self.notes.append(text)


class _Trainer:
    """Trains cohorts of small networks."""

    def __init__(self, context: Context) -> None:
        self._context = context
        train, test, _ = context.sizes.bits
        self._images: ArrayDataset = context.images.subset(train, test)

    def train(
        self, trials: Sequence[Trial], *, eager: bool = False, stop: bool = False, states: Sequence[bytes | None] = ()
    ) -> list[StateWriter]:
        """Trains a cohort.

        Args:
            trials: The members.
            eager: Whether nothing is recorded.
            stop: Whether to stop after the first block of steps.
            states: States within an epoch to continue from, one for each member, None for one that has not begun; may
                be empty.
        """
        device = self._context.device
        recorder = self._context.make_recorder(device, trials[0])
        if eager and recorder is not None:
            recorder = RefusingRecorder(recorder)
        taught = next((trial.teacher for trial in trials if isinstance(trial.teacher, Trial)), None)
        teacher = build_network(taught, self._images)[0].eval() if taught else None
        writers = [StateWriter() for _ in trials]
        members = [
            build_student(trial, self._images, teacher, writer) for trial, writer in zip(trials, writers, strict=True)
        ]
        for member, state in zip(members, states, strict=False):
            if state is not None:
                member.restore_mid_epoch(torch.load(io.BytesIO(state), weights_only=True))
        cohort = CohortModule(members, teacher, recorder=recorder)
        callbacks = [MidEpochCheckpoint(float("inf"), lambda: stop)]
        with collected_messages() if eager else nullcontext():
            try:
                fit(cohort, *loaders(trials[0], self._images, device), device, callbacks)
            except StopRequested:
                if not stop:
                    raise
        return writers


def cohorts(trials: Sequence[Trial], size: int) -> Iterator[list[Trial]]:
    """Yields cohorts of equal size that together have all trials. The last two may have trials in common."""
    for start in range(0, len(trials), size):
        begin = max(0, min(start, len(trials) - size))
        yield list(trials[begin : begin + size])


def compare_bits(context: Context, trials: Sequence[Trial]) -> dict[str, Any]:
    """Trains a cohort in all ways and compares the results.

    Returns:
        For each method: "recorded", whether its steps were recorded; "note", why not; and for each way in ``COMPARED``
        the word "same" or what differs first.
    """
    trainer = _Trainer(context)
    with collected_messages() as messages:
        together = trainer.train(trials)
    stopped = trainer.train(trials, stop=True)
    states = [writer.mid_epoch for writer in stopped]
    is_stopped = any(states) and not any(writer.failure for writer in stopped)
    ways = {
        "again": trainer.train(trials),
        "eager": trainer.train(trials, eager=True),
        "alone": [writer for trial in trials for writer in trainer.train([trial])],
        "resumed": trainer.train(trials, states=states) if is_stopped else stopped,
    }
    recorded = context.make_recorder(context.device, trials[0]) is not None
    results: dict[str, Any] = {}
    for index, (trial, writer) in enumerate(zip(trials, together, strict=True)):
        results[trial.method.name] = {
            "recorded": recorded and not writer.notes,
            "note": "; ".join([*messages, *writer.notes]),
            **{way: _difference(writer, others[index]) for way, others in ways.items()},
        }
    return results


def _difference(writer: StateWriter, other: StateWriter) -> str:
    """Returns "same", or what differs first in two trainings."""
    for one in (writer, other):
        if one.state is None:
            return f"no result: {one.failure}"
    states = [
        torch.load(io.BytesIO(one.state or b""), map_location="cpu", weights_only=True) for one in (writer, other)
    ]
    return first_difference(*states) or SAME


def differences(results: dict[str, Any]) -> list[str]:
    """Returns a sentence for each way in which a method has other bits."""
    return [
        f"{method}, {COMPARED[way]}: {result[way]}"
        for method, result in results.items()
        for way in COMPARED
        if result[way] != SAME
    ]


def section(results: dict[str, Any]) -> Section:
    """Returns the table of all methods."""
    rows = [
        [method, "yes" if result["recorded"] else "no", *(result[way] for way in COMPARED)]
        for method, result in sorted(results.items())
    ]
    notes = [f"- {method}: {result['note']}" for method, result in sorted(results.items()) if result["note"]]
    introduction = (
        "ResNet14 to ResNet8, two epochs: the states at the end of a training in a cohort, compared bit by bit with "
        "those of the same training a second time, without recordings, alone, and stopped within the first epoch and "
        f"resumed. {len(results) - len({line.split(',')[0] for line in differences(results)})} of {len(results)} "
        "methods have the same bits in all cases."
    )
    table = Table(["method", "recorded", *COMPARED.values()], rows)
    return Section("The same bits", "\n".join([introduction, *([""] if notes else []), *notes]), [table])
