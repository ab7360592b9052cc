"""Checks of finished trials."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kd_bench.trials import integrity
from kd_bench.trials.integrity import CheckedTrial, check_trial
from tests.training.parts import trial
from tests.trials.folders import finish


def test_weights_that_cannot_be_read_are_a_fault_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finish(tmp_path / trial("kd").id, trial("kd"))
    assert check_trial(folder) == CheckedTrial(folder, "done", ())

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(integrity, "sha256", fail)
    fault = f"{folder / 'student.safetensors'}: cannot be read: Input/output error"
    assert check_trial(folder) == CheckedTrial(folder, "damaged", (fault,))
