"""Estimates the time of a recipe: on this machine from timed steps, and on GPUs from counted operations."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

from kd_bench.config.trial import PlannedTrial
from kd_bench.estimate import placeholders
from kd_bench.estimate.gpus import Assumptions, Gpu, estimate_seconds
from kd_bench.estimate.recipe_cost import CohortGroup, RecipeCost, group_missing_trials
from kd_bench.estimate.step_cost import CohortCost, count_cohort, evaluated_images
from kd_bench.estimate.timing_job import EpochTime, TimingJob
from kd_bench.estimate.timing_process import TimingProcess
from kd_bench.launch.cohort_task import cohort_load
from kd_bench.launch.devices import local_slots, share_gpus
from kd_bench.launch.options import RunOptions
from kd_bench.training.loaders import Images
from kd_bench.trials.environment import describe_environment
from kd_bench.trials.folder import TEACHERS, TrialFolder
from kd_bench.utils.cpu import usable_cores
from kd_bench.utils.errors import UserError

#: Seconds for timing all groups together if the number of steps is not given, and for each round of them if it is.
TOTAL_SECONDS, ROUND_SECONDS = 60.0, 600.0


def estimate_recipe(
    planned: Sequence[PlannedTrial],
    options: RunOptions,
    name: str,
    gpus: dict[str, Gpu],
    assumed: Assumptions,
    log: Callable[[str], None],
    steps: int | None = None,
) -> RecipeCost:
    """Estimates the missing trials of a recipe. Groups of equal cost are counted and timed once.

    Args:
        planned: The recipe's trials.
        options: How the recipe would be run.
        name: The recipe's name.
        gpus: GPUs to estimate it for, by name.
        assumed: Numbers that the GPUs' data sheets do not have.
        log: Receives one line per step of the work.
        steps: Steps to time per group; 0 for none; None for as many as fit into about a minute.

    Raises:
        UserError: If networks and method fit together in none of the trials, or if images are missing and their number
            is unknown.
        RunFailed: If a process that times a cohort ends without an answer.
    """
    groups, finished, pretrained_teachers = group_missing_trials(planned, options, name)
    devices = [slot[0] for slot in local_slots(options)]
    device_name = describe_environment(devices[0], options.threads)["device_name"]
    notes: list[str] = []
    for number, group in enumerate(groups, 1):
        log(f"counting the operations of {group.title} ({number} of {len(groups)})")
        notes += _count_group(group, options, gpus, assumed)
    students = [group for group in groups if not group.trains_teacher]
    if students and not any(group.trials for group in students):
        raise UserError("; ".join(dict.fromkeys(note for note in notes if note)))
    groups = [group for group in groups if group.trials]
    if steps != 0 and groups:
        notes.append(_load_note())
        _time_groups(groups, options, devices, steps, log)
        notes += [group.timing.stand_in for group in groups if group.timing]
    notes = [note for note in dict.fromkeys(notes) if note]
    return RecipeCost(name, groups, devices, device_name, finished, pretrained_teachers, notes, options.cohort_size)


def _count_group(group: CohortGroup, options: RunOptions, gpus: dict[str, Gpu], assumed: Assumptions) -> list[str]:
    """Counts a group and estimates its epochs on GPUs. Leaves out students that would fail.

    Returns:
        Remarks: which students would fail and why, and why images are missing.
    """
    first = group.trials[0]
    images, reason = placeholders.images_or_placeholders(first.dataset, first.pipeline, options.data)
    group.images = len(images.train_labels), len(images.test_labels)
    notes = [reason]
    try:
        cost = count_cohort(group.trials, images)
    except UserError:
        refused = _refused_trials(group, images)
        if group.trains_teacher or not refused:
            raise
        notes += [f"{group.title}: left out, because it would fail: {why}" for why in refused.values()]
        group.leave_out(refused)
        if not group.trials:
            return notes
        cost = count_cohort(group.trials, images)
    group.cost = cost
    for label, member in zip(group.labels, cost.members, strict=True):
        if member.uncounted:
            group.notes.append(f"{label}: only its student could be counted, not its method ({member.uncounted})")
    steps = max(1, group.images[0] // first.batch_size)
    evaluated = evaluated_images(images)
    group.gpu_epochs = {name: _gpu_epoch(cost, gpu, assumed, steps, evaluated) for name, gpu in gpus.items()}
    return notes


def _refused_trials(group: CohortGroup, images: Images) -> dict[str, str]:
    """Returns why networks and method of a trial do not fit together, by the trial's identity."""
    reasons = {}
    for trial in group.trials:
        try:
            count_cohort([trial], images)
        except UserError as error:
            reasons[trial.id] = str(error)
    return reasons


def _gpu_epoch(cost: CohortCost, gpu: Gpu, assumed: Assumptions, steps: int, evaluated: int) -> EpochTime:
    """Returns the time of an epoch with this number of steps and of images that the students are evaluated on."""
    training = partial(estimate_seconds, gpu=gpu, assumed=assumed, training=True)
    forward = partial(estimate_seconds, gpu=gpu, assumed=assumed, training=False)
    students = [training(member.step) * cost.micro_batches + training(member.update) for member in cost.members]
    return EpochTime(
        shared=forward(cost.teacher) * cost.micro_batches * steps,
        students=tuple(seconds * steps for seconds in students),
        evaluation=sum(forward(member.evaluation) for member in cost.members) * evaluated / cost.images,
    )


def _time_groups(
    groups: list[CohortGroup],
    options: RunOptions,
    devices: list[str],
    steps: int | None,
    log: Callable[[str], None],
) -> None:
    """Times all groups, with as many concurrent cohorts as a run would have, so that they share the machine alike.

    A group that is timed repeatedly keeps its slowest timing.
    """
    splits = not share_gpus(devices)
    rounds = [members for phase in training_phases(groups) for members in timing_rounds(phase, len(devices), splits)]
    allowed = TOTAL_SECONDS / max(1, len(rounds)) if steps is None else ROUND_SECONDS
    for members in rounds:
        log(f"timing {', '.join(dict.fromkeys(group.title for group in members))}")
        processes = [
            TimingProcess(_timing_job(group, options, device, steps, allowed), group.title)
            for group, device in zip(members, devices, strict=False)
        ]
        try:
            for group, process in zip(members, processes, strict=True):
                try:
                    timing = process.result()
                    if group.timing is None or timing.epoch.training > group.timing.epoch.training:
                        group.timing = timing
                except UserError as error:
                    note = f"{group.title}: could not be timed: {error}"
                    if note not in group.notes:
                        group.notes.append(note)
        finally:
            for process in processes:
                process.stop()


def training_phases(groups: Sequence[CohortGroup]) -> list[list[CohortGroup]]:
    """Splits groups by when they run: those that wait for a teacher to be trained run after the others."""
    if not any(group.trains_teacher for group in groups):
        return [list(groups)]
    waiting = [group for group in groups if group.trials[0].teacher is not None]
    return [[group for group in groups if group not in waiting], waiting]


def timing_rounds(groups: list[CohortGroup], devices: int, splits: bool) -> list[list[CohortGroup]]:
    """Splits groups into rounds of as many timings as cohorts would run at once. Repeats groups to fill the last.

    Args:
        groups: The groups.
        devices: Largest number of cohorts at once.
        splits: Whether cohorts are split for idle devices.
    """
    cohorts = sum(len(group.epochs) * (cohort_load(group.trials).most_parts if splits else 1) for group in groups)
    size = min(devices, cohorts)
    rounds = -(-len(groups) // size) if size else 0
    return [[groups[(number * size + index) % len(groups)] for index in range(size)] for number in range(rounds)]


def _timing_job(group: CohortGroup, options: RunOptions, device: str, steps: int | None, seconds: float) -> TimingJob:
    teacher = group.trials[0].teacher
    folder = TrialFolder(options.out / TEACHERS / teacher.id) if teacher else None
    weights = folder.weights if folder and folder.status() == "done" else None
    return TimingJob(group.trials, weights, options, device, steps, seconds)


def _load_note() -> str:
    """Returns a note if other programs use the processor, which makes the timed steps slower; else an empty string."""
    cores = usable_cores()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < 0.5 * cores:
        return ""
    return f"other work was running when the timing began (load {load:.1f}, cores {cores}); alone, it may be faster"
