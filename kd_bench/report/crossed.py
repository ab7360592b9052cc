"""Statistics of a row whose students are crossed with teachers: each student's seed is trained with each teacher.

The values of such a row are y = mean + teacher + seed + residual, three independent random effects (a two-way layout
of random effects with one value a cell; Searle, Casella and McCulloch, "Variance Components", 1992, chapter 4). The
residual is the interaction of teacher and seed, and all else that no seed repeats. Values of one teacher, or of one
seed, are not independent.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from kd_bench.report.statistics import Difference, MeanAndStd, estimate, paired_difference
from kd_bench.utils.text import count

T = TypeVar("T")

#: Seeds of the teacher and of the student. The teacher's is None for a student without a teacher.
Cell = tuple[int | None, int]


class Parts(NamedTuple):
    """One quantity for each part of the spread."""

    teacher: float
    seed: float
    residual: float


@dataclass(frozen=True)
class Crossing:
    """Analysis of variance of a balanced layout: the mean squares, by which all else is computed in closed form.

    Attributes:
        teachers, seeds: Numbers of teachers and of students' seeds.
        mean: Mean over all cells.
        teacher_square: Mean square between teachers; None for a single teacher.
        seed_square: Mean square between students' seeds; None for a single seed.
        residual_square: Mean square of the residual; None for a single teacher or seed.
    """

    teachers: int
    seeds: int
    mean: float
    teacher_square: float | None
    seed_square: float | None
    residual_square: float | None

    @property
    def is_split(self) -> bool:
        """Whether there are at least two teachers and two seeds, so that the spread can be split."""
        return self.residual_square is not None

    @property
    def text(self) -> str:
        """The numbers in words, as in ``3 teachers x 3 seeds``."""
        return f"{count(self.teachers, 'teacher')} x {count(self.seeds, 'seed')}"

    @property
    def variances(self) -> Parts | None:
        """Unbiased estimates of the three variances, which may be negative; None if the spread cannot be split.

        From the expected mean squares: residual; (teacher_square - residual_square) / seeds; and the same for the seed.
        """
        if self.teacher_square is None or self.seed_square is None or self.residual_square is None:
            return None
        teacher = (self.teacher_square - self.residual_square) / self.seeds
        return Parts(teacher, (self.seed_square - self.residual_square) / self.teachers, self.residual_square)

    @property
    def stds(self) -> Parts | None:
        """Standard deviation of each part, 0 for a negative estimate of its variance; None as for ``variances``."""
        return Parts(*(max(value, 0.0) ** 0.5 for value in self.variances)) if self.variances else None

    @property
    def freedom(self) -> Parts:
        """Degrees of freedom of the mean squares."""
        teacher, seed = self.teachers - 1, self.seeds - 1
        return Parts(teacher, seed, teacher * seed)

    @property
    def std(self) -> float | None:
        """Standard deviation of a single value with another teacher and another seed.

        The root of the sum of the three variances, negative estimates included: the sum is unbiased, and never
        negative. With a single teacher or seed, that over the others; None for a single cell.
        """
        if self.variances is not None:
            return math.sqrt(max(0.0, sum(self.variances)))  # below zero by rounding only
        if self.teacher_square is not None:
            return math.sqrt(self.teacher_square / self.seeds)
        return None if self.seed_square is None else math.sqrt(self.seed_square / self.teachers)

    @property
    def error(self) -> tuple[float, float] | None:
        """Variance of the mean over other teachers and other seeds, with its degrees of freedom; None for one cell.

        (teacher_square + seed_square) / (teachers seeds), with Satterthwaite's degrees of freedom: the error of
        Clark's quasi-F ("The Language-as-Fixed-Effect Fallacy", 1973). It contains the residual twice, and is therefore
        slightly too large; the unbiased estimate, which subtracts one, covers far too little with few teachers and
        seeds. With a single teacher or seed it is the variance of the mean over the others.
        """
        squares = ((self.teacher_square, self.freedom.teacher), (self.seed_square, self.freedom.seed))
        estimated = [(square, freedom) for square, freedom in squares if square is not None]
        if not estimated:
            return None
        total = sum(square for square, _ in estimated)
        if total == 0:
            return 0.0, estimated[0][1]
        freedom = total**2 / sum(square**2 / freedom for square, freedom in estimated)
        return total / (self.teachers * self.seeds), freedom

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """Returns the interval of the mean over other teachers and other seeds; None for a single cell."""
        if self.error is None:
            return None
        from scipy.special import stdtrit

        variance, freedom = self.error
        half = float(stdtrit(freedom, (1 + confidence) / 2)) * variance**0.5
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float | None:
        """Two-sided p-value of the hypothesis that the mean is zero; None for a single cell, or without any spread."""
        if self.error is None or self.error[0] == 0:
            return None
        from scipy.special import stdtr

        variance, freedom = self.error
        return float(2 * stdtr(freedom, -abs(self.mean) / variance**0.5))


def crossing(values: Mapping[Cell, float]) -> Crossing:
    """Returns the analysis of variance of the values of a balanced layout.

    Spread below the rounding of the values counts as none.

    Raises:
        ValueError: If the layout lacks a cell.
    """
    teachers, seeds = list(dict.fromkeys(cell[0] for cell in values)), list(dict.fromkeys(cell[1] for cell in values))
    if len(values) != len(teachers) * len(seeds) or not values:
        raise ValueError("the layout is not balanced")
    mean = float(statistics.mean(values.values()))
    a, b = len(teachers), len(seeds)
    if max(values.values()) - min(values.values()) <= _rounding(values.values()):
        nothing = (0.0 if a > 1 else None, 0.0 if b > 1 else None, 0.0 if min(a, b) > 1 else None)
        return Crossing(a, b, mean, *nothing)
    of_teacher = {name: statistics.fmean(values[name, seed] for seed in seeds) for name in teachers}
    of_seed = {seed: statistics.fmean(values[name, seed] for name in teachers) for seed in seeds}
    residual = sum((values[name, seed] - of_teacher[name] - of_seed[seed] + mean) ** 2 for name, seed in values)
    return Crossing(
        a,
        b,
        mean,
        b * statistics.variance(of_teacher.values()) if a > 1 else None,
        a * statistics.variance(of_seed.values()) if b > 1 else None,
        residual / ((a - 1) * (b - 1)) if min(a, b) > 1 else None,
    )


def balanced(cells: Collection[Cell]) -> list[Cell]:
    """Returns the cells of a layout without gaps, teacher by teacher, in ascending order.

    As long as a cell is missing, the teacher or seed that lacks the largest share of its cells is left out; of equal
    shares a seed, because there are fewer teachers as a rule, and of those the highest.
    """
    present = set(cells)
    teachers = sorted({teacher for teacher, _ in cells if teacher is not None})
    seeds = sorted({seed for _, seed in cells})
    while missing := [(name, seed) for name in teachers for seed in seeds if (name, seed) not in present]:
        of_teacher, of_seed = Counter(cell[0] for cell in missing), Counter(cell[1] for cell in missing)
        of_names = ((number / len(seeds), False, name) for name, number in of_teacher.items())
        of_seeds = ((number / len(teachers), True, seed) for seed, number in of_seed.items())
        _, is_seed, worst = max((*of_names, *of_seeds))
        (seeds if is_seed else teachers).remove(worst)
    return [(name, seed) for name in teachers for seed in seeds]


def find_cells(trials: Iterable[tuple[str, int | None, int]]) -> tuple[list[Cell], bool]:
    """Returns the cell of each trial of a pair, and whether its students are crossed with teachers.

    They are if a row has one seed with several teachers' seeds. If not, cells have no teacher's seed.

    Args:
        trials: Label, teacher's seed (None without a teacher) and seed of each trial.
    """
    listed = list(trials)
    teachers: dict[tuple[str, int], set[int]] = defaultdict(set)
    for label, teacher, seed in listed:
        if teacher is not None:
            teachers[label, seed].add(teacher)
    crossed = any(len(of) > 1 for of in teachers.values())
    return [(teacher if crossed else None, seed) for _, teacher, seed in listed], crossed


def is_taught(cells: Iterable[Cell]) -> bool:
    """Whether some cell has a teacher's seed."""
    return any(teacher is not None for teacher, _ in cells)


def without_gaps(values: Mapping[Cell, T]) -> dict[Cell, T]:
    """Returns the values that statistics are of: those of ``balanced`` cells if the trials have several teachers."""
    return {cell: values[cell] for cell in balanced(values)} if is_taught(values) else dict(values)


def estimate_cells(values: Mapping[Cell, float]) -> MeanAndStd | None:
    """Returns mean and standard deviation of the values without gaps; None if there are no values."""
    values = without_gaps(values)
    if not is_taught(values):
        return estimate(list(values.values()))
    estimated = crossing(values)
    return MeanAndStd(estimated.mean, estimated.std, len(values), estimated)


def pair_cells(values: Mapping[Cell, T], baseline: Mapping[Cell, T]) -> dict[Cell, tuple[T, T]]:
    """Returns the values of a row and its baseline, without gaps, for each cell that both have, in ascending order.

    A student without a teacher is compared with each teacher's student of its seed.
    """
    cells = dict.fromkeys((*values, *baseline))
    pairs = {}
    for cell in [cell for cell in cells if cell[0] is not None] or sorted(cells, key=lambda cell: cell[1]):
        alone = (None, cell[1])
        value, of_baseline = values.get(cell, values.get(alone)), baseline.get(cell, baseline.get(alone))
        if value is not None and of_baseline is not None:
            pairs[cell] = value, of_baseline
    return without_gaps(pairs)


def difference_of_cells(
    values: Mapping[Cell, float], baseline: Mapping[Cell, float], confidence: float = 0.95
) -> tuple[Difference | None, tuple[float, ...]]:
    """Returns the mean difference to a baseline, and the differences that it is the mean of.

    With several teachers, its interval is one for other teachers and other seeds, else that of ``paired_difference``.

    Returns:
        None and no differences if the two have no cell in common.
    """
    pairs = pair_cells(values, baseline)
    differences = {cell: value - of_baseline for cell, (value, of_baseline) in pairs.items()}
    if not is_taught(differences):
        values_by_seed = {seed: value for (_, seed), (value, _) in pairs.items()}
        baseline_by_seed = {seed: of_baseline for (_, seed), (_, of_baseline) in pairs.items()}
        return paired_difference(values_by_seed, baseline_by_seed, confidence), tuple(differences.values())
    estimated = crossing(differences)
    low, high = estimated.interval(confidence) or (None, None)
    return Difference(estimated.mean, low, high, len(differences), estimated), tuple(differences.values())


def _rounding(values: Collection[float]) -> float:
    """Differences of values below this are rounding: accuracies up to 100 have been subtracted."""
    return 4 * sys.float_info.epsilon * max(100.0, *map(abs, values))
