"""Measures what cuDNN's deterministic algorithms and the layout of feature maps cost.

In trainings cuDNN is deterministic. If it added up in an order that varies, e.g. for the gradient of weights, a replay
would not have the bits of a step without a recording, and would not be used. This also measures whether the algorithms
that cuDNN chooses by default have the same bits in two runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks import gpu_device
from benchmarks.gpu_cohort import Context, SteppedCohort, collected_messages, with_settings
from benchmarks.markdown import Section, Table
from kd_bench.config.trial import Trial
from kd_bench.models.fast_convs import cuda_memory_format
from kd_bench.testing import first_difference
from kd_bench.training import student
from kd_bench.training.fit import cudnn_deterministic
from kd_bench.training.result_writer import deserialize_state, serialize_state

#: The teacher that trains fastest. Its training is measured, too.
TEACHER = "cifar_vgg13"

#: Ways to compute convolutions, by the name of the result: ``cudnn.deterministic``, and whether maps are contiguous.
WAYS = {"deterministic": (True, False), "default": (False, False), "contiguous": (True, True)}


def plan_networks(context: Context) -> dict[str, Trial]:
    """Returns a training without a teacher of each student of the pairs, and of a teacher, by the network's name."""
    trials = [trials["none"] for trials in context.trials.values()]
    if not context.sizes.quick:
        trials.append(with_settings(trials[0], model=TEACHER))
    return {trial.model: trial for trial in trials}


def measure_network(context: Context, trial: Trial) -> dict[str, Any]:
    """Makes steps of a training in each of ``WAYS``. "contiguous" is left out if kd-bench chooses this layout anyway.

    Returns:
        For each way: "difference", what differs first in two runs without recordings, empty if nothing; "seconds" per
        recorded step in each round; "notes", why steps are not recorded.
    """
    device, sizes = context.device, context.sizes
    trial = trial.model_copy(update={"compile": "off"})
    results: dict[str, Any] = {}
    for name, (deterministic, contiguous) in WAYS.items():
        gpu_device.reset_memory(device)
        with (
            cudnn_deterministic(deterministic),
            _layout(contiguous),
            collected_messages() as messages,
        ):
            cohort = SteppedCohort([trial], context.images, device, context.make_recorder(device, trial))
            if contiguous and cuda_memory_format(cohort.cohort.members[0].network) == torch.contiguous_format:
                continue
            cohort.settle()
            states = [_state_after_steps(context, trial) for _ in range(2)]
            results[name] = {
                "difference": first_difference(*states),
                "seconds": gpu_device.step_seconds(cohort.step, sizes.steps, sizes.rounds, device),
                "notes": list(dict.fromkeys([*messages, *cohort.notes])),
            }
    return results


@contextmanager
def _layout(contiguous: bool) -> Iterator[None]:
    """Inside, students have contiguous maps on a GPU if ``contiguous``, else the layout that kd-bench chooses."""

    def choose(network: nn.Module) -> torch.memory_format:
        return torch.contiguous_format if contiguous else cuda_memory_format(network)

    student.cuda_memory_format = choose
    try:
        yield
    finally:
        student.cuda_memory_format = cuda_memory_format


def _state_after_steps(context: Context, trial: Trial) -> Any:
    """Returns a student's state after a few steps without recordings."""
    cohort = SteppedCohort([trial], context.images, context.device, None)
    for _ in range(context.sizes.repeated):
        cohort.step()
    return deserialize_state(serialize_state(cohort.cohort.members[0].state()))


def section(results: Mapping[str, Any], steps: int) -> Section:
    """Returns the table of all networks.

    Args:
        results: Results of ``measure_network`` by the network's name.
        steps: Number of steps that were made twice.
    """
    rows = [
        [
            network,
            *(_milliseconds(result.get(name)) for name in WAYS),
            *("-" if name not in result else result[name]["difference"] or "same" for name in WAYS),
            *("-" if name not in result else "no" if result[name]["notes"] else "yes" for name in WAYS),
        ]
        for network, result in results.items()
    ]
    notes = [
        f"- {network}, {name}: {note}"
        for network, result in results.items()
        for name, of_way in result.items()
        for note in of_way["notes"]
    ]
    introduction = (
        "Trainings of one student in float32, in three ways. Deterministic: cuDNN's deterministic algorithms, as in "
        "kd-bench. Default: the algorithms that cuDNN chooses by default. Contiguous: as the first, with contiguous "
        "maps where kd-bench uses channels last. Two runs: what differs first between the states of two runs after "
        f"{steps} steps without recordings."
    )
    titles = ["ms a step", "two runs", "recorded"]
    headers = ["network", *(f"{title}, {name}" for title in titles for name in WAYS)]
    return Section("cuDNN", "\n".join([introduction, *([""] if notes else []), *notes]), [Table(headers, rows)])


def _milliseconds(result: Mapping[str, Any] | None) -> str:
    return "-" if result is None else f"{1e3 * statistics.median(result['seconds']):.2f}"
