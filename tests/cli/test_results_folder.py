"""Results are found where the user says: the folder, a recipe with the options of its run, and trials by their ids."""

from __future__ import annotations

import csv
import io
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kd_bench import api
from kd_bench.cli import run
from kd_bench.cli.main import app
from kd_bench.cli.targets import find_targets
from kd_bench.config.trial import PlannedTrial
from kd_bench.launch.options import RunOptions
from kd_bench.launch.replay import replay
from kd_bench.trials.folder import TEACHERS
from kd_bench.trials.recipe_file import find_recipe_in
from kd_bench.utils.errors import UserError
from tests.trials.folders import finish

#: Options of a run whose trials the recipe alone does not plan.
OF_RUN = ("--method", "dist", "--epochs", "2", "--trials", "1")

NO_OPTIONS = dict.fromkeys(("model", "dataset", "key", "normalise", "methods", "only", "trials", "overrides"))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), standalone_mode=False)


def refused(*arguments: object) -> str:
    error = invoke(*arguments).exception
    assert isinstance(error, UserError), error
    return str(error)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The results of a run with options: a method that the recipe does not have, fewer epochs, one seed."""
    folder = tmp_path / "out"
    for cell in trained():
        finish(folder / "demo" / cell.trial_id, cell.trial)
        assert cell.taught_by is not None
        finish(folder / TEACHERS / cell.taught_by.id, cell.taught_by)
    return folder


def trained() -> list[PlannedTrial]:
    return api.plan("demo", methods=["dist"], trials=1, overrides=["epochs=2"]).planned


READING = (
    ("table",),
    ("table", "demo"),
    ("status",),
    ("status", "demo"),
    ("report",),
    ("report", "--recipe", "demo"),
    ("export", "csv"),
    ("evaluate", "demo"),
    ("show", "compare-x"),
)


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("")
    expected = f"--out: there is no folder {tmp_path / 'nowhere'}; kd-bench run makes one"
    assert refused(*command, "--out", tmp_path / "nowhere") == expected
    assert refused(*command, "--out", tmp_path / "file") == f"--out: {tmp_path / 'file'} is a file, not a folder"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_show_needs_the_folder_of_the_environment_for_names_of_comparisons_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KD_BENCH_OUT", str(tmp_path / "later"))
    assert invoke("show", "kd").stdout.startswith("kd (logits)")
    assert refused("show", "kdd").endswith("is called 'kdd'; did you mean 'kd'?")
    missing = f"--out: there is no folder {tmp_path / 'later'}; kd-bench run makes one"
    assert refused("show", "results-of-may") == missing
    (tmp_path / "later" / "results-of-june").mkdir(parents=True)
    (tmp_path / "later" / "results-of-june" / "recipe.yaml").write_text("")
    assert refused("show", "results-of-may").endswith("did you mean 'results-of-june'?")


@pytest.mark.parametrize("command", ["run", "estimate"])
def test_results_are_not_written_into_a_file(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("")
    assert refused(command, "demo", "--out", tmp_path / "file") == f"--out: {tmp_path / 'file'} is a file, not a folder"


def test_verify_reads_the_folder_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    monkeypatch.setenv("KD_BENCH_OUT", str(folder))
    assert refused("verify") == f"{folder}: there is no such folder"
    folder.write_text("")
    assert refused("verify") == f"{folder}: is a file, not a folder"
    assert refused("verify", tmp_path) == f"{tmp_path}: there are no trials in this folder"


@pytest.mark.parametrize(
    "command",
    [("table", "demo"), ("status", "demo"), ("report", "--recipe", "demo"), ("export", "csv", "--recipe", "demo")],
)
def test_options_of_the_run_are_missing(out: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    command += ("--output", str(tmp_path / "page.html")) if command[0] == "report" else ()
    name = command[0]
    done = invoke(*command, "--out", out)
    sentence = (
        f"{name}: {out / 'demo'} has 6 finished trials that the recipe does not plan (e.g. epochs 2 instead of 15); "
        f"repeat the options of the run, or see all results: kd-bench table --out {out}\n"
    )
    assert done.stderr.count(sentence) == 1 and sentence not in done.stdout
    options = [text if text != "--epochs" or name != "export" else "--set" for text in OF_RUN]
    options = ["epochs=2" if before == "--set" else text for before, text in zip(["", *options], options, strict=False)]
    repeated = invoke(*command, *options, "--out", out)
    assert "does not plan" not in repeated.output and not isinstance(repeated.exception, UserError)


def test_the_default_folder_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = "no trial of demo is in runs yet; train with: kd-bench run demo\n"
    for command in ("table", "status"):
        assert invoke(command, "demo").stderr == f"{command}: {sentence}"
    expected = "demo: none of its 25 trials is finished in runs/demo; train them with: kd-bench run demo"
    assert refused("evaluate", "demo") == expected
    assert not list(tmp_path.iterdir())


def test_a_page_has_the_options_of_the_run(out: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = invoke("report", "--recipe", "demo", *OF_RUN, "--only", "method=dist", "--out", out, "--output", page)
    assert done.output == f"report: 1 trial, {page.stat().st_size / 1e6:.2f} MB: {page}\n"
    command = "kd-bench run demo --method dist --trials 1 --set epochs=2 --only method=dist"
    assert page.read_text().count(command) == 1
    for options in (("--only", "method=kd"), ("--trials", "1"), ("--epochs", "2")):
        assert ": name the recipe that is changed or selected from, with --recipe; see" in refused("report", *options)


def test_a_table_for_other_programs_has_the_trials_of_the_run(out: Path) -> None:
    options = ("--method", "dist", "--trials", "1", "--set", "epochs=2", "--only", "method=dist,kd")
    text = invoke("export", "csv", "--recipe", "demo", *options, "--out", out).stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["label"], row["status"], row["seed"]) for row in rows] == [("kd", "done", "0"), ("dist", "done", "0")]


def test_trials_are_found_by_the_options_of_the_run(out: Path) -> None:
    sentences: list[str] = []
    given = NO_OPTIONS | {"methods": ["dist"], "only": ["method=dist"], "trials": 1, "overrides": ["epochs=2"]}
    networks, recipe = find_targets("demo", out, sentences.append, **given)  # type: ignore[arg-type]
    (cell,) = (cell for cell in trained() if cell.label == "dist")
    assert [network.folder for network in networks] == [out / "demo" / cell.trial_id]
    assert recipe is not None and not sentences
    for command, options in (("evaluate", ("--batch-size", "8", "--lr", "0.1")), ("attack", ("--lr", "0.1"))):
        message = refused(command, "demo", *OF_RUN, *options, "--only", "method=dist", "--out", out)
        start = f"demo: none of its 1 trials is finished; {out / 'demo'} has 6 finished trials that the recipe does not"
        assert message.startswith(start) and "optimizer.lr 0.03 instead of 0.1" in message


@pytest.mark.parametrize("command", ["evaluate", "attack"])
def test_options_of_a_recipe_have_no_meaning_for_a_trial(out: Path, command: str) -> None:
    trial = trained()[0].trial_id
    for options, named in (
        (("--method", "kd"), "--method"),
        (("--epochs", "2"), "--set (or an option that is short for it)"),
    ):
        message = f"{named} has no meaning for a trial, so it must be left out"
        assert refused(command, trial, *options, "--out", out) == message


def test_students_and_teachers_are_found_by_their_ids(out: Path, tmp_path: Path) -> None:
    cell = trained()[-1]
    assert cell.taught_by is not None
    for trial_id, folder in ((cell.trial_id, "demo"), (cell.taught_by.id, TEACHERS)):
        networks, recipe = find_targets(trial_id, out, print, **NO_OPTIONS)  # type: ignore[arg-type]
        assert [network.folder for network in networks] == [out / folder / trial_id] and recipe is None
    unknown = "0123456789abcdef"
    sentence = f"{unknown}: there is no trial of this id in {out}; list them with: kd-bench status --all --out {out}"
    card = ("export", "card", unknown, "--output", tmp_path / "card")
    for command in (("evaluate", unknown), ("attack", unknown), ("replay", unknown), card):
        assert refused(*command, "--out", out) == sentence


def test_a_trial_is_replayed_by_its_id(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[Path] = []

    def record(path: Path, *_: object) -> None:
        paths.append(path)
        raise UserError("was found")

    monkeypatch.setattr(api, "replay", record)
    cell = trained()[-1]
    assert refused("replay", cell.trial_id, "--out", out) == "was found"
    assert refused("replay", out / "demo" / cell.trial_id, "--out", tmp_path) == "was found"
    assert paths == [out / "demo" / cell.trial_id] * 2
    with pytest.raises(UserError, match=r"^nope: there is no such folder$"):
        replay(Path("nope"), RunOptions(out=out))


def test_a_missing_recipe_has_a_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recipes of mine"
    folder.mkdir()
    for name in ("mine.yaml", "notes.txt"):
        (folder / name).write_text("")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for written in ("mine.yml", "miine.yaml", "mine"):
        path = f"../recipes of mine/{written}"
        with pytest.raises(UserError) as caught:
            find_recipe_in(path, Path("runs"))
        assert str(caught.value) == f"{path}: there is no such recipe; did you mean '../recipes of mine/mine.yaml'?"
    for written, message in (
        ("../recipes of mine/other.yaml", r"other\.yaml: there is no such recipe$"),
        ("recipes/cifar100/tabel6.yaml", "there is no such recipe; did you mean 'cifar100/table6'"),
        ("compare-x", "compare-x: there is no such recipe, and runs has no comparison of this name$"),
    ):
        with pytest.raises(UserError, match=message):
            find_recipe_in(written, Path("runs"))


def test_packaged_recipes_are_named_as_the_user_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused("table", "demo", "--epochs", "1", "--set", "batch_size=1").startswith("demo: batch_size: should be")
    assert refused("table", "cifar100/table6", "--set", "baseline=kdd").startswith("cifar100/table6: baseline: no row")
    Path("mine.yaml").write_text("extends: demo\nepochs: 0\n")
    assert refused("table", "mine.yaml").startswith("mine.yaml: epochs: should be at least 1")


def test_a_method_that_does_not_exist_is_named_with_its_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pair = ("compare", "--dataset", "digits", "--teacher", "resnet14", "--student", "resnet8", "--methods")
    commands = {
        ("table", "demo", "--method"): "--method",
        ("evaluate", "demo", "--method"): "--method",
        pair: "--methods",
    }
    for command, option in commands.items():
        assert refused(*command, "ikl_kdd") == f"{option}: no method is called 'ikl_kdd'; did you mean 'ikl_kd'?"
        assert re.match(
            rf"{option}: method 'my_loss.py:MyLoss': there is no file", refused(*command, "my_loss.py:MyLoss")
        )
    Path("my_loss.py").write_text("class MyLoss: ...\n")
    expected = "--method: no method is called 'my_loss:MyLoss'; did you mean 'my_loss.py:MyLoss'?"
    assert refused("table", "demo", "--method", "my_loss:MyLoss") == expected


def test_a_run_names_the_commands_that_show_its_trials(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "train_and_print", lambda *_: None)
    options = [*OF_RUN, "--only", "method=dist,kd", "--set", "description=a b"]
    lines = invoke("run", "demo", *options, "--out", out).stderr.splitlines()
    shown = f"--method dist --only method=dist,kd --trials 1 --set 'description=a b' --set epochs=2 --out {out}"
    assert lines == ["", "next:", f"  kd-bench table demo {shown}", f"  kd-bench report --recipe demo {shown}"]
    for line in lines[2:]:
        page = ("--output", tmp_path / "page.html") if "report" in line else ()
        done = invoke(*shlex.split(line)[1:], *page)
        assert done.exception is None and not done.stderr
    assert invoke("run", "demo").stderr.splitlines()[2:] == ["  kd-bench table demo", "  kd-bench report --recipe demo"]
