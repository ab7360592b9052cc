"""The teacher's pass, and the store of its logits."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.training import forward_pass, logit_cache, teacher
from kd_bench.training.build import build_network, build_student
from kd_bench.training.cohort import CohortModule
from kd_bench.training.fit import fit
from kd_bench.training.loaders import loaders
from kd_bench.training.logit_cache import LogitCache, list_files, open_cache, remove_file
from kd_bench.training.teacher import Teacher
from kd_bench.types import LOGITS, Batch
from tests.training.parts import CPU, MemoryWriter, same, splits, trial

ABOUT = {"teacher": "any"}


def teacher_of(settings: dict[str, Any], data: ArrayDataset, images: int = 72) -> Teacher:
    student_trial = trial("kd", **settings)
    assert student_trial.teacher is not None
    network, view = build_network(student_trial.teacher, data)
    return Teacher(network.eval(), view, {"running": LOGITS}, {}, student_trial, images)


def first_batch(data: ArrayDataset) -> Batch:
    return next(iter(loaders(trial("kd"), data, CPU)[0]))


def test_a_teacher_in_bfloat16_hands_on_float32_and_is_near() -> None:
    data = splits()
    batch = first_batch(data)
    exact = teacher_of({}, data)(batch).logits
    rough = teacher_of({"teacher_precision": "bfloat16"}, data)(batch).logits
    assert exact.dtype == rough.dtype == torch.float32
    assert 1e-6 < float((exact - rough).abs().max()) < 0.05 * float(exact.abs().max())
    assert trial("kd", teacher_precision="bfloat16").cohort_key != trial("kd").cohort_key


def test_auto_compiles_a_teacher_that_works_long_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(forward_pass.torch, "compile", lambda code, **options: compiled.append(code) or code)
    monkeypatch.setattr(teacher, "can_compile", lambda device: True)
    data = splits()
    batch = first_batch(data)
    teacher_of({}, data, images=72)(batch)
    assert not compiled
    teacher_of({}, data, images=10**9)(batch)
    assert compiled
    compiled.clear()
    teacher_of({"compile": "off"}, data, images=10**9)(batch)
    monkeypatch.setattr(teacher, "can_compile", lambda device: False)
    teacher_of({}, data, images=10**9)(batch)
    assert not compiled


def test_whether_a_teacher_is_compiled_does_not_depend_on_preparations(monkeypatch: pytest.MonkeyPatch) -> None:
    data, worth = splits(), []
    monkeypatch.setattr(Teacher, "_is_worth_compiling", lambda self, _: bool(worth.append(self._images)))
    for names in (("kd",), ("kd", "ab")):
        trials = [trial(name, hyperparameters={"preparation_epochs": 50} if name == "ab" else {}) for name in names]
        assert trials[0].teacher is not None
        network = build_network(trials[0].teacher, data)[0].eval()
        cohort = CohortModule(
            [build_student(member_trial, data, network, MemoryWriter()) for member_trial in trials], network
        )
        assert cohort.teacher is not None
        cohort.teacher(first_batch(data))
    assert worth == [72 * trials[0].epochs] * 2


def stored(folder: Path, data: ArrayDataset, batch_size: int = 16, limit: int = 10**9) -> LogitCache | None:
    views = InMemoryLoader(
        data.train_images, data.train_labels, batch_size=16, mean=data.mean, std=data.std, augment=trial("kd").augment
    ).view_count
    return open_cache(folder, ABOUT, views * len(data.train_labels), data.num_classes, batch_size, limit)


def run(names: tuple[str, ...], store: LogitCache | None) -> tuple[list[MemoryWriter], int]:
    """Trains a cohort; also how many images passed its teacher."""
    data = splits()
    trials = [trial(name) for name in names]
    writers = [MemoryWriter() for _ in trials]
    taught = trials[0].teacher
    assert taught is not None
    network = build_network(taught, data)[0].eval()
    members = [
        build_student(member_trial, data, network, writer) for member_trial, writer in zip(trials, writers, strict=True)
    ]
    cohort = CohortModule(members, network, open_logit_cache=lambda compiled: store)
    passed = 0
    make = cohort.teacher._pass

    def counting(kind: Any, images: Tensor, needs: Any) -> Any:
        nonlocal passed
        passed += len(images)
        return make(kind, images, needs)

    cohort.teacher._pass = counting  # type: ignore[method-assign]
    fit(cohort, *loaders(trials[0], data, CPU), CPU)
    if store is not None:
        store.close()
    return writers, passed


def test_weights_are_the_same_bytes_without_a_store_and_with_a_cold_a_filled_and_a_damaged_one(tmp_path: Path) -> None:
    data = splits()
    without, all_images = run(("kd", "dkd"), None)
    cold, _ = run(("kd", "dkd"), stored(tmp_path, data))
    warm, passed = run(("kd", "dkd"), stored(tmp_path, data))
    # All that passes is what is no whole batch: the last one of each epoch.
    assert passed == 3 * (72 % 16)
    assert all_images == 3 * 72
    (entry,) = list_files(tmp_path)
    content = bytearray(entry.path.read_bytes())
    rows = [offset for offset in range(0, len(content), 20) if any(content[offset : offset + 20])]
    for offset in rows[::2]:
        content[offset + 1] ^= 0xFF
    entry.path.write_bytes(content)
    damaged, again = run(("kd", "dkd"), stored(tmp_path, data))
    assert again > passed
    for other in (cold, warm, damaged):
        assert all(same(a.states, b.states) for a, b in zip(without, other, strict=True))
    assert warm[0].states[-1]["history"][-1]["spared_seconds"] > 0


def test_what_a_cohort_with_other_methods_computes_is_kept_for_later(tmp_path: Path) -> None:
    data = splits()
    (kd, _), _ = run(("kd", "fitnet"), stored(tmp_path, data))
    (alone,), passed = run(("kd",), stored(tmp_path, data))
    assert passed == 3 * (72 % 16)
    assert same(kd.states, alone.states)


def test_a_teacher_whose_logits_depend_on_the_batch_is_not_remembered(tmp_path: Path) -> None:
    store = stored(tmp_path, splits())
    assert store is not None
    images, views = torch.randn(16, 3, 4, 4), torch.arange(16)

    def compute(given: Tensor) -> Tensor:
        return (given - given[0]).flatten(1)[:, :4]

    for _ in range(2):
        assert torch.equal(store.get(views, images, compute), compute(images))
        store.add(views, images, compute(images), compute)
    store.close()
    (entry,) = list_files(tmp_path)
    assert json.loads(entry.path.with_suffix(".json").read_text())["sizes"] == []
    assert not any(entry.path.read_bytes())


def test_parts_of_a_batch_pass_where_they_have_its_bits(tmp_path: Path) -> None:
    store = stored(tmp_path, splits())
    assert store is not None
    images = torch.randn(16, 3, 4, 4)
    sizes: list[int] = []

    def compute(given: Tensor) -> Tensor:
        sizes.append(len(given))
        # the library takes another way for few images
        return given.flatten(1)[:, :4] + (0.0 if len(given) >= 8 else 1e-7)

    views = torch.arange(16)
    store.get(views, images, compute)
    sizes.clear()
    views = torch.cat([torch.arange(13), torch.arange(100, 103)])
    assert torch.equal(store.get(views, images, compute), compute(images))
    assert sizes == [8, 16]  # three are missing, and eight have the bits of sixteen; the other is ours
    store.close()


def test_room_is_made_by_what_was_used_longest_ago_and_is_not_in_use(tmp_path: Path) -> None:
    size = 100 * 4 * 5

    def store(name: str) -> LogitCache | None:
        return open_cache(tmp_path, {"teacher": name}, 100, 4, 16, limit=2 * size)

    first_store, second_store = store("one"), store("two")
    assert first_store is not None and second_store is not None
    first_store.close()
    third_store = store("three")  # in the place of one
    assert third_store is not None
    assert {entry.key["teacher"] for entry in list_files(tmp_path)} == {"two", "three"}
    assert store("four") is None  # both are in use
    second_store.close()
    third_store.close()
    assert open_cache(tmp_path, ABOUT, 100, 4, 16, limit=size - 1) is None


def test_a_file_in_use_is_not_removed(tmp_path: Path) -> None:
    store = open_cache(tmp_path, ABOUT, 10, 4, 16)
    assert store is not None
    (entry,) = list_files(tmp_path)
    assert not remove_file(entry)
    store.close()
    assert remove_file(entry)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", ["os.pwrite", "write_json"])
def test_a_full_disk_ends_the_store_and_not_the_training(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    without, _ = run(("kd",), None)
    store = stored(tmp_path, splits())
    monkeypatch.setattr(f"{logit_cache.__name__}.{function}", full)
    writers, _ = run(("kd",), store)
    assert same(copy.deepcopy(without[0].states), writers[0].states)


def test_views_are_counted_where_crop_and_flip_are_all_there_is() -> None:
    data = splits()
    train, _ = loaders(trial("kd"), data, CPU)
    seen: dict[int, Tensor] = {}
    for epoch in range(6):
        train.set_epoch(epoch)
        for batch in train:
            assert batch.views is not None
            for view, image in zip(batch.views.tolist(), batch.images, strict=True):
                assert torch.equal(seen.setdefault(view, image), image)
    assert len(seen) > 72 * 4
    for augment in ({"crop": 2, "flip": True, "cutout": 4}, {"crop": 2, "flip": True, "mixup": 0.8}):
        other, _ = loaders(trial("kd", augment=augment), data, CPU)
        assert next(iter(other)).views is None
