"""Prints an estimate as text with tables, or as CSV."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kd_bench.estimate.history import format_duration
from kd_bench.report.render import Column, Table, TableRow, render
from kd_bench.utils.text import count

if TYPE_CHECKING:
    from kd_bench.estimate.gpus import Assumptions, Gpu
    from kd_bench.estimate.recipe_cost import CohortGroup, RecipeCost

#: Euros per hour by the GPU's name; None is this machine and every GPU that is not named.
Prices = Mapping[str | None, float]

_GB = 1e9


def render_estimate(
    cost: RecipeCost,
    gpus: Mapping[str, Gpu],
    prices: Prices,
    assumed: Assumptions,
    threads: int,
    format: str,
    width: int = 100,
) -> str:
    """Returns an estimate as text that ends with a line break.

    Args:
        cost: The estimate.
        gpus: The GPUs that it was made for.
        prices: Euros per hour; empty for no costs.
        assumed: Numbers that the GPUs' data sheets do not have.
        threads: CPU threads of a cohort.
        format: One of ``kd_bench.report.render.FORMATS``. "csv" has one row per group of cohorts and device.
        width: Columns of the terminal, for "terminal".
    """
    page = _Page(format, width)
    if format == "csv":
        return render([_csv_table(cost, prices)], format)
    parts = [page.wrap(_summary(cost).split("\n"))]
    if any(group.timing for group in cost.groups):
        parts.append(_local_part(cost, prices, threads, page))
    if cost.groups and gpus:
        parts += [
            page.wrap(["On one GPU, all cohorts one after the other; from counted operations, not measured:"])
            + f"\n{page.table(_gpu_table(cost, gpus, prices))}",
            page.wrap(
                [
                    "What was counted: GFLOP an image, and GB on a GPU. Students: parameters, the optimiser's state "
                    "and moving averages of all of them; activations: what one student's forward and backward pass, "
                    "its gradients included (or the teacher's), has in use at most."
                ]
            )
            + f"\n{page.table(_memory_table(cost.groups))}",
            page.wrap(_assumption_lines(cost, gpus, assumed)),
        ]
    notes = [*cost.notes, *_timing_notes(cost.groups), *(note for group in cost.groups for note in group.notes)]
    if notes:
        parts.append(page.wrap(["Notes:", *(f"- {note}" for note in notes)]))
    return "\n\n".join(parts) + "\n"


def _csv_table(cost: RecipeCost, prices: Prices) -> Table:
    columns = ["recipe", "place", "networks", "rows", "cohorts", "epochs", "seconds_an_epoch", "hours",
               "hours_unshared", "memory_bytes", "eur"]  # fmt: skip
    rows = []
    for group in cost.groups:
        for device, epoch in {"here": group.local_epoch, **group.gpu_epochs}.items():
            if epoch is None:
                continue
            hours = group.hours(epoch)
            price = prices.get(device, prices.get(None))
            source = group.timing if device == "here" else group.cost
            rows.append(
                [cost.recipe, device, group.title, " ".join(group.labels), len(group.epochs), sum(group.epochs),
                 epoch.seconds, hours, group.hours(epoch, unshared=True), source.memory if source else None,
                 None if price is None else hours * price]
            )  # fmt: skip
    return _table(columns, rows)


def _summary(cost: RecipeCost) -> str:
    if not cost.groups:
        return f"{cost.recipe}: all {cost.finished} trials have a result; nothing is left to train"
    cohorts = sum(len(group.epochs) for group in cost.groups if not group.trains_teacher)
    trials, teachers = (
        sum(len(group.trials) * len(group.epochs) for group in cost.groups if group.trains_teacher == trains_teacher)
        for trains_teacher in (False, True)
    )
    text = f"{cost.recipe}: to train: {count(trials, 'trial')} in {count(cohorts, 'cohort')}"
    text += f" and {count(teachers, 'teacher')}" if teachers else ""
    text += f"; to read: {count(cost.pretrained_teachers, 'teacher')}" if cost.pretrained_teachers else ""
    text += f"; {count(cost.finished, 'trial')} finished before" if cost.finished else ""
    return f"{text}.\nA cohort is the students that one process trains side by side, with one pass of the teacher."


def _local_part(cost: RecipeCost, prices: Prices, threads: int, page: _Page) -> str:
    concurrent = len(cost.devices)
    rows = []
    for group in cost.groups:
        if group.timing is None:
            continue
        timing, epoch = group.timing, group.timing.epoch
        timed_on = count(timing.images, "image")
        if timing.steps:
            timed_on = f"{count(timing.steps, 'step')} of\n{timed_on}"
        seconds = [epoch.shared, sum(epoch.students), epoch.evaluation + epoch.checkpoint, 3600 * group.hours(epoch)]
        least, most = min(group.epochs), max(group.epochs)
        epochs = str(most) if least == most else f"{least} to {most}"
        if before := _most_preparation_epochs(group):
            epochs += f"\n+ {before}"
        rows.append(
            [_group_name(group), len(group.epochs), epochs, timed_on, *map(format_duration, seconds),
             f"{timing.memory / _GB:.1f} GB"]
        )  # fmt: skip
    headers = ["cohort", "of\nthese", "epochs", "timed on", "epoch:\nimages,\nteacher", "students", "test",
               "all\nepochs", "memory"]  # fmt: skip
    hours, unshared, wall = cost.hours(), cost.hours(unshared=True), cost.wall_hours()
    total = f"Together {_hours(hours)}"
    changes = ["cohorts are split for cores or GPUs that would be idle"] * cost.splits_cohorts
    changes += ["students without a teacher join cohorts with the same batches"] * cost.joins_cohorts
    if concurrent > 1 or changes:
        total += f"; {_hours(wall)} from beginning to end, {concurrent} at once"
    if changes:
        total += f": {' and '.join(changes)}"
    if None in prices:
        total += f"; {_euros(wall * prices[None])}"
    title = (
        f"On this machine ({cost.device_name}; {count(concurrent, 'cohort')} at once, {count(threads, 'thread')} each):"
    )
    total += f". One trial at a time it would take {_hours(unshared)}: sharing saves {_saved(hours, unshared)}."
    return "\n".join([page.wrap([title]), page.table(_table(headers, rows)), page.wrap([total])])


def _saved(hours: float, unshared: float) -> str:
    """Returns the part of the hours that sharing saves; 0 % if there is nothing to train."""
    return f"{100 * (1 - hours / unshared) if unshared else 0:.0f} %"


def _gpu_table(cost: RecipeCost, gpus: Mapping[str, Gpu], prices: Prices) -> Table:
    largest = max(group.cost.memory for group in cost.groups if group.cost)
    rows = []
    for name, gpu in gpus.items():
        hours, unshared = cost.hours(name), cost.hours(name, unshared=True)
        fits = "yes" if largest < 0.9 * gpu.memory * _GB else "hardly" if largest < gpu.memory * _GB else "no"
        price = prices.get(name, prices.get(None))
        rows.append(
            [name, _hours(hours), _hours(unshared), _saved(hours, unshared),
             f"{largest / _GB:.1f} of {gpu.memory:g} GB", fits, *([] if price is None else [_euros(hours * price)])]
        )  # fmt: skip
    headers = ["card", "GPU hours,\nall cohorts", "one trial\nat a time", "saved by\nsharing", "largest cohort", "fits"]
    return _table([*headers, "cost"] if prices else headers, rows)


def _memory_table(groups: Sequence[CohortGroup]) -> Table:
    rows = []
    for group in groups:
        cost = group.cost
        assert cost is not None
        gflop = 1e9 * cost.images
        teacher = f"{cost.teacher.flops / gflop:.3g}" if cost.teacher.flops else "-"
        students = [member.step.flops / gflop for member in cost.members]
        least, most = min(students), max(students)
        student = f"{least:.3g}" if most < 1.01 * least else f"{least:.3g} to {most:.3g}"
        memory = [cost.teacher_parameters, cost.resident, cost.transient, cost.data, cost.memory]
        rows.append([_group_name(group), teacher, student, cost.images, *(f"{size / _GB:.2f}" for size in memory)])
    headers = ["cohort", "GFLOP:\nteacher", "each\nstudent", "images\nat once", "GB:\nteacher", "students",
               "activations", "images", "all"]  # fmt: skip
    return _table(headers, rows)


def _assumption_lines(cost: RecipeCost, gpus: Mapping[str, Gpu], assumed: Assumptions) -> list[str]:
    without_bfloat16 = ", ".join(gpu.title for gpu in gpus.values() if gpu.bf16 is None)
    uses_bfloat16 = any(trial.precision == "bfloat16" for group in cost.groups for trial in group.trials)
    return [
        "How the GPU hours are computed:",
        f"- An operation takes as long as the slowest of: its arithmetic at {assumed.compute:.0%} of the card's "
        f"peak (--of-peak), its memory traffic at {assumed.training:.0%} of the bandwidth in passes with gradients "
        f"and {assumed.forward:.0%} without (--of-bandwidth), and {1e6 * assumed.launch:.0f} microseconds.",
        "- With the default fractions, 34 published speeds of networks in PyTorch on RTX 3090, 4090 and 5090, V100 and "
        "A100 are estimated at 0.74 to 1.28 times the published value; no other card was compared "
        "(benchmarks/estimate.py, devices/speeds.csv).",
        "- bfloat16 is computed at its dense peak, convolutions of float32 in TF32, products of float32 matrices "
        "in float32, as PyTorch does by default. Peaks are those of the data sheets (devices/gpus.yaml).",
        *(
            [f"- {without_bfloat16}: has no bfloat16, which is counted as float32."]
            if without_bfloat16 and uses_bfloat16
            else []
        ),
        "Not counted: reading, decoding and copying images (a GPU may wait for them: see --workers of kd-bench "
        "run), writing checkpoints, starting, traffic between GPUs, torch.compile. Memory: cuDNN's workspaces, "
        "and gaps between allocations; leave a tenth of the card free.",
    ]


def _most_preparation_epochs(group: CohortGroup) -> int:
    return max((max(of_cohort) for of_cohort in group.preparations), default=0)


def _timing_notes(groups: Sequence[CohortGroup]) -> list[str]:
    timings = [group.timing for group in groups if group.timing]
    notes = []
    if any(map(_most_preparation_epochs, groups)):
        notes.append(
            "epochs behind a + are those of preparations, in which only the methods train that have one; their steps "
            "are taken to be as long as those of the other epochs"
        )
    if any(not timing.steps for timing in timings):
        notes.append(
            "if the table names images only, a whole step takes too long here or its images are missing: teacher and "
            "students were timed one by one on these images, and the times multiplied"
        )
    if any(timing.undecoded for timing in timings):
        notes.append("missing images cannot be decoded: this machine's hours do not include the time for that")
    return notes


class _Page(NamedTuple):
    """How the text is printed: in a format, as wide as the terminal."""

    format: str
    width: int

    def wrap(self, lines: Sequence[str]) -> str:
        """Returns sentences, each on a line of its own or, on a terminal, on several."""
        if self.format == "terminal":
            columns = min(self.width, 118)
            wrapper = textwrap.TextWrapper(
                columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
            lines = [wrapper.fill(line) for line in lines]
        return "\n".join(lines)

    def table(self, table: Table) -> str:
        """Returns a table without a line break at its end."""
        return render([table], self.format, width=self.width).rstrip("\n")


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    columns = tuple(Column(tuple(header.split("\n"))) for header in headers)
    return Table("", columns, (tuple(TableRow(row) for row in rows),))


def _group_name(group: CohortGroup) -> str:
    """Returns the networks, and the table's rows in lines of at most 40 characters below them."""
    lines = [""]
    for label in dict.fromkeys(group.labels):
        if len(lines[-1]) + len(label) > 40:
            lines.append("")
        lines[-1] += f"{', ' if lines[-1] else ''}{label}"
    return "\n  ".join([group.title, *lines])


def _hours(value: float) -> str:
    return format_duration(3600 * value)


def _euros(value: float) -> str:
    return f"{value:,.2f} EUR" if value < 100 else f"{value:,.0f} EUR"
