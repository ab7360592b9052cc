"""Identifies trials whose steps cost the same."""

from __future__ import annotations

from kd_bench.config.trial import Trial, identity

#: Settings that do not change the cost of a step.
_WITHOUT_COST = {"seed", "epochs", "schedule", "schema", "teacher"}


def cost_key(trial: Trial) -> str:
    """Returns a hash of the settings that the cost of a step depends on, including the teacher's network and input."""
    settings = trial.model_dump(mode="json", exclude=_WITHOUT_COST)
    teacher = trial.teacher
    teacher_settings = None if teacher is None else [teacher.model, teacher.input.model_dump(mode="json")]
    return identity({"settings": settings, "teacher": teacher_settings})
