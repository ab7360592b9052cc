"""Bounded numbers: types of settings and of methods' hyper-parameters."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval


@dataclass(frozen=True)
class Search:
    """The range in which ``kd-bench tune`` searches for a hyper-parameter, on a logarithmic scale.

    Attributes:
        low, high: Ends of the range; factors of the default if ``relative``.
        relative: Whether they are.
    """

    low: float
    high: float
    relative: bool = False

    def range(self, default: float) -> tuple[float, float] | None:
        """Returns the range, which always contains the default; None if there is none because the default is 0."""
        if default <= 0:
            return None
        low, high = (self.low * default, self.high * default) if self.relative else (self.low, self.high)
        return min(low, default), max(high, default)


NonNegative = Annotated[float, Interval(ge=0)]
Positive = Annotated[float, Interval(gt=0)]
#: [0, 1]
Fraction = Annotated[float, Interval(ge=0, le=1)]
#: [0, 1)
FractionBelowOne = Annotated[float, Interval(ge=0, lt=1)]
#: (0, 1]
PositiveFraction = Annotated[float, Interval(gt=0, le=1)]
#: (0, 1)
OpenFraction = Annotated[float, Interval(gt=0, lt=1)]
Count = Annotated[int, Interval(ge=0)]
PositiveCount = Annotated[int, Interval(ge=1)]
#: Weight of a term of a loss.
Weight = Annotated[float, Interval(ge=0), Search(1 / 8, 8, relative=True)]
#: Temperature of a softmax.
Temperature = Annotated[float, Interval(gt=0), Search(1, 16)]
