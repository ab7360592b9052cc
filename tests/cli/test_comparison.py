"""The name of a comparison, wherever commands take a recipe; and the options that are short for ``--set``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kd_bench import api
from kd_bench.cli.app import app
from kd_bench.config.load import packaged_recipes, read_recipe
from kd_bench.trials.recipe_file import find_recipe_in, kept_recipes, recipe_file, write_recipe
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import package_path
from tests.cli.test_main import refused, run

PAIR = ("--dataset", "digits", "--teacher", "resnet14", "--student", "resnet8")
NAME = "compare-digits-resnet14-resnet8"


def test_every_recipe_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    for name in packaged_recipes():
        recipe = read_recipe(name)
        write_recipe(recipe, tmp_path, [])
        file = recipe_file(recipe.name, tmp_path)
        assert file is not None
        assert read_recipe(file) == recipe, name


def test_texts_that_look_like_numbers_are_read_back(tmp_path: Path) -> None:
    rows = {"1e5": {"method": "kd"}, "0o17": {"method": "none"}, "null": {"method": "kd"}}
    pair = {"teacher": "resnet14", "student": "resnet8"}
    content = {"name": "demo", "description": "1e5", "dataset": "digits", "pairs": [pair], "methods": rows}
    recipe = read_recipe(content | {"baseline": "1e5"})
    write_recipe(recipe, tmp_path, [])
    assert read_recipe(tmp_path / "demo" / "recipe.yaml") == recipe


def test_names_are_found_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("runs")
    for name in ("demo", "compare-a"):
        write_recipe(read_recipe("demo").model_copy(update={"name": name}), out, [])
    assert find_recipe_in("demo", out) == "demo"  # the packaged one
    assert find_recipe_in("compare-a", out) == "runs/compare-a/recipe.yaml"
    assert kept_recipes(out) == ["compare-a", "demo"]
    Path("compare-a").write_text("")
    assert find_recipe_in("compare-a", out) == "compare-a"  # a file of the user's
    assert recipe_file("../runs/demo", out) is None
    with pytest.raises(UserError, match="compare-b: there is no such recipe; did you mean 'compare-a'"):
        find_recipe_in("compare-b", out)
    with pytest.raises(UserError, match="cifar100/tabel6: there is no such recipe; did you mean 'cifar100/table6'"):
        find_recipe_in("cifar100/tabel6", out)


@pytest.mark.slow
def test_a_comparison_is_found_by_its_name(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    size = ("--set", "dataset.train_images=100", "--set", "dataset.test_images=40")
    rows = ("--methods", "kd,dkd", "--baseline", "none", "--trials", "1", "--epochs", "1", "--batch-size", "50")
    done = run("compare", *PAIR, *rows, *size, "--set", "teacher_training.epochs=1", *out)
    assert done.returncode == 0, done.stderr
    assert "difference to the student alone" in done.stdout
    note = "dkd: its warm-up takes 20 epochs and the training 1, so its terms never reach their full weight"
    option = "--set methods.dkd.warmup_epochs=1"
    assert done.stderr.count(f"{NAME}: {note}; set methods.dkd.warmup_epochs, e.g. {option}\n") == 1
    assert done.stderr.splitlines()[-3:] == [
        "next:",
        f"  kd-bench table {NAME} --out {out[1]}",
        f"  kd-bench report --recipe {NAME} --out {out[1]}",
    ]
    table = run("table", NAME, *out)
    assert (table.returncode, table.stdout) == (0, done.stdout)
    status = run("status", NAME, *out)
    assert status.returncode == 0
    assert f"{NAME}: 4 trainings: 4 done" in status.stdout
    again = run("run", NAME, *out)
    assert again.returncode == 0
    assert "all is done (3 trials); nothing to train" in again.stderr
    assert again.stderr.endswith(done.stderr.partition("\nnext:")[2])
    selected = run("run", NAME, *out, "--only", "method=kd").stderr.splitlines()
    assert selected[-1] == f"  kd-bench report --recipe {NAME} --only method=kd --out {out[1]}"
    estimate = run("estimate", NAME, *out, "--cards", "none", "--steps", "0", "--trials", "2")
    assert estimate.stderr.count(f"estimate: {note}") == 1
    page = run("report", "--recipe", NAME, *out, "--output", str(tmp_path / "r.html"))
    assert page.stdout.startswith("report: 3 trials")
    assert (tmp_path / "out" / NAME / "recipe.yaml").read_text().startswith("# Written by kd-bench")
    assert "did you mean 'compare-digits-resnet14-resnet8'" in refused("table", f"{NAME[:-1]}9", *out)

    # Results of earlier versions have no recipe. Their settings are in their own files.
    (tmp_path / "out" / NAME / "recipe.yaml").unlink()
    table = run("table", NAME, *out)
    assert table.returncode == 0, table.stderr
    for row in ("student alone", "kd", "dkd"):
        assert f"\n {row}" in table.stdout
    assert "there is no such recipe" in refused("table", NAME, "--trials", "1", *out)
    assert run("report", "--recipe", NAME, *out, "--output", str(tmp_path / "r.html")).stdout.startswith("report: 3")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--epochs", "2", "--set", "epochs=3"], "--epochs 2: --set epochs=3 sets epochs, too; leave one of them out"),
        (["--lr", "0.1", "--set", "optimizer.lr=1"], "--lr 0.1: --set optimizer.lr=1 sets optimizer.lr, too; leave"),
        (
            ["--lr", "0.1", "--set", "optimizer={name: adamw, lr: 1}"],
            "--lr 0.1: --set optimizer={name: adamw, lr: 1} sets optimizer.lr, too; leave one of them out",
        ),
        (["--batch-size", "1"], "--batch-size: should be a whole number from 2 to 1,048,576 (it is '1')"),
        (["--batch-size", "300"], "batch_size: 300 is more than the 200 training images of digits"),
        (["--epochs", "1e3"], "--epochs: should be a whole number from 1 to 100,000 (it is '1e3')"),
        (["--lr", "0"], "optimizer.lr: should be above 0"),
        (["--lr", "nan"], "--lr: should be a number from 0 to"),
    ],
)
def test_short_options_that_are_refused(tmp_path: Path, arguments: list[str], expected: str) -> None:
    for command in (("compare", *PAIR), ("run", "demo"), ("table", "demo")):
        assert expected in refused(*command, "--out", str(tmp_path), *arguments)


@pytest.mark.parametrize("option", ["--teacher", "--student"])
def test_a_network_that_does_not_exist_is_named_with_its_option(tmp_path: Path, option: str) -> None:
    pair = [*PAIR, option, "resnet15"]  # the last one counts
    message = refused("compare", *pair, "--out", str(tmp_path))
    assert message.startswith(f"kd-bench: {option}: no network is called 'resnet15'; did you mean ")


def test_short_options_are_the_settings_of_the_same_name(tmp_path: Path) -> None:
    short = ("--epochs", "3", "--batch-size", "20", "--lr", "1e-5")
    long = ("--set", "epochs=3", "--set", "batch_size=20", "--set", "optimizer.lr=1e-5")
    shown = [run("status", "demo", *options, "--out", str(tmp_path)).stdout for options in (short, long, ())]
    assert shown[0] == shown[1] != shown[2]
    mixed = ("--lr", "1e-5", "--set", "optimizer={momentum: 0.5}")
    assert run("status", "demo", *mixed, "--out", str(tmp_path)).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--baseline", "kdd"], "--baseline: no row is called 'kdd'; did you mean 'kd'?"),
        (["--baseline", "kd", "--methods", "dkd"], "--baseline: no row is called 'kd'; did you mean 'dkd'?"),
        (["--baseline", "kd", "--set", "baseline=dkd"], "--baseline kd: --set baseline=dkd sets it, too; leave one"),
    ],
)
def test_baselines_that_are_refused(tmp_path: Path, arguments: list[str], expected: str) -> None:
    assert expected in refused("compare", *PAIR, "--out", str(tmp_path), *arguments)


@pytest.mark.parametrize(("options", "seeds"), [((), [0, 1, 2]), (("--trials", "2"), [0, 1]),
                                                (("--set", "seeds=[5,6,7,8]"), [5, 6, 7, 8]),
                                                (("--set", "seeds=[5,6,7,8]", "--trials", "2"), [5, 6])])  # fmt: skip
def test_the_seeds_of_a_comparison(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: tuple[str, ...], seeds: list[int]
) -> None:
    planned: list[int] = []
    monkeypatch.setattr(
        "kd_bench.cli.run.train_and_print", lambda part, *_: planned.extend(cell.seed for cell in part.planned)
    )
    arguments = ["compare", *PAIR, "--methods", "kd", *options, "--out", str(tmp_path), "--format", "csv"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert planned == seeds * 2


def test_adversarial_training_is_compared_without_a_teacher(tmp_path: Path) -> None:
    settings = {"trials": 1, "overrides": ["adversarial.eps=0.1", "adversarial.schedule=released"]}
    planned = api.plan_comparison("digits", None, "resnet8", ["trades", "ikl_at"], **settings)  # type: ignore[arg-type]
    assert planned.recipe.name == "compare-digits-resnet8"
    assert [(cell.label, cell.taught_by) for cell in planned.planned] == [
        ("none", None), ("trades", None), ("ikl_at", None)]  # fmt: skip
    in_recipe = api.plan("robustness/digits", trials=1, overrides=["pairs.0.student=resnet8"]).planned
    assert planned.planned[0].teacher == in_recipe[0].teacher == "-"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--methods", "trades,mine=kd"], "--teacher: should name the teacher's network, because mine needs a teacher"),
        ([], "--teacher: should name the teacher's network, because kd needs a teacher"),
        (["--methods", "trades", "--weights", "x.pt"],
         "--weights x.pt: should be those of a teacher, and there is no --teacher"),
    ],
)  # fmt: skip
def test_comparisons_without_a_teacher_that_are_refused(tmp_path: Path, arguments: list[str], expected: str) -> None:
    adversarial = ("--set", "adversarial.eps=0.1", "--set", "adversarial.schedule=released")
    pair = ("--dataset", "digits", "--student", "resnet8")
    assert expected in refused("compare", *pair, *arguments, *adversarial, "--out", str(tmp_path))


def test_a_recipe_that_is_replaced_is_kept_if_it_has_other_trials(tmp_path: Path) -> None:
    def write(**changes: object) -> tuple[str | None, list[str]]:
        settings: dict[str, object] = {"trials": 1, "overrides": ["epochs=1"], **changes}
        planned = api.plan_comparison("digits", "resnet14", "resnet8", settings.pop("methods"), **settings)  # type: ignore[arg-type]
        note = write_recipe(planned.recipe, tmp_path, planned.planned)
        return note, [cell.trial_id for cell in planned.planned]

    assert write(methods=["kd", "dkd"])[0] is None
    note, trials = write(methods=["ikl_kd"])
    assert note is None and sorted(path.name for path in (tmp_path / NAME).iterdir()) == ["recipe.yaml"]
    (tmp_path / NAME / trials[-1]).mkdir()  # now there is a trial, of ikl_kd
    note, _ = write(methods=["ikl_kd", "dist"])
    assert note is None  # this one has all of it
    note, _ = write(methods=["kd"])
    (earlier,) = (tmp_path / NAME).glob("recipe-*.yaml")
    assert list(read_recipe(earlier).methods) == ["none", "ikl_kd", "dist"]
    assert note == (
        "this replaces the recipe of an earlier comparison with this name, which has 1 trial that is not in this one; "
        f"to show it: kd-bench table {earlier} --out {tmp_path}"
    )
    assert list(read_recipe(tmp_path / NAME / "recipe.yaml").methods) == ["none", "kd"]
    table = run("table", str(earlier), "--out", str(tmp_path), "--format", "plain")
    assert table.returncode == 0 and "\nikl_kd" in table.stdout and "\ndist" in table.stdout


def test_the_status_of_a_folder_without_a_recipe(tmp_path: Path) -> None:
    shutil.copytree(
        package_path("results", "measured", "demo"), tmp_path / "tune-x", ignore=shutil.ignore_patterns("*.yaml")
    )
    shown = run("status", "tune-x", "--out", str(tmp_path))
    assert shown.stdout.endswith("tune-x: 26 trainings: 26 waiting\n") and not shown.stderr  # their weights are gone
    assert "tune-y: there is no such recipe" in refused("status", "tune-y", "--out", str(tmp_path))
    assert "tune-x: there is no such recipe" in refused("status", "tune-x", "--trials", "1", "--out", str(tmp_path))
