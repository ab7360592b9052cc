"""Plans of recipes with several seeds of a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kd_bench import api
from kd_bench.cli.show_recipe import describe_recipe
from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial, Trial
from kd_bench.launch.cohort_task import group_into_cohorts
from kd_bench.plan import plan, plan_teacher
from kd_bench.trials.status import trial_statuses
from kd_bench.tuning.tuner import TuningSettings, holdout_recipe
from kd_bench.utils.errors import UserError

RECIPE: dict[str, Any] = {
    "name": "r",
    "dataset": "digits",
    "epochs": 3,
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}, {"teacher": "resnet20", "student": "resnet8"}],
    "methods": ["none", "kd", "dkd"],
    "trials": 2,
}


def planned(*overrides: str, only: tuple[str, ...] = (), **changes: Any) -> list[PlannedTrial]:
    return plan(read_recipe(RECIPE | changes, overrides), "r.yaml", only)


def refused(*overrides: str, only: tuple[str, ...] = (), **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        planned(*overrides, only=only, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def cells(trials: list[PlannedTrial], teacher: str = "cifar_resnet14") -> list[tuple[str, int | None, int]]:
    return [(trial.label, trial.teacher_seed, trial.seed) for trial in trials if trial.teacher == teacher]


def test_students_are_crossed_with_the_seeds_of_one_teacher() -> None:
    trials = planned(teachers={"resnet14": {"seeds": 3}})
    crossed = [(label, teacher, seed) for label in ("kd", "dkd") for teacher in range(3) for seed in range(2)]
    assert cells(trials) == [("none", None, 0), ("none", None, 1), *crossed]
    # the other teacher has one seed, and the student alone is the same trial in both pairs
    assert cells(trials, "cifar_resnet20") == [
        ("none", None, 0), ("none", None, 1), *((label, 0, seed) for label in ("kd", "dkd") for seed in range(2)),
    ]  # fmt: skip
    assert len(trials) == 14 + 6 and len({trial.trial_id for trial in trials}) == 18
    teachers = {trial.trial.teacher.id for trial in trials if trial.trial.teacher}
    assert len(teachers) == 4


def test_trials_of_recipes_without_seeds_keep_their_identity() -> None:
    usual = {trial.trial_id for trial in planned()}
    assert usual == {trial.trial_id for trial in planned(teachers={"resnet14": {"seeds": 1}})}
    crossed = {trial.trial_id: trial for trial in planned(teacher_training={"seeds": 2})}
    assert usual < set(crossed)
    assert {crossed[name].teacher_seed for name in usual} == {None, 0}
    assert planned(teacher_training={"seeds": [7]}) == planned(teacher_training={"seed": 7})
    # digits of the identities as they were before teachers had seeds
    assert {trial.trial_id for trial in planned(trials=1) if trial.label == "kd"} == {
        "9d62f8a05a9b07ec",
        "8568b7c8dcf4de97",
    }


def test_seeds_of_all_teachers_and_of_one() -> None:
    trials = planned(teacher_training={"seeds": [5, 2]}, teachers={"resnet20": {"seed": 9}})
    assert {seed for _, seed, _ in cells(trials) if seed is not None} == {5, 2}
    assert {seed for _, seed, _ in cells(trials, "cifar_resnet20") if seed is not None} == {9}
    recipe = read_recipe(RECIPE | {"teacher_training": {"seeds": [5, 2], "epochs": 4}})
    teacher, _ = plan_teacher(recipe, "cifar_resnet14", "r.yaml")
    assert (teacher.model, getattr(teacher, "seed", None), teacher.epochs) == ("cifar_resnet14", 5, 4)


def test_cohorts_are_those_of_a_teacher_and_a_seed() -> None:
    trials = [trial.trial for trial in planned(teachers={"resnet14": {"seeds": 3}}) if trial.teacher.endswith("14")]
    cohorts = group_into_cohorts(trials, Path("r"), 8)
    assert sorted(len(cohort.trials) for cohort in cohorts) == [1, 1, *[2] * 6]


def test_only_selects_by_the_teachers_seed() -> None:
    for values in ("1", "0,2"):
        trials = planned(teachers={"resnet14": {"seeds": 3}}, only=("student=resnet8", f"teacher_seed={values}"))
        wanted = {int(value) for value in values.split(",")}
        assert {trial.teacher_seed for trial in trials if trial.trial.teacher} == wanted
        alone = [trial for trial in trials if trial.label == "none" and trial.teacher == "cifar_resnet14"]
        # the student alone belongs to all teachers of its pair, and stands beside the first that is selected
        assert [trial.seed for trial in alone] == [0, 1]
        assert {trial.taught_by.seed for trial in alone if trial.taught_by} == {min(wanted)}  # type: ignore[union-attr]
    assert "no teacher_seed of this recipe is called '3'; there are: 0, 1, 2" in refused(
        teachers={"resnet14": {"seeds": 3}}, only=("teacher_seed=3",)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "seeds: should be at least 1 (it is 0)"),
        ({"seeds": "3"}, "seeds: should be a whole number (it is '3')"),
        ({"seeds": []}, "seeds: should be at least 1 entry long (it is [])"),
        ({"seeds": [1, -1]}, "seeds.1: should be at least 0 (it is -1)"),
        ({"seeds": [4, 4]}, "seeds: 4 is there twice"),
        ({"seeds": 2, "seed": 1}, "seed and seeds exclude each other; leave out one of the two"),
        ({"seeds": 2, "weights": "x.pth"}, "is not trained, so it has no seeds; leave out seeds or weights"),
        ({"seeds": 5000}, "2 seeds with 5,000 seeds of a teacher make 60,000 trials"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_bench.plan.MAX_PLANNED", 50_000)
    assert message in refused(teachers={"resnet14": settings})


def test_weights_replace_the_seeds_of_all_teachers(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"weights")
    trials = planned(teacher_training={"seeds": 2}, teachers={"resnet14": {"weights": str(tmp_path / "w.pth")}})
    assert {seed for _, seed, _ in cells(trials)} == {None}
    assert {seed for _, seed, _ in cells(trials, "cifar_resnet20")} == {None, 0, 1}


def test_teacher_train_takes_seeds() -> None:
    def seeds(**settings: Any) -> list[int]:
        return [trial.seed for trial in api.plan_teachers("resnet14", "digits", **settings).planned]

    assert seeds(trials=1) == [0] and seeds(trials=3) == [0, 1, 2]
    assert seeds(trials=1, overrides=["teacher_training.seeds=[4,2]"]) == [4, 2]
    for key in ("teacher_training", "teachers.resnet14"):
        assert seeds(trials=1, overrides=[f"{key}.seed=3"]) == seeds(trials=1, overrides=["seeds=[3]"]) == [3]
        for name in ("seeds", "seed"):
            with pytest.raises(UserError, match=rf"{key}\.{name} and --trials both say which seeds are trained"):
                seeds(trials=2, overrides=[f"{key}.{name}=3"])
    with pytest.raises(UserError, match=r"teacher_training\.seed and the recipe's seeds both say which"):
        seeds(trials=1, overrides=["teacher_training.seed=3", "seeds=[4]"])
    with pytest.raises(UserError, match=r"teachers\.resnet14\.weights: a teacher whose weights come in a file is not"):
        seeds(trials=1, overrides=["teachers.resnet14.weights=any.pth"])
    null = ["teacher_training={weights: any.pth, seed: 2}", "teachers.resnet14={weights: null, seed: null}"]
    assert seeds(trials=2, overrides=null) == [0, 1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"teacher_training": {"epochs": "x"}}, "teacher_training: epochs: should be a whole number"),
        ({"teachers": {"resnet14": {"epochs": "x"}}}, "teachers.resnet14: epochs: should be a whole number"),
        (
            {"teacher_training": {"optimizer": {"lr": -1}}, "teachers": {"resnet14": {"epochs": 2}}},
            "teacher_training: optimizer.lr: should be above 0",
        ),
        ({"teacher_training": {"seed": 1}, "teachers": {"resnet14": {"seed": -1}}}, "teachers.resnet14: seed: should"),
        (
            {"teacher_training": {"seeds": -1}, "teachers": {"resnet14": {"epochs": 2}}},
            "teacher_training: seeds: should",
        ),
        ({"teachers": {"resnet14": {"weights": "no.pth"}}}, "teachers.resnet14.weights: there is no file no.pth"),
        ({"teacher_training": {"weights": "no.pth"}}, "teacher_training.weights: there is no file no.pth"),
        ({"batch_size": 2000}, "batch_size: 2000 is more than the 200 training images of digits"),
    ],
)
def test_the_sentence_names_the_place_of_a_value_that_a_teacher_inherits(
    changes: dict[str, Any], sentence: str
) -> None:
    assert refused(**changes).startswith(f"r.yaml: {sentence}")


def test_null_takes_back_what_is_set_for_all_teachers_or_by_the_recipe() -> None:
    def averages(**changes: Any) -> set[float | None]:
        return {teacher.ema for cell in planned(ema=0.9, **changes) if isinstance(teacher := cell.taught_by, Trial)}

    assert averages() == {0.9}
    assert averages(teachers={"resnet14": {"ema": None}}) == {0.9, None}
    assert averages(teacher_training={"ema": None}) == {None}
    assert averages(teacher_training={"ema": 0.8}, teachers={"resnet14": {"ema": None}}) == {0.8, 0.9}


def test_other_commands_name_the_teacher(tmp_path: Path) -> None:
    trials = planned(teachers={"resnet14": {"seeds": 2}})
    names = {status.name for status in trial_statuses(trials, tmp_path, "r")}
    assert {"teacher cifar_resnet14, seed 1", "cifar_resnet14 (seed 1) -> cifar_resnet8, kd, seed 0"} <= names
    assert "cifar_resnet20 -> cifar_resnet8, kd, seed 0" in names and len(names) == 3 + len(trials) - 2
    file = tmp_path / "r.yaml"
    rows = "methods: [none, kd, dkd]\npairs: [{teacher: resnet14, student: resnet8}]\n"
    file.write_text(f"dataset: digits\nepochs: 3\ntrials: 2\nteachers: {{resnet14: {{seeds: 3}}}}\n{rows}")
    assert "These are 14 trials." in describe_recipe(file)


def test_tries_of_tune_have_the_first_teacher() -> None:
    recipe = read_recipe(RECIPE | {"teacher_training": {"seeds": [3, 1]}, "teachers": {"resnet20": {"seeds": 2}}})
    tries = plan(holdout_recipe(recipe, TuningSettings(["kd"], 2, holdout=20), "r"), "r")
    assert {trial.teacher_seed for trial in tries if trial.trial.teacher} == {3, 0} and len(tries) == 6
