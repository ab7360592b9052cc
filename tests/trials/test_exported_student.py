"""Folders of exported students, which may come from anybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kd_bench.trials.exported_student import load_exported_student
from kd_bench.utils.errors import UserError


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_classes": 10**15}, "classes from 1 to 100000"),
        ({"num_classes": 0}, "classes from 1 to 100000"),
        ({"image_shape": [3, 10**9, 10**9]}, "sides may be from 1 to 4096"),
        ({"image_shape": [3, -1, 32]}, "sides may be from 1 to 4096"),
        ({"image_shape": [3, "1e999", 32]}, "lacks trial, image_shape or num_classes"),
        ({"num_classes": None}, "lacks trial, image_shape or num_classes"),
    ],
)
def test_impossible_sizes_are_refused_before_memory_is_taken(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    content = {"trial": {}, "image_shape": [3, 32, 32], "num_classes": 10} | changes
    text = json.dumps(content).replace('"1e999"', "1e999")
    (tmp_path / "student.json").write_text(text)
    with pytest.raises(UserError, match=expected) as error:
        load_exported_student(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "student.json"))
