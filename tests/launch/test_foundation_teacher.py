"""A teacher of which the head is trained, from the command line to the student, the export and the replay."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kd_bench.models import registry

RECIPE: dict[str, Any] = {
    "name": "r",
    "dataset": {"name": "digits", "train_images": 120, "test_images": 60},
    "epochs": 2,
    "batch_size": 40,
    "seeds": [0],
    "pairs": [{"teacher": "test_vit", "student": "resnet8"}],
    "methods": {"kd": {}},
    "augment": {"crop": 0, "flip": False},
    "teachers": {
        "test_vit": {"pretrained": "vit.pth", "trainable": "head", "input": {"size": 64, "normalise": "network"}}
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of weights, a recipe and its results."""
    path = tmp_path_factory.mktemp("foundation")
    torch.manual_seed(3)
    torch.save(registry.create("test_vit", 1000).state_dict(), path / "vit.pth")
    (path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    done = run(path, "run", "r.yaml")
    assert done.returncode == 0, done.stderr
    assert "test_vit, teacher, seed 0: computes the features of 180 images once, and keeps them in" in done.stderr
    assert "Traceback" not in done.stderr
    return path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kd_bench", *arguments]
    environment = {**os.environ, "KD_BENCH_CACHE": str(folder / "cache")}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def only(folder: Path) -> Path:
    (path,) = (file.parent for file in folder.glob("*/trial.json"))
    return path


def test_it_is_an_ordinary_trained_teacher(folder: Path) -> None:
    teacher = only(folder / "runs" / "teachers")
    settings, result = (json.loads((teacher / name).read_text()) for name in ("trial.json", "result.json"))
    assert settings["trainable"] == "head"
    assert result["status"] == "done"
    assert result["epochs"] == 2
    student = json.loads((only(folder / "runs" / "r") / "trial.json").read_text())
    assert student["teacher"] == settings
    again = run(folder, "run", "r.yaml")
    assert "nothing to train" in again.stderr
    table = run(folder, "table", "r.yaml")
    assert f"{result['top1_last']:.2f}" in table.stdout
    exported = run(folder, "export", "card", str(teacher), "--output", "exported")
    assert exported.returncode == 0, exported.stderr
    assert (folder / "exported" / "model.safetensors").read_bytes() == (teacher / "student.safetensors").read_bytes()


@pytest.mark.slow
def test_one_teacher_alone(folder: Path) -> None:
    teacher = only(folder / "runs" / "teachers")
    settings = json.loads((teacher / "trial.json").read_text())
    start = [f"{key}={RECIPE['teachers']['test_vit'][key]}" for key in ("pretrained", "trainable")]
    others = [f"{key}={json.dumps(RECIPE[key])}" for key in ("dataset", "epochs", "batch_size", "augment")]
    copied = [f"{key}={json.dumps(settings[key])}" for key in ("input", "optimizer", "schedule", "clip_norm")]
    size, training = [others[0]], [*start, *others[1:], *copied]
    options = [part for text in size for part in ("--set", text)]
    options += [part for text in training for part in ("--set", f"teacher_training.{text}")]
    trained = run(folder, "teacher", "train", "test_vit", "--dataset", "digits", *options, "--out", "alone")
    assert trained.returncode == 0, trained.stderr
    alone = only(folder / "alone" / "teachers")
    assert alone.name == teacher.name
    assert (alone / "student.safetensors").read_bytes() == (teacher / "student.safetensors").read_bytes()
    verified = run(folder, "teacher", "verify", "test_vit", "--dataset", "digits", *options, "--out", "alone")
    assert verified.returncode == 0, verified.stderr
    top1 = json.loads((alone / "result.json").read_text())["top1_last"]
    assert f"{top1:.2f} % after training" in verified.stdout


@pytest.mark.slow
def test_its_features_are_found_by_the_next_training(folder: Path) -> None:
    shown = run(folder, "cache")
    assert "features" in shown.stdout
    assert "test_vit on digits" in shown.stdout
    other = run(folder, "run", "r.yaml", "--set", "teachers.test_vit.epochs=1", "--out", "other")
    assert other.returncode == 0, other.stderr
    assert "computes the features" not in other.stderr


def test_a_replay_needs_the_file_and_agrees(folder: Path) -> None:
    teacher = only(folder / "runs" / "teachers")
    missing = run(folder, "replay", str(teacher))
    assert missing.returncode == 2
    assert "its training started from weights whose SHA-256 is" in missing.stderr
    assert "name their file with --weights FILE" in missing.stderr
    (folder / "wrong.pth").write_bytes(b"wrong")
    wrong = run(folder, "replay", str(teacher), "--weights", "wrong.pth")
    assert "is not the file of this trial" in wrong.stderr
    done = run(folder, "replay", str(teacher), "--weights", "vit.pth")
    assert done.returncode == 0, done.stderr
    assert "agrees: every number of every epoch is the same" in done.stdout


@pytest.mark.slow
def test_a_replay_of_the_student_trains_its_teacher_from_the_file(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(only(folder / "runs" / "r"), tmp_path / "kept" / "r" / only(folder / "runs" / "r").name)
    student = only(tmp_path / "kept" / "r")
    missing = run(folder, "replay", str(student), "--out", "again")
    assert missing.returncode == 2
    assert "its teacher, test_vit, was trained from a file whose SHA-256 is" in missing.stderr
    done = run(folder, "replay", str(student), "--out", "again", "--weights", "vit.pth")
    assert done.returncode == 0, done.stderr
    assert "agrees: every number of every epoch is the same" in done.stdout


@pytest.mark.slow
def test_a_changed_file_is_another_teacher(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    torch.save(registry.create("test_vit", 1000).state_dict(), tmp_path / "vit.pth")
    shown = run(
        folder, "run", "r.yaml", "--set", f"teachers.test_vit.pretrained={tmp_path / 'vit.pth'}", "--out", "other"
    )
    assert shown.returncode == 0, shown.stderr
    assert "to train: 1 trial and 1 teacher" in shown.stderr
