"""The epochs of a method's preparation, which come before the student's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd_bench.config.trial import Trial


class Preparation:
    """The position of a trial in the epochs before the student's own. Most methods have none.

    In the numbering of epochs they are negative: the last one is -1, so that a cohort's trials begin epoch 0 together.

    Args:
        trial: The trial.

    Attributes:
        epochs: Number of the epochs.
        learning_rate: Their learning rate, which is constant.
        history: A row of metrics for each finished one.
    """

    def __init__(self, trial: Trial) -> None:
        rate = trial.method.hyperparameters.get("preparation_lr")
        self.epochs = trial.preparation_epochs
        self.learning_rate: float = trial.optimizer.lr if rate is None else rate
        self.history: list[dict[str, Any]] = []

    @property
    def is_over(self) -> bool:
        """Whether all epochs are finished."""
        return len(self.history) >= self.epochs

    @property
    def next_epoch(self) -> int:
        """The next of the epochs, from ``-epochs`` to -1; 0 if they are over."""
        return len(self.history) - self.epochs

    def restore(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Restores the rows of a checkpoint."""
        self.history = [dict(row) for row in history]
