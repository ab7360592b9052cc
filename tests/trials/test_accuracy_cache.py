"""The cache of the accuracies of given weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kd_bench.config.data import Dataset
from kd_bench.config.trial import PretrainedTeacher
from kd_bench.data import registry as datasets
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.models import create
from kd_bench.training.build import load_network
from kd_bench.training.evaluate import evaluate_accuracy
from kd_bench.trials import import_teacher as importing
from kd_bench.trials.accuracy_cache import accuracies_folder
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.lease import LeaseMonitor, acquire_lease
from kd_bench.utils.files import sha256
from tests.training.parts import splits

IMAGES = splits()


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[bool, float]]:
    """Imports a file into a new results folder. Returns whether it was evaluated, and its recorded accuracy."""
    monkeypatch.setenv("KD_BENCH_CACHE", str(tmp_path / "cache"))
    evaluations = []

    def evaluate(*arguments, **options):
        evaluations.append(1)
        return evaluate_accuracy(*arguments, **options)

    monkeypatch.setattr(importing, "evaluate_accuracy", evaluate)

    def read(file: Path, images: ArrayDataset = IMAGES) -> tuple[bool, float]:
        monkeypatch.setattr(datasets, "open_dataset", lambda *_: images)
        dataset = Dataset(name="digits", classes=4)
        teacher = PretrainedTeacher(dataset=dataset, model="cifar_resnet8", weights=sha256(file))
        folder = TrialFolder(tmp_path / f"out{len(list(tmp_path.glob('out*')))}" / teacher.id)
        folder.create(teacher)
        lease = acquire_lease(folder.path, LeaseMonitor())
        assert lease is not None
        evaluations.clear()
        importing.import_teacher(teacher, file, None, "cpu", 1, 0, folder, lease, lambda *_, **__: None)
        result = folder.result()
        assert result is not None
        assert folder.status() == "done"
        assert result["top1_best"] == result["top1_last"] <= result["top5_last"] == 100
        return bool(evaluations), result["top1_last"]

    return read


def weights_file(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    torch.save(create("cifar_resnet8", 4).state_dict(), path)
    return path


def test_weights_are_evaluated_once_for_all_results_folders(read, tmp_path):
    file = weights_file(tmp_path / "one.pth")
    first, accuracy = read(file)
    assert first
    assert read(file) == (False, accuracy)
    network, view = load_network(
        PretrainedTeacher(dataset=Dataset(name="digits"), model="cifar_resnet8", weights="0" * 64), file, IMAGES
    )
    assert accuracy == evaluate_accuracy(network, view, IMAGES, torch.device("cpu")).top1


def test_other_weights_or_images_are_evaluated(read, tmp_path):
    file = weights_file(tmp_path / "one.pth")
    read(file)
    assert read(weights_file(tmp_path / "other.pth", seed=1))[0]
    images, labels = IMAGES.test_images.clone(), IMAGES.test_labels.clone()
    images[-1, 0, 0, 0] += 1
    labels[0] = (labels[0] + 1) % 4
    for changed in (
        replace(IMAGES, test_images=images),
        replace(IMAGES, test_labels=labels),
        replace(IMAGES, mean=(0.5, 0.5, 0.25)),
        replace(IMAGES, test_images=IMAGES.test_images[:-1], test_labels=IMAGES.test_labels[:-1]),
    ):
        assert read(file, changed)[0]
        assert not read(file, changed)[0]
    train = IMAGES.train_images.clone()
    train[0] = 0
    assert not read(file, replace(IMAGES, train_images=train))[0]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"about": 0', '"top1"', "about", "nan"])
def test_a_damaged_file_is_replaced(read, tmp_path, content):
    file = weights_file(tmp_path / "one.pth")
    _, accuracy = read(file)
    (cached,) = accuracies_folder().iterdir()
    good = json.loads(cached.read_text())
    if content == "about":
        content = json.dumps(good | {"about": good["about"] | {"version": 0}, "top1": 1.0})
    elif content == "nan":
        content = json.dumps(good | {"top1": float("nan")})
    cached.write_text(content)
    assert read(file) == (True, accuracy)
    assert json.loads(cached.read_text()) == good
    assert not read(file)[0]


def test_a_cache_that_cannot_be_written_is_no_error(read, tmp_path):
    (tmp_path / "cache").write_text("a file")
    file = weights_file(tmp_path / "one.pth")
    assert read(file)[0]
    assert read(file)[0]


def test_real_weights_have_the_same_accuracy_with_folded_batch_norms():
    data = Path(os.environ.get("KD_BENCH_DATA", "nowhere"))
    file = data / "teachers" / "wrn_16_2.pth"
    if not file.exists():
        pytest.skip("KD_BENCH_DATA has no teachers/wrn_16_2.pth")
    dataset = datasets.resolve(Dataset(name="cifar100", test_images=1000))
    images = datasets.open_dataset(dataset, None, data)
    teacher = PretrainedTeacher(dataset=dataset, model="cifar_wrn_16_2", weights=sha256(file))
    network, view = load_network(teacher, file, images)
    plain, folded = (
        evaluate_accuracy(network, view, images, torch.device("cpu"), folded=folded) for folded in (False, True)
    )
    assert folded == plain
    assert plain.top1 > 60
