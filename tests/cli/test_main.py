"""The commands as a user types them: what they print, and that bad input is one line and leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

RECIPE = {
    "dataset": "digits",
    "epochs": 1,
    "trials": 1,
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": ["none", "kd"],
}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kd_bench", *arguments]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("KD_BENCH_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=clean | environment)


def refused(*arguments: str, **environment: str) -> str:
    done = run(*arguments, **environment)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("kd-bench: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.fixture
def recipe(tmp_path) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "epoch=1"], "did you mean 'epochs'?"),
        (["--set", "epochs=-1"], "epochs: should be greater than or equal to 1 (it is -1)"),
        (["--set", "methods=[kdd]"], "no method is called 'kdd'; did you mean 'kd'?"),
        (["--set", "methods.kd.temprature=1"], "did you mean 'temperature'?"),
        (["--set", "methods.kd.temperature=-1"], "temperature = -1"),
        (["--set", "pairs.0.student=resnet9"], "no model is called 'resnet9'"),
        (["--set", "dataset=digit"], "no dataset is called 'digit'; did you mean 'digits'?"),
        (["--only", "method=dkd"], "no method of this recipe is called 'dkd'"),
        (["--format", "markdwon"], "no format is called 'markdwon'; did you mean 'markdown'?"),
        (["--device", "cuda:7"], "there is no such device"),
        (["--device", "gpu"], "there is no such device"),
        (["--trials", "0"], "0"),
        (["--jbos", "2"], "--jbos"),
        (["--jobs", "many"], "many"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(recipe, tmp_path, arguments, expected):
    assert expected in refused("run", recipe, "--out", str(tmp_path / "out"), *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_data_that_is_not_there(recipe, tmp_path):
    arguments = ("run", recipe, "--out", str(tmp_path / "out"), "--set", "dataset=cifar100")
    message = refused(*arguments, "--data", str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in message
    assert str(tmp_path / "other") in refused(*arguments, KD_BENCH_DATA=str(tmp_path / "other"))
    assert not (tmp_path / "out").exists()


def test_a_results_folder_that_cannot_be_written(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    assert "results cannot be written there" in refused("run", recipe, "--out", str(tmp_path / "file" / "out"))


def test_a_recipe_that_is_not_there_or_no_yaml(tmp_path):
    assert "there is no such recipe" in refused("run", str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "is not valid YAML" in refused("run", str(tmp_path / "bad.yaml"))
    assert "is not valid YAML" in refused("table", str(tmp_path / "bad.yaml"))


def test_a_trial_edited_by_hand_is_noticed(recipe, tmp_path):
    from kd_bench.config.load import read_recipe
    from kd_bench.plan import plan
    from kd_bench.trials.folder import TrialFolder

    trial = plan(read_recipe(recipe), recipe)[0].trial
    folder = TrialFolder(tmp_path / "out" / "r" / trial.id)
    folder.create(trial)
    file = folder.path / "trial.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"epochs": 77}))
    for command in ("run", "table"):
        message = refused(command, recipe, "--out", str(tmp_path / "out"))
        assert str(file) in message
        assert "was changed by hand" in message


def test_unknown_names_are_refused():
    assert "did you mean 'methods'?" in refused("list", "method")
    assert "did you mean 'ikl_kd'?" in refused("show", "ikl_kdd")
    assert "did you mean 'digits'?" in refused(
        "compare", "--dataset", "digit", "--teacher", "resnet14", "--student", "resnet8"
    )
    assert "no model is called" in refused("teacher", "train", "resnet14x", "--dataset", "digits")
    assert "has not been trained" in refused(
        "teacher", "verify", "resnet14", "--dataset", "digits", "--out", "/nowhere"
    )


def test_table_of_a_recipe_that_never_ran(recipe, tmp_path):
    done = run("table", recipe, "--out", str(tmp_path / "out"), "--format", "csv")
    assert done.returncode == 0
    assert "kd" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("methods", "ikl_kd"),
        ("networks", "cifar_mobilenet_v2"),
        ("teachers", "cifar100/resnet32x4"),
        ("students", "cifar100/wrn_16_2"),
        ("datasets", "cifar100"),
        ("recipes", "demo"),
    ],
)
def test_lists(kind, expected):
    done = run("list", kind)
    assert done.returncode == 0
    line = next(line for line in done.stdout.splitlines() if line.startswith(f"{expected} "))
    assert len(line.split(None, 1)[1]) > 10


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ikl_kd", "temperature"),
        ("digits", "200"),
        ("resnet20", "cifar_resnet20"),
        ("demo", "extends: digits/base.yaml"),
    ],
)
def test_show(name, expected):
    done = run("show", name)
    assert done.returncode == 0
    assert expected in done.stdout


def test_doctor_looks_at_everything(tmp_path):
    done = run("doctor", "--out", str(tmp_path), "--data", str(tmp_path))
    assert done.returncode == 0
    for word in ("torch", "cores", "digits", "cifar100", "results go to"):
        assert word in done.stdout


def test_help_lists_and_tables_import_nothing_heavy(recipe, tmp_path):
    code = (
        "import sys; sys.argv = ['kd-bench', *{arguments!r}]\n"
        "from kd_bench.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {{'torch', 'timm', 'torchvision', 'pytorch_lightning', 'sklearn'}}\n"
        "print(sorted(set(sys.modules) & heavy), file=sys.stderr)"
    )
    for arguments in (["--help"], ["list", "methods"], ["list", "students"], ["table", recipe, "--out", str(tmp_path)]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments=arguments)], capture_output=True, text=True, check=False
        )
        assert done.stderr.splitlines()[-1] == "[]", (arguments, done.stderr)


def test_every_packaged_recipe_can_be_planned(tmp_path, monkeypatch):
    from kd_bench.config.load import packaged_recipes, read_recipe
    from kd_bench.models import pretrained
    from kd_bench.plan import plan

    fetched = tmp_path / "fetched.pth"
    fetched.write_bytes(b"any")
    monkeypatch.setattr(pretrained, "require_weights", lambda *_: fetched)
    generated = tmp_path / "generated" / "cifar100_50m.npz"
    generated.parent.mkdir()
    generated.write_bytes(b"any")
    monkeypatch.setenv("KD_BENCH_DATA", str(tmp_path))
    for name in packaged_recipes():
        planned = plan(read_recipe(name), name)
        assert planned
        assert Path(name).name


def test_make_help_names_every_target():
    root = Path(__file__).parents[2]
    done = subprocess.run(["make", "help"], cwd=root, capture_output=True, text=True, check=True)
    for target in ("setup", "demo", "test", "lint", "format", "bench", "reproduce-cifar", "reproduce-imagenet",
                   "reproduce-robustness", "report", "clean"):  # fmt: skip
        assert f"make {target} " in done.stdout
