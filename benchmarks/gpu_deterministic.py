"""Whether cuDNN's default algorithms have the same bits in every run, and what its deterministic ones cost.

Steps of a student are made twice from the same state, operation by operation. If cuDNN chose algorithms that add up in
an order that varies, e.g. for the gradient of weights, the bits would differ, and no step could be recorded.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks import gpu_device
from benchmarks.gpu_cohort import Context, SteppedCohort, collected_messages
from benchmarks.markdown import Section, Table
from kd_bench.config.trial import Trial
from kd_bench.testing import first_difference
from kd_bench.training.result_writer import serialize_state

#: Values of ``torch.backends.cudnn.deterministic``, by the name of the result.
FLAGS = {"default": False, "deterministic": True}


def plan_students(context: Context) -> dict[str, Trial]:
    """Returns a trial without a teacher of each student of the pairs, by the student's published name."""
    return {title.partition(" -> ")[2]: trials["none"] for title, trials in context.trials.items()}


def measure_student(context: Context, trial: Trial) -> dict[str, Any]:
    """Makes steps with and without cuDNN's deterministic algorithms.

    Returns:
        For each name in ``FLAGS``: "difference", what differs first in two runs without recordings, empty if nothing;
        "seconds" per recorded step in each round; "notes", why steps are not recorded.
    """
    device, sizes = context.device, context.sizes
    trial = trial.model_copy(update={"compile": "off"})
    results: dict[str, Any] = {}
    for name, flag in FLAGS.items():
        gpu_device.reset_memory(device)
        with gpu_device.cudnn_deterministic(flag), collected_messages() as messages:
            states = [_state_after_steps(context, trial) for _ in range(2)]
            cohort = SteppedCohort([trial], context.images, device, context.make_recorder(device, trial))
            cohort.settle()
            results[name] = {
                "difference": first_difference(*states),
                "seconds": gpu_device.step_seconds(cohort.step, sizes.steps, sizes.rounds, device),
                "notes": list(dict.fromkeys([*messages, *cohort.notes])),
            }
    return results


def _state_after_steps(context: Context, trial: Trial) -> Any:
    cohort = SteppedCohort([trial], context.images, context.device, None)
    for _ in range(context.sizes.repeated):
        cohort.step()
    state = io.BytesIO(serialize_state(cohort.cohort.members[0].state()))
    return torch.load(state, map_location="cpu", weights_only=True)


def section(results: Mapping[str, Any], steps: int) -> Section:
    """Returns the table of all students.

    Args:
        results: Results of ``measure_student`` by the student's name.
        steps: Number of steps that were made twice.
    """
    rows = [
        [
            student,
            *(f"{1e3 * statistics.median(result[name]['seconds']):.2f}" for name in FLAGS),
            *(result[name]["difference"] or "same" for name in FLAGS),
            *("no" if result[name]["notes"] else "yes" for name in FLAGS),
        ]
        for student, result in results.items()
    ]
    notes = [
        f"- {student}, {name}: {note}"
        for student, result in results.items()
        for name in FLAGS
        for note in result[name]["notes"]
    ]
    introduction = (
        "Students alone, float32, with cuDNN's default algorithms and with its deterministic ones "
        f"(`torch.backends.cudnn.deterministic`): milliseconds of a step, the states after {steps} steps without "
        "recordings, made twice, and whether steps are recorded."
    )
    titles = ["ms a step", "two runs", "recorded"]
    headers = ["student", *(f"{title}, {name}" for title in titles for name in FLAGS)]
    return Section("cuDNN", "\n".join([introduction, *([""] if notes else []), *notes]), [Table(headers, rows)])
