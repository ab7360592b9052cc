"""The strong recipe's settings on a folder of images, from the command line: timm's pipeline, mixing, micro-batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from kd_bench.config.load import packaged_recipes, read_recipe
from kd_bench.config.trial import PretrainedTeacher
from kd_bench.data.registry import spec
from kd_bench.plan import plan
from tests.data.photos import EVERYTHING, spoil, tree
from tests.launch.test_end_to_end import run, weights

RECIPE = {
    "dataset": {"name": "folder", "path": "mine"},
    "pipeline": {"size": 32, **EVERYTHING},
    "epochs": 2,
    "batch_size": 12,
    "micro_batch": 6,
    "trials": 1,
    "optimizer": {"name": "lamb", "lr": 0.01},
    "schedule": {"name": "cosine", "warmup_epochs": 1, "warmup_lr": 1e-6, "whole": True},
    "label_loss": "binary_cross_entropy",
    "precision": "bfloat16",
    "ema": 0.9,
    "pairs": [{"teacher": "test_vit.r160_in1k", "student": "cifar_resnet8"}],
    "methods": {"none": {}, "kd": {}, "ikl_kd": {"weights": "class", "tau": 1}},
    "teacher_training": {"epochs": 1, "ema": None, "drop_path": 0.1},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tree(tmp_path / "data" / "mine", train=16)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def start(recipe: Path, out: Path, *more: str):
    return run("run", str(recipe), "--data", str(recipe.parent / "data"), "--out", str(out), *more)


@pytest.mark.slow
def test_it_trains_to_the_same_bytes_with_and_without_workers(recipe: Path, tmp_path: Path) -> None:
    for workers in ("0", "2"):
        done = start(recipe, tmp_path / workers, "--workers", workers, "--only", "method=none,kd")
        assert done.returncode == 0, done.stderr
    assert len(weights(tmp_path / "0")) == 3
    assert weights(tmp_path / "0") == weights(tmp_path / "2")
    assert "student alone" in done.stdout
    rows = [path.read_text() for path in (tmp_path / "0").glob("mine/*/metrics.csv")]
    assert all("average_top1" in text for text in rows)


@pytest.mark.slow
def test_a_corrupt_image_is_refused_or_skipped_and_named(recipe: Path, tmp_path: Path) -> None:
    file = spoil(tmp_path / "data" / "mine" / "train" / "bee" / "003.JPEG")
    only = ("--only", "method=none", "--workers", "0")
    refused = start(recipe, tmp_path / "refused", *only)
    assert refused.returncode == 1
    assert str(file) in refused.stderr
    assert "Traceback" not in refused.stderr
    skipped = start(recipe, tmp_path / "skipped", *only, "--set", "pipeline.corrupt=skip")
    assert skipped.returncode == 0, skipped.stderr
    assert f"{file}: cannot be decoded and was skipped" in skipped.stderr


@pytest.mark.slow
def test_a_given_teacher_is_measured_at_the_recipes_crop(recipe: Path, tmp_path: Path) -> None:
    trained = start(recipe, tmp_path / "first", "--only", "method=kd")
    assert trained.returncode == 0, trained.stderr
    (file,) = (tmp_path / "first").glob("teachers/*/student.safetensors")
    weights_file = ("--set", f"teachers={{test_vit.r160_in1k: {{weights: {file}}}}}", "--only", "method=kd")
    done = start(recipe, tmp_path / "second", *weights_file)
    assert done.returncode == 0, done.stderr
    results = [
        json.loads(next(out.glob("teachers/*/result.json")).read_text())["top1_last"]
        for out in (tmp_path / "first", tmp_path / "second")
    ]
    assert results[0] == results[1]


def test_a_given_teacher_is_the_same_whatever_its_students_see(recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"any")
    content = RECIPE | {"name": "mine", "teachers": {"test_vit.r160_in1k": {"weights": str(file)}}}
    ids = []
    for change in ({}, {"mixup": 0.8}, {"crop_pct": 0.9}):
        read = read_recipe(content | {"pipeline": RECIPE["pipeline"] | change})
        teacher = plan(read, "mine")[-1].taught_by
        assert isinstance(teacher, PretrainedTeacher)
        ids.append(teacher.id)
    assert ids[0] == ids[1] != ids[2]


def test_a_data_set_without_image_files_refuses_a_pipeline(recipe: Path, tmp_path: Path) -> None:
    done = start(recipe, tmp_path / "out", "--set", "dataset=digits")
    assert done.returncode == 2
    assert "digits is decoded once, so pipeline must be left out" in done.stderr


def test_the_recipes_of_imagenet_are_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in packaged_recipes() if name.startswith("imagenet/") and not name.endswith("base")]
    assert {"imagenet/standard", "imagenet/table8", "imagenet/table8_a1"} <= set(names)
    small = "imagenet/imagenette"
    assert small in names and read_recipe(small).dataset.name == "folder"
    for name in set(names) - {small}:
        read = read_recipe(name)
        file = tmp_path / "weights.pth"
        file.write_bytes(b"any")
        teachers = {teacher: {"weights": str(file)} for teacher in read.teachers}
        planned = plan(read.model_copy(update={"teachers": teachers}), name)
        assert {cell.trial.dataset.name for cell in planned} == {"imagenet"}
        assert all(cell.trial.pipeline is not None and cell.trial.pipeline.size == 224 for cell in planned)
    strong = read_recipe("imagenet/table8")
    assert (strong.batch_size, strong.micro_batch, strong.epochs, strong.drop_path) == (2048, 256, 300, 0.05)
    assert spec("imagenet").streams
