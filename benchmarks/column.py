"""A column of Table 6: one pair, eight methods, one seed, trained in four ways that take turns.

1. As a cohort.
2. One trial at a time, with the suite.
3. One trial at a time, in a loop like that of published code (benchmarks/reference_loop.py). Its first losses must be
   ours before anything is timed.
4. The floor, which no cohort can go below: the parts that no training can omit, each by itself. These are one pass of
   the teacher, and OFD's own; eight forward and backward passes of the student; and each method's own computation.

Beside them, a trial of KD whose teacher's logits are all cached. All in CPU seconds of one thread, batches of 64.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from benchmarks import column_tables, pairs, peak
from benchmarks.column_times import ColumnTimes
from benchmarks.markdown import argument_parser
from benchmarks.measure import cpu_seconds
from benchmarks.pairs import ALONE, LOGIT_METHODS, METHODS
from benchmarks.reference_loop import ALL_OUTPUTS, ReferenceLoop, fixed_negatives, pil_images
from benchmarks.step_times import StepTimer
from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.estimate.operation_counter import OperationCounter
from kd_bench.methods.base import Method
from kd_bench.models.outputs import observe
from kd_bench.training.cohort import CohortModule
from kd_bench.training.micro_batch import MicroBatch
from kd_bench.types import LOGITS, Batch, Outputs

#: Largest relative difference between the first losses of ours and of the reference loop.
TOLERANCE = 1e-3

#: Images whose losses are compared.
FIRST_IMAGES = slice(8)

#: Rounds of a pair at most, and the seconds of two rounds, roughly.
ROUNDS = 5
PAIR_SECONDS = {
    "ResNet32x4 -> ShuffleNet-V1": 210,
    "WRN-40-2 -> ShuffleNet-V1": 160,
    "VGG13 -> MobileNet-V2": 120,
    "ResNet50 -> MobileNet-V2": 225,
    "ResNet32x4 -> ShuffleNet-V2": 190,
}


class ColumnTimer:
    """Times a pair in all ways. ``trials`` has the trial of each method, and ``folder`` is for the logit cache."""

    def __init__(self, title: str, trials: Mapping[str, Trial], images: ArrayDataset, folder: Path) -> None:
        self.title, self.trials = title, trials
        self.network, self.view = pairs.build_teacher(trials["kd"], images)
        self.timer = StepTimer()
        self.members = {
            label: pairs.build_member(trial, images, None if label == ALONE else self.network)
            for label, trial in trials.items()
        }
        for member in self.members.values():
            self.timer.watch(member)
        self.cohort, self.logit_cohort = self._cohort(*METHODS), self._cohort(*LOGIT_METHODS)
        self.alone = {label: self._cohort(label) for label in trials}
        # To compile a teacher for each method's needs would take longer than all steps. More outputs are more copies.
        shared = self._cohort(*(label for label in METHODS if label != "ofd"))
        for label, cohort in self.alone.items():
            if label not in {ALONE, "ofd"}:
                cohort.teacher = (self.logit_cohort if label in LOGIT_METHODS else shared).teacher
        dataset = pil_images(images)
        self.loops = {
            label: ReferenceLoop(trial, images, dataset, self.network)
            for label, trial in trials.items()
            if label != ALONE
        }
        # The weights do not change, so that all losses can be compared and none diverges.
        for trained in (*self.members.values(), *self.loops.values()):
            for group in trained.optimizer.param_groups:
                group["lr"] = 0.0
        self.batches = pairs.full_batches(trials["kd"], images)
        few_images = pairs.random_images(2 * trials["kd"].batch_size)  # so that the cache is small
        cache = pairs.logit_cache(folder, trials["kd"], few_images)
        self.cached = CohortModule([self.members["kd"]], self.network, self.view, cache)
        self.cached_batches = repeat(next(pairs.full_batches(trials["kd"], few_images)))

    def _cohort(self, *labels: str) -> CohortModule:
        return CohortModule(
            [self.members[label] for label in labels], None if labels == (ALONE,) else self.network, self.view
        )

    def compare_first_losses(self, labels: Sequence[str] = ()) -> tuple[float, float]:
        """Compares our losses with those of the reference loop, and sets up what only the first pass needs.

        The students see a few images only, the teacher a batch. ``labels`` are the methods to compare, none for all.

        Returns:
            The largest relative difference, and the floating-point operations of a cohort's step.

        Raises:
            RuntimeError: If losses differ by more than ``TOLERANCE``.
        """
        whole = next(self.batches)
        few = whole.rows(FIRST_IMAGES)
        scale = len(whole.images) / len(few.images)
        with torch.no_grad(), OperationCounter() as counter:
            observe(self.network, few.images, LOGITS)
        flops = 2 * scale * counter.counts.flops  # OFD has a pass of its own
        largest = 0.0
        for label in labels or self.loops:
            loop, member = self.loops[label], self.members[label]
            whole, negatives = loop.next_batch()
            batch, negatives = whole.rows(FIRST_IMAGES), None if negatives is None else negatives[FIRST_IMAGES]
            losses: list[float] = []

            def backward(loss: Tensor, losses: list[float] = losses) -> None:
                losses.append(loss.item())
                loss.backward()

            mode = member.method.teacher_batch_norm
            outputs = self.alone[label].teacher_outputs(batch if mode == "batch" else whole)[mode]
            with fixed_negatives(member.method, negatives), OperationCounter() as counter:
                member.step(_map_tensors(lambda tensor: tensor[FIRST_IMAGES], outputs), MicroBatch(batch), backward)
            if label in METHODS:
                flops += counter.counts.flops * scale
            loss, reference_loss = losses[0], loop.train(batch, negatives)
            difference = abs(loss - reference_loss) / abs(reference_loss)
            if not difference <= TOLERANCE:
                raise RuntimeError(f"{self.title}, {label}: our loss is {loss}, the reference loop's {reference_loss}")
            largest = max(largest, difference)
        return largest, flops

    def warm_up(self) -> None:
        """Sets up what only the first step needs."""
        self.cohort.teacher_outputs(next(self.batches))
        self.logit_cohort.teacher_outputs(next(self.batches))
        self.timer.step(self.cached, self.cached_batches)
        self.timer.step(self.alone[ALONE], self.batches)
        self.loops["kd"].step()

    def time_round(self, times: ColumnTimes) -> None:
        """Adds a round to the times."""
        times.cohort.append(self.timer.step(self.cohort, self.batches))
        times.logit_cohort.append(self.timer.step(self.logit_cohort, self.batches))
        times.cached.append(self.timer.step(self.cached, self.cached_batches))
        for label, cohort in self.alone.items():
            times.alone[label].append(self.timer.step(cohort, self.batches))
            if label in self.loops:
                times.reference[label].append(cpu_seconds(self.loops[label].step))
        times.floor.append(self._time_floor(next(self.batches)))

    def _time_floor(self, batch: Batch) -> dict[str, float]:
        """Returns the CPU seconds of the parts that no training can omit."""
        student = self.members[ALONE]
        network = student.network
        outputs: dict[str, Outputs] = {}

        def run_teacher() -> None:
            outputs.update(self.cohort.teacher_outputs(batch))

        def run_student() -> None:
            F.cross_entropy(network(student.view(batch.images)), batch.labels).backward()

        parts = {"teacher": cpu_seconds(run_teacher)}
        parts["students"] = len(METHODS) * mean(cpu_seconds(run_student) for _ in range(3))
        network.zero_grad()
        with torch.no_grad():
            student_outputs = observe(network, student.view(batch.images), ALL_OUTPUTS)
        for label in METHODS:
            method = self.members[label].method
            leaves = _map_tensors(lambda tensor: tensor.detach().requires_grad_(), student_outputs)
            teacher = outputs[method.teacher_batch_norm]

            def run_method(method: Method = method, leaves: Outputs = leaves, teacher: Outputs = teacher) -> None:
                torch.stack(list(method(leaves, teacher, batch).values())).sum().backward()
                method.on_step_end()

            parts[label] = cpu_seconds(run_method)
            method.zero_grad()
        return parts


def _map_tensors(function: Callable[[Tensor], Tensor], outputs: Outputs) -> Outputs:
    return Outputs(**tree_map_only(Tensor, function, vars(outputs)))


def time_pair(title: str, seconds: float, quick: bool = False) -> ColumnTimes:
    """Times one round of a pair, and more if they are expected to end within ``seconds``."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    trials = pairs.plan_pairs(quick)[title]
    with tempfile.TemporaryDirectory() as folder:
        timer = ColumnTimer(title, trials, pairs.random_images(512 if quick else pairs.IMAGES), Path(folder))
        times = ColumnTimes(title, trials["kd"].batch_size, *timer.compare_first_losses())
        timer.warm_up()
        while times.rounds < ROUNDS:
            round_begin = time.perf_counter()
            times.peak_flops = max(times.peak_flops, peak.measure_peak())
            timer.time_round(times)
            now = time.perf_counter()
            if now - begin + (now - round_begin) > seconds:
                break
        if timer.cached.teacher is not None:
            timer.cached.teacher.close()
    return times


def divide_seconds(seconds: float, titles: Sequence[str]) -> dict[str, float]:
    """Divides the time among pairs, in proportion to the time of their rounds."""
    total = sum(PAIR_SECONDS.get(title, 1) for title in titles)
    return {title: seconds * PAIR_SECONDS.get(title, 1) / total for title in titles}


def main() -> int:
    parser = argument_parser(__doc__, seconds=480)
    parser.add_argument("--only", default="", help="pairs whose title contains this")
    parser.add_argument("--steps", action="store_true", help="print the parts of each method's step, too")
    options = parser.parse_args()
    titles = [title for title in pairs.plan_pairs(options.quick) if options.only in title]
    columns = [
        time_pair(title, seconds, options.quick) for title, seconds in divide_seconds(options.seconds, titles).items()
    ]
    if options.steps:
        print(column_tables.steps_section(columns).markdown())
    return column_tables.section(columns).show()


if __name__ == "__main__":
    sys.exit(main())
