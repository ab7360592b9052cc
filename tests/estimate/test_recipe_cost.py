"""Estimates of recipes and their parts. No test depends on how long something took."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks.estimate import read_speeds, speed_ratio
from kd_bench.cli.estimate import estimate
from kd_bench.config.data import Dataset, Pipeline
from kd_bench.config.trial import Trial
from kd_bench.data.registry import spec
from kd_bench.estimate import placeholders
from kd_bench.estimate.estimate_recipe import estimate_recipe, timing_rounds, training_phases
from kd_bench.estimate.estimate_text import render_estimate
from kd_bench.estimate.gpus import Assumptions, Gpu, estimate_seconds, load_gpus, select_gpus
from kd_bench.estimate.operation_counter import Operation, OperationCounts
from kd_bench.estimate.recipe_cost import CohortGroup, RecipeCost, cost_key, group_missing_trials
from kd_bench.estimate.step_cost import evaluated_images
from kd_bench.estimate.timing_job import EpochTime, Timing
from kd_bench.launch.cohort_task import group_into_cohorts
from kd_bench.launch.options import RunOptions
from kd_bench.trials.folder import TEACHERS, TrialFolder
from kd_bench.utils.errors import UserError
from tests.estimate.few import RECIPE, planned
from tests.launch.test_end_to_end import run
from tests.launch.test_joined_cohorts import idle_scheduler
from tests.trials.folders import finish

# --- GPUs ---


def test_every_card_has_sensible_figures_and_a_source() -> None:
    for name, gpu in load_gpus().items():
        assert gpu.source and gpu.title, name
        assert gpu.fp32 <= (gpu.tf32 or gpu.fp32) <= (gpu.bf16 or gpu.fp16)
    assert {"v100-16gb", "v100-32gb", "a100-40gb", "a100-80gb", "h100", "h100-pcie", "h200", "l4", "l40s", "t4",
            "rtx-3090", "rtx-4090", "rtx-5090"} == set(load_gpus())  # fmt: skip


def test_an_operation_takes_as_long_as_the_slowest_of_three_things() -> None:
    gpu = Gpu(title="x", fp32=1, tf32=2, bf16=10, bandwidth=100, memory=1, source="-")
    assumed = Assumptions(compute=0.5, training=0.5, forward=1.0, launch=1e-3)

    def gpu_seconds(flops: float, moved: float, arithmetic: str, training: bool = True) -> float:
        operation = Operation(int(flops), int(moved), arithmetic)  # type: ignore[arg-type]
        return estimate_seconds(OperationCounts(Counter({operation: 3})), gpu, assumed, training=training)

    assert gpu_seconds(1e12, 0, "half") == pytest.approx(3 * 0.2)
    assert gpu_seconds(1e12, 0, "convolution") == pytest.approx(3 * 1.0)
    assert gpu_seconds(1e12, 0, "single") == pytest.approx(3 * 2.0)
    assert gpu_seconds(0, 1e9, "none") == pytest.approx(3 * 0.02)
    assert gpu_seconds(0, 1e9, "none", training=False) == pytest.approx(3 * 0.01)
    assert gpu_seconds(0, 10, "none") == pytest.approx(3e-3)
    without = gpu.model_copy(update={"bf16": None, "tf32": None})
    counts = OperationCounts(Counter({Operation(10**12, 0, "half"): 1}))
    assert estimate_seconds(counts, without, assumed, training=True) == pytest.approx(2.0)


PUBLISHED = [row for row in read_speeds() if row["network"] in ("resnet50", "beitv2_large_patch16_224", "resnet18")]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row['card']}-{row['network']}-{row['work']}")
def test_published_speeds_come_out(row: dict[str, str]) -> None:
    assert 1 / 1.4 < speed_ratio(row) < 1.4


def test_the_range_that_is_printed_is_that_of_all_published_speeds() -> None:
    ratios = sorted(speed_ratio(row) for row in read_speeds())
    assert len(ratios) == 34
    assert (round(ratios[0], 2), round(ratios[-1], 2)) == (0.74, 1.28)


def test_gpus_are_selected_by_name() -> None:
    assert list(select_gpus("H100, a100-80gb,h100", "--cards")) == ["h100", "a100-80gb"]
    assert select_gpus("none", "--cards") == {}
    with pytest.raises(UserError, match="--cards: no card is called 'a100-80g'; did you mean 'a100-80gb'"):
        select_gpus("a100-80g", "--cards")
    with pytest.raises(UserError, match="--cards: names no card"):
        select_gpus(" ,", "--cards")


# --- groups of missing trials ---


def test_seeds_are_one_group_and_what_is_finished_is_left_out(recipe: Path, tmp_path: Path) -> None:
    cells = planned(recipe)
    options = RunOptions(out=tmp_path / "out")
    groups, finished, read = group_missing_trials(cells, options, "few")
    assert [(group.labels, group.epochs, group.trains_teacher) for group in groups] == [
        (("teacher",), [2], True),
        (("none",), [1, 1], False),
        (("kd", "dkd"), [1, 1], False),
    ]
    assert (finished, read) == (0, 0)
    for cell in cells[:1]:
        finish(tmp_path / "out" / "few" / cell.trial_id, cell.trial)
    finish(tmp_path / "out" / TEACHERS / cells[0].teacher_id, cells[0].taught_by)
    groups, finished, _ = group_missing_trials(cells, options, "few")
    assert [(group.labels, group.epochs) for group in groups] == [(("none",), [1]), (("kd", "dkd"), [1, 1])]
    assert finished == 1


def test_a_resumed_cohort_counts_its_remaining_epochs(recipe: Path, tmp_path: Path) -> None:
    cells = planned(recipe, "epochs=5")
    for cell in cells:
        write_checkpoint(tmp_path / "out" / "few" / cell.trial_id, cell.trial, 3)
    groups, _, _ = group_missing_trials(cells, RunOptions(out=tmp_path / "out"), "few")
    assert [group.epochs for group in groups if not group.trains_teacher] == [[2, 2], [2, 2]]


def write_checkpoint(path: Path, trial: Trial, epochs: int) -> None:
    folder = TrialFolder(path)
    folder.create(trial)
    folder.write_checkpoint(epochs, b"")


def test_small_cohorts_pay_the_teacher_again(recipe: Path, tmp_path: Path) -> None:
    groups, _, _ = group_missing_trials(planned(recipe), RunOptions(out=tmp_path / "out", cohort_size=1), "few")
    assert [group.labels for group in groups] == [("teacher",), ("none",), ("kd",), ("dkd",)]


def test_what_a_step_costs_depends_on_neither_seed_nor_epochs_nor_the_teachers_training(recipe: Path) -> None:
    keys = {cell.label: cost_key(cell.trial) for cell in planned(recipe)}
    assert len(set(keys.values())) == 3
    for overrides in (["epochs=7"], ["seeds=[9]"], ["teacher_training.epochs=9"]):
        assert {cell.label: cost_key(cell.trial) for cell in planned(recipe, *overrides)} == keys
    assert cost_key(planned(recipe, "batch_size=20")[0].trial) != keys["none"]


def recipe_cost(*groups: CohortGroup, devices: int = 1) -> RecipeCost:
    return RecipeCost("few", list(groups), ["cpu"] * devices, "a machine", 0, 0, [], cohort_size=8)


def test_hours_of_a_cohort_and_of_its_trials_one_at_a_time(recipe: Path, tmp_path: Path) -> None:
    _, _, taught = group_missing_trials(planned(recipe), RunOptions(out=tmp_path), "few")[0]
    epoch = EpochTime(shared=100, students=(10, 20), evaluation=4, checkpoint=2, startup=6)
    taught.timing = Timing(epoch, steps=1, images=1)
    assert epoch.seconds == 136
    assert epoch.unshared_seconds == 236
    assert taught.hours(epoch) * 3600 == 2 * 136 + 2 * 6
    assert taught.hours(epoch, unshared=True) * 3600 == 2 * 236 + 4 * 6
    cost = recipe_cost(taught)
    assert cost.hours() * 3600 == pytest.approx(284)
    assert cost.hours(unshared=True) > cost.hours()


def test_in_a_preparation_only_the_methods_train_that_have_one(recipe: Path, tmp_path: Path) -> None:
    cells = planned(recipe, "trials=1", "methods.fsp.preparation_epochs=4")
    options = RunOptions(out=tmp_path / "out")
    taught = group_missing_trials(cells, options, "few")[0][-1]
    assert (taught.labels, taught.epochs, taught.preparations) == (("kd", "dkd", "fsp"), [1], [(0, 0, 4)])
    epoch = EpochTime(shared=100, students=(10, 20, 30), evaluation=4, checkpoint=2, startup=6)
    taught.timing = Timing(epoch, steps=1, images=1)
    assert taught.hours(epoch) * 3600 == pytest.approx(166 + 4 * 130 + 6)
    assert recipe_cost(taught).wall_hours() == taught.hours(epoch)
    assert taught.hours(epoch, unshared=True) * 3600 == pytest.approx(366 + 4 * 130 + 3 * 6)
    fsp = next(cell.trial for cell in cells if cell.label == "fsp")
    write_checkpoint(tmp_path / "out" / "few" / fsp.id, fsp, 3)
    assert group_missing_trials(cells, options, "few")[0][-1].preparations == [(0, 0, 1)]


def test_cohorts_are_spread_over_devices_once_their_teacher_is_trained(recipe: Path, tmp_path: Path) -> None:
    teacher, none, taught = group_missing_trials(planned(recipe), RunOptions(out=tmp_path), "few")[0]
    for group, length in ((teacher, 50), (none, 10), (taught, 30)):
        members = len(group.trials)
        group.timing = Timing(EpochTime(0, (length / members,) * members, 0), steps=1, images=1)
    # 2 x 50 s of the teacher on one device, 2 x 10 s of students alone on the other, then 30 s on both
    assert recipe_cost(teacher, taught, none, devices=2).wall_hours() * 3600 == pytest.approx(130)
    assert recipe_cost(teacher, none, taught).wall_hours() * 3600 == pytest.approx(100 + 20 + 60)


def test_cohorts_are_split_for_idle_devices(recipe: Path, tmp_path: Path) -> None:
    *_, taught = group_missing_trials(planned(recipe, "trials=3"), RunOptions(out=tmp_path), "few")[0]
    assert (taught.labels, len(taught.epochs)) == (("kd", "dkd"), 3)
    epoch = EpochTime(shared=10, students=(30, 30), evaluation=4, checkpoint=2, startup=5)
    taught.timing = Timing(epoch, steps=1, images=1)
    whole, half = 10 + 60 + 6 + 5, 10 + 30 + 3 + 5
    assert recipe_cost(taught, devices=2).wall_hours() * 3600 == pytest.approx(whole + half)
    assert recipe_cost(taught, devices=6).wall_hours() * 3600 == pytest.approx(half)
    assert recipe_cost(taught, devices=2).splits_cohorts and not recipe_cost(taught).splits_cohorts
    shared = recipe_cost(taught)
    shared.devices = ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert shared.wall_hours() * 3600 == pytest.approx(whole)


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_a_run_starts_the_cohorts_that_were_estimated(slots: int, recipe: Path, tmp_path: Path) -> None:
    trials = [cell.trial for cell in planned(recipe, "trials=3")]
    assert trials[0].teacher is None and trials[-1].teacher is not None
    finish(tmp_path / TEACHERS / trials[-1].teacher.id, trials[-1].teacher)
    groups = group_missing_trials(planned(recipe, "trials=3"), RunOptions(out=tmp_path), "r")[0]
    for group in groups:
        group.timing = Timing(EpochTime(10, (30,) * len(group.trials), 0), steps=1, images=1)
    cost = recipe_cost(*groups, devices=slots)
    at_once = [cohort for cohort, end in cost._schedule if end == cost._cohort_seconds(cohort)]
    scheduler, executor = idle_scheduler(tmp_path, slots)
    scheduler._waiting = group_into_cohorts(trials, tmp_path / "r", 8)
    scheduler._start_waiting()
    assert sorted(executor.jobs) == sorted([trial.id for trial in cohort.trials] for cohort in at_once)
    assert len(at_once) == min(slots, 3)


def test_students_without_a_teacher_join_cohorts_as_in_a_run(recipe: Path, tmp_path: Path) -> None:
    _, none, taught = group_missing_trials(planned(recipe), RunOptions(out=tmp_path), "few")[0]
    none.timing = Timing(EpochTime(shared=40, students=(10,), evaluation=2, startup=6), steps=1, images=1)
    taught.timing = Timing(
        EpochTime(shared=100, students=(10, 20), evaluation=4, checkpoint=2, startup=6), steps=1, images=1
    )
    cost = recipe_cost(none, taught)
    assert cost.wall_hours() * 3600 == pytest.approx(2 * (100 + 10 + 20 + 10 + 4 + 2 + 2 + 6))
    assert cost.joins_cohorts and not cost.splits_cohorts
    page = render_estimate(cost, {}, {}, Assumptions(), 1, "plain")
    assert "together 6.7 min; 5.1 min from beginning to end, 1 at once: students without a teacher join" in page.lower()
    full = replace(recipe_cost(none, taught), cohort_size=2)
    assert full.wall_hours() == pytest.approx(full.hours())
    assert not full.joins_cohorts
    none.leave_out([trial.id for trial in none.trials])
    assert taught.cohorts[0].trials == taught.trials and none.cohorts[1].trials == []


def test_as_many_are_timed_at_once_as_would_run_at_once(recipe: Path, tmp_path: Path) -> None:
    teacher, none, taught = groups = group_missing_trials(planned(recipe), RunOptions(out=tmp_path), "few")[0]
    assert training_phases(groups) == [[teacher, none], [taught]]
    assert training_phases([none, taught]) == [[none, taught]]
    assert timing_rounds([teacher, none], 1, False) == [[teacher], [none]]
    assert timing_rounds([teacher, none], 2, False) == [[teacher, none]]
    assert timing_rounds([taught], 4, False) == [[taught, taught]]  # two seeds
    assert timing_rounds([teacher, none, taught], 2, False) == [[teacher, none], [taught, teacher]]
    assert timing_rounds([taught], 4, True) == [[taught, taught, taught, taught]]  # two seeds, each in two parts
    assert timing_rounds([taught], 6, True) == [[taught, taught, taught, taught]]
    assert timing_rounds([], 2, True) == []


# --- missing images ---


def test_missing_images_are_replaced_by_placeholders(tmp_path: Path) -> None:
    images, reason = placeholders.images_or_placeholders(Dataset(name="imagenet"), Pipeline(), tmp_path)
    assert (len(images.train_labels), len(images.test_labels), images.num_classes) == (1_281_167, 50_000, 1000)
    assert "imagenet is not there" in reason
    assert int(images.train_labels.bincount().min()) >= 1281
    few, _ = placeholders.images_or_placeholders(
        Dataset(name="imagenet", classes=100, test_images=10), Pipeline(), tmp_path
    )
    assert (len(few.train_labels), len(few.test_labels), few.num_classes) == (128_117, 10, 100)
    small, reason = placeholders.images_or_placeholders(Dataset(name="cifar100", classes=20), None, tmp_path)
    assert small.image_shape == (3, 32, 32)
    assert (len(small.train_labels), small.num_classes) == (10_000, 20)
    assert reason
    for pipeline in (None, Pipeline()):
        dataset = Dataset(name="cifar100" if pipeline is None else "imagenet", holdout=5000)
        train, evaluated = (45_000, 15_000) if pipeline is None else (1_276_167, 55_000)
        images, _ = placeholders.images_or_placeholders(dataset, pipeline, tmp_path)
        assert (len(images.train_labels), evaluated_images(images), images.num_classes) == (
            train, evaluated, 100 if pipeline is None else 1000
        )  # fmt: skip
    assert placeholders.images_or_placeholders(Dataset(name="digits"), None, tmp_path)[1] == ""
    with pytest.raises(UserError, match="mine"):
        placeholders.images_or_placeholders(Dataset(name="folder", path="mine"), Pipeline(), tmp_path)


def test_held_out_images_are_evaluated_and_not_trained_on(recipe: Path, tmp_path: Path) -> None:
    options, assumed = RunOptions(out=tmp_path, device="cpu"), Assumptions()
    whole, held_out = (
        estimate_recipe(
            planned(recipe, *more), options, "few", select_gpus("t4", ""), assumed, lambda _: None, 0
        ).groups
        for more in ((), ("dataset.holdout=100",))
    )
    for before, after in zip(whole, held_out, strict=True):
        assert before.gpu_epochs["t4"].evaluation * 140 == pytest.approx(after.gpu_epochs["t4"].evaluation * 40)
        assert before.gpu_epochs["t4"].training == pytest.approx(
            2 * after.gpu_epochs["t4"].training
        )  # 4 steps, 2 steps
        assert before.cost and after.cost and before.cost.data == after.cost.data


# --- the command ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"price": "cheap"}, "--price: should be euros an hour, as in 2.50 or h100=2.50 (it is 'cheap')"),
        ({"price": "h200=3"}, "--price: no card of this estimate is called 'h200'"),
        ({"of_peak": 1.5}, "--of-peak: should be a fraction above 0 and at most 1 (it is 1.5)"),
        ({"of_bandwidth": 0.0}, "--of-bandwidth: should be a fraction"),
        ({"format_": "cvs"}, "--format: no format is called 'cvs'; did you mean 'csv'?"),
    ],
)
def test_errors_are_sentences(recipe: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        estimate(
            recipe=str(recipe),
            out=tmp_path / "out",
            data=None,
            jobs=None,
            threads=1,
            device="auto",
            cohort_size=8,
            workers=2,
            **options,
        )
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_code_2_for_an_unknown_card(recipe: Path, tmp_path: Path) -> None:
    done = run("estimate", str(recipe), "--out", str(tmp_path / "out"), "--cards", "h10")
    assert done.returncode == 2
    assert done.stderr == "kd-bench: --cards: no card is called 'h10'; did you mean 'h100'?\n"


def test_counting_alone_needs_neither_images_nor_weights(tmp_path: Path) -> None:
    done = run(
        "estimate", "imagenet/table8", "--steps", "0", "--only", "method=kd,dist", "--cards", "h100,v100-16gb",
        "--price", "h100=2", "--format", "csv", "--out", str(tmp_path), "--data", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    fast, slow = csv.DictReader(io.StringIO(done.stdout))
    assert (fast["place"], fast["cohorts"], fast["epochs"], fast["rows"]) == ("h100", "3", "900", "kd dist")
    # No faster than the peak allows: 123 GFLOP of the teacher and 24 of each student, for each image.
    least = 900 * 1_281_167 * (123.1e9 + 2 * 24.3e9) / 989e12 / 3600
    assert least < float(fast["hours"]) < 10 * least
    assert float(fast["hours_unshared"]) > float(fast["hours"])
    assert float(fast["eur"]) == pytest.approx(2 * float(fast["hours"]))
    assert slow["eur"] == ""
    assert float(slow["hours"]) > 10 * float(fast["hours"])
    assert 10e9 < float(fast["memory_bytes"]) < 25e9
    assert spec("imagenet").train_size is None  # what stands in is for estimates only


def test_a_row_that_would_fail_is_left_out_and_named(tmp_path: Path) -> None:
    recipe = tmp_path / "few.yaml"
    pairs = [{"teacher": "resnet14", "student": "wrn_16_2"}]
    recipe.write_text(yaml.safe_dump(RECIPE | {"pairs": pairs, "methods": {"kd": {}, "fsp": {}, "none": {}}}))
    command = ("estimate", str(recipe), "--steps", "0", "--cards", "t4", "--out", str(tmp_path / "out"))

    done = run(*command, "--format", "markdown")
    assert done.returncode == 0, done.stderr
    assert "few: to train: 4 trials in 4 cohorts and 1 teacher." in done.stdout
    assert "cifar_resnet14 -> cifar_wrn_16_2: left out, because it would fail: fsp: compares stages" in done.stdout

    alone = run(*command, "--only", "method=fsp")
    assert alone.returncode == 2
    assert alone.stderr.splitlines()[-1].startswith("kd-bench: cifar_resnet14 -> cifar_wrn_16_2: left out")


@pytest.mark.slow
def test_it_is_timed_kept_and_compared_with_the_run(recipe: Path, tmp_path: Path) -> None:
    out, few = tmp_path / "out", ("--trials", "1", "--only", "method=kd,dkd")
    done = run("estimate", str(recipe), "--steps", "1", *few, "--cards", "t4", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "few: to train: 2 trials in 1 cohort and 1 teacher." in done.stdout
    assert "1 step of" in done.stdout and "50 images" in done.stdout  # on two lines of its cell
    assert "kd, dkd" in done.stdout
    assert "could not be timed" not in done.stdout
    assert [path.name for path in out.rglob("*.json")] == ["estimate.json"]  # nothing was trained
    kept = json.loads((out / "few" / "estimate.json").read_text())
    assert [group["rows"] for group in kept["groups"]] == [["teacher"], ["kd", "dkd"]]
    for group in kept["groups"]:
        timing = group["here"]
        assert len(timing["own_seconds"]) == len(group["rows"])
        assert all(0 < value < math.inf for value in timing["own_seconds"])
        assert timing["epoch_seconds"] >= sum(timing["own_seconds"])
        assert timing["evaluation_seconds"] > 0
        assert group["hours_by_card"]["t4"] > 0
        assert group["training_images"] == 200
    done = run("run", str(recipe), *few, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "few: 3 trainings: estimated " in done.stderr
    outcome = json.loads((out / "few" / "estimate.json").read_text())["outcomes"]
    assert len(outcome) == 1 and outcome[0]["took_seconds"] > 0
    done = run("estimate", str(recipe), *few, "--out", str(out))
    assert "all 2 trials have a result; nothing is left to train" in done.stdout
    assert json.loads((out / "few" / "estimate.json").read_text())["outcomes"] == outcome


def test_planning_costs_imports_nothing_heavy() -> None:
    code = "import sys, kd_bench.estimate.history; sys.exit(bool({'torch', 'timm'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
