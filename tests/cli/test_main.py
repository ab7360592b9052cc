"""The commands as a user types them: what they print, and that bad input is one line and leaves nothing behind."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kd_bench.cli.main import _describe
from tests.data.generated_images import write_images

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
        (["--set", "epochs=-1"], "epochs: should be at least 1 (it is -1)"),
        (["--set", "methods=[kdd]"], "no method is called 'kdd'; did you mean 'kd'?"),
        (["--set", "methods.kd.temprature=1"], "did you mean 'temperature'?"),
        (["--set", "methods.kd.temperature=-1"], "temperature = -1"),
        (["--set", "pairs.0.student=resnet9"], "no network is called 'resnet9'"),
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


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            ("list",),
            "list: the argument KIND is missing: methods, networks, teachers, students, datasets, recipes or settings",
        ),
        (("new",), "new: the argument KIND is missing: method, model, dataset or augmentation"),
        (
            ("teacher", "convert", "a.pth"),
            "teacher convert: the argument TARGET is missing: the safetensors file to write",
        ),
        (("compare",), "compare: the option --dataset is missing: the data set; see: kd-bench list datasets"),
    ],
    ids=str,
)
def test_a_missing_argument_is_named_with_what_it_may_be(command: tuple[str, ...], expected: str) -> None:
    assert refused(*command) == f"kd-bench: {expected}\n"


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
    out = ("--out", str(tmp_path / "out"))
    done = run("run", recipe, *out, "--only", "method=none")
    assert done.returncode == 1
    assert done.stderr.startswith(f"r: left out: {file}: was changed by hand")
    assert f"kd-bench: {recipe}: 1 training has no result: {trial.id}: {file}: was changed by hand" in done.stderr
    assert f"restore it, or remove {folder.path} to train this trial again" in done.stderr
    assert "0/1, 1 damaged" in done.stdout
    table = run("table", recipe, *out)
    assert table.returncode == 0
    assert "(0/1, 1 damaged)" in table.stdout
    shown = " ".join(table.stdout.split())
    assert f"({trial.id}) damaged: trial.json was changed by hand: its settings are those of trial" in shown


def test_unknown_names_are_refused():
    assert "did you mean 'methods'?" in refused("list", "method")
    assert "did you mean 'ikl_kd'?" in refused("show", "ikl_kdd")
    assert "did you mean 'digits'?" in refused(
        "compare", "--dataset", "digit", "--teacher", "resnet14", "--student", "resnet8"
    )
    assert "no network is called" in refused("teacher", "train", "resnet14x", "--dataset", "digits")
    verify = ("teacher", "verify", "resnet14", "--dataset", "digits", "--out", "/nowhere", "--device")
    assert "has not been trained" in refused(*verify, "auto")
    assert "--device gpu: there is no such device" in refused(*verify, "gpu")


def test_table_of_a_recipe_that_never_ran(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)  # the default results folder is not there yet
    done = run("table", recipe, "--format", "csv")
    assert done.returncode == 0
    assert "kd" in done.stdout
    assert done.stderr == f"table: no trial of {recipe} is in runs yet; train with: kd-bench run {recipe}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


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
        ("demo", "which extends digits/base.yaml"),
        ("demo --raw", "extends: digits/base.yaml"),
    ],
)
def test_show(name, expected):
    done = run("show", *name.split())
    assert done.returncode == 0
    assert expected in done.stdout


def test_doctor_looks_at_everything(tmp_path):
    done = run("doctor", "--out", str(tmp_path), "--data", str(tmp_path))
    assert done.returncode == 0
    for word in ("torch", "cores", "digits", "cifar100", "results go to"):
        assert word in done.stdout


def heavy_imports(*arguments: str, code: int = 0) -> list[str]:
    """Runs a command and returns the heavy packages that it has imported."""
    script = (
        f"import sys; sys.argv = ['kd-bench', *{arguments!r}]\n"
        "from kd_bench.cli.main import main\n"
        "try:\n    main()\n    code = 0\nexcept SystemExit as end:\n    code = end.code or 0\n"
        f"assert code == {code}, code\n"
        "heavy = {'torch', 'timm', 'torchvision', 'pytorch_lightning', 'sklearn'}\n"
        "print(' '.join(sorted(set(sys.modules) & heavy)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()[-1].split()


def test_help_lists_and_tables_import_nothing_heavy(recipe, tmp_path):
    commands: list[list[str]] = [["--help"], [], ["list", "methods"], ["list", "students"], ["show", "demo"]]
    for arguments in [*commands, ["table", recipe, "--out", str(tmp_path)]]:
        assert heavy_imports(*arguments) == [], arguments
    assert heavy_imports("status", recipe, "--out", str(tmp_path), code=1) == []


@pytest.mark.slow
def test_the_names_of_timms_networks_are_read_from_timm_once(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("KD_BENCH_CACHE", str(tmp_path / "cache"))
    table = ("table", recipe, "--out", str(tmp_path), "--set")
    assert "timm" in heavy_imports(*table, "pairs.0.student=resnet10t")
    assert heavy_imports(*table, "pairs.0.student=resnet10t") == []
    assert heavy_imports(*table, "pairs.0.student=resnet21", code=2) == []
    assert heavy_imports(*table, "pairs.0.student=resnet34.a1_in1k") == []
    (file,) = (tmp_path / "cache" / "timm").iterdir()
    for damaged in ("{", '{"models": []}', '{"models": [[]], "pretrained": 3, "earlier": []}'):
        file.write_text(damaged)
        assert "timm" in heavy_imports(*table, "pairs.0.student=resnet10t")
        assert heavy_imports(*table, "pairs.0.student=resnet10t") == []


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("sho", {"show"}),
        ("show ikl_kd", {"ikl_kd"}),
        ("run cifar100/table6", {"cifar100/table6"}),
        ("table compare-", {"compare-x"}),
        ("compare --teacher resnet32x", {"resnet32x4"}),
        ("compare --methods kd,ikl_k", {"kd,ikl_kd"}),
        ("teacher fetch wrn_40", {"wrn_40_2"}),
        ("list meth", {"methods"}),
        ("table demo --format mark", {"markdown"}),
        ("compare --dataset tiny", {"tiny_imagenet"}),
        ("run demo --ep", {"--epochs"}),
        ("run demo --only meth", {"method="}),
        ("run demo --only method=kd,ikl_k", {"method=kd,ikl_kd"}),
        ("run demo --executor sl", {"slurm"}),
        ("new meth", {"method"}),
        ("cache clear im", {"images"}),
    ],
)
def test_a_shell_completes_names(tmp_path, monkeypatch, typed, expected):
    kept = tmp_path / "runs" / "compare-x" / "recipe.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text("")
    monkeypatch.chdir(tmp_path)
    words = f"kd-bench {typed}"
    number = str(len(words.split()) - 1)
    done = run(_KD_BENCH_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=number)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == expected


def test_the_script_for_a_shell_is_shown_and_installed(tmp_path):
    def in_bash(option: str) -> subprocess.CompletedProcess[str]:
        """The command recognises its shell among its parents, of which the tests need not have any."""
        command = ["bash", "-c", f"{shlex.quote(sys.executable)} -m kd_bench {option}; exit $?"]  # or bash is replaced
        environment = os.environ | {"HOME": str(tmp_path)}
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)

    assert "_KD_BENCH_COMPLETE=complete_bash" in in_bash("--show-completion").stdout
    done = in_bash("--install-completion")
    assert done.returncode == 0, done.stderr
    assert "_KD_BENCH_COMPLETE" in (tmp_path / ".bash_completions" / "kd-bench.sh").read_text()


def test_every_packaged_recipe_can_be_planned(tmp_path, monkeypatch):
    from kd_bench.config.load import packaged_recipes, read_recipe
    from kd_bench.models import pretrained
    from kd_bench.plan import plan

    fetched = tmp_path / "fetched.pth"
    fetched.write_bytes(b"any")
    monkeypatch.setattr(pretrained, "require_weights", lambda *_: fetched)
    monkeypatch.setattr(pretrained, "initial_weights", lambda *_: fetched)
    write_images(tmp_path / "generated" / "cifar100_50m.npz")
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


def test_a_working_folder_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's error has no name of a file."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        Path.cwd()
    assert _describe(caught.value) == "the working folder was removed; change to another one"
    monkeypatch.chdir(tmp_path)
    assert _describe(caught.value) == "No such file or directory"
