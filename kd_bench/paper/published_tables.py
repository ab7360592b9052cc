"""The paper's Tables 6 to 12 as printed, from the files in ``results/published/``."""

from __future__ import annotations

from collections.abc import Sequence

from kd_bench.report.paper_layout import FAMILIES, best_two
from kd_bench.report.published_files import read_rows
from kd_bench.report.render import DASH, FORMATS, Column, Table, TableRow, render
from kd_bench.utils.errors import UserError, unknown
from kd_bench.utils.paths import package_path

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

#: Columns of numbers. The other columns identify a row.
_NUMBERS = ("teacher_top1", "student_top1", "top1", "std", "clean", "autoattack", "apgd_ce", "apgd_t",
            "computation_saving")  # fmt: skip

_NOTE = "As printed in the appendix of the paper of the improved Kullback-Leibler loss; nothing here was measured."
_NOTE_6 = "The row of teachers is mended: the appendix prints it one column to the right, without its last value."


def reprint(format: str) -> str:
    """Returns all tables as text that ends with a line break.

    Args:
        format: One of ``render.FORMATS``. "csv" has one row for each number, with all tables one below the other.

    Raises:
        UserError: If there is no such format, or if a file is missing or damaged.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS, "--format")
    if format == "csv":
        return _csv()
    if format in ("latex", "latex-long"):
        return "\n".join(render([table(number, centred=True)], "latex", floating=True) for number in TITLES)
    tables = [table(number) for number in TITLES]
    if format == "html":
        return render(tables, format, notes=(_NOTE, _NOTE_6))
    return f"{render(tables, format)}\n{_NOTE} {_NOTE_6}\n"


def table(number: int, centred: bool = False) -> Table:
    """Returns one table in the layout of the paper.

    Args:
        number: The table's number in the paper.
        centred: Whether the columns of numbers are centred, and the notes are in the table.
    """
    rows = _rows(number)
    if number == 6:
        heads, groups = _table6(rows)
    else:
        left_out = {"dataset", "teacher", "student", "recipe", "temperature"} if number > 7 else {"dataset"}
        columns = [name for name in rows[0] if name not in left_out]
        key = next((name for name in ("varied", "augmentation", "epsilon") if name in columns), None)
        groups = {}
        for row in rows:
            groups.setdefault(row[key] if key else "", []).append(TableRow([row[name] or DASH for name in columns]))
        heads = [[name.replace("_", " ") for name in columns]]
    return Table(
        f"Table {number}. {TITLES[number]}",
        tuple(Column((name,), "center" if centred and at > 1 else "left") for at, name in enumerate(heads[0])),
        tuple(map(tuple, groups.values())),
        ((_NOTE, *([_NOTE_6] if number == 6 else [])) if centred else ()),
        tuple(map(tuple, heads[1:])),
    )


def _table6(rows: Sequence[dict[str, str]]) -> tuple[list[list[str]], dict[str, list[TableRow]]]:
    """A column a pair, teacher and student in the head, methods by family, the best two of each pair marked."""
    of_pair = {(row["teacher"], row["student"]): row for row in rows}
    heads = [
        ["", "teacher", *(row["teacher"] for row in of_pair.values())],
        ["", "", *(row["teacher_top1"] for row in of_pair.values())],
        ["", "student", *(row["student"] for row in of_pair.values())],
        ["family", "method", *(row["student_top1"] for row in of_pair.values())],
    ]
    cells = {(row["method"], row["teacher"], row["student"]): row for row in rows}
    methods = {row["method"]: row["family"] for row in rows}
    ranks: dict[str, dict[int, int]] = {method: {} for method in methods}
    for at, pair in enumerate(of_pair):
        top1 = [float(cells[method, *pair]["top1"]) if (method, *pair) in cells else None for method in methods]
        for method, rank in zip(methods, best_two(top1), strict=True):
            if rank:
                ranks[method][at + 2] = rank
    groups: dict[str, list[TableRow]] = {family: [] for family in FAMILIES}
    for method, family in methods.items():
        results = [cells.get((method, *pair), {"top1": "", "std": ""}) for pair in of_pair]
        values = [" ± ".join(filter(None, (row["top1"], row["std"]))) for row in results]
        groups[family].append(TableRow([family * (not groups[family]), method, *values], ranks=ranks[method]))
    return heads, groups


def _rows(number: int) -> list[dict[str, str]]:
    path = package_path("results", "published", f"table{number}.csv")
    rows = [row for _, row in read_rows(path)]
    if not rows:
        raise UserError(f"{path}: has no rows")
    return rows


def _csv() -> str:
    """All numbers of all tables, in percent, one a line, because the tables have different columns."""
    lines = ["table,row,column,value"]
    for number in TITLES:
        for row in _rows(number):
            keys = "; ".join(f"{name}={value}" for name, value in row.items() if value and name not in _NUMBERS)
            numbers = {name: row[name].removesuffix("%") for name in row if name in _NUMBERS and row[name]}
            lines += [f'{number},"{keys}",{name},{value}' for name, value in numbers.items()]
    return "\n".join(lines) + "\n"
