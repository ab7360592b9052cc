"""``kd-bench evaluate``: what accuracy does not say of a file of weights, a trial, or a recipe's trials."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import completion
from kd_bench.cli import options as opt
from kd_bench.cli.targets import Targets, find_targets, share
from kd_bench.cli.terminal import show_progress
from kd_bench.utils.errors import RunFailed, UserError
from kd_bench.utils.signals import raising_on_termination

if TYPE_CHECKING:
    from kd_bench.config.trial import PretrainedTeacher, Trial
    from kd_bench.evaluation.evaluate_network import NetworkEvaluator, Outcome
    from kd_bench.evaluation.target import EvaluationTarget
    from kd_bench.launch.run_recipe import PlannedRecipe

#: Stands for all metrics.
ALL = "all"

#: Largest number of columns of a table for people.
_MOST_COLUMNS = 8


@opt.with_settings()
def evaluate(
    target: opt.Target,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            help="calibration, fidelity, efficiency, ood, corruptions, with commas, or all; by default all that apply, "
            "but not corruptions, which take 75 passes over the test set.",
            autocompletion=completion.metrics,
        ),
    ] = None,
    ood: opt.OtherImages = None,
    model: opt.Model = None,
    dataset: opt.ModelDataset = None,
    normalise: opt.Normalise = None,
    key: opt.Key = None,
    method: opt.Method = None,
    only: opt.Only = None,
    trials: opt.Trials = None,
    set_: opt.Set = None,
    out: opt.Out = opt.OUT,
    data: opt.Data = None,
    threads: opt.Threads = 1,
    workers: opt.Workers = opt.WORKERS,
    device: opt.Device = "auto",
    format_: opt.Format = "terminal",
) -> None:
    """Measure calibration, fidelity to the teacher, size and speed, and robustness of trained networks.

    A metric that is known for the same weights and images is not measured again.
    """
    opt.check_format(format_)
    chosen = _metrics(metrics)
    named = metrics not in (None, ALL)
    if ood and "ood" not in chosen:
        raise UserError(f"--ood: has no meaning for --metrics {metrics}, which does not name ood")

    from kd_bench.evaluation.evaluate_network import NetworkEvaluator
    from kd_bench.launch.devices import find_devices
    from kd_bench.utils.allocator import keep_freed_memory

    keep_freed_memory()
    targets = find_targets(
        target, out, _log, data=data, model=model, dataset=dataset, key=key, normalise=normalise, methods=method,
        only=only, trials=trials, overrides=set_,
    )  # fmt: skip
    evaluator = NetworkEvaluator(data, find_devices(device)[0], threads, workers, ood or ())
    evaluator.images.check_names(ood or ())
    measurement = _Measurement(evaluator, chosen, named, bool(ood), targets)
    if targets.recipe is None:
        outcome = _evaluate_network(measurement, targets.networks[0])
        _print_network(targets.networks[0], outcome, format_)
        return
    failures = _evaluate_recipe(measurement, targets.networks)
    _print_recipe(targets.recipe, tuple(name for name in chosen if name in measurement.applied), out, format_)
    if failures:
        raise RunFailed(f"{share(failures, len(targets.networks), 'network')} not evaluated, see above; for the "
                        "others nothing is measured again when the command is repeated")  # fmt: skip


@dataclass
class _Measurement:
    """What is measured of each network.

    Attributes:
        evaluator: Measures networks.
        metrics: The metrics, in their usual order.
        named: Whether the user named them; otherwise those that do not apply to a network are left out.
        other_sets: Whether the user named other images than those of the data set.
        targets: The networks, and the recipe whose trials are measured.
        applied: The metrics that were measured of at least one network.
    """

    evaluator: NetworkEvaluator
    metrics: tuple[str, ...]
    named: bool
    other_sets: bool
    targets: Targets
    applied: set[str] = field(default_factory=set)

    def evaluate(self, network: EvaluationTarget) -> Outcome:
        """Measures a network. Raises a UserError or RunFailed if that is not possible."""
        teachers = _teachers(network, self.targets.recipe)
        # Where nobody names them, fidelity needs a teacher, and ood another data set.
        others = self.other_sets or self.evaluator.images.other_sets(network.trained)
        applies = {"fidelity": bool(teachers), "ood": bool(others)}
        metrics = tuple(name for name in self.metrics if self.named or applies.get(name, True))
        self.applied.update(metrics)
        if network.input_description:
            _log(network.input_description)
        _log(self.targets.describe(network))
        with raising_on_termination():
            return self.evaluator.evaluate(network, metrics, teachers, _log_progress)

    def is_refused(self, outcome: Outcome) -> bool:
        """Whether the only metric was left out of an outcome."""
        (name, *others) = self.metrics
        return not others and bool(outcome.left_out) and not getattr(outcome.evaluation, name)

    def log_other_sets(self) -> None:
        """Says that out-of-distribution images are missing, if they are wanted and no network had some."""
        from kd_bench.evaluation.dataset_reader import NO_OTHER_SETS

        if "ood" in self.metrics and "ood" not in self.applied:
            _log(NO_OTHER_SETS)


def _evaluate_network(measurement: _Measurement, network: EvaluationTarget) -> Outcome:
    """Measures one network. Raises a UserError if the only metric does not apply to it."""
    outcome = measurement.evaluate(network)
    if measurement.is_refused(outcome):
        raise UserError("; ".join(outcome.left_out))
    for sentence in outcome.left_out:
        _log(sentence)
    measurement.log_other_sets()
    return outcome


def _evaluate_recipe(measurement: _Measurement, networks: Sequence[EvaluationTarget]) -> int:
    """Measures the networks of a recipe, and returns the number of those that were left out.

    Raises:
        UserError: If the only metric applies to none of them.
        UserError, RunFailed: As evaluate_each.
    """
    from kd_bench.evaluation.each_network import evaluate_each

    outcomes: list[Outcome] = []

    def evaluate_network(network: EvaluationTarget) -> None:
        outcomes.append(measurement.evaluate(network))
        for sentence in outcomes[-1].left_out:
            _log(sentence)

    failures = evaluate_each(networks, evaluate_network, _log)
    measurement.log_other_sets()
    if outcomes and all(map(measurement.is_refused, outcomes)):
        raise UserError(outcomes[0].left_out[0])
    return failures


def _metrics(text: str | None) -> tuple[str, ...]:
    """Returns the metrics that the user names, in their usual order; without the option those that do not take long."""
    from kd_bench.trials.evaluation_file import METRICS, SLOW_METRICS

    if text is None:
        return tuple(name for name in METRICS if name not in SLOW_METRICS)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        opt.check_choice("metric", name, (*METRICS, ALL), "--metrics")
    return tuple(name for name in METRICS if name in names or ALL in names)


def _teachers(target: EvaluationTarget, recipe: PlannedRecipe | None) -> list[Trial | PretrainedTeacher]:
    """Returns the teachers that a target is compared with: its own; in a recipe, those of all pairs that it is in."""
    if not target.is_trial:
        return []
    teacher = target.trained.teacher
    cells = [] if recipe is None else [cell for cell in recipe.planned if cell.trial_id == target.folder.name]
    teachers = [teacher, *(cell.taught_by for cell in cells)]
    return list({teacher.id: teacher for teacher in teachers if teacher is not None}.values())


def _print_network(target: EvaluationTarget, outcome: Outcome, format_: str) -> None:
    from kd_bench.report import render
    from kd_bench.report.evaluation_table import network_table

    title = f"{target.name}: {target.trained.dataset.title}"
    render.write([network_table(title, outcome.evaluation, format_ == "csv")], format_, sys.stdout)
    if format_ in ("terminal", "plain"):
        typer.echo(f"kept in {outcome.path}")


def _print_recipe(recipe: PlannedRecipe, metrics: tuple[str, ...], out: Path, format_: str) -> None:
    from kd_bench import api
    from kd_bench.cli.table import print_summary
    from kd_bench.report.columns import COLUMNS, MAIN

    names = [name for name, column in COLUMNS.items() if column.metric in metrics]
    if (len(metrics) > 1 or len(names) > _MOST_COLUMNS) and format_ != "csv":  # all of them are too wide
        names = [name for name in names if name in MAIN]
    print_summary(api.table([recipe], out, ["top1", *names]), format_)


def _log_progress(name: str, batch: int, batches: int) -> None:
    """Prints a line after the last batch; on a terminal also one that changes with each batch."""
    show_progress(f"evaluate: {name}: batch {batch} of {batches}", done=batch == batches)


def _log(line: str) -> None:
    typer.echo(f"evaluate: {line}", err=True)
