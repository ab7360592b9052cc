"""Time and peak memory of the losses, forward and backward, beside the same losses as published code computes them.

Contestants take turns, and what counts is their ratio within a round. The direct forms are those that the tests compare
values and gradients with (tests/losses/direct.py); how far apart they are in float32 is printed too. Memory is the most
that torch's allocator held at once, above the inputs. The gradient goes to the student.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the benchmarks and the direct forms

from benchmarks import measure  # first: it quietens the profiler

# isort: split

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.writing import Promise, Section, Table, show
from kd_bench import losses
from kd_bench.methods.crd import CRD
from kd_bench.types import Pair, Shapes
from tests.losses import direct

MIB = 2**20
Loss = Callable[[Tensor], Tensor]


@dataclass
class Case:
    """A loss in both forms, as functions of the student's tensor, and what is promised of it."""

    name: str
    student: Tensor
    ours: Loss
    direct: Loss
    kl: Loss | None = None
    """The divergence that the time is compared with too."""
    faster: float | None = None
    """Times that ours is promised to be faster."""
    smaller: float | None = None
    """Times that its peak memory is promised to be smaller."""
    of_kl: float | None = None
    """Times that ours is promised to take of the divergence at most."""
    direct_bytes: int = 0
    """What the direct form needs, where that may be more than there is."""


@dataclass
class Result:
    case: Case
    fits: bool
    """Whether there is memory for the direct form."""
    seconds: list[list[float]] = field(default_factory=list)
    """Of ours and, if it fits, the direct form."""
    beside_kl: list[list[float]] = field(default_factory=list)
    """Of ours and the divergence, which take turns of their own: the direct form would sweep the caches for both."""
    peaks: list[int] = field(default_factory=list)
    difference: float | None = None
    """Between the two forms; None where there is nothing to compare, as of random draws."""

    @property
    def faster(self) -> float | None:
        return measure.ratio(self.seconds[0], self.seconds[1]) if self.fits else None

    @property
    def smaller(self) -> float | None:
        return self.peaks[1] / self.peaks[0] if self.fits else None

    @property
    def of_kl(self) -> float | None:
        return measure.ratio(self.beside_kl[1], self.beside_kl[0]) if self.case.kl else None


def logits_cases(classes: int, batch: int, promise: bool) -> Iterator[Case]:
    """KD, DKD, IKL and DIST at T = 4, whose weights are as published for CIFAR-100."""
    student, teacher = 3 * torch.randn(2, batch, classes)
    labels = torch.randint(classes, (batch,))
    weights = (teacher / 100).softmax(-1)
    size = f"{classes} classes, batch {batch}"

    def kl(s: Tensor) -> Tensor:
        return 16 * F.kl_div((s / 4).log_softmax(-1), (teacher / 4).softmax(-1), reduction="batchmean")

    yield Case(f"KD, {size}", student, lambda s: losses.kd(s, teacher, 4.0), lambda s: direct.kd(s, teacher, 4.0))
    yield Case(
        f"DKD, {size}",
        student,
        lambda s: losses.dkd(s, teacher, labels, 1.0, 8.0, 4.0),
        lambda s: direct.dkd(s, teacher, labels, 1.0, 8.0, 4.0),
    )
    yield Case(
        f"DIST, {size}",
        student,
        lambda s: torch.stack(losses.dist_terms(s, teacher, 4.0)).sum(),
        lambda s: torch.stack(direct.dist_terms(s, teacher, 4.0)).sum(),
    )
    yield Case(
        f"IKL, {size}",
        student,
        lambda s: losses.ikl(s, teacher, weights, 8.0, 1.0, 4.0),
        lambda s: direct.ikl(s, teacher, weights, 8.0, 1.0, 4.0),
        kl=kl,
        direct_bytes=6 * 4 * batch * classes**2,
        **({"faster": 1000, "smaller": 500, "of_kl": 1.5} if promise else {}),
    )


def embedding_cases(width: int, batch: int, promise: bool) -> Iterator[Case]:
    student, teacher = torch.randn(2, batch, width).relu()
    size = f"{width} channels, batch {batch}"
    yield Case(
        f"RKD distance, {size}",
        student,
        lambda s: losses.rkd_distance(s, teacher),
        lambda s: direct.rkd_distance(s, teacher),
    )
    yield Case(
        f"RKD angle, {size}",
        student,
        lambda s: losses.rkd_angle(s, teacher),
        lambda s: direct.rkd_angle(s, teacher),
        faster=5 if promise else None,
    )


def bank_cases(rows: int, width: int, negatives: int, batch: int, promise: bool) -> Iterator[Case]:
    """One of CRD's two sides, and the drawing of negatives, which has no gradient, as a case of its own."""
    bank, student = F.normalize(torch.randn(rows, width)), F.normalize(torch.randn(batch, width))
    classes = torch.arange(rows) % 100
    shapes = Shapes(logits=(100,), pooled=(width,))
    pair = Pair(num_classes=100, train_size=rows, student=shapes, teacher=shapes, train_labels=classes)
    method = CRD(pair, negatives=negatives, feature_dim=width)
    others = [(classes != label).nonzero().squeeze(1) for label in range(100)]
    images = torch.randperm(rows)[:batch]
    index = torch.cat([images[:, None], method._draw(images)], 1)
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
        lambda _: method._draw(images),
        lambda _: direct.draw_negatives(others, classes[images], negatives),
    )


def map_cases(channels: int, edge: int, batch: int) -> Iterator[Case]:
    student, teacher = torch.randn(2, batch, channels, edge, edge)
    margin = torch.full((channels,), -0.8)
    size = f"{channels} x {edge} x {edge}, batch {batch}"
    yield Case(
        f"OFD partial L2, {size}",
        student,
        lambda s: losses.partial_l2(s, teacher, margin),
        lambda s: direct.partial_l2(s, teacher, margin),
    )
    yield Case(
        f"ReviewKD HCL, {size}",
        student,
        lambda s: losses.hierarchical_context(s, teacher),
        lambda s: direct.hierarchical_context(s, teacher),
    )


def cases(quick: bool, large: bool) -> Iterator[Case]:
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


def run(case: Case, rounds: int, budget: float) -> Result:
    fits = case.direct_bytes < 0.8 * psutil.virtual_memory().available
    leaf = case.student.detach().requires_grad_()

    def task(loss: Loss) -> Callable[[], Tensor]:
        def once() -> Tensor:
            leaf.grad = None
            value = loss(leaf)
            if value.requires_grad:
                value.backward()
            return value.detach()

        return once

    tasks = [task(case.ours), *([task(case.direct)] if fits else [])]
    result = Result(case, fits)
    outcomes = []
    for one in tasks:
        peak, value = measure.peak_bytes(one)
        result.peaks.append(peak)
        outcomes.append((value, leaf.grad))
        leaf.grad = None
    if fits and outcomes[0][1] is not None:
        result.difference = _difference(*outcomes[0], *outcomes[1])
    del outcomes
    result.seconds = measure.seconds(tasks, rounds, budget)
    if case.kl:
        result.beside_kl = measure.seconds([tasks[0], task(case.kl)], rounds, budget)
    return result


def _difference(value: Tensor, grad: Tensor, other: Tensor, other_grad: Tensor) -> float:
    """The larger relative difference, of the values or of the gradients by their norms."""
    return max(((value - other) / other).abs().item(), ((grad - other_grad).norm() / other_grad.norm()).item())


def row(result: Result) -> list[str]:
    cells = [result.case.name, _times(result.seconds[0]), _times(result.seconds[1]) if result.fits else ""]
    cells += [_number(result.faster), f"{result.peaks[0] / MIB:,.3g}"]
    cells += [f"{result.peaks[1] / MIB:,.5g}" if result.fits else "does not fit", _number(result.smaller)]
    return [*cells, _number(result.of_kl), "" if result.difference is None else f"{result.difference:.0e}"]


def _times(seconds: list[float]) -> str:
    low, middle, high = (f"{1e3 * value:.{2 if value < 0.01 else 0}f}" for value in measure.spread(seconds))
    return f"{middle} ({low} to {high})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,{'.2f' if value < 100 else '.0f'}}"


def promises(result: Result) -> Iterator[Promise]:
    """What was promised of a case and what was found."""
    case = result.case
    for promised, found, what in (
        (case.faster, result.faster, "times faster"),
        (case.smaller, result.smaller, "times smaller"),
    ):
        if promised and found:
            yield Promise(case.name, f"{promised:,} {what}", f"{found:,.1f}", found >= promised)
    if case.of_kl and result.of_kl:
        found = result.of_kl
        yield Promise(case.name, f"at most {case.of_kl} times a KL from logits", f"{found:.2f}", found <= case.of_kl)


def find(rounds: int, seconds: float, quick: bool = False, large: bool = True) -> Section:
    """All cases.

    Args:
        rounds: How often each contestant has its turn, at most.
        seconds: After which a case begins no further round.
        quick: Small sizes and two rounds.
        large: Whether to have the case whose direct form takes half a minute and 10 GiB.
    """
    torch.manual_seed(0)
    results = [run(case, 2 if quick else rounds, seconds) for case in cases(quick, large)]
    headers = [
        "",
        "ours, ms",
        "direct, ms",
        "faster",
        "ours, MiB",
        "direct, MiB",
        "smaller",
        "of KL's time",
        "difference",
    ]
    return Section(
        "Losses",
        f"Forward and backward in float32, {torch.get_num_threads()} thread(s): CPU milliseconds as medians "
        "(quartiles) of rounds, MiB as peaks of torch's allocator above the inputs.",
        [Table([*headers, "difference"], [row(result) for result in results])],
        [promise for result in results for promise in promises(result)],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="how often each contestant has its turn, at most")
    parser.add_argument("--seconds", type=float, default=12, help="after which a case begins no further round")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--quick", action="store_true", help="small sizes and 2 rounds, to see that it works")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return show(find(given.rounds, given.seconds, given.quick))


if __name__ == "__main__":
    sys.exit(main())
