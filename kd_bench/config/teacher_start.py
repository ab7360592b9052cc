"""What a teacher's training starts from: ``teachers: {NAME: {pretrained: FILE, trainable: head}}``."""

from __future__ import annotations

from typing import Any

from kd_bench.config.base import NonEmpty, Settings
from kd_bench.config.data import Augment
from kd_bench.config.trial import Trainable, Trial
from kd_bench.config.validate import parse


class TeacherStart(Settings):
    """Initial weights of a teacher, and the part of it that is trained.

    Attributes:
        pretrained: A file of weights that training starts from, or ``timm`` for the file of timm's weights that
            ``kd-bench teacher fetch`` has downloaded; None for random weights.
        trainable: The part that is trained: ``all``, ``head`` (the classifier), or ``last_block`` (the last block and
            everything behind it).
    """

    pretrained: NonEmpty | None = None
    trainable: Trainable = "all"


def pop_start(settings: dict[str, Any], context: str) -> TeacherStart:
    """Removes ``pretrained`` and ``trainable`` from a teacher's settings, and returns them.

    Args:
        settings: The settings of one teacher.
        context: File and key of the settings, for error messages.

    Raises:
        UserError: If a value is invalid.
    """
    start = {key: settings.pop(key) for key in TeacherStart.model_fields if key in settings}
    return parse(TeacherStart, start, context)


def allows_features(trial: Trial) -> bool:
    """Whether the classifier of a trial's network is trained on features that are the same in every epoch."""
    augment = trial.augment.model_copy(update={"crop": trial.augment.crop or 0, "flip": bool(trial.augment.flip)})
    plain = augment == Augment(crop=0, flip=False) and trial.second_view is None and trial.adversarial is None
    return trial.trainable == "head" and plain and trial.pipeline is None
