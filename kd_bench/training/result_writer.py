"""The interface through which a member of a cohort passes its results on."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from kd_bench.training.student import StudentModule


class ResultWriter:
    """Receives a member's results, and discards them unless a subclass overrides a method.

    ``kd_bench.trials.result_writer`` writes them to the trial's folder. Ranks above 0 use this class, because their
    members have the same results as those of rank 0.
    """

    def write_epoch(self, member: StudentModule) -> None:
        """Writes an epoch, which the member's state and history include."""

    def write_row(self, member: StudentModule) -> None:
        """Writes the metrics of an epoch without the state, because the last checkpoint is recent."""

    def write_mid_epoch(self, member: StudentModule, step: int, states: list[bytes]) -> None:
        """Writes the state within an epoch after ``step`` steps: ``member.mid_epoch_state(step)`` of each process."""

    def write_divergence(self, member: StudentModule, reason: str) -> None:
        """Writes that the loss was not finite. Another training with the same settings has the same result."""

    def report_crash(self, member: StudentModule, reason: str) -> None:
        """Reports that the method raised an error."""

    def report_note(self, member: StudentModule, text: str) -> None:
        """Reports something that the user should know, and that changes no result."""


def serialize_state(state: Any) -> bytes:
    """Returns the bytes that ``torch.save`` writes."""
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def deserialize_state(content: bytes) -> Any:
    """Returns the state that ``serialize_state`` has serialized, with all tensors on the CPU.

    Members are restored on the CPU and moved to their device afterwards, which may not be the device on which the state
    was saved. Code in the content is not run.
    """
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
