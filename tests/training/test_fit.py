"""``fit`` evaluates the test set in one block beside recorded steps, and makes cuDNN deterministic on a GPU."""

from __future__ import annotations

import pytest
import torch

from kd_bench.training.fit import repeatable_convs
from tests.training.tape import TapeRecorder
from tests.training.test_recorded import run, trial


def test_a_cohort_whose_test_set_is_one_block_has_the_numbers_of_one_with_single_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kd_bench.training.loaders.EVALUATION_BATCH", 16)  # 40 test images are three batches
    (in_one_block,), _ = run([trial("kd")], TapeRecorder(refuses=True))
    (in_batches,), _ = run([trial("kd")], None)
    rows, others = (_numbers(writer.states[-1]["history"]) for writer in (in_one_block, in_batches))
    assert len(rows) == 3
    assert rows == others


def _numbers(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in history]


@pytest.mark.parametrize("before", [True, False])
def test_cudnn_is_deterministic_on_a_gpu_and_then_as_before(monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", before)
    with repeatable_convs(torch.device("cpu")):
        assert torch.backends.cudnn.deterministic is before
    with pytest.raises(ValueError, match="in a training"), repeatable_convs(torch.device("cuda")):
        assert torch.backends.cudnn.deterministic
        raise ValueError("in a training")
    assert torch.backends.cudnn.deterministic is before
