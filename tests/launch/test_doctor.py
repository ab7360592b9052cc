"""Findings of kd-bench doctor, on simulated machines."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kd_bench.cli.main import app
from kd_bench.launch import doctor
from kd_bench.models import cards, pretrained
from kd_bench.utils.errors import RunFailed

CARD = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1234)\n"


@pytest.fixture
def findings(tmp_path, monkeypatch) -> Callable[[], dict[str, str]]:
    """Returns a function that runs all checks and returns the marks by text."""
    monkeypatch.setenv("KD_BENCH_CACHE", str(tmp_path / "cache"))
    for name in ("CUDA_VISIBLE_DEVICES", "KD_BENCH_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "data").mkdir()
    return lambda: {finding.text: finding.mark for finding in doctor.examine(tmp_path / "runs", tmp_path / "data")}


def mark_of(findings: dict[str, str], *parts: str) -> str:
    """Returns the mark of the one finding that has these parts in this order."""
    texts = [text for text in findings if all(part in text for part in parts)]
    assert len(texts) == 1, (parts, list(findings))
    positions = [texts[0].index(part) for part in parts]
    assert positions == sorted(positions), texts
    return findings[texts[0]]


def versions(monkeypatch, **changed: str | None) -> None:
    real = doctor.version

    def version(name: str) -> str:
        if name in changed:
            if changed[name] is None:
                raise doctor.PackageNotFoundError(name)
            return str(changed[name])
        return real(name)

    monkeypatch.setattr(doctor, "version", version)


def nvidia(monkeypatch, listed: str = CARD, cuda: str = "13.0", code: int = 0) -> None:
    real, run = shutil.which, subprocess.run
    monkeypatch.setattr(shutil, "which", lambda name, **more: name if name == "nvidia-smi" else real(name, **more))

    def answer(command: list[str], **more) -> object:
        if command[0] != "nvidia-smi":
            return run(command, **more)
        about = listed if "-L" in command else f"| NVIDIA-SMI 570   Driver Version: 570   CUDA Version: {cuda} |"
        return SimpleNamespace(returncode=code, stdout=about, stderr="")

    monkeypatch.setattr(subprocess, "run", answer)


def test_a_sound_machine(findings):
    marks = findings()
    assert "bad" not in marks.values()
    assert mark_of(marks, "no GPU") == "note" if not torch.cuda.is_available() else True
    assert mark_of(marks, "results go to") == mark_of(marks, "digits: ") == "ok"


def test_packages_that_are_old_missing_or_do_not_fit(findings, monkeypatch):
    versions(monkeypatch, torch="2.5.1+cu121", timm=None, wandb=None)
    monkeypatch.setattr(
        doctor, "requires", lambda name: ["torch==2.9.0"] if name == "torchvision" else ["torch>=2.9", "timm>=1.0.20"]
    )
    marks = findings()
    assert mark_of(marks, "torch 2.5.1+cu121", ">=2.9", "pip install --upgrade 'torch>=2.9' 'torchvision'") == "bad"
    assert mark_of(marks, "timm is not installed", "pip install 'timm>=1.0.20'") == "bad"
    assert mark_of(marks, "torchvision", "made for torch==2.9.0", "pip install --upgrade --force-reinstall") == "bad"
    assert mark_of(marks, "wandb is not installed", "--wandb", "pip install 'kd-bench[wandb]'") == "note"


@pytest.mark.parametrize(
    ("package", "use", "extra"),
    [
        ("pyautoattack", "kd-bench attack", "robust"),
        ("imagecorruptions-imaug", "--metrics corruptions", "corruptions"),
        ("optuna", "kd-bench tune", "tune"),
        ("zeus", "the column energy", "energy"),
    ],
)
def test_optional_packages_name_their_extra(findings, monkeypatch, package, use, extra):
    versions(monkeypatch, **{package: None})
    assert mark_of(findings(), f"{package} is not installed", use, f"pip install 'kd-bench[{extra}]'") == "note"


def test_a_torchvision_that_does_not_load(findings, monkeypatch):
    import builtins

    real = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nand more")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert (
        mark_of(findings(), "(operator torchvision::nms does not exist)", "--force-reinstall torch torchvision")
        == "bad"
    )


@pytest.mark.parametrize(
    ("driver", "built", "reason", "parts"),
    [
        ("13.0", None, "", ("is built without CUDA", "NVIDIA H100 80GB HBM3;", "whl/cu130")),
        ("12.8", None, "", ("is built without CUDA", "whl/cu128")),
        ("12.4", "13.0", "The NVIDIA driver on your system is too old (found version 12040)",
         ("cannot use NVIDIA H100", "too old", "update the driver, or", "whl/cu126")),
        ("11.4", "13.0", "The NVIDIA driver on your system is too old", ("(after an update of the driver) pip",)),
        ("13.0", "13.0", "CUDA unknown error", ("CUDA unknown error", "python -m torch.utils.collect_env")),
    ],
)  # fmt: skip
def test_a_gpu_that_torch_cannot_use(findings, monkeypatch, driver, built, reason, parts):
    def init() -> None:
        raise RuntimeError(reason)

    nvidia(monkeypatch, cuda=driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", built)
    assert mark_of(findings(), *parts) == "bad"


def test_a_gpu_that_is_hidden_or_not_accessible(findings, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (tmp_path / "driver" / "0000:01:00.0").mkdir(parents=True)
    monkeypatch.setattr(doctor, "_DRIVER", tmp_path / "driver")
    assert mark_of(findings(), "no access to its cards", "docker run --gpus all") == "note"
    nvidia(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert mark_of(findings(), "hides NVIDIA H100", "unset CUDA_VISIBLE_DEVICES") == "note"
    nvidia(monkeypatch, "Failed to initialize NVML: Driver/library version mismatch\n", code=18)
    assert mark_of(findings(), "nvidia-smi fails (Failed to initialize NVML", "sudo reboot") == "bad"


def test_no_compiler(findings, monkeypatch):
    from kd_bench.training import teacher

    monkeypatch.setattr(teacher, "can_compile", lambda device: False)
    assert mark_of(findings(), "there is no compiler", "get one with: ") == "note"


def test_too_little_disk_space(findings, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**26))
    marks = findings()
    assert mark_of(marks, "runs: only 0.06 GiB", "--out") == "bad"
    assert mark_of(marks, "cache: only 0.06 GiB", "export KD_BENCH_CACHE=FOLDER") == "bad"
    if Path("/dev/shm").is_dir():
        assert mark_of(marks, "0.06 GiB of shared memory", "docker run --shm-size=8g", "--workers 0") == "note"


def test_folders_that_cannot_be_written_or_have_no_hard_links(findings, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        assert mark_of(findings(), "no hard links", "KD_BENCH_OUT=FOLDER") == "bad"
    monkeypatch.setattr(doctor, "TemporaryDirectory", lambda **_: refuse())
    assert mark_of(findings(), "results cannot be written there (Operation not permitted)", "--out") == "bad"


def test_missing_images_and_weights(findings, monkeypatch, tmp_path):
    (tmp_path / "data").rmdir()
    marks = findings()
    assert mark_of(marks, "no data folder", "export KD_BENCH_DATA=FOLDER") == "note"
    assert mark_of(marks, "cifar100 is not there", "kd-bench data fetch cifar100") == "note"
    assert mark_of(marks, "published weights of 0 of", "kd-bench teacher fetch") == "note"
    for card in cards.load_all("teachers"):
        pretrained.weights_path(card).parent.mkdir(parents=True, exist_ok=True)
        pretrained.weights_path(card).touch()
    assert mark_of(findings(), "published weights of") == "ok"


def test_a_broken_plug_in_does_not_end_the_checks(findings, monkeypatch, tmp_path):
    meta = tmp_path / "broken_pack-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-pack\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text("[kd_bench.datasets]\nbroken = no_such_module:make\n")
    monkeypatch.syspath_prepend(tmp_path)
    marks = findings()
    assert mark_of(marks, "'broken'", "no_such_module") == "note"
    assert mark_of(marks, "results go to") == mark_of(marks, "digits: ") == "ok"


def test_the_exit_code_is_1_if_kd_bench_cannot_work(monkeypatch, tmp_path):
    versions(monkeypatch, timm=None)
    with pytest.raises(RunFailed, match="keeps kd-bench from working"):
        app(["doctor", "--out", str(tmp_path)], standalone_mode=False)
