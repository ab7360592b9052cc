"""Expansion of recipes to trials."""

import subprocess
import sys

import pytest

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import SCHEMA, Trial
from kd_bench.launch.cohort_task import group_into_cohorts
from kd_bench.plan import plan
from kd_bench.utils.errors import UserError

RECIPE = {
    "name": "r",
    "dataset": "cifar100",
    "epochs": 240,
    "teacher_training": {"epochs": 200, "optimizer": {"lr": 0.1}, "seed": 7},
    "pairs": [
        {"teacher": "resnet32x4", "student": "resnet8x4"},
        {
            "teacher": "wrn_40_2",
            "student": "resnet8x4",
            "training": {"optimizer": {"lr": 0.01}},
            "methods": {"dkd": {"beta": 6}},
        },
    ],
    "methods": ["none", "kd", "dkd"],
}


def planned(*overrides: str, only=(), **changes):
    return plan(read_recipe(RECIPE | changes, overrides), "r.yaml", only)


def refused(*overrides: str, only=(), **changes) -> str:
    with pytest.raises(UserError) as caught:
        planned(*overrides, only=only, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_cell_and_every_default_is_planned():
    cells = planned()
    assert len(cells) == 2 * 3 * 3
    first = {cell.label: cell.trial for cell in cells if cell.teacher == "cifar_resnet32x4" and cell.seed == 0}
    assert first["kd"].settings() == {
        "schema": SCHEMA,
        "dataset": {"name": "cifar100", "labels": "fine", "classes": None},
        "augment": {"crop": 4, "flip": True},
        "epochs": 240,
        "batch_size": 64,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False},
        "schedule": {"name": "step", "milestones": [150, 180, 210], "gamma": 0.1, "warmup_epochs": 0},
        "clip_norm": None,
        "model": "cifar_resnet8x4",
        "method": {
            "name": "kd",
            "hyperparameters": {"temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9},
            "source": None,
        },
        "teacher": first["kd"].teacher.settings(),
        "seed": 0,
    }
    teacher = first["kd"].teacher
    assert (teacher.model, teacher.epochs, teacher.optimizer.lr, teacher.seed) == ("cifar_resnet32x4", 200, 0.1, 7)
    assert teacher.schedule.milestones == (125, 150, 175)
    assert first["none"].teacher is None


def test_settings_of_a_pair():
    second = {cell.label: cell.trial for cell in planned() if cell.teacher == "cifar_wrn_40_2"}
    assert second["dkd"].optimizer.lr == 0.01
    assert second["dkd"].method.hyperparameters["beta"] == 6.0
    assert second["dkd"].teacher.optimizer.lr == 0.1


@pytest.mark.parametrize(
    "change", [{"training": {"epochs": 9}}, {"methods": {"kd": {"temperature": 2}}}, {"leave_out": ["none"]}]
)
def test_pairs_of_the_same_networks_may_differ_in_settings(change):
    first = RECIPE["pairs"][0]
    cells = planned(pairs=[first, first | change])
    assert len(cells) == 2 * 3 * 3 - 3 * ("leave_out" in change)


def test_null_in_a_row_of_a_pair_gives_way_to_the_pair():
    pair = RECIPE["pairs"][0] | {"training": {"clip_norm": 2}, "methods": {"kd": {"training": {"clip_norm": None}}}}
    cells = planned(pairs=[pair], methods={"kd": {"training": {"clip_norm": 1}}, "dkd": {}})
    assert {cell.label: cell.trial.clip_norm for cell in cells} == {"kd": 2, "dkd": 2}


def test_settings_of_one_teacher():
    trials = [cell.trial for cell in planned(teachers={"wrn_40_2": {"epochs": 10}}) if cell.label == "kd"]
    assert {(trial.teacher.model, trial.teacher.epochs) for trial in trials} == {
        ("cifar_resnet32x4", 200),
        ("cifar_wrn_40_2", 10),
    }


def test_identity_depends_on_settings_and_on_nothing_else():
    trial, other = planned()[3].trial, planned("name=q", "baseline=dkd", "description=x")[3].trial
    assert trial.id == other.id
    assert Trial.model_validate_json(trial.model_dump_json()).id == trial.id
    reordered = read_recipe(dict(reversed(RECIPE.items())))
    assert {cell.trial_id for cell in plan(reordered, "r")} == {cell.trial_id for cell in planned()}


@pytest.mark.parametrize(
    "override",
    ["epochs=241", "batch_size=32", "optimizer.lr=0.04", "optimizer.nesterov=true", "schedule.gamma=0.2", "clip_norm=1",
     "augment.flip=false", "methods.kd.temperature=5", "methods.kd.standardise=true", "methods.kd.entropy_weights=3",
     "teacher_training.seed=8", "dataset.classes=10", "seeds=[9]"],
)  # fmt: skip
def test_whatever_changes_a_result_changes_the_identity(override):
    only = ["method=kd", "teacher=resnet32x4"]
    before, after = ({cell.trial_id for cell in cells} for cells in (planned(only=only), planned(override, only=only)))
    assert not before & after


def test_identity_is_the_same_in_another_process_and_has_not_changed():
    code = (
        "from kd_bench.config.load import read_recipe; from kd_bench.plan import plan; "
        "print(plan(read_recipe('demo'), 'demo')[3].trial_id)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {plan(read_recipe("demo"), "demo")[3].trial_id}


def test_an_explicit_default_changes_nothing():
    pairs = RECIPE["pairs"][:1]
    plain = planned(methods={"kd": {}}, pairs=pairs)
    methods, dataset = {"kd": {"temperature": 4, "ce_weight": 0.1}}, {"name": "cifar100", "labels": "fine"}
    written = planned(methods=methods, dataset=dataset, pairs=pairs)
    assert [cell.trial_id for cell in plain] == [cell.trial_id for cell in written]
    fractions = planned("schedule.milestones=[150, 180, 210]")
    assert fractions[0].trial_id == planned()[0].trial_id


def test_logit_settings_of_a_row_and_of_a_pair():
    rows = {"kd": {}, "kd_ls": {"method": "kd", "standardise": True, "temperature": 2}, "dkd": {"entropy_weights": 3}}
    pairs = [RECIPE["pairs"][0], RECIPE["pairs"][1] | {"methods": {"kd_ls": {"standardise": False, "kd_weight": 9}}}]
    cells = planned("seeds=[0]", methods=rows, pairs=pairs)
    settings = [cell.trial.method.logit_settings() for cell in cells]
    assert settings == [{}, {"standardise": True}, {"entropy_weights": 3.0}, {}, {}, {"entropy_weights": 3.0}]
    weights = [cell.trial.method.hyperparameters["kd_weight"] for cell in cells if cell.method == "kd"]
    assert weights == [0.9, 0.9, 0.9, 9.0]
    changed = planned("methods.kd.standardise=true", "methods.kd.entropy_weights=2", only=["method=kd"])[0]
    assert changed.trial.method.title == "kd + standardise + entropy_weights 2"
    assert Trial.model_validate_json(changed.trial.model_dump_json()).id == changed.trial_id


def test_logit_settings_that_are_off_change_no_identity():
    pairs = RECIPE["pairs"][:1]
    plain = planned(methods={"kd": {}}, pairs=pairs)
    off = {"kd": {"standardise": False, "entropy_weights": None}}
    assert [cell.trial_id for cell in planned(methods=off, pairs=pairs)] == [cell.trial_id for cell in plain]
    assert "standardise" not in plain[0].trial.model_dump_json()
    null = planned("methods.kd.standardise=null", methods={"kd": {"standardise": True}}, pairs=pairs)
    assert [cell.trial_id for cell in null] == [cell.trial_id for cell in plain]


def test_selection():
    cells = planned(only=["method=kd,dkd", "student=resnet8x4", "teacher=wrn_40_2", "seed=1"])
    assert [(cell.label, cell.seed) for cell in cells] == [("kd", 1), ("dkd", 1)]


def test_cohorts_share_batches_and_teacher(tmp_path):
    groups = group_into_cohorts((cell.trial for cell in planned()), tmp_path, size=8)
    assert all(len({trial.cohort_key for trial in group.trials}) == 1 for group in groups)
    # per seed: a cohort of kd and dkd for each pair, and one of both students alone, with different learning rates
    assert sorted(len(group.trials) for group in groups) == [2] * 9
    assert all(
        len(group.trials) == 1 for group in group_into_cohorts((cell.trial for cell in planned()), tmp_path, size=1)
    )


@pytest.mark.parametrize(
    ("overrides", "changes", "expected"),
    [
        ([], {"dataset": "cifar10O"}, "no dataset is called 'cifar10O'; did you mean 'cifar10"),
        ([], {"dataset": {"name": "cifar100", "labels": "fin"}}, "fin"),
        ([], {"dataset": {"name": "cifar100", "classes": 101}}, "101"),
        ([], {"methods": ["kdd"]}, "no method is called 'kdd'; did you mean 'kd'?"),
        (
            [],
            {"methods": {"kd": {"temprature": 3}}},
            "kd has no hyper-parameter 'temprature'; did you mean 'temperature'?",
        ),
        ([], {"methods": {"kd": {"temperature": 0}}}, "temperature = 0"),
        ([], {"methods": {"kd": {"temperature": "hot"}}}, "temperature = 'hot'"),
        ([], {"methods": {"ikl_kd": {"weights": "clas"}}}, "weights = 'clas'"),
        (["methods.none.standardise=true"], {}, "r.yaml: methods.none: standardise: none distils nothing; standardise"),
        (["methods.kd.standardise=maybe"], {}, "methods.kd: standardise: should be true or false (it is 'maybe')"),
        (["methods.kd.entropy_weights=1e400"], {}, "entropy_weights: should be a finite number (it is inf)"),
        (["pairs.0.methods.kd.entropy_weights=-1"], {}, "pairs.0.methods.kd: entropy_weights: should be above 0"),
        (["pairs.0.student=resnet8x5"], {}, "no network is called 'resnet8x5'; did you mean"),
        (["pairs.0.teacher=null"], {"methods": ["kd"]}, "pairs.0.teacher: this key is missing"),
        ([], {"pairs": [{"teacher": None, "student": "resnet8"}]}, "kd needs a teacher"),
        (["pairs.0.training.optimizer.lrr=1"], {}, "optimizer.lrr: no such key; did you mean 'lr'?"),
        (["pairs.0.methods.dk.beta=1"], {}, "no row is called 'dk'"),
        (["pairs.0.training.lr=1"], {}, "r.yaml: pairs.0.training: lr: no such key; did you mean 'optimizer.lr'?"),
        (
            ["methods.kd.training.epoch=1"],
            {},
            "r.yaml: methods.kd.training: epoch: no such key; did you mean 'epochs'?",
        ),
        (
            ["pairs.1.methods.kd={training: {epoch: 1}}"],
            {},
            "r.yaml: pairs.1.methods.kd.training: epoch: no such key; did you mean 'epochs'?",
        ),
        (
            ["batch_size=60000", "teacher_training.batch_size=64"],
            {},
            "r.yaml: batch_size: 60000 is more than the 50000 training images of cifar100",
        ),
        (
            ["pairs.0.training.batch_size=70000"],
            {"methods": {"kd": {"training": {"batch_size": 60000}}}},
            "r.yaml: methods.kd.training: batch_size: 60000 is more than",
        ),
        (
            [],
            {"methods": {"my_kd": {"temperature": 4}}},
            "r.yaml: methods.my_kd: no method is called 'my_kd'; did you mean 'mlkd'? (for a label of your own add "
            "method: NAME)",
        ),
        (
            [],
            {"pairs": [*RECIPE["pairs"], {"teacher": "cifar_resnet32x4", "student": "resnet8x4"}]},
            "r.yaml: pairs.2: has the networks and settings of pairs.0; leave one out",
        ),
        (["baseline=kdd"], {}, "no row is called 'kdd'"),
        (["teachers.resnet20.epochs=1"], {}, "no teacher of this recipe is called 'resnet20'"),
        (["teacher_training.epochs=none"], {}, "teacher_training: epochs: should be a whole number"),
        (["augment.crop=5"], {}, "augment.crop: 5 is more than cifar100 allows, 4"),
        (["augment.flip=true", "augment.crop=1"], {"dataset": "digits"}, "a mirrored image of digits"),
    ],
)
def test_unknown_names_are_refused(overrides, changes, expected):
    message = refused(*overrides, **changes)
    assert expected in message
    assert message.startswith(("r.yaml: ", "r: "))


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("method", "should be KEY=VALUE"),
        ("methd=kd", "did you mean 'method'?"),
        ("method=kdd", "did you mean 'kd'?"),
        ("student=resnet20", "no student of this recipe is called 'resnet20'"),
    ],
)
def test_bad_selections_are_refused(only, expected):
    assert expected in refused(only=[only])
