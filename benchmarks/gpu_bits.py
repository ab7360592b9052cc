"""Whether recorded steps have the same bits as others, for every method that is not adversarial.

Small networks are trained for two epochs by ``kd_bench.training.fit.fit``: in cohorts with recorded steps, in cohorts
without recordings, alone, stopped within the first epoch and resumed, and some in one queue, as if memory were short.
The states must not differ in a single bit. If they do, the cohort is trained again in the first way, which shows
whether the operations themselves vary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from kd_bench.training.result_writer import ResultWriter, deserialize_state, serialize_state
from kd_bench.training.student import StudentModule

#: Ways to train that a training in a cohort is compared with, by the name of the result.
COMPARED = {
    "eager": "not recorded",
    "alone": "alone",
    "resumed": "stopped and resumed",
    "queue": "in one queue",
    "again": "the same again",
}
SAME = "same"

#: Settings of a cohort's trials, by name.
Trials = Mapping[str, Trial]


class RefusingRecorder(Recorder):
    """Has the lanes and generators of another recorder, but refuses to record.

    Args:
        recorder: The other recorder.
        short_of_memory: Whether it refuses with an out-of-memory error, and only until all lanes are one queue.
    """

    def __init__(self, recorder: Recorder, short_of_memory: bool = False) -> None:
        self._recorder, self._short = recorder, short_of_memory

    def lanes(self, count: int, one_queue: bool) -> list[Lane]:
        lanes = self._recorder.lanes(count, one_queue)
        return lanes if self._short and one_queue else [_RefusingLane(lane, self._short) for lane in lanes]

    def generator(self) -> torch.Generator:
        return self._recorder.generator()

    def synchronize(self) -> None:
        self._recorder.synchronize()


class _RefusingLane(Lane):
    def __init__(self, lane: Lane, short_of_memory: bool) -> None:
        self._lane, self._short = lane, short_of_memory

    def running(self) -> AbstractContextManager[None]:
        return self._lane.running()

    def join(self) -> None:
        self._lane.join()

    def record(self, function: Callable[[], None], generators: Sequence[torch.Generator]) -> Replay:
        kind = torch.OutOfMemoryError if self._short else RuntimeError
        raise kind("steps are run without recordings, for a comparison")


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
        self,
        trials: Sequence[Trial],
        *,
        eager: bool = False,
        short_of_memory: bool = False,
        stop: bool = False,
        states: Sequence[bytes | None] = (),
    ) -> list[StateWriter]:
        """Trains a cohort.

        Args:
            trials: The members.
            eager: Whether nothing is recorded.
            short_of_memory: Whether to pretend that memory does not suffice for all members side by side.
            stop: Whether to stop after the first block of steps.
            states: States within an epoch to continue from, one for each member, None for one that has not begun; may
                be empty.
        """
        device = self._context.device
        recorder = self._context.make_recorder(device, trials[0])
        refuses = eager or short_of_memory
        if refuses and recorder is not None:
            recorder = RefusingRecorder(recorder, short_of_memory)
        taught = next((trial.teacher for trial in trials if isinstance(trial.teacher, Trial)), None)
        teacher = build_network(taught, self._images)[0].eval() if taught else None
        writers = [StateWriter() for _ in trials]
        members = [
            build_student(trial, self._images, teacher, writer) for trial, writer in zip(trials, writers, strict=True)
        ]
        for member, state in zip(members, states, strict=False):
            if state is not None:
                member.restore_mid_epoch(deserialize_state(state))
        cohort = CohortModule(members, teacher, recorder=recorder)
        callbacks = [MidEpochCheckpoint(float("inf"), lambda: stop)]
        with collected_messages() if refuses else nullcontext():
            try:
                fit(cohort, *loaders(trials[0], self._images, device), device, callbacks)
            except StopRequested:
                if not stop:
                    raise
        return writers


def cohorts(trials: Trials, size: int) -> Iterator[Trials]:
    """Yields as few cohorts of at most ``size`` members as possible. Their sizes differ by at most one."""
    names = list(trials)
    count = -(-len(names) // size)
    for index in range(count):
        start, end = (len(names) * number // count for number in (index, index + 1))
        yield {name: trials[name] for name in names[start:end]}


def compare_bits(context: Context, trials: Trials, in_one_queue: bool = False) -> dict[str, Any]:
    """Trains a cohort in all ways and compares the results.

    Args:
        context: The context.
        trials: The members.
        in_one_queue: Whether to train it in one queue, too.

    Returns:
        For each name: "recorded", whether its steps were recorded; "note", why not; and for each way of ``COMPARED``
        that was tried the word "same" or what differs first.
    """
    trainer, members = _Trainer(context), list(trials.values())
    with collected_messages() as messages:
        writers = trainer.train(members)
    stopped = trainer.train(members, stop=True)
    states = [writer.mid_epoch for writer in stopped]
    is_stopped = any(states) and not any(writer.failure for writer in stopped)
    ways = {
        "eager": trainer.train(members, eager=True),
        "alone": [writer for trial in members for writer in trainer.train([trial])],
        "resumed": trainer.train(members, states=states) if is_stopped else stopped,
    }
    if in_one_queue:
        ways["queue"] = trainer.train(members, short_of_memory=True)
    recorded = context.make_recorder(context.device, members[0]) is not None
    results: dict[str, Any] = {}
    for index, (name, writer) in enumerate(zip(trials, writers, strict=True)):
        results[name] = {
            "recorded": recorded and not writer.notes,
            "note": "; ".join([*messages, *writer.notes]),
            **{way: _difference(writer, others[index]) for way, others in ways.items()},
        }
    if differences(results):
        for result, writer, other in zip(results.values(), writers, trainer.train(members), strict=True):
            result["again"] = _difference(writer, other)
    return results


def _difference(writer: StateWriter, other: StateWriter) -> str:
    """Returns "same", or what differs first in two trainings."""
    for each in (writer, other):
        if each.state is None:
            return f"no result: {each.failure}"
    states = [deserialize_state(each.state or b"") for each in (writer, other)]
    return first_difference(*states) or SAME


def differences(results: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each way in which a training has other bits."""
    return [
        f"{name}, {title}: {result[way]}"
        for name, result in results.items()
        for way, title in COMPARED.items()
        if result.get(way, SAME) != SAME
    ]


def section(results: Mapping[str, Any]) -> Section:
    """Returns the table of all trainings."""
    ordered = dict(sorted(results.items()))
    rows = [
        [name, "yes" if result["recorded"] else "no", *(result.get(way, "-") for way in COMPARED)]
        for name, result in ordered.items()
    ]
    notes = [f"- {name}: {result['note']}" for name, result in ordered.items() if result["note"]]
    same = sum(not differences({name: result}) for name, result in ordered.items())
    introduction = (
        "ResNet14 to ResNet8, two epochs: the states at the end of a training in a cohort, compared bit by bit with "
        "those of the same training without recordings, alone, stopped within the first epoch and resumed, and, for "
        "the first cohort, in one queue, as if memory were short. If something differs, the cohort is trained the same "
        f"again. {same} of {len(results)} trainings have the same bits in all cases."
    )
    table = Table(["training", "recorded", *COMPARED.values()], rows)
    return Section("The same bits", "\n".join([introduction, *([""] if notes else []), *notes]), [table])
