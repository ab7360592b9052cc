"""`kd-bench reproduce imagenet`: its parts, its teachers, and a smoke run of small networks by the same functions."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from kd_bench.cli.main import app
from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PretrainedTeacher
from kd_bench.launch.options import RunOptions
from kd_bench.models import pretrained
from kd_bench.models.cards import Card
from kd_bench.paper import reproduce
from kd_bench.paper.reproduce import Part, Reproduction, TableRecipe, groups
from kd_bench.paper.smoke_inputs import random_weights
from kd_bench.report import published_numbers as numbers
from kd_bench.utils.errors import RunFailed, UserError
from kd_bench.utils.paths import package_path
from tests.data import photos

BEIT, RESNET34, RESNET50 = "beitv2_large_patch16_224.in1k_ft_in22k_in1k", "resnet34.tv_in1k", "resnet50.tv_in1k"
#: Table 8's recipe with networks that take no time.
SMALL = """
extends: imagenet/table8
name: small
pipeline: {size: 32}
pairs: [{teacher: test_vit.r160_in1k, student: test_resnet}]
teachers: {beitv2_large_patch16_224.in1k_ft_in22k_in1k: null}
"""


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_BENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("KD_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KD_BENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def reachable(card: Card) -> None:
    file = pretrained.weights_path(card)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(card.name.encode())


def unreachable(card: Card) -> None:
    raise RunFailed(f"{card.name}: {pretrained.manual_instructions(card)}")


def full(fetch: Any, log: Any, weights: Any = None, only: Sequence[str] = (), trials: int | None = None) -> list[Part]:
    run = Reproduction(
        "imagenet", RunOptions(out=Path("runs")), log, only=only, trials=trials, fetch=fetch, weights=weights or {}
    )
    return run.with_published_teachers(run.full())


# --- the full budget ---


def test_all_recipes_with_their_published_teachers() -> None:
    messages: list[str] = []
    parts = full(reachable, messages.append)
    assert [part.recipe.name for part in parts] == ["table8", "standard", "standard_features", "standard_ofd"]
    assert messages == [f"{name}: published weights" for name in (BEIT, RESNET34, RESNET50)]
    assert all(isinstance(cell.taught_by, PretrainedTeacher) for part in parts for cell in part.planned)
    assert [cell.label for cell in parts[0].planned] == [m for m in ("kd", "dkd", "dist", "ikl_kd") for _ in range(3)]
    assert {cell.trial.epochs for cell in parts[0].planned} == {300}


def test_only_what_is_asked_for_is_fetched_and_planned(tmp_path: Path) -> None:
    fetched: list[str] = []
    parts = full(lambda card: (fetched.append(card.name), reachable(card)), print, None, ["student=resnet18"], 1)
    assert fetched == ["resnet34"] and [part.recipe.name for part in parts] == ["standard", "standard_features"]
    assert {cell.student for part in parts for cell in part.planned} == {"resnet18"}
    file = tmp_path / "mine.pth"
    file.write_bytes(b"mine")
    fetched.clear()
    (part,) = full(lambda card: fetched.append(card.name), print, {BEIT: file}, ["method=ikl_kd", "student=resnet50"])
    assert not fetched and {cell.weights for cell in part.planned} == {file}
    with pytest.raises(UserError, match=r"--weights: no teacher of this run is called 'resnet34.tv_in1k'"):
        full(reachable, print, {RESNET34: file}, ["student=resnet50"])


def test_without_a_network_all_missing_files_are_told() -> None:
    with pytest.raises(RunFailed) as error:
        full(unreachable, print, None, ["student=resnet50,resnet18"])
    message = str(error.value)
    assert "\n" not in message
    for name, card, size in ((BEIT, "beitv2_large", "1.22 GB"), (RESNET34, "resnet34", "87 MB")):
        assert f"fetch model.safetensors of timm/{name} (" in message
        assert f"timm/{name}/resolve/main/model.safetensors, about {size})" in message
        assert f"put it at {pretrained.weights_folder() / 'imagenet' / card}.safetensors" in message
        assert f"--set teachers.{name}.weights=FILE" in message and f"--weights {name}=FILE here" in message


def test_table_8_is_published_word_for_word() -> None:
    with package_path("results", "published", "table8.csv").open(encoding="utf-8") as stream:
        printed = {row["method"]: float(row["top1"]) for row in csv.DictReader(stream)}
    published = numbers.read("imagenet_strong", "test")
    assert {cell.method: values[0].top1 for cell, values in published.cells.items() if cell.student} == printed


@pytest.mark.parametrize("name", list(groups()["imagenet"].recipes)[:3])
def test_measured_stands_beside_published(name: str) -> None:
    parts = {part.context: part for part in full(reachable, lambda line: None)}
    part = parts[name]
    names = part.recipe.published_names()
    assert names
    for published in (numbers.read(name, "test") for name in names):
        for cell in part.planned:
            assert numbers.training_differences(cell.trial, published) == []


def test_wrong_input(tmp_path: Path) -> None:
    for arguments, expected in (
        (["--budget", "smok"], "no budget is called 'smok'; did you mean 'smoke'?"),
        (["--budget", "smoke", "--trials", "2"], "so --trials and --weights must be left out"),
        (["--weights", "resnet34.tv_in1k"], "--weights resnet34.tv_in1k: should be TEACHER=FILE"),
        (["--set", "epochs=2"], "--set is for --budget smoke"),
        (["--format", "latx"], "did you mean 'latex'?"),
        (["--data", str(tmp_path / "nowhere")], f"imagenet is not there: looked for train and val in {tmp_path}"),
    ):
        done = CliRunner().invoke(app, ["reproduce", "imagenet", *arguments, "--out", str(tmp_path / "out")])
        assert isinstance(done.exception, UserError) and expected in str(done.exception), done.exception
    assert not (tmp_path / "out").exists()


# --- the smoke budget ---


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    recipes = {str(path): TableRecipe(smoke=("micro_batch=2",))}
    group = groups()["imagenet"].model_copy(update={"recipes": recipes})
    monkeypatch.setattr(reproduce, "groups", lambda: {"imagenet": group})
    return str(path)


def test_smoke_takes_an_image_folder_where_there_is_one(tmp_path: Path, small: str) -> None:
    photos.tree(tmp_path / "data" / "mine")
    for other in ("train/a/images", "val/images"):  # laid out as Tiny-ImageNet is
        (tmp_path / "data" / "another" / other).mkdir(parents=True)
    for folder in ("data", "data/mine"):
        parts, images = Reproduction(
            "imagenet", RunOptions(out=tmp_path / "out", data=tmp_path / folder), print
        ).smoke()
        assert images == f"folders of images in {tmp_path / 'data' / 'mine'}, tested on val"
        trials = [cell.trial for part in parts for cell in part.planned]
        assert {trial.dataset.path for trial in trials} == {str(tmp_path / "data" / "mine")}
        assert {(trial.batch_size, trial.micro_batch, trial.precision) for trial in trials} == {(4, 2, "bfloat16")}
    assert not (tmp_path / "out" / "images").exists()
    assert read_recipe(small).batch_size == 2048


def test_a_smoke_run_of_small_networks(tmp_path: Path, small: str) -> None:
    arguments = ["reproduce", "imagenet", "--budget", "smoke", "--out", str(tmp_path / "out"), "--workers", "0"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (done.exception, done.stderr)
    assert f"generated images, since there is no folder of images in {Path('data')}; it measures no" in done.stderr
    (cost,) = [line for line in done.stderr.splitlines() if "images/s: " in line]
    assert cost.startswith("reproduce imagenet: small, test_vit.r160_in1k -> test_resnet: images/s: kd ")
    alone = [float(part.split()[-1]) for part in cost.partition("images/s: ")[2].partition(";")[0].split(", ")]
    side_by_side = float(cost.partition("side by side ")[2].partition(";")[0])
    memory = float(cost.partition("at most ")[2].split()[0])
    assert len(alone) == 4 and 0 < side_by_side < min(alone) and 0.05 < memory < 16
    assert "smoke run, measures nothing" in done.stdout and " ikl_kd " in done.stdout
    results = [json.loads(file.read_text()) for file in (tmp_path / "out" / "smoke" / "small").glob("*/result.json")]
    assert {(result["status"], result["cohort"]) for result in results} == {("done", 4)}
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0 and "nothing to train" in again.stderr and cost in again.stderr


def test_memory_is_the_processs_own() -> None:
    code = (
        "import subprocess, sys; held = bytearray(1 << 30); held[::4096] = bytes(1 << 18); "
        "subprocess.run([sys.executable, '-c', "
        "'from kd_bench.trials.environment import peak_memory; print(peak_memory(\"cpu\"))'], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 50 << 20 < int(done.stdout) < 1 << 30


@pytest.mark.slow
def test_the_real_networks(tmp_path: Path) -> None:
    """Takes minutes, 5 GiB of memory and 3 GB of disk."""
    arguments = ["reproduce", "imagenet", "--budget", "smoke", "--out", str(tmp_path / "out"), "--workers", "0"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (done.exception, done.stderr)
    costs = [line for line in done.stderr.splitlines() if "images/s: " in line]
    small = ["resnet34.tv_in1k -> resnet18", "resnet18 alone"]
    mobile = ["resnet50.tv_in1k -> mobilenetv1_100", "mobilenetv1_100 alone"]
    expected = [f"table8, {BEIT} -> resnet50", *(f"standard_ofd, {students}" for students in mobile)]
    expected += [f"{recipe}, {students}" for recipe in ("standard", "standard_features") for students in small + mobile]
    assert sorted(line.partition(": images/s: ")[0] for line in costs) == sorted(
        f"reproduce imagenet: {students}" for students in expected
    )
    assert all(float(line.partition("at most ")[2].split()[0]) < 16 for line in costs)


def test_random_weights_fit_the_size_of_the_images(tmp_path: Path) -> None:
    files = {size: random_weights("test_vit.r160_in1k", 3, size, tmp_path) for size in (32, 64)}
    assert files[32] == random_weights("test_vit.r160_in1k", 3, 32, tmp_path) != files[64]
    shapes = {size: load_file(file)["pos_embed"].shape for size, file in files.items()}
    assert shapes[32] != shapes[64]
