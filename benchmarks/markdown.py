"""The results of a benchmark, and their text in Markdown."""

from __future__ import annotations

import statistics
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

from benchmarks import measure


@dataclass(frozen=True)
class Table:
    """A table. The first column is aligned to the left, the others to the right."""

    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""

    def markdown(self) -> str:
        align = ["left", *["right"] * (len(self.headers) - 1)]
        text = tabulate(self.rows, self.headers, tablefmt="pipe", disable_numparse=True, colalign=align)
        return f"{self.caption}\n\n{text}" if self.caption else text


@dataclass(frozen=True)
class Promise:
    """A promised or aimed-at result, and the measured one.

    Attributes:
        subject: What was measured.
        promised: The promised result.
        measured: The measured result.
        kept: Whether the promise is kept.
        reason: Why it was missed, as far as the measurements show.
    """

    subject: str
    promised: str
    measured: str
    kept: bool
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.promised}; found: {self.measured}"

    def markdown(self) -> str:
        return f"- {self}" if self.kept else " ".join(filter(None, (f"- {self}", "**(missed)**", self.reason)))


@dataclass
class Section:
    """The results of one benchmark."""

    title: str
    introduction: str = ""
    tables: list[Table] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)

    def markdown(self) -> str:
        parts = [f"## {self.title}", self.introduction, *(table.markdown() for table in self.tables)]
        if self.promises:
            parts.append("\n".join(["Promised, and found:", "", *(promise.markdown() for promise in self.promises)]))
        return "\n\n".join(part for part in parts if part)

    def show(self) -> int:
        """Prints the section. Returns a script's exit code: 1 if a promise was missed."""
        print(self.markdown())
        return int(not all(promise.kept for promise in self.promises))


def argument_parser(description: str | None, seconds: float | None = None, quick: bool = True) -> ArgumentParser:
    """Returns a parser of a script's options, with ``--seconds`` if it has a default, and ``--quick``."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    if seconds is not None:
        parser.add_argument("--seconds", type=float, default=seconds, help="after which no further round begins")
    if quick:
        parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    return parser


def milliseconds(seconds: float) -> str:
    """Returns seconds as milliseconds with three digits."""
    value = 1e3 * seconds
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def median_and_range(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Returns the median, and the range of several values in parentheses."""
    text = f"{scale * statistics.median(values):,.{digits}f}"
    low, high = (f"{scale * value:,.{digits}f}" for value in (min(values), max(values)))
    return text if len(values) == 1 else f"{text} ({low} to {high})"


def median_and_quartiles(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Returns the median, with the other quartiles in parentheses."""
    low, middle, high = (f"{scale * value:.{digits}f}" for value in measure.quartiles(values))
    return f"{middle} ({low} to {high})"
