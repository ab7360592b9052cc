"""What cuDNN's deterministic algorithms cost, whether others have the same bits twice, and another layout of maps.

In trainings cuDNN is deterministic: if it added up in an order that varies, e.g. for the gradient of weights, a
recorded step would not have the bits of one that is not recorded, and could not be used.
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
from kd_bench.training.result_writer import deserialize_state, serialize_state

#: The teacher that trains fastest. It is measured in training, too.
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
    """Makes steps of a training in each of the ways that differ for its network.

    Returns:
        For each of ``WAYS``: "difference", what differs first in two runs without recordings, empty if nothing;
        "seconds" per recorded step in each round; "notes", why steps are not recorded.
    """
    device, sizes = context.device, context.sizes
    trial = trial.model_copy(update={"compile": "off"})
    results: dict[str, Any] = {}
    for name, (deterministic, contiguous) in WAYS.items():
        gpu_device.reset_memory(device)
        with (
            gpu_device.cudnn_deterministic(deterministic),
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
    """Inside, students have contiguous maps on a GPU; or, if not ``contiguous``, the layout that kd-bench chooses."""

    def choose(network: nn.Module) -> torch.memory_format:
        return torch.contiguous_format if contiguous else cuda_memory_format(network)

    student.cuda_memory_format = choose
    try:
        yield
    finally:
        student.cuda_memory_format = cuda_memory_format


def _state_after_steps(context: Context, trial: Trial) -> Any:
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
        "Trainings alone, float32, with cuDNN's deterministic algorithms, as kd-bench trains; with those that it "
        "chooses by default; and with the former and contiguous maps, where kd-bench has the channels last. "
        f"Milliseconds of a step, the states after {steps} steps without recordings, made twice, and whether steps are "
        "recorded."
    )
    titles = ["ms a step", "two runs", "recorded"]
    headers = ["network", *(f"{title}, {name}" for title in titles for name in WAYS)]
    return Section("cuDNN", "\n".join([introduction, *([""] if notes else []), *notes]), [Table(headers, rows)])


def _milliseconds(result: Mapping[str, Any] | None) -> str:
    return "-" if result is None else f"{1e3 * statistics.median(result['seconds']):.2f}"
