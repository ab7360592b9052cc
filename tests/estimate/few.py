"""A recipe of a few trials, and its trials."""

from __future__ import annotations

from pathlib import Path

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial
from kd_bench.plan import plan

RECIPE = {
    "dataset": {"name": "digits", "test_images": 40},
    "epochs": 1,
    "batch_size": 50,
    "trials": 2,
    "teacher_training": {"epochs": 2},
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": {"none": {}, "kd": {}, "dkd": {"warmup_epochs": 0}},
}


def planned(recipe: Path, *overrides: str) -> list[PlannedTrial]:
    return plan(read_recipe(str(recipe), overrides), str(recipe))
