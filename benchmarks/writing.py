"""What a benchmark found, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

from benchmarks import measure


@dataclass(frozen=True)
class Table:
    """One table; the first column is to the left, all others are numbers to the right."""

    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""

    def markdown(self) -> str:
        align = ["left", *["right"] * (len(self.headers) - 1)]
        text = tabulate(self.rows, self.headers, tablefmt="pipe", disable_numparse=True, colalign=align)
        return f"{self.caption}\n\n{text}" if self.caption else text


@dataclass(frozen=True)
class Promise:
    """Something that is promised, or aimed at, and what was found.

    Attributes:
        what: Of what.
        wanted: How much.
        found: What was measured.
        kept: Whether it is so.
        why: Of one that is not, what the measurements say of it.
    """

    what: str
    wanted: str
    found: str
    kept: bool
    why: str = ""

    def markdown(self) -> str:
        text = f"- {self.what}: {self.wanted}; found: {self.found}"
        return text if self.kept else f"{text} **(missed)**{f' {self.why}' if self.why else ''}"


@dataclass
class Section:
    """One benchmark."""

    title: str
    about: str = ""
    tables: list[Table] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        parts = [f"## {self.title}", self.about, *(table.markdown() for table in self.tables), *self.notes]
        if self.promises:
            parts.append("\n".join(["Promised, and found:", "", *(one.markdown() for one in self.promises)]))
        return "\n\n".join(part for part in parts if part)

    @property
    def kept(self) -> bool:
        return all(one.kept for one in self.promises)


def show(section: Section) -> int:
    """Prints it; the exit code of a script, 1 where a promise is not kept."""
    print(section.markdown())
    return int(not section.kept)


def milliseconds(seconds: float) -> str:
    """With three digits that mean something."""
    value = 1e3 * seconds
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """The median, and the range if there are several."""
    low, middle, high = min(values), measure.spread(list(values))[1], max(values)
    text = f"{scale * middle:,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({scale * low:,.{digits}f} to {scale * high:,.{digits}f})"
