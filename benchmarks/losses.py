"""Time and peak memory of the losses, forward and backward, compared with the same losses as published code has them.

The contestants take turns, and ratios are taken within a round. The direct forms are those whose values and gradients
the tests compare with ours (tests/losses/direct.py); their difference in float32 is printed too. Memory is the most
that torch's allocator had in use at once, above the inputs. Gradients go to the student only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
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
from tests.losses import direct

MIB = 2**20
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A loss in both forms, as functions of the student's tensor, and what is promised.

    Attributes:
        name: The loss and its sizes.
        student: The student's tensor.
        ours: Our loss.
        direct: The direct form.
        kl: A KL divergence whose time is compared, too.
        faster: Promised ratio of the direct form's time to ours.
        smaller: Promised ratio of the direct form's peak memory to ours.
        of_kl: Promised ratio of our time to the KL divergence's, at most.
        direct_bytes: Memory that the direct form needs, if that may be more than there is.
    """

    name: str
    student: Tensor
    ours: Loss
    direct: Loss
    kl: Loss | None = None
    faster: float | None = None
    smaller: float | None = None
    of_kl: float | None = None
    direct_bytes: int = 0


def _case(name: str, student: Tensor, loss: str, *args: Any, **promises: Any) -> Case:
    """Returns the case of a loss that has the same name and arguments in both forms."""
    ours, direct_form = getattr(losses, loss), getattr(direct, loss)
    return Case(name, student, lambda s: ours(s, *args), lambda s: direct_form(s, *args), **promises)


def logits_cases(classes: int, batch: int, promise: bool) -> Iterator[Case]:
    """Yields KD, DKD, IKL and DIST at T = 4, with the weights published for CIFAR-100."""
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
        student,
        lambda s: torch.stack(losses.dist_terms(s, teacher, 4.0)).sum(),
        lambda s: torch.stack(direct.dist_terms(s, teacher, 4.0)).sum(),
    )
    promises = {"faster": 1000, "smaller": 500, "of_kl": 1.5} if promise else {}
    direct_bytes = 6 * 4 * batch * classes**2
    ikl_arguments = (teacher, weights, 8.0, 1.0, 4.0)
    yield _case(f"IKL, {size}", student, "ikl", *ikl_arguments, kl=kl, direct_bytes=direct_bytes, **promises)


def embedding_cases(width: int, batch: int, promise: bool) -> Iterator[Case]:
    """Yields RKD's two losses."""
    student, teacher = torch.randn(2, batch, width).relu()
    size = f"{width} channels, batch {batch}"
    yield _case(f"RKD distance, {size}", student, "rkd_distance", teacher)
    yield _case(f"RKD angle, {size}", student, "rkd_angle", teacher, faster=5 if promise else None)


def bank_cases(rows: int, width: int, negatives: int, batch: int, promise: bool) -> Iterator[Case]:
    """Yields one of CRD's two sides, and the drawing of negatives, which has no gradient, as a case of its own."""
    bank, student = F.normalize(torch.randn(rows, width)), F.normalize(torch.randn(batch, width))
    classes = torch.arange(rows) % 100
    shapes = Shapes(logits=(100,), pooled=(width,))
    pair = Pair(num_classes=100, train_size=rows, student=shapes, teacher=shapes, train_labels=classes)
    method = CRD(pair, negatives=negatives, feature_dim=width)
    other_classes = [(classes != label).nonzero().squeeze(1) for label in range(100)]
    images = torch.randperm(rows)[:batch]
    index = torch.cat([images[:, None], method._draw_negatives(images)], 1)
    z = direct.normaliser(student[:8], bank, index[:8], 0.07)
    size = f"{negatives:,} negatives of {rows:,}, batch {batch}"
    yield Case(
        f"CRD, {size}",
        student,
        lambda s: losses.contrast(s, bank, index, z.log(), 0.07),
        lambda s: direct.contrast(s, bank, index, z, 0.07),
        faster=10 if promise else None,
    )
    yield Case(
        f"drawing {size}",
        torch.zeros(()),
        lambda _: method._draw_negatives(images),
        lambda _: direct.draw_negatives(other_classes, classes[images], negatives),
    )


def map_cases(channels: int, edge: int, batch: int) -> Iterator[Case]:
    """Yields the losses of OFD and ReviewKD, which compare maps."""
    student, teacher = torch.randn(2, batch, channels, edge, edge)
    margin = torch.full((channels,), -0.8)
    size = f"{channels} x {edge} x {edge}, batch {batch}"
    yield _case(f"OFD partial L2, {size}", student, "partial_l2", teacher, margin)
    yield _case(f"ReviewKD HCL, {size}", student, "hierarchical_context", teacher)


def cases(quick: bool, large: bool) -> Iterator[Case]:
    """Yields all cases."""
    if quick:
        yield from logits_cases(20, 8, False)
        yield from embedding_cases(32, 8, False)
        yield from bank_cases(2000, 16, 500, 8, False)
        yield from map_cases(8, 8, 4)
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


def measure_case(case: Case, rounds: int, budget: float) -> tuple[list[str], list[Promise]]:
    """Measures a case, for ``budget`` seconds and a round at most. Returns its row of the table and its promises."""
    fits = case.direct_bytes < 0.8 * psutil.virtual_memory().available
    leaf = case.student.detach().requires_grad_()

    def task(loss: Loss) -> Callable[[], Tensor]:
        def forward_and_backward() -> Tensor:
            leaf.grad = None
            value = loss(leaf)
            if value.requires_grad:
                value.backward()
            return value.detach()

        return forward_and_backward

    tasks = [task(case.ours), *([task(case.direct)] if fits else [])]
    peaks, outcomes = [], []
    for forward_and_backward in tasks:
        peak, value = peak_bytes(forward_and_backward)
        peaks.append(peak)
        outcomes.append((value, leaf.grad))
        leaf.grad = None
    # Forms without a gradient draw random numbers, so they differ.
    difference = f"{_difference(*outcomes[0], *outcomes[1]):.0e}" if fits and outcomes[0][1] is not None else ""
    del outcomes
    seconds = time_in_turns(tasks, rounds, budget)
    faster = median_ratio(seconds[1], seconds[0]) if fits else None
    smaller = peaks[1] / peaks[0] if fits else None
    # Turns without the direct form, which would clear the caches for both.
    of_kl = median_ratio(*time_in_turns([tasks[0], task(case.kl)], rounds, budget)) if case.kl else None
    row = [case.name, _time(seconds[0]), _time(seconds[1]) if fits else "", _number(faster)]
    row += [f"{peaks[0] / MIB:,.3g}", f"{peaks[1] / MIB:,.5g}" if fits else "does not fit", _number(smaller)]
    promises = [
        Promise(case.name, f"{promised:,} {unit}", f"{measured:,.1f}", measured >= promised)
        for promised, measured, unit in (
            (case.faster, faster, "times faster"),
            (case.smaller, smaller, "times smaller"),
        )
        if promised and measured
    ]
    if case.of_kl and of_kl:
        limit = f"at most {case.of_kl} times a KL from logits"
        promises.append(Promise(case.name, limit, f"{of_kl:.2f}", of_kl <= case.of_kl))
    return [*row, _number(of_kl), difference], promises


def _difference(value: Tensor, grad: Tensor, other: Tensor, other_grad: Tensor) -> float:
    """Returns the larger relative difference, of the values or of the gradients by their norms."""
    return max(((value - other) / other).abs().item(), ((grad - other_grad).norm() / other_grad.norm()).item())


def _time(seconds: list[float]) -> str:
    return median_and_quartiles(seconds, 1e3, 2 if min(seconds) < 0.01 else 0)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,{'.2f' if value < 100 else '.0f'}}"


def benchmark(rounds: int, seconds: float, quick: bool = False, large: bool = True) -> Section:
    """Measures all cases; if ``large``, including the one whose direct form takes half a minute and 10 GiB."""
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
