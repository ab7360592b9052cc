"""``kd-bench estimate``: hours, memory and cost of the missing trials of a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import options as opt
from kd_bench.cli import terminal
from kd_bench.cli.option_types import decimal_number, whole_number
from kd_bench.launch.options import RunOptions
from kd_bench.utils.errors import UserError, unknown

if TYPE_CHECKING:
    from kd_bench.estimate.gpus import Assumptions

GPUS = "h100,a100-80gb,rtx-4090"


@opt.with_run_options("out", "data", "jobs", "threads", "device", "cohort_size", "workers")
@opt.with_settings()
def estimate(
    recipe: opt.RecipeName,
    options: RunOptions,
    method: opt.Method = None,
    only: opt.Only = None,
    trials: opt.Trials = None,
    set_: opt.Set = None,
    cards: Annotated[str, typer.Option("--cards", help="GPUs, separated by commas, or none.")] = GPUS,
    price: Annotated[
        str | None, typer.Option("--price", help="EUR an hour: 2.50, or by card: h100=2.50,a100-80gb=1.60.")
    ] = None,
    steps: Annotated[
        int | None, whole_number("--steps", "Steps to time here; 0: none; default: a minute's worth.", 0, 100_000)
    ] = None,
    of_peak: Annotated[
        float | None, decimal_number("--of-peak", "Fraction of a card's peak that arithmetic reaches.", 0, 1)
    ] = None,
    of_bandwidth: Annotated[
        float | None, decimal_number("--of-bandwidth", "Fraction of a card's bandwidth that is reached.", 0, 1)
    ] = None,
    format_: opt.Format = "terminal",
) -> None:
    """Estimate hours, memory and cost of the missing trials of a recipe, here and on GPUs; trains nothing.

    This machine's hours come from a few timed steps, those of the GPUs from counted operations and data sheets, so
    they need neither a GPU nor the images nor the teacher's weights.
    """
    from kd_bench import api
    from kd_bench.config.load import read_recipe, recipe_context
    from kd_bench.config.training_notes import training_notes
    from kd_bench.estimate.gpus import select_gpus
    from kd_bench.trials.recipe_file import find_recipe_in

    opt.check_format(format_)
    gpus = select_gpus(cards, "--cards")
    prices = _parse_prices(price, gpus)
    assumed = _assumptions(of_peak, of_bandwidth)
    recipe = find_recipe_in(recipe, options.out)
    content = read_recipe(recipe, api.with_rows(recipe, method, set_), trials)

    # These import torch, so what the user typed is checked first.
    from kd_bench.estimate import estimate_recipe, history
    from kd_bench.estimate.estimate_text import render_estimate
    from kd_bench.trials.plan_without_weights import (
        plan_from_results,
        plan_with_placeholders,
        without_missing_images,
    )

    context = recipe_context(recipe)
    content, missing_images = without_missing_images(content, context, options.data)
    planned, missing_weights = plan_with_placeholders(content, context, only or (), options.data)
    if missing_weights:
        with suppress(UserError):  # the teachers of the results, if they have them, so that finished trials are found
            planned = plan_from_results(content, context, options.out, only or (), options.data)
    for note in training_notes(content, planned):
        _log(note)
    cost = estimate_recipe.estimate_recipe(planned, options, content.name, gpus, assumed, _log, steps)
    cost.notes[:0] = [f"{reason}; the estimate does without them" for reason in (*missing_weights, *missing_images)]
    width = terminal.reading_columns()
    text = render_estimate(cost, gpus, prices, assumed, options.threads, format_, width)
    typer.echo(text, nl=False)
    if cost.groups:
        _log(f"kept in {history.save_estimate(cost, options)}")


def _log(line: str) -> None:
    typer.echo(f"estimate: {line}", err=True)


def _assumptions(of_peak: float | None, of_bandwidth: float | None) -> Assumptions:
    from kd_bench.estimate.gpus import Assumptions

    for option, value in (("--of-peak", of_peak), ("--of-bandwidth", of_bandwidth)):
        if value is not None and not 0 < value <= 1:
            raise UserError(f"{option}: should be a fraction above 0 and at most 1 (it is {value})")
    values = {"compute": of_peak, "training": of_bandwidth, "forward": of_bandwidth}
    return Assumptions(**{name: value for name, value in values.items() if value is not None})


def _parse_prices(text: str | None, gpus: Iterable[str]) -> dict[str | None, float]:
    """Returns euros per hour by the GPU's name; None is this machine and every GPU that is not named."""
    prices: dict[str | None, float] = {}
    for part in text.split(",") if text is not None else ():
        name, equals, value = part.rpartition("=")
        if equals and not gpus:
            raise UserError(f"--price: {part.strip()} is the price of a card, and --cards none leaves all of them out")
        if equals and name.strip() not in gpus:
            raise unknown("card of this estimate", name.strip(), gpus, "--price")
        try:
            euros = float(value)
        except ValueError:
            euros = -1.0
        if not 0 <= euros < float("inf"):
            raise UserError(f"--price: should be euros an hour, as in 2.50 or h100=2.50 (it is {part!r})")
        if (name.strip() or None) in prices or (prices and not equals):  # a comma instead of a point, as in 2,50
            raise UserError(f"--price: {part.strip()} is one price too many; write 2.50 with a point (it is {text!r})")
        prices[name.strip() or None] = euros
    return prices
