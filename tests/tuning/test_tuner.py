"""Tuning: what is searched, that a kill changes nothing, and that the test set chooses nothing."""

import hashlib
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_bench import api
from kd_bench.config.load import read_recipe
from kd_bench.config.recipe import Recipe
from kd_bench.launch import run_recipe
from kd_bench.launch.options import RunOptions
from kd_bench.plan import plan
from kd_bench.trials.reader import TrialRecord
from kd_bench.trials.recipe_file import write_recipe
from kd_bench.tuning import tuner
from kd_bench.tuning.search_space import read_ranges, search_space
from kd_bench.tuning.tuner import (
    TunedRow,
    TuningSettings,
    describe_choice,
    holdout_recipe,
    rows_to_tune,
    tune_row,
    tuned_recipe,
)
from kd_bench.utils.errors import RunFailed, UserError
from tests.cli.test_main import refused

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

    ``poison`` changes the accuracy on the test set, ``failing`` is the temperature above which the loss diverges, and
    ``kill_after`` raises Ctrl-C after so many trainings. With ``equal``, all accuracies are 50 %.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, poison: int = 0, failing: float = math.inf, equal: bool = False
    ) -> None:
        self.poison, self.failing, self.equal = poison, failing, equal
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
            top1s = {"val_top1_last": 90 - 10 * distance, "top1_last": number}
            top1s = dict.fromkeys(top1s, 50.0) if self.equal else top1s
            self.done[cell.trial_id] = {"status": "failed"} if values["temperature"] > self.failing else top1s
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
    assert len(row.tries) == len({of_try.trial.trial_id for of_try in row.tries}) == 12
    for of_try in row.tries:
        assert of_try.trial.trial.dataset.holdout == 20 and of_try.trial.seed == 0
        assert all(low <= of_try.values[name] <= high for name, (low, high) in row.space.ranges.items())
        assert of_try.trial.trial.method.hyperparameters["kd_weight"] == of_try.values["kd_weight"]
    assert row.best.val_top1 == max(of_try.val_top1 or 0 for of_try in row.tries) > (row.tries[0].val_top1 or 0)


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
    assert [of_try.values for of_try in again.tries] == [of_try.values for of_try in undisturbed.tries]
    assert again.best.number == undisturbed.best.number and len(trainings.done) == 12


def test_the_test_set_chooses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another accuracy on the test set for every trial, the same tries are made and the same one is chosen."""
    Trainings(monkeypatch)
    row = tuned(tmp_path)
    Trainings(monkeypatch, poison=1)
    poisoned = tuned(tmp_path)
    assert [of_try.top1 for of_try in row.tries] != [of_try.top1 for of_try in poisoned.tries]
    assert [of_try.values for of_try in row.tries] == [of_try.values for of_try in poisoned.tries]
    assert row.best.values == poisoned.best.values
    assert row.best_on_test.top1 == max(of_try.top1 or 0 for of_try in row.tries)
    assert f"claimed {row.best_on_test.top1:.2f} %" in describe_choice(row)


def test_tries_whose_loss_diverged_are_counted_and_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainings(monkeypatch, failing=6)
    row = tuned(tmp_path)
    failed = [of_try for of_try in row.tries if of_try.val_top1 is None]
    assert failed and len(row.tries) == 12 and row.best.values["temperature"] <= 6
    assert f". The loss of {len(failed)} tries diverged. The test set" in describe_choice(row)


def test_a_row_whose_tries_have_all_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainings(monkeypatch, failing=0)
    row = tuned(tmp_path)
    with pytest.raises(RunFailed) as error:
        tuned_recipe(recipe(), [row], seeds=None)
    assert str(error.value) == (
        "kd, resnet14 → resnet8: the losses of all 12 tries diverged, so that there is nothing to choose from; leave "
        "kd out of --method, or search other ranges, e.g. of lr"
    )


def test_equal_accuracies_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainings(monkeypatch, equal=True)
    row = tuned(tmp_path)
    assert describe_choice(row) == (
        "kd tuned, resnet14 → resnet8: try 1 of 12 has the best accuracy on held-out images, 50.00 % (12 tries have "
        "it, and the first of them is chosen; the recipe's settings: 50.00 %): kd_weight 2, temperature 4. The test "
        "set would have chosen the same."
    )
    better = replace(row, tries=(*row.tries[:2], replace(row.tries[2], val_top1=51.0), *row.tries[3:]))
    assert "try 3 of 12 has the best accuracy on held-out images, 51.00 % (the recipe" in describe_choice(better)
    assert describe_choice(better).endswith(". No try has a higher accuracy on the test set.")


def test_a_warm_up_that_is_too_long_is_named_once_and_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(SETTINGS, labels=["dkd"], ranges=read_ranges(["temperature=1..6"]))
    pairs = [RECIPE["pairs"][1] | {"methods": {"dkd": {"warmup_epochs": 9}}}]  # type: ignore[index]
    planned = api.plan(RECIPE | {"pairs": pairs})
    lines: list[str] = []
    monkeypatch.setattr(tuner, "_result", lambda record: (50.0, 50.0))
    monkeypatch.setattr(tuner, "train_trials", lambda *arguments: {})
    monkeypatch.setattr(tuner, "read_trial", lambda path: TrialRecord(path, "done", result={}))
    _, comparison = api.tune(planned, settings, RunOptions(out=tmp_path), lines.append)
    assert lines[0].startswith("dkd: its warm-up takes 9 epochs and the training 2, so its terms")
    # The setting of the recipe that is tuned, also for the tuned row: the comparison's own cannot be set here.
    assert lines[0].endswith("e.g. --set pairs.0.methods.dkd.warmup_epochs=1")
    assert len(lines) == 13 and not any("warm-up" in line for line in lines[1:])
    train_trials = "kd_bench.launch.run_recipe.train_trials"
    monkeypatch.setattr(train_trials, lambda *arguments: arguments[-1]())
    run_recipe.train(comparison, RunOptions(out=tmp_path))
    assert "warm-up" not in capsys.readouterr().err
    options = [lines[0].split("--set ")[1]]
    tries = holdout_recipe(read_recipe(RECIPE | {"pairs": pairs}, options), settings, "small")
    assert tuner.tuning_notes(tries, rows_to_tune(tries, tries.pairs, settings)) == []


def test_tried_values_stay_in_their_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainings(monkeypatch)
    ranges = read_ranges(["temperature=4.0001..4.0004"])  # with three digits, all are 4
    row = tuned(tmp_path, replace(SETTINGS, ranges=ranges, budget=6))
    assert row.space.ranges["temperature"] == (4.0, 4.0004)
    row = tuned(tmp_path, replace(SETTINGS, ranges=read_ranges(["temperature=3.9996..4"]), budget=6))
    assert all(3.9996 <= of_try.values["temperature"] <= 4 for of_try in row.tries)


def test_a_tuned_row_is_not_marked_as_untuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainings(monkeypatch)
    mark = {"kd": {"method": "kd", "untuned": "the settings of VGG13"}}
    pairs = [{"teacher": "resnet14", "student": "resnet8", "methods": {"kd": {"untuned": True}}}]
    content = recipe(methods=RECIPE["methods"] | mark, pairs=pairs)  # type: ignore[operator]
    tries = holdout_recipe(content, SETTINGS, "small")
    row = tune_row(tries, tries.pairs[0], "kd", SETTINGS, RunOptions(out=tmp_path), lambda _: None)
    planned = plan(tuned_recipe(content, [row], seeds=1), "comparison")
    assert {cell.label: cell.untuned for cell in planned} == {"none": False, "kd": True, "kd tuned": False}


def test_a_row_is_not_tuned_for_a_pair_that_leaves_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainings(monkeypatch)
    pairs = [{"teacher": "resnet14", "student": "resnet8", "leave_out": ["kd"]}, RECIPE["pairs"][1]]  # type: ignore[index]
    settings = replace(SETTINGS, labels=["kd", "dkd"])
    tries = holdout_recipe(recipe(pairs=pairs), settings, "small")
    chosen = rows_to_tune(tries, tries.pairs, settings)
    assert [(pair.student, label) for pair, label in chosen] == [
        ("resnet8", "dkd"), ("resnet20", "kd"), ("resnet20", "dkd")
    ]  # fmt: skip
    done = tune_row(tries, tries.pairs[1], "kd", SETTINGS, RunOptions(out=tmp_path), lambda _: None)
    tries_of_any = tuple(replace(of_try, values={"temperature": 3.0}) for of_try in done.tries)
    tuned_rows = [replace(done, pair=pair, label=label, tries=tries_of_any) for pair, label in chosen]
    planned = plan(tuned_recipe(recipe(pairs=pairs), tuned_rows, seeds=1), "comparison")
    assert [cell.label for cell in planned if cell.student == "cifar_resnet8"] == ["none", "dkd", "dkd tuned"]
    with pytest.raises(UserError, match="--method kd: leave_out takes this row from all selected pairs"):
        rows_to_tune(tries, tries.pairs[:1], settings)


def test_a_range_is_for_the_rows_that_have_it_and_is_checked_before_training() -> None:
    tries = holdout_recipe(recipe(), SETTINGS, "small")
    settings = replace(SETTINGS, labels=["kd", "dkd"], ranges=read_ranges(["beta=1..2"]))
    rows_to_tune(tries, tries.pairs, settings)  # kd has no beta
    assert "beta" not in tuner.row_space(tries, tries.pairs[0], "kd", settings).ranges
    assert tuner.row_space(tries, tries.pairs[0], "dkd", settings).ranges["beta"] == (1, 8)
    for text, sentence in (
        ("bta=1..2", "no number among the hyper-parameters of kd is called 'bta'"),
        ("warmup_epochs=1..2", "--search warmup_epochs: row dkd has warmup_epochs 0, and only positive numbers"),
        ("lr=1..1e10", "--search lr: .*optimizer.lr: should be at most 1,000,000,000"),
    ):
        with pytest.raises(UserError, match=sentence):
            rows_to_tune(tries, tries.pairs, replace(settings, ranges=read_ranges([text])))


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
    write_recipe(comparison, tmp_path, planned)
    table = api.table([api.plan(str(tmp_path / "tuned-small" / "recipe.yaml"))], tmp_path)
    assert table.footnotes[-1] == describe_choice(row)


def test_pairs_whose_teachers_have_settings_are_tuned_and_compared_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainings(monkeypatch)
    pairs = [{"teacher": "resnet14", "student": "resnet8"}, {"teacher": "resnet20", "student": "resnet20"}]
    content = recipe(pairs=pairs, teachers={"resnet14": {"epochs": 3}, "cifar_resnet20": {"epochs": 4}})
    tries = holdout_recipe(content, SETTINGS, "small")
    for pair, epochs, title in zip(tries.pairs, (3, 4), ("resnet14 → resnet8", "resnet20 → resnet20"), strict=True):
        row = tune_row(tries, pair, "kd", SETTINGS, RunOptions(out=tmp_path), lambda _: None)
        planned = [of_try.trial for of_try in row.tries] + plan(tuned_recipe(content, [row], seeds=1), "comparison")
        assert {cell.taught_by.epochs for cell in planned if cell.taught_by} == {epochs}
        assert describe_choice(row).startswith(f"kd tuned, {title}: ")


def test_a_learning_rate_is_searched_if_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainings(monkeypatch)
    settings = TuningSettings(["kd"], budget=5, holdout=20, ranges=read_ranges(["lr=0.01..0.2"]))
    row = tuned(tmp_path, settings)
    assert row.space.start["lr"] == 0.05
    assert {of_try.trial.trial.optimizer.lr for of_try in row.tries} == {of_try.values["lr"] for of_try in row.tries}
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
        (["lr=1..2", "lr = 2..3"], "--search lr = 2..3: lr has a range already; leave one of the two out"),
        (["ce_weight=0.1..1"], "--search ce_weight: row kd has ce_weight 0.0, and only positive numbers"),
    ],
)
def test_wrong_ranges(texts: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        search_space("kd", {"ce_weight": 0.0, "kd_weight": 0.9, "temperature": 4.0}, 0.05, read_ranges(texts), "row kd")
    assert sentence in str(error.value)


def test_wrong_settings() -> None:
    folder = {"name": "folder", "path": "flowers", "size": 32}
    for dataset, tenth in (
        (RECIPE["dataset"], "e.g. --holdout 12"),
        ({"name": "cifar100"}, "e.g. --holdout 5000"),
        ({"name": "digits", "train_images": 10}, "e.g. --holdout 2"),
        (folder, "--holdout N, where N is e.g. a tenth of the training images"),
    ):
        with pytest.raises(UserError, match=rf"dataset\.holdout is missing.*; add {tenth}$"):
            holdout_recipe(recipe(dataset=dataset), TuningSettings(["kd"], 5), "small.yaml")
    with pytest.raises(UserError, match="did you mean 'dkd'"):
        holdout_recipe(recipe(), TuningSettings(["dkdd"], 5, holdout=20), "small.yaml")
    both = recipe(methods={"kd": {}, "kd tuned": {"method": "kd"}}, pairs=RECIPE["pairs"][1:])
    with pytest.raises(UserError, match="its tuned row would be named kd tuned, as another row to tune is"):
        holdout_recipe(both, TuningSettings(["kd", "kd tuned"], 5, holdout=20), "small.yaml")
    with pytest.raises(UserError, match=r"no hyper-parameter with a range.*for one of lr, e\.g\. --search lr="):
        search_space("none", {}, 0.05, {}, "row none")


def test_clean_images_do_not_choose_robust_settings() -> None:
    settings = TuningSettings(["trades"], 5, holdout=20, ranges={"beta": (1, 12)})
    content = holdout_recipe(read_recipe("robustness/digits"), settings, "robustness/digits")
    with pytest.raises(UserError, match=r"^--method trades: trades trains for robustness, and tune compares"):
        rows_to_tune(content, content.pairs, settings)


@pytest.mark.parametrize("condition", ["method=kd", "seed=0", "teacher_seed=0", "foo=1", "kd"])
def test_only_selects_pairs(condition: str, tmp_path: Path) -> None:
    message = refused("tune", "demo", "--method", "kd", "--holdout", "50", "--only", condition, "--out", str(tmp_path))
    assert message.startswith(f"kd-bench: --only {condition}: tune selects pairs, by student or teacher, e.g. ")


def test_a_holdout_of_all_images_names_the_key(tmp_path: Path) -> None:
    message = refused("tune", "demo", "--method", "kd", "--holdout", "2000", "--out", str(tmp_path))
    assert re.match(r"kd-bench: demo: dataset: holdout: 2000 of \d+ training images leave none to", message)


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
        if "try 2 of 3" in line:
            break
    killed.terminate()
    killed.communicate(timeout=120)
    assert killed.returncode != 0  # it was not through
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert "kd tuned" in done.stdout and "kd, try 3 of 3" in done.stderr
    again = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert again.stdout == done.stdout
    choices = [line for line in done.stderr.splitlines() if "best accuracy on held-out images" in line]
    assert choices == [line for line in again.stderr.splitlines() if "best accuracy on held-out images" in line]
    assert len(choices) == 1
