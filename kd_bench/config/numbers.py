"""Bounded numbers: types of settings and of methods' hyper-parameters."""

from typing import Annotated

from annotated_types import Interval

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
AtLeastTwo = Annotated[int, Interval(ge=2)]
PositiveCount = Annotated[int, Interval(ge=1)]
