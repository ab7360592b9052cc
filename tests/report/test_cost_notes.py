"""The footnotes on what a row costs: layers that stay in the student, and second views."""

from pathlib import Path
from typing import Any

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial
from kd_bench.plan import plan
from kd_bench.report.cost_notes import cost_notes
from kd_bench.report.results_frame import read_results
from kd_bench.report.summarise import summarise
from tests.report.trials import put, write_trial

RECIPE: dict[str, Any] = {
    "name": "r",
    "dataset": "digits",
    "epochs": 2,
    "trials": 2,
    "pairs": [{"teacher": "resnet20", "student": "resnet8"}, {"teacher": "resnet20", "student": "resnet14"}],
    "methods": {"kd": {}, "simkd": {}, "narrow": {"method": "simkd", "factor": 4}, "mlkd": {}},
}
TWO_VIEWS = {"method": "mlkd", "training": {"second_view": {"cutout": 4}}}


def planned(**methods: Any) -> list[PlannedTrial]:
    return plan(read_recipe(RECIPE | {"methods": RECIPE["methods"] | methods}), "r")


def finish(folder: Path, cells: list[PlannedTrial], **fields: Any) -> None:
    """Finishes trials; those of SimKD keep 20,000 parameters, of 100,000, or of 180,000 with the second student."""
    for cell in cells:
        write_trial(folder / cell.trial_id, cell.trial)
        kept = {"kept_parameters": 20_000} if cell.method == "simkd" else {}
        parameters = 100_000 if cell.student == "cifar_resnet8" else 180_000
        put(folder / cell.trial_id, **{"parameters": parameters, **kept, **fields})


def test_nothing_is_said_of_rows_without_either(tmp_path: Path) -> None:
    cells = planned()
    finish(tmp_path, [cell for cell in cells if cell.method != "simkd"])
    frame = read_results(tmp_path, cells)
    assert list(cost_notes(frame)) == []
    assert not any(note.startswith(("Larger", "Two views")) for note in summarise(frame).footnotes)


def test_each_row_that_keeps_layers_is_named_with_the_range_over_its_pairs(tmp_path: Path) -> None:
    cells = planned()
    first = [cell for cell in cells if cell.label != "narrow" or cell.student == "cifar_resnet8"]
    finish(tmp_path, first)
    notes = [
        "Larger students: simkd keeps layers at inference, in place of the classifier: +20,000 parameters (12.5 to "
        "25.0 % of the student's others).",
        "Larger students: narrow keeps layers at inference, in place of the classifier: +20,000 parameters (25.0 % of "
        "the student's others).",
    ]
    frame = read_results(tmp_path, cells)
    assert list(cost_notes(frame)) == notes
    assert [note for note in summarise(frame).footnotes if note.startswith("Larger")] == notes


def test_numbers_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    cells = planned()
    for kept, parameters in ((100, 100), (0, 100), (200, 100), (100, None)):
        finish(tmp_path, cells, kept_parameters=kept, parameters=parameters)
        assert list(cost_notes(read_results(tmp_path, cells))) == []


def test_rows_with_two_views_are_named_before_they_are_done(tmp_path: Path) -> None:
    cells = planned(two=TWO_VIEWS, other=TWO_VIEWS | {"temperature": 2})
    assert list(cost_notes(read_results(tmp_path, cells))) == [
        "Two views: each step of two, other runs student and teacher on two views of every image; the seconds include "
        "both."
    ]
