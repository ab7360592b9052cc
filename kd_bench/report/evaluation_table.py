"""The table of one evaluated network."""

from __future__ import annotations

from kd_bench.report import corruption_columns
from kd_bench.report.columns import COLUMNS
from kd_bench.report.render import Column, Table, TableRow
from kd_bench.trials.evaluation_file import Evaluation

_COLUMNS = (
    Column(("quantity",)),
    Column(("value",), "right", numeric=True),
    Column(("unit",)),
    Column(("measured on",)),
)


def network_table(title: str, evaluation: Evaluation, exact: bool) -> Table:
    """Returns a row for each value of an evaluation.

    Args:
        title: Title of the table.
        evaluation: The evaluation.
        exact: Whether the values are numbers in full precision and in the units of ``evaluation.json``, for CSV.
    """
    groups: dict[str, list[TableRow]] = {}
    for name, column in COLUMNS.items():
        # fidelity to several teachers has a row for each of them, which the network's name tells apart
        for teacher in evaluation.fidelity if column.metric == "fidelity" else [""]:
            quantity = name if exact else column.name.rstrip(",")
            if teacher and len(evaluation.fidelity) > 1:
                quantity += f" ({evaluation.fidelity[teacher].teacher}, {teacher})"
            for value in column.values(evaluation, [teacher]):
                # each corruption is measured on the copies that the mean is measured on
                is_part = name in corruption_columns.COLUMN_OF.values() and len(evaluation.corruptions) == 1
                measured_on = "the same" if is_part and not exact else value.protocol
                shown = value.value if exact else column.format(value.value)
                unit = "" if exact else column.unit
                groups.setdefault(column.metric, []).append(TableRow([quantity, shown, unit, measured_on]))
    return Table(title, _COLUMNS, tuple(map(tuple, groups.values())))
