"""The paper's Tables 6 to 12 printed again, from the files in ``results/published/`` and nothing else."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass

from kd_bench.report import latex
from kd_bench.report.grid import FAMILIES, places
from kd_bench.utils.errors import UserError, unknown
from kd_bench.utils.paths import package_path

#: Formats of ``reprint``; "terminal" is "plain".
FORMATS = ("terminal", "markdown", "plain", "latex", "csv")

#: The tables by number, and what they are of.
TITLES = {
    6: "Top-1 accuracy in % on CIFAR-100, teacher and student of different architectures, mean of 3 trials",
    7: "Clean and AutoAttack accuracy in % on CIFAR-100 beside the previous best of RobustBench",
    8: "Top-1 accuracy in % on ImageNet with the strong recipe, BEiT-Large to ResNet-50",
    9: "IKL-AT on CIFAR-100: alpha and beta varied; clean, AutoAttack, APGD-CE and APGD-T accuracy in %",
    10: "IKL-AT on CIFAR-100, temperature 4: alpha and beta varied; clean and AutoAttack accuracy in %",
    11: "IKL-AT on CIFAR-100, temperature 2: alpha and beta varied; clean and AutoAttack accuracy in %",
    12: "AutoAttack accuracy in % on CIFAR-100 by the size of the perturbation",
}

_NOTE = "As printed in the appendix of the paper of the improved Kullback-Leibler loss; nothing here was measured."
_NOTE_6 = "The row of teachers is mended: the appendix prints it one column to the right, without its last value."


@dataclass(frozen=True)
class PublishedTable:
    """One table of the paper.

    Attributes:
        number: As the paper numbers it.
        heads: Rows above the line, the last of them the names of the columns.
        blocks: Blocks of rows with a line between.
        marks: Place of the best two cells, by (block, row, column); empty where the paper marks none.
    """

    number: int
    heads: tuple[tuple[str, ...], ...]
    blocks: tuple[tuple[tuple[str, ...], ...], ...]
    marks: dict[tuple[int, int, int], int]

    @property
    def title(self) -> str:
        """Number and subject."""
        return f"Table {self.number}. {TITLES[self.number]}"


def reprint(format: str) -> str:
    """All tables as text that ends with a line break.

    Args:
        format: One of ``FORMATS``; "csv" has a row a number, of all tables one below the other.

    Raises:
        UserError: There is no such format, or a file is missing or damaged.
    """
    if format not in FORMATS:
        raise unknown("format of published tables", format, FORMATS, "--format")
    if format == "csv":
        return _csv()
    tables = [table(number) for number in TITLES]
    if format == "latex":
        return "\n".join(map(_latex, tables))
    return "\n".join(_tabulated(one, format == "markdown") for one in tables) + f"\n{_NOTE} {_NOTE_6}\n"


def table(number: int) -> PublishedTable:
    """One of the tables, laid out as in the paper."""
    rows = _rows(number)
    if number == 6:
        return _table6(rows)
    left_out = {"dataset", "teacher", "student", "recipe", "temperature"} if number > 7 else {"dataset"}
    columns = [name for name in rows[0] if name not in left_out]
    group = "varied" if "varied" in columns else "augmentation" if number == 7 else "epsilon" if number == 12 else None
    blocks: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        blocks.setdefault(row[group] if group else "", []).append(tuple(row[name] or "–" for name in columns))
    heads = tuple(name.replace("_", " ") for name in columns)
    return PublishedTable(number, (heads,), tuple(tuple(block) for block in blocks.values()), {})


def _table6(rows: Sequence[dict[str, str]]) -> PublishedTable:
    """A column a pair, teacher and student in the head, methods by family, the best two of each pair marked."""
    pairs = list(dict.fromkeys((row["teacher"], row["student"]) for row in rows))
    of_pair = {(row["teacher"], row["student"]): row for row in rows}
    heads = (
        ("", "teacher", *(teacher for teacher, _ in pairs)),
        ("", "", *(of_pair[pair]["teacher_top1"] for pair in pairs)),
        ("", "student", *(student for _, student in pairs)),
        ("family", "method", *(of_pair[pair]["student_top1"] for pair in pairs)),
    )
    found = {(row["method"], row["teacher"], row["student"]): row for row in rows}
    blocks = []
    for family in FAMILIES:
        methods = dict.fromkeys(row["method"] for row in rows if row["family"] == family)
        blocks.append(
            tuple(
                (family * (at == 0), method, *(_value(found.get((method, *pair))) for pair in pairs))
                for at, method in enumerate(methods)
            )
        )
    marks: dict[tuple[int, int, int], int] = {}
    for column in range(2, 2 + len(pairs)):
        cells = [(block, row, line[column]) for block, lines in enumerate(blocks) for row, line in enumerate(lines)]
        best = places([float(value.split(" ")[0]) if value else None for _, _, value in cells])
        marks |= {(block, row, column): place for (block, row, _), place in zip(cells, best, strict=True) if place}
    return PublishedTable(6, heads, tuple(blocks), marks)


def _value(row: dict[str, str] | None) -> str:
    if row is None:
        return ""
    return f"{row['top1']} ± {row['std']}" if row["std"] else row["top1"]


def _rows(number: int) -> list[dict[str, str]]:
    path = package_path("results", "published", f"table{number}.csv")
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not rows or any(None in row or None in row.values() for row in rows):
        raise UserError(f"{path}: should have a head and lines with as many values")
    return rows


def _tabulated(one: PublishedTable, markdown: bool) -> str:
    from tabulate import tabulate

    lines = [
        [_marked(cell, one.marks.get((block, row, column)), markdown) for column, cell in enumerate(line)]
        for block, group in enumerate(one.blocks)
        for row, line in enumerate(group)
    ]
    *above, names = one.heads
    text = tabulate(
        [*(list(line) for line in above[1:]), *([list(names)] if above else []), *lines],
        list(above[0] if above else names),
        tablefmt="pipe" if markdown else "simple",
        disable_numparse=True,
    )
    return f"{'### ' * markdown}{one.title}\n\n{text}\n"


def _marked(cell: str, place: int | None, markdown: bool) -> str:
    """Bold and underlined in Markdown, in HTML for want of its own; a star and a plus where there are no fonts."""
    if place is None:
        return cell
    if markdown:
        return f"**{cell}**" if place == 1 else f"<u>{cell}</u>"
    return f"{cell} {'*' if place == 1 else '+'}"


def _latex(one: PublishedTable) -> str:
    width = len(one.heads[-1])
    lines = [rf"\begin{{tabular}}{{@{{}}ll{'c' * (width - 2)}@{{}}}}", r"\toprule"]
    lines += [" & ".join(map(latex.tex, head)) + r" \\" for head in one.heads]
    for block, group in enumerate(one.blocks):
        lines.append(r"\midrule")
        for row, line in enumerate(group):
            cells = []
            for column, cell in enumerate(line):
                shown = latex.tex(cell)
                place = one.marks.get((block, row, column))
                cells.append(rf"\textbf{{{shown}}}" if place == 1 else rf"\underline{{{shown}}}" if place else shown)
            lines.append(" & ".join(cells) + r" \\")
    notes = [_NOTE, *([_NOTE_6] if one.number == 6 else [])]
    return latex.environment([[*lines, r"\bottomrule", r"\end{tabular}"]], notes, one.title)


def _csv() -> str:
    """Table, column and row of every number, as tables of different columns make no table together."""
    lines = ["table,row,column,value"]
    for number in TITLES:
        for row in _rows(number):
            keys = {name: value for name, value in row.items() if not _is_number(name)}
            place = "; ".join(f"{name}={value}" for name, value in keys.items() if value)
            lines += [f'{number},"{place}",{name},{row[name]}' for name in row if name not in keys and row[name]]
    return "\n".join(lines) + "\n"


def _is_number(column: str) -> bool:
    return column in {"teacher_top1", "student_top1", "top1", "std", "clean", "autoattack", "apgd_ce", "apgd_t",
                      "computation_saving"}  # fmt: skip
