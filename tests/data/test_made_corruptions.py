"""Corrupted copies that are made: pixels depend on the image, its index, the corruption and the severity alone."""

from __future__ import annotations

import importlib.metadata
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_bench.config.corruptions import CORRUPTIONS, SEVERITIES
from kd_bench.config.data import Dataset, Pipeline
from kd_bench.data import corrupted, decoded_cache, made_corruptions
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.file_dataset import FileDataset, Files
from kd_bench.data.made_corruptions import MadeCorruptions, corrupt, find_made
from kd_bench.utils.errors import RunFailed
from kd_bench.utils.paths import cache_folder
from tests.data.opencv import require_opencv

require_opencv()

#: Corruptions by the generators that they draw from: NumPy's global one, ones that seeds are given to, none.
SOME = ("gaussian_noise", "impulse_noise", "glass_blur", "snow", "elastic_transform", "jpeg_compression")


def images(count: int, size: int = 32) -> np.ndarray:
    """Images with coarse and fine structure, (N, 3, H, W) uint8; the first ones are the same for any number."""
    rng = np.random.default_rng(0)
    shape = (count, 3, size // 8, 8, size // 8, 8)
    coarse, fine = rng.integers(40, 196, (*shape[:3], 1, shape[4], 1)), np.arange(64).reshape(8, 1, 8) % 19
    return (coarse + fine).reshape(count, 3, size, size).astype(np.uint8)


def dataset(count: int, size: int = 32) -> ArrayDataset:
    labels = np.arange(count) % 10
    return ArrayDataset.from_arrays(images(10, size), np.arange(10), images(count, size), labels)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def made(count: int = 9, workers: int = 0) -> MadeCorruptions:
    corruptions = find_made(Dataset(name="digits"), dataset(count))
    assert isinstance(corruptions, MadeCorruptions), corruptions
    return replace(corruptions, workers=workers)


def test_names_are_those_of_the_package() -> None:
    imagecorruptions = pytest.importorskip("imagecorruptions")
    assert list(CORRUPTIONS) == imagecorruptions.get_corruption_names()


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_pixels_are_those_of_any_batch_size(corruption: str) -> None:
    whole = images(9)
    before = whole.copy()
    at_once = corrupt(whole, corruption, 3)
    by_one = [corrupt(whole[index : index + 1], corruption, 3, index) for index in range(9)]
    by_seven = [corrupt(whole[first : first + 7], corruption, 3, first) for first in (0, 7)]
    assert np.array_equal(at_once, np.concatenate(by_one)) and np.array_equal(at_once, np.concatenate(by_seven))
    assert np.array_equal(whole, before) and at_once.dtype == np.uint8 and at_once.shape == whole.shape
    assert at_once.flags.c_contiguous and (at_once != whole).any()


def test_draws_differ_between_images_severities_and_corruptions() -> None:
    same = np.repeat(images(1), 3, axis=0)
    for corruption in ("gaussian_noise", "impulse_noise", "glass_blur", "motion_blur"):
        first, second, third = corrupt(same, corruption, 2)
        assert (first != second).any() and (second != third).any(), corruption
    grey = np.full((1, 3, 32, 32), 128, np.uint8)
    noise = {severity: corrupt(grey, "gaussian_noise", severity).astype(int) - 128 for severity in (1, 2)}
    assert abs(np.corrcoef(noise[1].ravel(), noise[2].ravel())[0, 1]) < 0.2


def test_strengths_rise_with_the_severity() -> None:
    grey = np.full((4, 3, 32, 32), 128, np.uint8)
    spread = [float((corrupt(grey, "gaussian_noise", severity).astype(float) / 255).std()) for severity in SEVERITIES]
    # of ImageNet-C; clipping at 0 and 1 lowers the larger ones
    assert spread[:2] == pytest.approx([0.08, 0.12], rel=0.05) and spread == sorted(spread)


def test_the_global_generators_are_as_before() -> None:
    states = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        if states:
            for corruption in SOME:
                corrupt(images(2), corruption, 5)
            made(70).copy("pixelate", 1)
        states.append((random.random(), np.random.random(), torch.rand(()).item()))
    assert states[0] == states[1]


def test_the_state_of_the_global_generators_does_not_matter() -> None:
    copies = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        copies.append([corrupt(images(2), corruption, 4) for corruption in SOME])
    assert all(np.array_equal(first, second) for first, second in zip(*copies, strict=True))


def test_pixels_are_those_of_any_number_of_processes(cache: Path) -> None:
    alone = made(150).copy("impulse_noise", 2)
    parts: list[tuple[int, int]] = []
    several = replace(made(150), workers=2)
    decoded_cache.entries(cache_folder())[0].remove()
    again = several.copy("impulse_noise", 2, lambda part, total: parts.append((part, total)))
    assert parts == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(alone.images, again.images) and alone.digest == again.digest
    assert np.array_equal(alone.images.numpy(), corrupt(images(150), "impulse_noise", 2))


def test_a_copy_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = made().copy("snow", 1)

    def never(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(made_corruptions, "corrupt", never)
    second = made().copy("snow", 1)
    assert torch.equal(first.images, second.images) and first.digest == second.digest
    other = replace(made(), libraries={"numpy": "1.0"}), replace(made(), version="9"), made(8)
    for source in other:
        with pytest.raises(AssertionError, match="made again"):
            source.copy("snow", 1)


def test_a_damaged_copy_is_made_again(cache: Path) -> None:
    first = made().copy("fog", 1).images.clone()
    (file,) = cache.rglob("fog-1-*-images.npy")
    file.write_bytes(file.read_bytes()[:-100])
    assert torch.equal(made().copy("fog", 1).images, first)


def test_copies_are_one_line_of_the_cache(cache: Path) -> None:
    source = made()
    assert decoded_cache.entries(cache) == []
    source.copy("contrast", 1)
    source.copy("contrast", 2)
    (entry,) = decoded_cache.entries(cache)
    assert entry.name.startswith("digits-") and entry.name.endswith(", corrupted") and entry.size > 0
    entry.remove()
    assert decoded_cache.entries(cache) == []


def test_copies_that_would_fill_the_disk_are_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = made().copy("contrast", 1)
    monkeypatch.setattr(made_corruptions, "_SHARE_OF_DISK", 0.0)
    source = made(8)
    assert source.folder is None
    assert torch.equal(source.copy("contrast", 1).images, kept.images[:8])
    assert len(list(cache.rglob("*-images.npy"))) == 1


def test_a_kill_in_the_middle_loses_one_copy_and_changes_no_pixel(cache: Path) -> None:
    """A process that makes three copies is killed while it makes the second."""
    program = (
        "import tests.data.test_made_corruptions as t\n"
        "source = t.made(600, workers=2)\n"
        "for severity in (1, 2, 3):\n"
        "    source.copy('motion_blur', severity, lambda part, parts: print(severity, part, flush=True))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        env={**os.environ, "KD_BENCH_CACHE": str(cache)},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.split() == ["2", "2"]:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.read()  # ends when the workers have ended, too
    assert {path.name.split("-")[1] for path in cache.rglob("motion_blur-*.json")} == {"1"}
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("motion_blur-1-*.npy")}
    source = made(600)
    for severity in (1, 2):
        expected = corrupt(images(600), "motion_blur", severity)
        assert np.array_equal(source.copy("motion_blur", severity).images.numpy(), expected)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    deadline = time.monotonic() + 30
    while list(cache.rglob("*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(cache.rglob("*.tmp")) == []


def test_what_the_package_prints_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    corrupt(images(1, 104), "zoom_blur", 5)
    assert capsys.readouterr().out == ""


def test_why_there_are_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = find_made(Dataset(name="digits"), dataset(3, 24))
    assert reason == "imagecorruptions-imaug needs images of at least 32 pixels, and those of digits have 24"
    files = Files((Path("a"),), np.array([b"x"]), np.zeros(1, np.int64))
    streamed = FileDataset(files, files, ("a",), (0.0,) * 3, (1.0,) * 3, Pipeline())
    reason = corrupted.find(Dataset(name="folder", path="x"), streamed, Path("nowhere"))
    assert isinstance(reason, str) and reason.endswith(
        "are decoded when they are needed, and only images in memory are corrupted"
    )
    made_corruptions._installed.cache_clear()

    def gone(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", gone)
    reason = find_made(Dataset(name="digits"), dataset(3))
    monkeypatch.undo()
    made_corruptions._installed.cache_clear()
    assert reason == (
        "they need the package imagecorruptions-imaug; install it with: pip install 'kd-bench[corruptions]', in a "
        "checkout: pip install '.[corruptions]'"
    )


def test_a_package_that_cannot_be_imported_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    made_corruptions._installed.cache_clear()
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    reason = find_made(Dataset(name="digits"), dataset(3))
    made_corruptions._installed.cache_clear()
    assert isinstance(reason, str) and reason.startswith("the package imagecorruptions-imaug cannot be imported: ")


def test_an_error_of_the_package_is_a_sentence() -> None:
    with pytest.raises(
        RunFailed, match=r"^imagecorruptions-imaug: fog at severity 1 failed: Image width and height must"
    ):
        corrupt(images(1, 16), "fog", 1)
