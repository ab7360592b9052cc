"""The confusion matrix of a result: written, read, and checked against the accuracies by class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kd_bench.report.trial_files import read_details
from kd_bench.trials.confusion import conflict, format_rows, parse_rows
from kd_bench.trials.reader import read_trial
from tests.report.trials import put

WHOLE: dict[str, Any] = {
    "class_top1_last": [75.0, 100.0, None],
    "class_names": ["cat", "dog", "none"],
    "confusion_last": ["0:3 2:1", "1:5", ""],
}


def test_lines() -> None:
    assert format_rows([(0, 0, 3), (0, 2, 1), (1, 1, 5)], 3) == WHOLE["confusion_last"]
    assert parse_rows(WHOLE["confusion_last"]) == [{0: 3, 2: 1}, {1: 5}, {}]
    assert parse_rows([]) == []


def test_the_page_has_what_was_written(tmp_path: Path) -> None:
    details = read_details(put(tmp_path / "some", **WHOLE))
    assert details.classes == (75.0, 100.0, None) and details.class_names == ("cat", "dog", "none")
    assert details.confusion == ({0: 3, 2: 1}, {1: 5}, {})
    assert conflict({}) is None and conflict({"class_top1_last": [1.0]}) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"class_names": ["cat"]}, "class_names has 1 classes, but class_top1_last has 3"),
        ({"class_top1_last": None}, "class_names has 3 classes, but class_top1_last has 0"),
        ({"confusion_last": ["0:3 2:1", "1:5"]}, "confusion_last has 2 classes, but class_top1_last has 3"),
        ({"confusion_last": ["0:3 2:1", "1:5", "0:1"]}, "class_top1_last says None % of class 2"),
        ({"confusion_last": ["0:2 2:1", "1:5", ""]}, "class_top1_last says 75.0 % of class 0"),
        ({"confusion_last": ["0:3 3:1", "1:5", ""]}, "confusion_last has class 3, but there are 3 classes"),
        ({"confusion_last": ["0:3 2:-1", "1:5", ""]}, "confusion_last.0"),
        ({"confusion_last": ["0:3 2:1 ", "1:5", ""]}, "confusion_last.0"),
        ({"confusion_last": ["0:3 2", "1:5", ""]}, "confusion_last.0"),
        ({"confusion_last": "0:3"}, "confusion_last"),
    ],
)
def test_what_does_not_fit_is_damage(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    record = read_trial(put(tmp_path / "some", **WHOLE | change))
    assert record.verdict == "damaged" and [fault.file for fault in record.faults] == ["result.json"]
    assert reason in record.faults[0].text
    assert read_details(record.path).classes == ()
