"""A column of Table 6: one pair, eight methods, one seed, trained four ways that take turns.

As a cohort; one trial at a time, with the suite; one trial at a time in a loop as published code has it
(benchmarks/reference.py), after its first losses were found to be ours; and, as the floor that no cohort can go below,
the pieces that cannot be left out, each by itself: one pass of the teacher (and OFD's own), eight forward and backward
passes of the student, each method's own computation. Beside them a trial of KD whose teacher's logits are all known.
All in CPU seconds of one thread, batches of 64.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import repeat
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the benchmarks and the direct forms

from benchmarks import measure, pairs, peak  # measure first: it quietens the profiler

# isort: split

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pairs import ALONE, LOGIT_METHODS, METHODS, Step
from benchmarks.reference import EVERYTHING, Reference, given, pictures
from benchmarks.writing import show
from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.estimate.operation_counter import OperationCounter
from kd_bench.methods.base import Method
from kd_bench.models.outputs import observe
from kd_bench.training.student import MicroBatch
from kd_bench.types import LOGITS, Batch, Outputs

#: Largest relative difference between the first losses of ours and of the reference loop.
AGREEMENT = 1e-3

#: Images whose losses are compared.
FEW = slice(8)

#: Rounds of a pair at most, and what two rounds of each cost compared with the others, roughly.
ROUNDS = 5
COSTS = {
    "ResNet32x4 -> ShuffleNet-V1": 210,
    "WRN-40-2 -> ShuffleNet-V1": 160,
    "VGG13 -> MobileNet-V2": 120,
    "ResNet50 -> MobileNet-V2": 225,
    "ResNet32x4 -> ShuffleNet-V2": 190,
}


@dataclass
class Found:
    """What was measured of a pair, a number for each round."""

    title: str
    batch: int
    difference: float
    """The largest between our first losses and the reference loop's, relative."""
    flops: float = 0.0
    """Floating-point operations of the cohort's step."""
    peak: float = 0.0
    """Of convolutions in this process, at most, a second."""
    cohort: list[Step] = field(default_factory=list)
    logits: list[Step] = field(default_factory=list)
    """Cohort of the four logit methods."""
    alone: dict[str, list[Step]] = field(default_factory=lambda: defaultdict(list))
    reference: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cached: list[Step] = field(default_factory=list)
    """KD alone, with the logits of its batch in the store."""
    floor: list[Mapping[str, float]] = field(default_factory=list)
    """The pieces, by name."""

    @property
    def rounds(self) -> int:
        return len(self.cohort)

    def one_by_one(self) -> list[float]:
        return [sum(self.alone[label][place].total for label in METHODS) for place in range(self.rounds)]

    def published(self, labels: tuple[str, ...] = METHODS) -> list[float]:
        return [sum(self.reference[label][place] for label in labels) for place in range(self.rounds)]

    def floors(self) -> list[float]:
        return [sum(pieces.values()) for pieces in self.floor]


class Column:
    """One pair, in all ways."""

    def __init__(self, title: str, trials: Mapping[str, Trial], data: ArrayDataset, folder: Path) -> None:
        self.title, self.trials = title, trials
        self.network, self.view = pairs.teacher(trials["kd"], data)
        self.laps = pairs.Laps()
        self.members = {
            label: pairs.member(trial, data, None if label == ALONE else self.network)
            for label, trial in trials.items()
        }
        for one in self.members.values():
            self.laps.watch(one)
        self.cohort, self.logits = self._cohort(*METHODS), self._cohort(*LOGIT_METHODS)
        self.alone = {label: self._cohort(label) for label in trials}
        # To compile a teacher for each method's needs would take longer than all steps; more outputs are more copies.
        shared = self._cohort(*(label for label in METHODS if label != "ofd"))
        for label, cohort in self.alone.items():
            if label not in {ALONE, "ofd"}:
                cohort.teacher = (self.logits if label in LOGIT_METHODS else shared).teacher
        images = pictures(data)
        self.references = {
            label: Reference(trial, data, images, self.network) for label, trial in trials.items() if label != ALONE
        }
        # Weights stay what they are, so that all losses can be compared, and none grows without bound.
        for one in (*self.members.values(), *self.references.values()):
            for group in one.optimizer.param_groups:
                group["lr"] = 0.0
        self.stream = pairs.batches(trials["kd"], data)
        few = pairs.images(2 * trials["kd"].batch_size)  # whose store is small
        self.cached = pairs.cohort(
            [self.members["kd"]], self.network, self.view, pairs.store(folder, trials["kd"], few)
        )
        self.known = repeat(next(pairs.batches(trials["kd"], few)))

    def _cohort(self, *labels: str) -> pairs.Cohort:
        members = [self.members[label] for label in labels]
        return pairs.cohort(members, None if labels == (ALONE,) else self.network, self.view)

    def agree(self, labels: Sequence[str] = ()) -> tuple[float, float]:
        """The largest relative difference between our losses and the reference loop's; operations of a cohort's step.

        The students see a few images only, the teacher a batch: what just a first pass needs is made, too.

        Args:
            labels: Methods to look at; none for all.

        Raises:
            RuntimeError: Where they differ by more than ``AGREEMENT``.
        """
        whole = next(self.stream)
        seen = whole.rows(FEW)
        scale = len(whole.images) / len(seen.images)
        with torch.no_grad(), OperationCounter() as tally:
            observe(self.network, seen.images, LOGITS)
        flops = 2 * scale * tally.counts.flops  # OFD's pass, too
        worst = 0.0
        for label in labels or self.references:
            reference = self.references[label]
            found, negatives = reference.next()
            batch, negatives = found.rows(FEW), None if negatives is None else negatives[: len(seen.images)]
            losses: list[Tensor] = []

            def backward(loss: Tensor, losses: list[Tensor] = losses) -> None:
                losses.append(loss.detach())
                loss.backward()

            member = self.members[label]
            kind = member.method.teacher_batch_norm
            taught = self.alone[label].teach(batch if kind == "batch" else found)[kind]
            with given(member.method, negatives), OperationCounter() as tally:
                member.step(_first(taught, len(batch.images)), MicroBatch(batch), backward)
            if label in METHODS:
                flops += tally.counts.flops * scale
            theirs = reference.train(batch, negatives)
            apart = abs(losses[0].item() - theirs) / abs(theirs)
            if not apart <= AGREEMENT:
                raise RuntimeError(f"{self.title}, {label}: our loss is {losses[0].item()}, the reference's {theirs}")
            worst = max(worst, apart)
        return worst, flops

    def warm_up(self) -> None:
        """What only a first step needs is made."""
        self.cohort.teach(next(self.stream))
        self.logits.teach(next(self.stream))
        pairs.step(self.cached, self.known, self.laps)
        pairs.step(self.alone[ALONE], self.stream, self.laps)
        self.references["kd"].step()

    def round(self, found: Found) -> None:
        found.cohort.append(pairs.step(self.cohort, self.stream, self.laps))
        found.logits.append(pairs.step(self.logits, self.stream, self.laps))
        found.cached.append(pairs.step(self.cached, self.known, self.laps))
        for label, cohort in self.alone.items():
            found.alone[label].append(pairs.step(cohort, self.stream, self.laps))
            if label in self.references:
                found.reference[label].append(measure.once(self.references[label].step))
        found.floor.append(self.floor(next(self.stream)))

    def floor(self, batch: Batch) -> dict[str, float]:
        """CPU seconds of the pieces that no way of training can do without."""
        student = self.members[ALONE]
        network = student.network

        def teach() -> None:
            taught.update(self.cohort.teach(batch))

        def learn() -> None:
            F.cross_entropy(network(student.view(batch.images)), batch.labels).backward()

        taught: dict[str, Outputs] = {}
        pieces = {"teacher": measure.once(teach)}
        pieces["students"] = len(METHODS) * statistics.mean(measure.once(learn) for _ in range(3))
        network.zero_grad()
        with torch.no_grad():
            outputs = observe(network, student.view(batch.images), EVERYTHING)
        for label in METHODS:
            method = self.members[label].method
            given = taught[method.teacher_batch_norm]

            leaves = _leaves(outputs)

            def own(method: Method = method, given: Outputs = given, leaves: Outputs = leaves) -> None:
                torch.stack(list(method(leaves, given, batch).values())).sum().backward()
                method.on_step_end()

            pieces[label] = measure.once(own)
            method.zero_grad()
        return pieces


def _first(outputs: Outputs, images: int) -> Outputs:
    """Of the first images."""
    pooled = None if outputs.pooled is None else outputs.pooled[:images]
    stages, preacts = (tuple(one[:images] for one in some) for some in (outputs.stages, outputs.preacts))
    return Outputs(outputs.logits[:images], stages, preacts, pooled)


def _leaves(outputs: Outputs) -> Outputs:
    """The same as the beginnings of a graph."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_()

    made = {}
    for one in fields(outputs):
        value = getattr(outputs, one.name)
        made[one.name] = tuple(map(leaf, value)) if isinstance(value, tuple) else leaf(value)
    return Outputs(**made)


def measure_pair(title: str, trials: Mapping[str, Trial], data: ArrayDataset, seconds: float) -> Found:
    """One round at least, and no other that would end later than ``seconds`` from now."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        column = Column(title, trials, data, Path(folder))
        found = Found(title, trials["kd"].batch_size, *column.agree())
        column.warm_up()
        while found.rounds < ROUNDS:
            began = time.perf_counter()
            found.peak = max(found.peak, peak.flops_a_second())
            column.round(found)
            now = time.perf_counter()
            if now - begin + (now - began) > seconds:
                break
        column.cached.teacher.close()
    return found


def measure_one(title: str, seconds: float, quick: bool = False) -> Found:
    """A pair by its title."""
    torch.set_num_threads(1)
    return measure_pair(title, pairs.planned(quick)[title], pairs.images(512 if quick else pairs.IMAGES), seconds)


def shares(seconds: float, titles: Sequence[str]) -> dict[str, float]:
    """The time, shared out by what the pairs cost."""
    whole = sum(COSTS.get(title, 1) for title in titles)
    return {title: seconds * COSTS.get(title, 1) / whole for title in titles}


def main() -> int:
    from benchmarks import column_tables, steps

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480, help="after which no further round begins")
    parser.add_argument("--only", default="", help="pairs whose title contains this")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that it works")
    parser.add_argument("--steps", action="store_true", help="print the parts of each method's step, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    titles = [title for title in pairs.planned(options.quick) if options.only in title]
    found = [measure_one(title, share, options.quick) for title, share in shares(options.seconds, titles).items()]
    if options.steps:
        print(steps.section({one.title: one.alone for one in found}).markdown())
    return show(column_tables.section(found))


if __name__ == "__main__":
    sys.exit(main())
