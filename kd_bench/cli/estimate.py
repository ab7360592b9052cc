"""``kd-bench estimate``: hours, memory and cost of what is missing of a recipe."""

from __future__ import annotations

import csv
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import common
from kd_bench.cli.options import (
    OUT,
    CohortSize,
    Data,
    Device,
    Jobs,
    Method,
    Only,
    Out,
    RecipeName,
    Set,
    Threads,
    Trials,
    Workers,
)
from kd_bench.utils.errors import UserError, unknown

if TYPE_CHECKING:
    from kd_bench.estimate.gpus import Assumptions, Gpu
    from kd_bench.estimate.recipe_cost import CohortGroup, RecipeCost

FORMATS = {"terminal": "simple", "markdown": "pipe", "plain": "plain", "latex": "latex_booktabs", "csv": ""}

CARDS = "h100,a100-80gb,rtx-4090"

_GB = 1e9


def estimate(
    recipe: RecipeName,
    method: Method = None,
    only: Only = None,
    trials: Trials = None,
    set_: Set = None,
    out: Out = OUT,
    data: Data = None,
    jobs: Jobs = None,
    threads: Threads = 1,
    device: Device = "auto",
    cohort_size: CohortSize = 8,
    workers: Workers = 2,
    cards: Annotated[str, typer.Option("--cards", help="GPUs, with commas between; none for none.")] = CARDS,
    price: Annotated[
        str | None, typer.Option("--price", help="EUR an hour: 2.50, or by card: h100=2.50,a100-80gb=1.60.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=0, help="Steps to time here; 0: none; default: a minute's worth.")
    ] = None,
    of_peak: Annotated[
        float | None, typer.Option("--of-peak", help="Fraction of a card's peak that arithmetic reaches.")
    ] = None,
    of_bandwidth: Annotated[
        float | None, typer.Option("--of-bandwidth", help="Fraction of a card's bandwidth that is reached.")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="terminal, markdown, plain, latex or csv.")] = "terminal",
) -> None:
    """Estimate hours, memory and cost of what is missing of a recipe, here and on GPUs; trains nothing.

    This machine's hours come from a few timed steps, the GPUs' from counted operations and data sheets, so that they
    can be had without a GPU, without the images, and without the teacher's weights.
    """
    from kd_bench.config.load import find_recipe, read_recipe
    from kd_bench.estimate import history, placeholders
    from kd_bench.estimate import recipe_cost as estimating
    from kd_bench.estimate.gpus import chosen

    if format_ not in FORMATS:
        raise unknown("format", format_, FORMATS, "--format")
    wanted = chosen(cards, "--cards")
    prices = _prices(price, wanted)
    assumed = _assumptions(of_peak, of_bandwidth)
    read, context = read_recipe(recipe, common.with_rows(recipe, method, set_), trials), str(find_recipe(recipe))
    planned, notes = placeholders.plan(read, context, only or ())
    options = estimating.EstimateOptions(out, data, jobs, threads, device, cohort_size, workers, steps)
    found = estimating.estimate_recipe(planned, options, read.name, wanted, assumed, _say)
    found.notes[:0] = notes
    if format_ == "csv":
        _write_csv(found, prices)
    else:
        text = _Text(found, wanted, prices, assumed, threads, FORMATS[format_])
        typer.echo(text.all())
    if found.groups:
        _say(f"kept in {history.keep(found, options)}")


def _say(line: str) -> None:
    typer.echo(f"estimate: {line}", err=True)


def _assumptions(of_peak: float | None, of_bandwidth: float | None) -> Assumptions:
    from dataclasses import replace

    from kd_bench.estimate.gpus import Assumptions

    assumed = Assumptions()
    for option, value in (("--of-peak", of_peak), ("--of-bandwidth", of_bandwidth)):
        if value is not None and not 0 < value <= 1:
            raise UserError(f"{option}: should be a fraction above 0 and at most 1 (it is {value})")
    if of_peak is not None:
        assumed = replace(assumed, compute=of_peak)
    return assumed if of_bandwidth is None else replace(assumed, training=of_bandwidth, forward=of_bandwidth)


def _prices(text: str | None, cards: Mapping[str, Gpu]) -> dict[str | None, float]:
    """EUR an hour by card; None is this machine and every card that is not named."""
    found: dict[str | None, float] = {}
    for part in text.split(",") if text is not None else ():
        name, equals, value = part.rpartition("=")
        if equals and name.strip() not in cards:
            raise unknown("card of this estimate", name.strip(), cards, "--price")
        try:
            euros = float(value)
        except ValueError:
            euros = -1.0
        if not 0 <= euros < float("inf"):
            raise UserError(f"--price: should be euros an hour, as in 2.50 or h100=2.50 (it is {part!r})")
        found[name.strip() or None] = euros
    return found


def _write_csv(found: RecipeCost, prices: Mapping[str | None, float]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(
        ["recipe", "place", "networks", "rows", "cohorts", "epochs", "seconds_an_epoch", "hours", "hours_unshared",
         "memory_bytes", "eur"]
    )  # fmt: skip
    for group in found.groups:
        places = {"here": group.here, **group.cards}
        for place, epoch in places.items():
            if epoch is None:
                continue
            hours = group.hours(epoch)
            euros = prices.get(place, prices.get(None))
            memory = group.counts.memory if group.counts and place != "here" else ""
            if place == "here" and group.timing:
                memory = group.timing.memory
            writer.writerow(
                [found.recipe, place, group.title, " ".join(group.labels), len(group.epochs), sum(group.epochs),
                 epoch.seconds, hours, group.hours(epoch, alone=True), memory,
                 "" if euros is None else hours * euros]
            )  # fmt: skip


class _Text:
    """The estimate for people."""

    def __init__(
        self,
        found: RecipeCost,
        cards: Mapping[str, Gpu],
        prices: Mapping[str | None, float],
        assumed: Assumptions,
        threads: int,
        style: str,
    ) -> None:
        self._found, self._cards, self._prices, self._assumed = found, cards, prices, assumed
        self._threads, self._style = threads, style

    def all(self) -> str:
        """All parts of it, an empty line between."""
        parts = [self._missing()]
        if self._found.groups:
            if any(group.here for group in self._found.groups):
                parts += [self._here()]
            if self._cards:
                parts += [self._on_cards(), self._memory(), self._assumptions()]
        notes = [*self._found.notes, *self._scaled(), *(note for group in self._found.groups for note in group.notes)]
        if notes:
            parts.append(self._lines(["Notes:", *(f"- {note}" for note in notes)]))
        return "\n\n".join(parts)

    def _missing(self) -> str:
        found = self._found
        trained = [group for group in found.groups if group.teaches]
        students = [group for group in found.groups if not group.teaches]
        if not found.groups:
            return f"{found.recipe}: all {found.finished} trials have a result; nothing is left to train"
        trials = sum(len(group.trials) * len(group.epochs) for group in students)
        teachers = sum(len(group.epochs) * len(group.trials) for group in trained)
        lines = f"{found.recipe}: to train: {_count(trials, 'trial')}"
        lines += f" in {_count(sum(len(group.epochs) for group in students), 'cohort')}"
        lines += f" and {_count(teachers, 'teacher')}" if teachers else ""
        lines += f"; to read: {_count(found.read, 'teacher')}" if found.read else ""
        lines += f"; {_count(found.finished, 'trial')} finished before" if found.finished else ""
        return lines + ".\nA cohort is the students that one process trains side by side, with one pass of the teacher."

    def _here(self) -> str:
        from kd_bench.estimate.history import duration

        found = self._found
        at_once = len(found.places)
        threads = f"{_count(self._threads, 'thread')} each"
        head = f"On this machine ({found.device}; {_count(at_once, 'cohort')} at once, {threads}"
        rows = []
        for group in found.groups:
            if group.here is None or group.timing is None:
                continue
            timing = group.timing
            on = f"{timing.steps} steps of {timing.images} images" if timing.steps else f"{timing.images} images"
            rows.append(
                [_name(group), len(group.epochs), _each(group), on, duration(group.here.shared),
                 duration(sum(group.here.own)), duration(group.here.evaluation + group.here.checkpoint),
                 duration(3600 * group.hours(group.here)), f"{timing.memory / _GB:.1f} GB"]
            )  # fmt: skip
        headers = ["cohort", "of these", "epochs", "timed on", "an epoch:\nimages, teacher", "students", "test",
                   "all epochs", "memory"]  # fmt: skip
        one, alone, wall = found.hours(), found.hours(alone=True), found.wall_hours()
        lines = [head + "):", self._table(rows, headers)]
        total = f"Together {duration(3600 * one)}"
        if at_once > 1:
            total += f"; {duration(3600 * wall)} from beginning to end, {at_once} at once"
        if None in self._prices:
            total += f"; {_euros(wall * self._prices[None])}"
        lines.append(f"{total}. {self._saving(one, alone)}")
        return "\n".join(lines)

    def _on_cards(self) -> str:
        from kd_bench.estimate.history import duration

        found = self._found
        largest = max(group.counts.memory for group in found.groups if group.counts)
        rows = []
        for name, card in self._cards.items():
            hours, alone = found.hours(name), found.hours(name, alone=True)
            fits = "yes" if largest < 0.9 * card.memory * _GB else "hardly" if largest < card.memory * _GB else "no"
            row = [name, duration(3600 * hours), duration(3600 * alone), f"{100 * (1 - hours / alone):.0f} %",
                   f"{largest / _GB:.1f} of {card.memory:g} GB", fits]  # fmt: skip
            euros = self._prices.get(name, self._prices.get(None))
            rows.append(row + ([] if euros is None else [_euros(hours * euros)]))
        headers = [
            "card",
            "GPU hours,\nall cohorts",
            "one trial\nat a time",
            "saved by\nsharing",
            "largest cohort",
            "fits",
        ]
        headers += ["cost"] if self._prices else []
        text = "On one GPU, all cohorts one after the other; from counted operations, not measured:"
        return "\n".join([text, self._table(rows, headers)])

    def _memory(self) -> str:
        rows = []
        for group in self._found.groups:
            counts = group.counts
            if counts is None:
                continue
            own = [member.step.flops / counts.images / 1e9 for member in counts.members]
            flops = f"{min(own):.3g}" if max(own) < 1.01 * min(own) else f"{min(own):.3g} to {max(own):.3g}"
            rows.append(
                [_name(group), _flops(counts.teacher.flops, counts.images), flops, counts.images,
                 _gb(counts.teacher_parameters), _gb(counts.resident), _gb(counts.passing),
                 _gb(counts.data), _gb(counts.memory)]
            )  # fmt: skip
        headers = ["cohort", "GFLOP an image:\nteacher", "each student", "images\nat once", "GB on a GPU:\nteacher",
                   "students", "activations", "images", "together"]  # fmt: skip
        about = (
            "What was counted. Students: parameters, the optimiser's state and moving averages of all of them;\n"
            "activations: what one student's forward and backward pass, its gradients included (or the teacher's), has "
            "in use at most."
        )
        return "\n".join([about, self._table(rows, headers)])

    def _assumptions(self) -> str:
        assumed = self._assumed
        without = [card.title for card in self._cards.values() if card.bf16 is None]
        half = any(trial.precision == "bfloat16" for group in self._found.groups for trial in group.trials)
        lines = [
            "How the GPU hours come about:",
            f"- An operation takes as long as the slowest of: its arithmetic at {assumed.compute:.0%} of the card's "
            f"peak (--of-peak), its memory traffic at {assumed.training:.0%} of the bandwidth in passes with gradients "
            f"and {assumed.forward:.0%} without (--of-bandwidth), and {1e6 * assumed.launch:.0f} microseconds.",
            "- With the fractions as they are by default, 34 published speeds of networks in PyTorch on RTX 3090, 4090 "
            "and 5090, V100 and A100 come out at 0.74 to 1.28 times what was published; no other card was compared "
            "(benchmarks/estimate.py, devices/speeds.csv).",
            "- bfloat16 is computed at its dense peak, convolutions of float32 in TF32, products of float32 matrices "
            "in float32, as PyTorch does by default. Peaks are those of the data sheets (devices/gpus.yaml).",
            "Not counted: reading, decoding and copying images (a GPU may wait for them: see --workers of kd-bench "
            "run), writing checkpoints, starting, traffic between GPUs, torch.compile. Memory: cuDNN's workspaces, "
            "and gaps between what was allocated; leave a tenth of the card free.",
        ]
        if without and half:
            lines.insert(4, f"- {', '.join(without)}: has no bfloat16, which is counted as float32 there.")
        return self._lines(lines)

    def _scaled(self) -> list[str]:
        """What is to be said of the times on this machine."""
        timings = [group.timing for group in self._found.groups if group.timing]
        notes = []
        if any(not timing.steps for timing in timings):
            notes.append(
                "where the table names images only, a whole step takes too long here or its images are not here: "
                "teacher and students were timed each by itself on that many images, and the times multiplied"
            )
        if any(timing.undecoded for timing in timings):
            notes.append("images that are not here could not be decoded: this machine's hours have no time for that")
        return notes

    def _lines(self, lines: Sequence[str]) -> str:
        if self._style != "simple":
            return "\n".join(lines)
        return "\n".join(
            textwrap.fill(line, 118, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
            for line in lines
        )

    def _saving(self, one: float, alone: float) -> str:
        from kd_bench.estimate.history import duration

        saved = 100 * (1 - one / alone) if alone else 0.0
        return f"One trial at a time it would take {duration(3600 * alone)}: sharing saves {saved:.0f} %."

    def _table(self, rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
        from tabulate import tabulate

        if self._style in ("pipe", "latex_booktabs"):
            headers = [" ".join(header.split()) for header in headers]
            rows = [[" ".join(str(cell).split()) for cell in row] for row in rows]
        return tabulate(rows, headers, tablefmt=self._style, disable_numparse=True)


def _name(group: CohortGroup) -> str:
    rows = [""]
    for label in dict.fromkeys(group.labels):
        if len(rows[-1]) + len(label) > 40:
            rows.append("")
        rows[-1] += f"{', ' if rows[-1] else ''}{label}"
    return "\n  ".join([group.title, *rows])


def _each(group: CohortGroup) -> str:
    least, most = min(group.epochs), max(group.epochs)
    return str(most) if least == most else f"{least} to {most}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _euros(value: float) -> str:
    return f"{value:,.2f} EUR" if value < 100 else f"{value:,.0f} EUR"


def _gb(value: int) -> str:
    return f"{value / _GB:.2f}"


def _flops(value: int, images: int) -> str:
    return f"{value / images / 1e9:.3g}" if value else "-"
