"""Tuning: what is searched, that a kill changes nothing, and that the test set chooses nothing."""

import hashlib
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_bench import api
from kd_bench.config.load import read_recipe
from kd_bench.config.recipe import Recipe
from kd_bench.launch.options import RunOptions
from kd_bench.plan import plan
from kd_bench.trials.reader import TrialRecord
from kd_bench.trials.recipe_file import write_recipe
from kd_bench.tuning import tuner
from kd_bench.tuning.search_space import read_ranges, search_space
from kd_bench.tuning.tuner import TunedRow, TuningSettings, describe_choice, holdout_recipe, tune_row, tuned_recipe
from kd_bench.utils.errors import UserError

RECIPE = {
    "name": "small",
    "dataset": {"name": "digits", "train_images": 120, "test_images": 60},
    "epochs": 2,
    "batch_size": 20,
    "trials": 2,
    "pairs": [
        {"teacher": "resnet14", "student": "resnet8", "methods": {"kd": {"kd_weight": 2.0}}},
        {"teacher": "resnet14", "student": "resnet20"},
    ],
    "methods": {"none": {}, "kd": {}, "dkd": {"warmup_epochs": 0}},
}


def recipe(**changes: Any) -> Recipe:
    return read_recipe(RECIPE | changes)


class Trainings:
    """Stands for the training of trials: the accuracies are functions of the settings.

    ``poison`` changes the accuracy on the test set, and ``kill_after`` raises Ctrl-C after so many trainings.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, poison: int = 0, failing: bool = False) -> None:
        self.poison, self.failing = poison, failing
        self.done: dict[str, dict[str, Any]] = {}
        self.kill_after: int | None = None
        monkeypatch.setattr(tuner, "train_trials", self.train)
        monkeypatch.setattr(tuner, "read_trial", self.read)

    def train(self, name: str, planned: list[Any], options: RunOptions, title: str) -> dict[str, str]:
        for cell in planned:
            if cell.trial_id in self.done:
                continue
            if self.kill_after is not None and len(self.done) >= self.kill_after:
                raise KeyboardInterrupt
            values = cell.trial.method.hyperparameters
            distance = abs(math.log(values["kd_weight"] / 0.5)) + abs(math.log(values["temperature"] / 12))
            number = int(hashlib.sha256(f"{cell.trial_id}{self.poison}".encode()).hexdigest(), 16) % 1000 / 10
            failed = self.failing and values["temperature"] > 6
            self.done[cell.trial_id] = (
                {"status": "failed"} if failed else {"val_top1_last": 90 - 10 * distance, "top1_last": number}
            )
        return {}

    def read(self, path: Path) -> TrialRecord:
        result = self.done.get(path.name)
        verdict = "incomplete" if result is None else "failed" if "status" in result else "done"
        return TrialRecord(path, verdict, result=result)


SETTINGS = TuningSettings(["kd"], budget=12, batch=3, holdout=20)


def tuned(tmp_path: Path, settings: TuningSettings = SETTINGS) -> TunedRow:
    content = holdout_recipe(recipe(), settings, "small")
    return tune_row(content, content.pairs[0], "kd", settings, RunOptions(out=tmp_path), lambda _: None)


def test_the_first_try_has_the_published_settings_of_the_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainings(monkeypatch)
    row = tuned(tmp_path)
    assert row.tries[0].values == row.space.start == {"kd_weight": 2.0, "temperature": 4.0}
    assert row.space.ranges == {"kd_weight": (0.25, 16.0), "temperature": (1, 16)}
    assert len(row.tries) == len({one.trial.trial_id for one in row.tries}) == 12
    for one in row.tries:
        assert one.trial.trial.dataset.holdout == 20 and one.trial.seed == 0
        assert all(low <= one.values[name] <= high for name, (low, high) in row.space.ranges.items())
        assert one.trial.trial.method.hyperparameters["kd_weight"] == one.values["kd_weight"]
    assert row.best.val_top1 == max(one.val_top1 or 0 for one in row.tries) > (row.tries[0].val_top1 or 0)


@pytest.mark.parametrize("kill_after", [1, 4, 6, 11])
def test_a_killed_tuning_ends_with_the_same_tries(
    kill_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainings(monkeypatch)
    undisturbed = tuned(tmp_path)
    trainings = Trainings(monkeypatch)
    trainings.kill_after = kill_after
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path)
    trainings.kill_after = None
    again = tuned(tmp_path)
    assert [one.values for one in again.tries] == [one.values for one in undisturbed.tries]
    assert again.best.number == undisturbed.best.number and len(trainings.done) == 12


def test_the_test_set_chooses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another accuracy on the test set for every trial, the same tries are made and the same one is chosen."""
    Trainings(monkeypatch)
    row = tuned(tmp_path)
    Trainings(monkeypatch, poison=1)
    poisoned = tuned(tmp_path)
    assert [one.top1 for one in row.tries] != [one.top1 for one in poisoned.tries]
    assert [one.values for one in row.tries] == [one.values for one in poisoned.tries]
    assert row.best.values == poisoned.best.values
    assert row.best_on_test.top1 == max(one.top1 or 0 for one in row.tries)
    assert f"claimed {row.best_on_test.top1:.2f} %" in describe_choice(row)


def test_tries_whose_loss_diverged_are_counted_and_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainings(monkeypatch, failing=True)
    row = tuned(tmp_path)
    failed = [one for one in row.tries if one.val_top1 is None]
    assert failed and len(row.tries) == 12 and row.best.values["temperature"] <= 6


def test_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainings(monkeypatch)
    row = tuned(tmp_path)
    comparison = tuned_recipe(recipe(), [row], seeds=3)
    planned = plan(comparison, "comparison")
    assert list(comparison.methods) == ["none", "kd", "kd tuned"] and len(planned) == 9
    assert {cell.student for cell in planned} == {"cifar_resnet8"}
    assert all(cell.trial.dataset.holdout is None for cell in planned)
    by_label = {cell.label: cell.trial.method.hyperparameters for cell in planned}
    assert by_label["kd"]["kd_weight"] == 2.0
    assert {name: by_label["kd tuned"][name] for name in row.best.values} == row.best.values
    whole = {cell.trial_id for cell in plan(recipe(), "small")}
    assert {cell.trial_id for cell in planned if cell.label != "kd tuned" and cell.seed < 2} < whole
    assert comparison.notes == (describe_choice(row),)
    assert comparison.notes[0].startswith(f"kd tuned, resnet14 → resnet8: try {row.best.number} of 12 has the best")
    write_recipe(comparison, tmp_path)
    table = api.table([api.plan(str(tmp_path / "tuned-small" / "recipe.yaml"))], tmp_path)
    assert table.footnotes[-1] == describe_choice(row)


def test_a_learning_rate_is_searched_if_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainings(monkeypatch)
    settings = TuningSettings(["kd"], budget=5, holdout=20, ranges=read_ranges(["lr=0.01..0.2"]))
    row = tuned(tmp_path, settings)
    assert row.space.start["lr"] == 0.05
    assert {one.trial.trial.optimizer.lr for one in row.tries} == {one.values["lr"] for one in row.tries}
    comparison = tuned_recipe(recipe(), [row], seeds=None)
    rates = {cell.label: cell.trial.optimizer.lr for cell in plan(comparison, "comparison")}
    assert rates["kd"] == 0.05 and rates["kd tuned"] == row.best.values["lr"]


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["alpha"], "--search alpha: should be NAME=LOW..HIGH"),
        (["kd_weight=a..2"], "--search kd_weight=a..2: a and 2 should be numbers"),
        (["kd_weight=3..2"], "should be two positive numbers, the smaller one first"),
        (["kd_weight=0..2"], "should be two positive numbers"),
        (["kd_weight=1..inf"], "should be two positive numbers"),
        (["kd_weigt=1..2"], "did you mean 'kd_weight'"),
    ],
)
def test_wrong_ranges(texts: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        search_space("kd", {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0}, 0.05, read_ranges(texts), "row kd")
    assert sentence in str(error.value)


def test_wrong_settings() -> None:
    with pytest.raises(UserError, match=r"dataset\.holdout is missing.*--holdout"):
        holdout_recipe(recipe(), TuningSettings(["kd"], 5), "small.yaml")
    with pytest.raises(UserError, match="did you mean 'dkd'"):
        holdout_recipe(recipe(), TuningSettings(["dkdd"], 5, holdout=20), "small.yaml")
    with pytest.raises(UserError, match="no hyper-parameter with a range"):
        search_space("none", {}, 0.05, {}, "row none")


@pytest.mark.slow
def test_tuning_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(RECIPE | {"pairs": RECIPE["pairs"][:1]}))  # type: ignore[index]
    arguments = [
        "tune",
        str(tmp_path / "small.yaml"),
        "--method",
        "kd",
        "--budget",
        "3",
        "--batch",
        "2",
        "--holdout",
        "20",
    ]
    command = [sys.executable, "-m", "kd_bench", *arguments, "--out", str(tmp_path / "out"), "--format", "csv"]
    killed = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert killed.stderr is not None
    for line in killed.stderr:
        if "try" in line and random.random() < 0.5:
            break
    killed.terminate()
    killed.communicate(timeout=120)
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert "kd tuned" in done.stdout and "kd, try 3 of 3" in done.stderr
    again = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert again.stdout == done.stdout
    choices = [line for line in done.stderr.splitlines() if "best accuracy on held-out images" in line]
    assert choices == [line for line in again.stderr.splitlines() if "best accuracy on held-out images" in line]
    assert len(choices) == 1
