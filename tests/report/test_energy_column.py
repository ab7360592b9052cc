"""The column of the trainings' energy: read from results, never averaged over different counters, empty without one."""

from __future__ import annotations

import json
from pathlib import Path

from kd_bench.report.column_cells import trial_values
from tests.report.test_columns import cells_of, column, notes, summary_of
from tests.report.trials import render_summary


def test_watt_hours_of_all_counters(folder: Path) -> None:
    cells = cells_of(folder)
    kd, dkd = ([cell.trial_id for cell in cells if cell.label == label] for label in ("kd", "dkd"))
    for path, gpu in zip(kd, (3600.0, 7200.0), strict=True):
        edit(folder / path, {"GPU": gpu, "CPU package": 1800.0})
    edit(folder / dkd[0], {"GPU": 36000.0})
    summary = summary_of(folder, cells, "top1", "energy")
    cell = column(summary, "kd", "energy")
    assert cell.value is not None and cell.value.mean == 7200.0 and cell.value.n == 2
    assert cell.protocol == "GPU + CPU package, Abacus, the whole device"
    other = column(summary, "dkd", "energy")
    assert other.marked and other.protocol == "GPU, Abacus, the whole device" and other.partial
    assert column(summary, "none", "energy").value is None
    assert "with the work of other processes on the device" in notes(summary)
    assert "no counter measured all epochs" in notes(summary) and "not evaluated yet" not in notes(summary)
    text = render_summary(summary, "plain")
    assert "2.00 ± 0.71" in text and "Wh" in text
    values, problem = trial_values(folder / kd[0], [])
    assert (values["energy"], problem) == (5400.0, None)
    assert values["energy_protocol"] == "GPU + CPU package, Abacus, the whole device"


def edit(folder: Path, joules: dict[str, float]) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"energy": {"joules": joules, "device": "Abacus"}}))
