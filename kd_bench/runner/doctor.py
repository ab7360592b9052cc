"""Looks at what a run needs, and says what to do about what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from kd_bench.data import registry as datasets
from kd_bench.errors import UserError
from kd_bench.recipe import Dataset

_MODULES = ("torch", "torchvision", "pytorch-lightning", "timm", "numpy", "pandas", "scikit-learn", "safetensors")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        mark: ``ok``, ``note`` for what only some recipes need, or ``bad``.
        text: What was found, and what to do.
    """

    mark: str
    text: str

    @property
    def sound(self) -> bool:
        """Whether kd-bench can work with it."""
        return self.mark != "bad"

    def __str__(self) -> str:
        return f"[{self.mark:^4}] {self.text}"


def examine(out: Path, data: Path | None) -> Iterator[Finding]:
    """Looks at Python, packages, devices, data sets, the results folder and the disk."""
    yield Finding("ok", f"Python {platform.python_version()} at {sys.executable}")
    yield from _packages()
    yield from _devices()
    yield from _data(data)
    yield _results(out)


def _packages() -> Iterator[Finding]:
    for name in _MODULES:
        try:
            yield Finding("ok", f"{name} {version(name)}")
        except PackageNotFoundError:
            yield Finding("bad", f"{name} is not installed; mend it with: pip install --upgrade kd-bench")


def _devices() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    yield Finding(
        "ok", f"{os.cpu_count()} cores, {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    )
    try:
        import torch
        import torchvision  # noqa: F401  (a wrong torchvision fails here)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield Finding(
            "bad", f"torch does not load ({reason}); mend it with: pip install --force-reinstall torch torchvision"
        )
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding("ok", f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.device_count():
        if shutil.which("nvidia-smi"):
            yield Finding(
                "note", "there is an NVIDIA driver, but torch sees no GPU; look at: python -m torch.utils.collect_env"
            )
        else:
            yield Finding("note", "no GPU: kd-bench runs on the CPU")


def _data(data: Path | None) -> Iterator[Finding]:
    where = datasets.data_dir(data)
    for name in datasets.names():
        if "path" in datasets.spec(name).takes:
            continue  # the user's own images, wherever they are
        try:
            yield Finding("ok", f"{name}: {datasets.locate(Dataset(name=name), where)}")
        except UserError as error:
            yield Finding("note", str(error))


def _results(out: Path) -> Finding:
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if not os.access(folder, os.W_OK):
        return Finding("bad", f"{out}: results cannot be written there; name another folder with --out")
    if free < 1:
        return Finding("bad", f"{out}: only {free:.2f} GiB of disk are free; results and checkpoints need about 1 GiB")
    return Finding("ok", f"results go to {out.absolute()}, {free:.0f} GiB free")
