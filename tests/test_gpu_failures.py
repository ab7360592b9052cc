"""The check of failed recordings, with a tape in place of CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import gpu_failures
from tests.training.tape import TapeLane, TapeRecorder

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def allocate(*size: Any, **options: Any) -> torch.Tensor:
        if size == (gpu_failures.TOO_MANY,):
            raise torch.OutOfMemoryError("CUDA out of memory (in a test)")
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(gpu_failures, "TAKEN", 8)


def test_nothing_is_wrong_with_a_recorder_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(gpu_failures.find_problems(TapeRecorder(), CPU)) == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * 2
    assert lines[0].startswith("a number is read: RuntimeError: ")
    assert lines[-1] == "memory is short: OutOfMemoryError: CUDA out of memory (in a test)"


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TapeLane, "record", lambda self, function, generators: lambda: None)
    problems = list(gpu_failures.find_problems(TapeRecorder(), CPU))
    assert problems[0] == "a number is read: it was recorded"
    assert problems[1].startswith("after a number is read: a replay draws [1.0, 1.0, 1.0], a step [1.")
    assert len(problems) == 3 * 2 * 2


def test_without_a_gpu_one_sentence_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_failures.main() == 2
    assert "there is no CUDA device" in capsys.readouterr().err
