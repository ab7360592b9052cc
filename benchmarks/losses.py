"""Time and peak memory of the losses, forward and backward, compared with the same losses as published code has them.

The contestants take turns, and ratios are taken within a round. The direct forms are those whose values and gradients
the tests compare with ours (tests/losses/direct.py and direct_maps.py); their difference in float32 is printed too.
Memory is the most that torch's allocator had in use at once, above the inputs. Gradients go to the student only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import median
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.markdown import Promise, Section, Table, argument_parser, median_and_quartiles
from benchmarks.measure import median_ratio, peak_bytes, time_in_turns
from kd_bench import losses
from kd_bench.methods.crd import CRD
from kd_bench.types import Pair, Shapes
from tests.losses import direct, direct_maps

MIB = 2**20
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A loss in both forms, as functions of the student's tensors, and what is promised.

    Attributes:
        name: The loss and its sizes.
        students: The student's tensors: one, or one for each stage.
        closed_form: Our loss.
        direct: The direct form; None if it is not measured.
        kl: A KL divergence whose time is compared, too.
        faster: Promised ratio of the direct form's time to ours.
        smaller: Promised ratio of the direct form's peak memory to ours.
        of_kl: Promised ratio of our time to the KL divergence's, at most.
        most_ms, most_mib: Promised CPU milliseconds and peak memory of ours, at most.
        direct_bytes: Memory that the direct form needs, if that may be more than there is.
    """

    name: str
    students: tuple[Tensor, ...]
    closed_form: Loss
    direct: Loss | None
    kl: Loss | None = None
    faster: float | None = None
    smaller: float | None = None
    of_kl: float | None = None
    most_ms: float | None = None
    most_mib: float | None = None
    direct_bytes: int = 0


def _case(name: str, student: Tensor, loss: str, *args: Any, **promises: Any) -> Case:
    """Returns the case of a loss that has the same name and arguments in both forms."""
    closed_form, direct_form = getattr(losses, loss), getattr(direct, loss)
    return Case(name, (student,), lambda s: closed_form(s, *args), lambda s: direct_form(s, *args), **promises)


def logits_cases(classes: int, batch: int, promise: bool) -> Iterator[Case]:
    """Yields KD, DKD, DIST, IKL and GKL at T = 4, with the weights published for CIFAR-100."""
    student, teacher = 3 * torch.randn(2, batch, classes)
    labels = torch.randint(classes, (batch,))
    weights = (teacher / 100).softmax(-1)
    size = f"{classes} classes, batch {batch}"

    def kl(s: Tensor) -> Tensor:
        return 16 * F.kl_div((s / 4).log_softmax(-1), (teacher / 4).softmax(-1), reduction="batchmean")

    yield _case(f"KD, {size}", student, "kd", teacher, 4.0)
    yield _case(f"DKD, {size}", student, "dkd", teacher, labels, 1.0, 8.0, 4.0)
    yield Case(
        f"DIST, {size}",
        (student,),
        lambda s: torch.stack(losses.dist_terms(s, teacher, 4.0)).sum(),
        lambda s: torch.stack(direct.dist_terms(s, teacher, 4.0)).sum(),
    )
    promises = {"faster": 1000, "smaller": 500, "of_kl": 1.5} if promise else {}
    direct_bytes = 6 * 4 * batch * classes**2
    ikl_arguments = (teacher, weights, 8.0, 1.0, 4.0)
    yield _case(f"IKL, {size}", student, "ikl", *ikl_arguments, kl=kl, direct_bytes=direct_bytes, **promises)
    gkl_arguments = (teacher, (teacher / 4).softmax(-1) ** 0.05, 8.0, 1.0, 4.0)
    gkl_promises = {"faster": 1000, "smaller": 500} if promise else {}
    yield _case(f"GKL, {size}", student, "gkl", *gkl_arguments, direct_bytes=direct_bytes, **gkl_promises)


def embedding_cases(width: int, batch: int, promise: bool) -> Iterator[Case]:
    """Yields the losses of RKD, PKT, CC and ITRD."""
    student, teacher = torch.randn(2, batch, width).relu()
    size = f"{width} channels, batch {batch}"
    yield _case(f"RKD distance, {size}", student, "rkd_distance", teacher)
    yield _case(f"RKD angle, {size}", student, "rkd_angle", teacher, faster=5 if promise else None)
    yield _map_case(f"PKT, {size}", [(student, teacher)], "pkt")
    yield _map_case(f"CC, {size}", [(student, teacher)], "cc")
    student, teacher = torch.randn(2, batch, width)  # because a constant coordinate makes ITRD's direct form fail
    yield _map_case(f"ITRD correlation, {size}", [(student, teacher)], "itrd_correlation", 1.01)
    yield _map_case(f"ITRD mutual, {size}", [(student, teacher)], "itrd_mutual")


def bank_cases(rows: int, width: int, negatives: int, batch: int, promise: bool) -> Iterator[Case]:
    """Yields one of CRD's two sides, and the drawing of negatives, which has no gradient, as a case of its own."""
    bank, student = F.normalize(torch.randn(rows, width)), F.normalize(torch.randn(batch, width))
    classes = torch.arange(rows) % 100
    shapes = Shapes(logits=(100,), pooled=(width,))
    pair = Pair(num_classes=100, train_size=rows, student=shapes, teacher=shapes, train_labels=classes)
    method = CRD(pair, negatives=negatives, feature_dim=width)
    other_classes = [(classes != label).nonzero().squeeze(1) for label in range(100)]
    images = torch.randperm(rows)[:batch]
    index = torch.cat([images[:, None], method._draw_negatives(images, None)], 1)
    z = direct.normaliser(student[:8], bank, index[:8], 0.07)
    size = f"{negatives:,} negatives of {rows:,}, batch {batch}"
    yield Case(
        f"CRD, {size}",
        (student,),
        lambda s: losses.contrast(s, bank, index, z.log(), 0.07),
        lambda s: direct.contrast(s, bank, index, z, 0.07),
        faster=10 if promise else None,
    )
    yield Case(
        f"drawing {size}",
        (torch.zeros(()),),
        lambda _: method._draw_negatives(images, None),
        lambda _: direct.draw_negatives(other_classes, classes[images], negatives),
    )


def map_cases(channels: int, edge: int, batch: int) -> Iterator[Case]:
    """Yields the losses of OFD and ReviewKD, which compare maps."""
    student, teacher = torch.randn(2, batch, channels, edge, edge)
    margin = torch.full((channels,), -0.8)
    size = f"{channels} x {edge} x {edge}, batch {batch}"
    yield _case(f"OFD partial L2, {size}", student, "partial_l2", teacher, margin)
    yield _case(f"ReviewKD HCL, {size}", student, "hierarchical_context", teacher)


#: (C, H, W) of the stages after the stem that are compared, of the student and of the teacher.
Stages = list[tuple[tuple[int, int, int], tuple[int, int, int]]]

#: ResNet32x4 as the teacher of ShuffleNet-V1.
STAGES: Stages = [((240, 16, 16), (64, 32, 32)), ((480, 8, 8), (128, 16, 16)), ((960, 4, 4), (256, 8, 8))]


def nst_case(stages: Stages, pair: str, batch: int, measure_direct: bool, **promises: Any) -> Case:
    """Returns the loss of NST for a step: that of all stages of a pair of networks."""
    case = _map_case(f"NST, {pair}, batch {batch}", _random_maps(stages, batch), "nst", **promises)
    # The direct form's products of all pairs of channels, and the gradients to both of them.
    direct_bytes = 2 * 4 * batch * max(shape[0] ** 2 * shape[1] * shape[2] for shape, _ in stages)
    return replace(case, direct=case.direct if measure_direct else None, direct_bytes=direct_bytes)


def stage_cases(stages: Stages, pair: str, batch: int) -> Iterator[Case]:
    """Yields the losses of AT, VID, SP and KDSVD for a step: those of all stages of a pair of networks."""
    maps, size = _random_maps(stages, batch), f"{pair}, batch {batch}"
    yield _map_case(f"AT, {size}", maps, "at")
    predictions = [
        (torch.randn(batch, teacher[0], *student[1:]), maps[i][1]) for i, (student, teacher) in enumerate(stages)
    ]
    variances = [torch.full((teacher[0],), 5.0) for _, teacher in stages]
    yield _map_case(f"VID, {size}", predictions, "vid", variances)
    yield _map_case(f"SP, {size}", maps[-1:], "sp")
    teachers = [teacher for _, teacher in maps]
    yield Case(
        f"KDSVD, {size}",
        tuple(student for student, _ in maps),
        lambda *students: losses.kdsvd(students, teachers),
        lambda *students: direct_maps.kdsvd(students, teachers, 1, "columns"),
    )


def _random_maps(stages: Stages, batch: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(batch, *student).relu(), torch.randn(batch, *teacher).relu()) for student, teacher in stages]


def _map_case(name: str, pairs: Sequence[tuple[Tensor, Tensor]], loss: str, *args: Any, **promises: Any) -> Case:
    """Returns the case of the sum of a loss over pairs; an argument that is a list has a value for each pair."""
    teachers = [teacher for _, teacher in pairs]
    arguments = [[arg[index] if isinstance(arg, list) else arg for arg in args] for index in range(len(pairs))]

    def total(form: Loss) -> Loss:
        return lambda *students: torch.stack(
            [form(s, t, *a) for s, t, a in zip(students, teachers, arguments, strict=True)]
        ).sum()

    closed_form, direct_form = getattr(losses, loss), getattr(direct_maps, loss)
    return Case(name, tuple(student for student, _ in pairs), total(closed_form), total(direct_form), **promises)


def cases(quick: bool, large: bool) -> Iterator[Case]:
    """Yields all cases."""
    if quick:
        yield from logits_cases(20, 8, False)
        yield from embedding_cases(32, 8, False)
        yield from bank_cases(2000, 16, 500, 8, False)
        yield from map_cases(8, 8, 4)
        small: Stages = [((6, 8, 8), (5, 8, 8)), ((12, 4, 4), (10, 8, 8))]
        yield nst_case(small, "small networks", 4, True)
        yield from stage_cases(small, "small networks", 4)
        return
    yield from logits_cases(100, 64, False)
    yield from logits_cases(1000, 64, True)
    if large:
        yield from (case for case in logits_cases(1000, 512, False) if case.kl)
    for width in (256, 960):
        yield from embedding_cases(width, 64, True)
    yield from bank_cases(50_000, 128, 16_384, 64, True)
    yield from map_cases(256, 8, 64)
    yield from map_cases(64, 32, 64)
    pair = "ResNet32x4 -> ShuffleNet-V1"
    yield nst_case(STAGES, pair, 8, True, faster=50, smaller=50)
    yield nst_case(STAGES, pair, 64, large, most_ms=250, most_mib=100)
    yield from stage_cases(STAGES, pair, 64)


def measure_case(case: Case, rounds: int, budget: float) -> tuple[list[str], list[Promise]]:
    """Measures a case, for ``budget`` seconds and a round at most. Returns its row of the table and its promises."""
    fits = case.direct is not None and case.direct_bytes < 0.8 * psutil.virtual_memory().available
    leaves = [student.detach().requires_grad_() for student in case.students]

    def task(loss: Loss) -> Callable[[], Tensor]:
        def forward_and_backward() -> Tensor:
            for leaf in leaves:
                leaf.grad = None
            value = loss(*leaves)
            if value.requires_grad:
                value.backward()
            return value.detach()

        return forward_and_backward

    tasks = [task(case.closed_form), *([task(case.direct)] if case.direct and fits else [])]
    peaks, outcomes = [], []
    for forward_and_backward in tasks:
        peak, value = peak_bytes(forward_and_backward)
        peaks.append(peak)
        grads = [leaf.grad.flatten() for leaf in leaves if leaf.grad is not None]
        outcomes.append((value, torch.cat(grads) if grads else None))
        for leaf in leaves:
            leaf.grad = None
    # Forms without a gradient draw random numbers, so they differ.
    difference = _difference(*outcomes) if fits else ""
    del outcomes
    seconds = time_in_turns(tasks, rounds, budget)
    faster = median_ratio(seconds[1], seconds[0]) if fits else None
    smaller = peaks[1] / peaks[0] if fits else None
    # Turns without the direct form, which would clear the caches for both.
    of_kl = median_ratio(*time_in_turns([tasks[0], task(case.kl)], rounds, budget)) if case.kl else None
    row = [case.name, _time(seconds[0]), _time(seconds[1]) if fits else "", _number(faster)]
    row += [
        f"{peaks[0] / MIB:,.3g}",
        f"{peaks[1] / MIB:,.5g}" if fits else "does not fit" if case.direct else "",
        _number(smaller),
    ]
    promises = [
        Promise(case.name, f"{promised:,} {unit}", f"{measured:,.1f}", measured >= promised)
        for promised, measured, unit in (
            (case.faster, faster, "times faster"),
            (case.smaller, smaller, "times smaller"),
        )
        if promised and measured
    ]
    for most, measured, unit in (
        (case.most_ms, 1e3 * median(seconds[0]), "ms"),
        (case.most_mib, peaks[0] / MIB, "MiB"),
    ):
        if most:
            promises.append(Promise(case.name, f"at most {most} {unit}", f"{measured:.0f}", measured <= most))
    if case.of_kl and of_kl:
        limit = f"at most {case.of_kl} times a KL from logits"
        promises.append(Promise(case.name, limit, f"{of_kl:.2f}", of_kl <= case.of_kl))
    return [*row, _number(of_kl), difference], promises


def _difference(result: tuple[Tensor, Tensor | None], direct_result: tuple[Tensor, Tensor | None]) -> str:
    """Returns the larger relative difference, of the values or of the gradients by their norms."""
    if result[1] is None or direct_result[1] is None:
        return ""
    values, grads = (
        (a - b).norm() / b.norm() for a, b in zip(result, direct_result, strict=True) if a is not None and b is not None
    )
    return f"{max(values.item(), grads.item()):.0e}"


def _time(seconds: list[float]) -> str:
    return median_and_quartiles(seconds, 1e3, 2 if min(seconds) < 0.01 else 0)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,{'.2f' if value < 100 else '.0f'}}"


def benchmark(rounds: int, seconds: float, quick: bool = False, large: bool = True) -> Section:
    """Measures all cases; if ``large``, including direct forms that take half a minute and 10 GiB."""
    torch.manual_seed(0)
    results = [measure_case(case, 2 if quick else rounds, seconds) for case in cases(quick, large)]
    rows, promises = zip(*results, strict=True)
    headers = ["", "ours, ms", "direct, ms", "faster", "ours, MiB", "direct, MiB", "smaller", "of KL's time",
               "difference"]  # fmt: skip
    return Section(
        "Losses",
        f"Forward and backward in float32, {torch.get_num_threads()} thread(s): CPU milliseconds as medians "
        "(quartiles) of rounds, MiB as peaks of torch's allocator above the inputs.",
        [Table(headers, rows)],
        [*chain.from_iterable(promises)],
    )


def main() -> int:
    parser = argument_parser(__doc__, seconds=12)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each form, at most")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return benchmark(options.rounds, options.seconds, options.quick).show()


if __name__ == "__main__":
    sys.exit(main())
