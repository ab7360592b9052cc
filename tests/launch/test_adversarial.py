"""Adversarial training as a user starts it: killed and resumed, attacked, and the tables of robustness."""

import csv
import io
import json
import math
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from kd_bench.config.load import read_recipe
from kd_bench.launch.options import RunOptions
from kd_bench.paper.reproduce import Reproduction, groups
from kd_bench.plan import plan
from kd_bench.training.optimizers import learning_rate
from kd_bench.utils.errors import UserError
from tests.data.generated_images import write_images
from tests.launch.test_end_to_end import WEIGHTS, command, kill_tree, run, weights

RECIPE = {
    "name": "adversarial",
    "dataset": {"name": "digits", "train_images": 100, "test_images": 50},
    "input": {"size": 8},
    "epochs": 3,
    "batch_size": 50,
    "trials": 1,
    "optimizer": {"lr": 0.05},
    "schedule": {"name": "cosine"},
    "adversarial": {
        "eps": 0.1,
        "schedule": "intended",
        "ramp": True,
        "weight_perturbation": {"from_epoch": 2},
        "average": {"decay": 0.5},
    },
    "pairs": [{"teacher": None, "student": "resnet8"}],
    "methods": {
        "none": {},
        "trades": {"training": {"adversarial": {"average": None}}},
        "ikl_at": {},
    },
    "baseline": "none",
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "adversarial.yaml"
    path.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    done = run("run", str(recipe), "--out", str(out), "--jobs", "1", "--format", "csv")
    assert done.returncode == 0, done.stderr
    return out


def reproduction(data: Path | None = None, log=print, only=()) -> Reproduction:
    return Reproduction("robustness", RunOptions(out=Path("runs"), data=data), log, only=only)


def results(out: Path) -> dict[str, dict]:
    by_method = {}
    for path in out.glob("adversarial/*/result.json"):
        name = json.loads((path.parent / "trial.json").read_text())["method"]["name"]
        by_method[name] = json.loads(path.read_text()) | {"folder": path.parent}
    return by_method


def test_results_say_which_network_was_evaluated(undisturbed):
    by_method = results(undisturbed)
    assert {name: result.get("evaluated") for name, result in by_method.items()} == {
        "none": None,
        "trades": "last",
        "ikl_at": "average over epochs",
    }
    header, *rows = (by_method["ikl_at"]["folder"] / "metrics.csv").read_text().splitlines()
    columns = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    assert by_method["ikl_at"]["top1_last"] == float(columns[-1]["top1"])
    assert {"last_top1", "train_pairwise", "train_soft_ce", "train_ce"} <= columns[-1].keys()


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_bytes(recipe, undisturbed, tmp_path):
    process = subprocess.Popen(
        command("run", str(recipe), "--out", str(tmp_path), "--jobs", "1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ids = [result["folder"].name for name, result in results(undisturbed).items() if name != "none"]
    deadline = time.monotonic() + 240
    while not any((tmp_path / "adversarial" / trial_id / "checkpoint").is_dir() for trial_id in ids):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kill_tree(process)
    assert any(not (tmp_path / "adversarial" / trial_id / WEIGHTS).exists() for trial_id in ids)
    done = run("run", str(recipe), "--out", str(tmp_path), "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path) == weights(undisturbed)


def test_the_average_is_what_is_kept_and_attacked(recipe, undisturbed):
    done = run(
        "attack", str(recipe), "--out", str(undisturbed), "--eps", "0.1", "--screen", "pgd-20", "--format", "csv"
    )
    assert done.returncode == 0, done.stderr
    rows = csv.DictReader(io.StringIO(done.stdout))
    clean = {row["label"]: float(row["mean"]) for row in rows if row["column"] == "clean"}
    for name, result in results(undisturbed).items():
        assert clean[name] == pytest.approx(result["top1_last"]), done.stdout
    assert "fc.weight" in load_file(results(undisturbed)["ikl_at"]["folder"] / WEIGHTS)


def test_trials_are_shared_by_the_tables():
    parts = {part.name: part for part in reproduction().full()}
    by_label = {name: {cell.label: cell.trial_id for cell in part.planned} for name, part in parts.items()}
    names = {part.recipe.name for name, part in parts.items() if "cifar10" not in name}
    assert names == {"robustness"}
    seven, nine, eleven, twelve = (by_label[f"robustness/table{number}"] for number in (7, 9, 11, 12))
    assert by_label["robustness/table10"] == nine
    assert nine["alpha_20"] == nine["beta_3"]
    assert eleven["alpha_20"] == eleven["beta_3"]
    assert seven["ikl_at"] == eleven["beta_4"] == twelve["ikl_at"]
    trials = {trial_id for name, table in by_label.items() if "generated" not in name for trial_id in table.values()}
    assert len(trials) == 7 + 7 + 1 + 1 + 2  # temperatures 4 and 2, AutoAugment, improved TRADES, CIFAR-10


def test_the_settings_of_the_released_code():
    planned = plan(read_recipe("robustness/table12"), "table12")
    trial = next(cell.trial for cell in planned if cell.label == "ikl_at")
    assert (trial.model, trial.epochs, trial.batch_size, trial.input.normalise) == (
        "cifar_wrn_34_10",
        200,
        128,
        "network",
    )
    assert trial.adversarial is not None

    # adjust_learning_rate_cosine of train_dkl_cifar100.py: epochs count from 1
    for epoch in (1, 2, 100, 200):
        rate = learning_rate(trial.optimizer.lr, trial.schedule, epoch - 1, trial.epochs)
        assert rate == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi * epoch / 201)))
        eps, steps, step_size = trial.adversarial.perturbation(epoch - 1, trial.epochs)
        assert (eps, steps, step_size) == pytest.approx((8 / 255 * epoch / 200, 5, 8 / 255 * epoch / 400))
    improved = next(cell.trial for cell in planned if cell.label == "improved_trades")
    for epoch in (1, 200):
        rate = learning_rate(improved.optimizer.lr, improved.schedule, epoch - 1, improved.epochs)
        assert rate == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / 200)))


def test_generated_images_are_left_out_where_they_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_BENCH_DATA", str(tmp_path))
    said: list[str] = []
    assert "robustness/table7_generated" not in {part.name for part in reproduction(log=said.append).full()}
    assert len(said) == 1
    assert "there is no file" in said[0]
    write_images(tmp_path / "generated" / "cifar100_50m.npz")
    assert "robustness/table7_generated" in {part.name for part in reproduction(log=said.append).full()}


def test_a_data_set_of_one_part_may_be_missing(monkeypatch):
    missing = {"cifar10"}

    def locate(dataset, _):
        if dataset.name in missing:
            raise UserError(f"no {dataset.name} here")

    monkeypatch.setattr("kd_bench.paper.reproduce.datasets.locate", locate)
    said: list[str] = []
    run = reproduction(log=said.append)
    parts = run.full()
    names_with_images = {part.name for part in run._with_images(parts)}
    assert {part.name for part in parts} - names_with_images == {"robustness/cifar10"}
    assert said[-1] == "left out: robustness/cifar10: no cifar10 here"
    with pytest.raises(UserError, match="no cifar10 here"):  # nothing is left
        run._with_images([part for part in parts if part.name == "robustness/cifar10"])
    missing.add("cifar100")
    with pytest.raises(UserError, match="no cifar100 here"):
        run._with_images(parts)


def test_more_images_than_there_are_is_said_before_the_training(tmp_path):
    run = reproduction(tmp_path)
    for budget in ("smoke", "full"):
        with pytest.raises(UserError, match=r"--images 20000 is more test images than \S+ has, (20|10000)$"):
            replace(run, images=20_000, options=RunOptions(out=tmp_path / "out", data=tmp_path)).run(budget, print)


def test_a_smoke_run_has_every_row_on_a_small_network(tmp_path):
    parts, images = reproduction(tmp_path).smoke()
    tables = [name for name, recipe in groups()["robustness"].recipes.items() if "smoke" in recipe.budgets]
    assert "digits" in images
    assert [part.name for part in parts] == tables
    for part in parts:
        full = {cell.label for cell in plan(read_recipe(part.name), part.name)}
        assert {cell.label for cell in part.planned} == full
        assert {cell.student for cell in part.planned} == {"cifar_resnet8"}
        assert not {cell.trial_id for cell in part.planned} & set(part.as_published.values())
    selected_parts, _ = reproduction(tmp_path, only=["method=improved_trades"]).smoke()
    assert [part.name for part in selected_parts] == ["robustness/table12"]
    with pytest.raises(UserError, match="no method of this recipe is called"):
        reproduction(tmp_path, only=["method=kd"]).smoke()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "small"], "no budget is called 'small'"),
        (["--attacks", "apgd"], "no attack is called 'apgd'"),
        (["--attacks", "autoattack"], "which run if --attacks is left out"),
        (["--format", "pdf"], "no format is called 'pdf'"),
        (["--budget", "smoke", "--trials", "2"], "--trials must be left out"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, message):
    done = run("reproduce", "robustness", "--out", str(tmp_path / "out"), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
