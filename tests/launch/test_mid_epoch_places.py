"""Where the members of a cohort begin whose checkpoints within an epoch are of different steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kd_bench.launch.train_cohort import _CohortContext, _read_mid_epoch_states
from kd_bench.training.result_writer import serialize_state
from kd_bench.trials.result_writer import TrialResultWriter
from kd_bench.utils.errors import UserError


class Checkpoints(TrialResultWriter):
    """Has one checkpoint within an epoch, or none."""

    def __init__(self, epoch_and_step: tuple[int, int] | None) -> None:
        self.epoch_and_step = epoch_and_step

    def read_mid_epoch(self, epoch: int, world_size: int) -> tuple[int, int, list[bytes]] | None:
        return None if self.epoch_and_step is None else (*self.epoch_and_step, [b"state"])


def member(name: str, next_epoch: int, epoch_and_step: tuple[int, int] | None, preparation: int = 0) -> Any:
    """A member with so many finished epochs of its own, and a checkpoint at (epoch, step) of its own."""
    shifted = None if epoch_and_step is None else (epoch_and_step[0] + preparation, epoch_and_step[1])
    return SimpleNamespace(
        trial=SimpleNamespace(id=name, epochs=9),
        epochs_done=next_epoch,
        next_epoch=next_epoch,
        all_epochs_done=next_epoch + preparation,
        preparation=SimpleNamespace(epochs=preparation),
        writer=Checkpoints(shifted),
    )


@pytest.mark.parametrize(
    ("members", "kept"),
    [
        ([("a", 2, (2, 5)), ("b", 2, (2, 5))], "ab"),
        ([("a", 2, (2, 5)), ("b", 2, (2, 5), 3)], "ab"),  # b had three epochs of preparation before
        ([("a", 2, (2, 5)), ("b", 2, (2, 6))], ""),  # b cannot begin at step 5
        ([("a", 2, (2, 5)), ("b", 2, None)], ""),
        ([("a", 2, (2, 5)), ("b", 3, None)], "a"),
        ([("a", 2, (2, 5)), ("b", 3, (3, 1))], "a"),  # b begins epoch 3 anew when a is there
        ([("a", 2, (2, 5)), ("b", 2, (3, 1))], ""),  # checkpoints of epochs are sparse: b would begin in epoch 2
        ([("a", 2, (2, 5)), ("b", 9, None)], "a"),
        ([("a", 2, None), ("b", 3, None)], ""),
    ],
)
def test_the_earliest_checkpoints_are_used_if_no_other_member_begins_in_their_epoch(members: list, kept: str) -> None:
    states = _read_mid_epoch_states([member(*arguments) for arguments in members], world_size=1)
    assert states == {name: [b"state"] for name in kept}


@pytest.mark.parametrize("error", [KeyError("sums"), RuntimeError("Missing key(s) in state_dict: fc.weight.")])
def test_a_state_of_another_version_is_named(error: Exception) -> None:
    def restore(state: dict[str, Any]) -> None:
        raise error

    context: Any = SimpleNamespace(job=SimpleNamespace(folder="runs/r"))
    student: Any = SimpleNamespace(trial=SimpleNamespace(id="a"), restore_mid_epoch=restore)
    with pytest.raises(UserError, match=r"^runs/r/a/checkpoint/within-\*\.pt: .* does not fit \(.*remove these files"):
        _CohortContext._restore_mid_epoch(context, student, serialize_state({}))


def test_lack_of_memory_says_nothing_of_a_state() -> None:
    def restore(state: dict[str, Any]) -> None:
        raise RuntimeError("CUDA error: out of memory")

    context: Any = SimpleNamespace(job=SimpleNamespace(folder="runs/r"))
    student: Any = SimpleNamespace(trial=SimpleNamespace(id="a"), restore_mid_epoch=restore)
    with pytest.raises(RuntimeError, match="out of memory"):
        _CohortContext._restore_mid_epoch(context, student, serialize_state({}))
