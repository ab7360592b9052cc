"""Trials of another protocol: marked, never averaged with others, compared only where that is fair."""

import json
from pathlib import Path
from typing import Any

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial, Trial
from kd_bench.plan import plan
from kd_bench.report.protocol import comparable, explain, protocol
from kd_bench.report.results_frame import read_results
from kd_bench.report.statistics import MeanAndStd
from kd_bench.report.summarise import summarise
from kd_bench.report.summary import PairTable, SummaryRow
from tests.report.trials import put, write_trial

RECIPE: dict[str, Any] = {
    "name": "r",
    "dataset": "digits",
    "epochs": 30,
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": ["kd", "dkd", "crd"],
}

TWO_STEPS = {"crop": 2, "flip": False, "cutout": 8, "randaugment": {"operations": 2, "magnitude": 15}}


def cells() -> list[PlannedTrial]:
    return plan(read_recipe(RECIPE), "r")


def otherwise(cell: PlannedTrial, **settings: Any) -> PlannedTrial:
    """The same cell with other settings of its trial."""
    return PlannedTrial(
        Trial.model_validate_json(json.dumps(cell.trial.settings() | settings)), cell.label, cell.taught_by
    )


def pair_table(folder: Path, planned: list[PlannedTrial], **accuracies: list[float]) -> PairTable:
    for cell in planned:
        top1 = accuracies[cell.label][cell.seed]
        write_trial(folder / "r" / cell.trial_id, cell.trial)
        put(folder / "r" / cell.trial_id, top1_last=top1, top1_best=top1 + 1)
    return summarise(read_results(folder / "r", planned)).pairs[0]


def table(folder: Path, planned: list[PlannedTrial], **accuracies: list[float]) -> dict[str, SummaryRow]:
    return {row.label: row for row in pair_table(folder, planned, **accuracies).rows}


ACCURACIES = {"kd": [60.0, 61.0, 62.0], "dkd": [62.0, 63.0, 90.0], "crd": [70.0, 71.0, 72.0]}


def test_a_trial_of_another_protocol_enters_no_mean(tmp_path: Path) -> None:
    planned = cells()
    at = next(at for at, cell in enumerate(planned) if (cell.label, cell.seed) == ("dkd", 2))
    planned[at] = otherwise(planned[at], epochs=60)
    rows = table(tmp_path, planned, **ACCURACIES)
    dkd = rows["dkd"]
    assert dkd.top1 == MeanAndStd(62.5, 0.5**0.5, 2) and dkd.best == MeanAndStd(63.5, 0.5**0.5, 2)
    assert (dkd.planned, dkd.done, dkd.other, dkd.complete, dkd.comparable) == (3, 2, 1, False, True)
    assert dkd.difference is not None and (dkd.difference.mean, dkd.difference.n) == (2.0, 2)
    assert "2 of 3 (1 of another protocol)" in dkd.note and "left out: epochs 60 instead of 30" in dkd.note
    assert dkd.trials == tuple(cell.trial_id for cell in planned if cell.label == "dkd" and cell.seed < 2)
    assert rows["kd"].note == ""


def test_a_line_with_other_images_is_compared_with_nothing(tmp_path: Path) -> None:
    planned = [otherwise(c, augment={"crop": 0, "flip": False}) if c.label == "dkd" else c for c in cells()]
    pair = pair_table(tmp_path, planned, **ACCURACIES)
    dkd = next(row for row in pair.rows if row.label == "dkd")
    assert dkd.top1 == MeanAndStd(215 / 3, dkd.top1.std, 3) if dkd.top1 else False
    assert (dkd.complete, dkd.comparable, dkd.ranked, dkd.difference, pair.significance.get("dkd")) == (
        True,
        False,
        False,
        None,
        None,
    )
    assert "another protocol, compared with nothing: augment.crop 0 instead of " in dkd.note
    # of the one comparison that is left, Holm's correction has nothing to correct
    crd = pair.significance["crd"]
    assert crd.p_flip == crd.p_flip_holm


def test_a_line_with_a_learning_rate_of_its_own_is_compared_and_says_so(tmp_path: Path) -> None:
    rate = {"name": "sgd", "lr": 0.5}
    planned = [otherwise(c, optimizer=rate) if c.label == "crd" else c for c in cells()]
    crd = table(tmp_path, planned, **ACCURACIES)["crd"]
    assert crd.comparable and crd.difference is not None and crd.difference.mean == 10.0
    assert crd.note == "trained otherwise: optimizer.lr 0.5 instead of 0.05"


def test_the_baselines_protocol_is_the_pairs(tmp_path: Path) -> None:
    planned = [c if c.label == "kd" else otherwise(c, epochs=60) for c in cells()]
    rows = table(tmp_path, planned, **ACCURACIES)
    assert [label for label, row in rows.items() if not row.comparable] == ["dkd", "crd"]
    assert rows["kd"].comparable and rows["kd"].difference is None


def test_moving_averages_and_the_weights_that_are_evaluated_decide() -> None:
    first = cells()[0]
    usual = protocol(first.trial, None)
    averaged = protocol(otherwise(first, ema=0.9).trial, None)
    assert not comparable(averaged, usual) and explain(averaged, usual) == "ema 0.9 instead of none"
    assert comparable(protocol(otherwise(first, seed=7).trial, None), usual)
    assert protocol(otherwise(first, seed=7).trial, None) == usual
    views = protocol(otherwise(first, second_view=TWO_STEPS).trial, None)
    assert not comparable(views, usual) and not comparable(usual, views)
    assert explain(views, usual) == "a second view of the images (crop 2, cutout 8, randaugment)"
    assert explain(usual, views) == "no second view of the images"
    plain = protocol(otherwise(first, second_view={"crop": 0, "flip": False}).trial, None)
    assert explain(plain, usual) == "a second view of the images (not augmented)"
    assert explain(plain, views).startswith("second_view.crop 0 instead of 2, second_view.cutout none instead of 8, ")
    many = protocol(otherwise(first, ema=0.9, epochs=3, batch_size=8, clip_norm=1.0, precision="bfloat16").trial, None)
    assert (
        explain(many, usual) == "epochs 3 instead of 30, ema 0.9 instead of none, batch_size 8 instead of 64 and 2 more"
    )
