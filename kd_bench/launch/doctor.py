"""Checks what a run needs on this machine. Each finding about something missing names the command that fixes it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement

from kd_bench.config.data import Dataset
from kd_bench.data import registry as datasets
from kd_bench.models import cards, pretrained
from kd_bench.utils.cpu import usable_cores
from kd_bench.utils.errors import UserError, first_line, install_command
from kd_bench.utils.memory import usable_memory
from kd_bench.utils.paths import cache_folder

#: Packages whose version is listed even if it is right.
_LISTED = ("torch", "torchvision", "pytorch-lightning", "timm", "numpy", "pandas", "scikit-learn", "safetensors")

#: Optional packages by extra: the package, and the command or option that needs it.
_EXTRAS = {
    "robust": ("pyautoattack", "kd-bench attack"),
    "corruptions": ("imagecorruptions-imaug", "kd-bench evaluate --metrics corruptions"),
    "tune": ("optuna", "kd-bench tune"),
    "ray": ("ray", "--executor ray"),
    "slurm": ("submitit", "--executor slurm"),
    "tensorboard": ("tensorboard", "--tensorboard"),
    "wandb": ("wandb", "--wandb"),
    "energy": ("zeus", "the column energy"),
}

_DRIVER = Path("/proc/driver/nvidia/gpus")
_SHARED_MEMORY = Path("/dev/shm")
_GIB = 2**30
_REINSTALL = "pip install --upgrade --force-reinstall torch torchvision"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        mark: ``ok``; ``note`` for something that only some recipes need; or ``bad``.
        text: What was found, and how to fix it.
    """

    mark: str
    text: str

    def __str__(self) -> str:
        return f"[{self.mark:^4}] {self.text}"


def examine(out: Path, data: Path | None) -> Iterator[Finding]:
    """Checks Python, packages, devices, data sets, weights, and the folders that are written to."""
    yield Finding("ok", f"Python {platform.python_version()} at {sys.executable}")
    yield from _packages()
    memory = usable_memory()
    cores, usable = os.cpu_count() or 1, usable_cores()
    count = f"{cores} cores" if usable == cores else f"{usable} of {cores} cores to use"
    yield Finding("ok", f"{count}, {memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free")
    yield from _torch()
    yield from _energy()
    yield from _shared_memory()
    yield from _data(data)
    yield _weights()
    yield _folder(out, "results", 1.0, "name another folder with --out, or export KD_BENCH_OUT=FOLDER", hard_links=True)
    yield _folder(cache_folder(), "decoded images and fetched weights", 2.0, "export KD_BENCH_CACHE=FOLDER")


def _packages() -> Iterator[Finding]:
    """Compares the installed packages with the requirements of kd-bench, and torch with those of torchvision."""
    try:
        requirements = [Requirement(line) for line in requires("kd-bench") or ()]
    except PackageNotFoundError:
        yield Finding("note", "kd-bench is not installed but runs from its sources; install it with: pip install -e .")
        requirements = []
    for requirement in requirements:
        name, specifier = requirement.name, requirement.specifier
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _version(name)
        if installed is None:
            yield Finding("bad", f"{name} is not installed; install it with: pip install '{name}{specifier}'")
        elif not specifier.contains(installed, prereleases=True):
            text = f"{name} {installed} is installed, but kd-bench needs {specifier}"
            packages = f"'{name}{specifier}'" + " 'torchvision'" * (name == "torch")
            yield Finding("bad", f"{text}; fix it with: pip install --upgrade {packages}")
        elif name in _LISTED:
            yield Finding("ok", f"{name} {installed}")
    vision, torch = _version("torchvision"), _version("torch")
    for requirement in map(Requirement, requires("torchvision") or () if requirements and vision and torch else ()):
        if requirement.name == "torch" and not requirement.specifier.contains(str(torch), prereleases=True):
            text = f"torchvision {vision} is made for torch{requirement.specifier}, but {torch} is installed"
            yield Finding("bad", f"{text}; fix it with: {_REINSTALL}")
    for extra, (package, use) in _EXTRAS.items():
        if _version(package) is None:
            text = f"{package} is not installed, which only {use} needs; install it with: {install_command(extra)}"
            yield Finding("note", text)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch() -> Iterator[Finding]:
    try:
        import torch
        import torchvision  # noqa: F401  (fails here if it does not fit torch)
    except Exception as error:
        yield Finding("bad", f"torch does not load ({first_line(error)}); fix it with: {_REINSTALL}")
        return
    from kd_bench.training.teacher import can_compile

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding("ok", f"cuda:{index} {properties.name}, {properties.total_memory / _GIB:.0f} GiB")
    else:
        yield _why_no_gpu()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not can_compile(device):
        install = "apt-get install g++" if device.type == "cpu" else "pip install triton"
        text = f"there is no compiler for {device.type}, so networks are not compiled, whatever recipes say"
        yield Finding("note", f"{text}; get one with: {install}")


def _energy() -> Iterator[Finding]:
    """Says which energy counters can be read, if the package that reads them is installed."""
    if _version("zeus") is None:
        return
    import torch

    from kd_bench.utils.energy_counters import open_counters

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    counters = open_counters(device)
    if counters:
        kinds = " and ".join(dict.fromkeys(counter.kind for counter in counters))
        yield Finding("ok", f"energy counters of {kinds} can be read, so trainings record their energy")
    else:
        yield Finding(
            "note",
            "no energy counter can be read, so trainings record no energy; on Linux, the CPU's are those in "
            "/sys/class/powercap, which by default only root may read",
        )


def _why_no_gpu() -> Finding:
    """Finds out why torch has no GPU."""
    import torch

    gpus, cuda, failure = _nvidia_smi()
    if failure:
        return Finding("bad", f"nvidia-smi fails ({failure}); after an update of the driver fix it with: sudo reboot")
    if not gpus and _DRIVER.is_dir() and any(_DRIVER.iterdir()):
        return Finding(
            "note",
            "there is an NVIDIA driver, but no access to its cards, so kd-bench runs on the CPU; "
            "allow a container access with: docker run --gpus all",
        )
    if not gpus:
        return Finding("note", "no GPU: kd-bench runs on the CPU")
    if torch.version.cuda is None:
        text = f"torch {torch.__version__} is built without CUDA, but there is {gpus[0]}"
        return Finding("bad", f"{text}; fix it with: {_install_torch(cuda)}")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and not re.match(r"\d|GPU-|MIG-", hidden):
        return Finding(
            "note",
            f"CUDA_VISIBLE_DEVICES={hidden} hides {gpus[0]}, so kd-bench runs on the CPU; "
            "show it with: unset CUDA_VISIBLE_DEVICES",
        )
    reason = "for an unknown reason"
    try:
        torch.cuda.init()
    except Exception as error:
        reason = first_line(error)
    if "too old" in reason:
        advice = f"update the driver, or install a torch for it: {_install_torch(cuda)}"
    else:
        advice = "look at: python -m torch.utils.collect_env"
    return Finding("bad", f"torch cannot use {gpus[0]} ({reason}); {advice}")


def _nvidia_smi() -> tuple[list[str], tuple[int, int] | None, str]:
    """Returns GPU names, the newest CUDA version that the driver supports, and why ``nvidia-smi`` fails."""
    if shutil.which("nvidia-smi") is None:
        return [], None, ""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
        summary = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], None, first_line(error)
    if listing.returncode:
        lines = (listing.stdout + listing.stderr).strip().splitlines()
        return [], None, lines[0] if lines else f"exit code {listing.returncode}"
    match = re.search(r"CUDA Version: (\d+)\.(\d+)", summary.stdout)
    gpus = re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", listing.stdout, re.MULTILINE)
    return gpus, (int(match[1]), int(match[2])) if match else None, ""


def _install_torch(cuda: tuple[int, int] | None) -> str:
    """Returns the command that installs a torch for the driver, which runs all builds of its major CUDA version."""
    build = "cu130" if cuda is None or cuda >= (13, 0) else "cu128" if cuda >= (12, 8) else "cu126"
    prefix = "" if cuda is None or cuda >= (12, 0) else "(after an update of the driver) "
    return f"{prefix}{_REINSTALL} --index-url https://download.pytorch.org/whl/{build}"


def _shared_memory() -> Iterator[Finding]:
    if _SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(_SHARED_MEMORY).free / _GIB) < 1:
        yield Finding(
            "note",
            f"only {free:.2f} GiB of shared memory, which workers need for decoded images (imagenet, folder): start a "
            "container with: docker run --shm-size=8g, or do without workers: kd-bench run --workers 0",
        )


def _data(data: Path | None) -> Iterator[Finding]:
    data_folder = datasets.resolve_data_dir(data)
    if not data_folder.is_dir():
        text = f"there is no data folder {data_folder}, which all data sets but digits need"
        yield Finding("note", f"{text}; name yours with: export KD_BENCH_DATA=FOLDER, or --data FOLDER")
    for name in datasets.names():
        try:
            if "path" in datasets.spec(name).options:
                continue  # the user's own images, in any folder
            yield Finding("ok", f"{name}: {datasets.locate(Dataset(name=name), data_folder)}")
        except UserError as error:
            yield Finding("note", str(error))


def _weights() -> Finding:
    published = [card for card in cards.load_all("teachers") if card.weights or card.timm]
    missing = [card for card in published if not pretrained.weights_path(card).is_file()]
    present = len(published) - len(missing)
    text = f"published weights of {present} of {len(published)} teachers are in {pretrained.weights_folder()}"
    if not missing:
        return Finding("ok", text)
    names = ", ".join(f"{card.dataset}/{card.name}" for card in missing)
    command = f"kd-bench teacher fetch {missing[0].name} --dataset {missing[0].dataset}"
    text += f"; recipes that train their teachers need none. Missing: {names}; get one with: {command}"
    return Finding("note", text)


def _folder(folder: Path, content: str, needed: float, advice: str, hard_links: bool = False) -> Finding:
    """Checks that a folder, or its nearest parent that exists, is writable and has ``needed`` GiB free."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with TemporaryDirectory(dir=existing, prefix=".kd-bench-") as temporary:
            probe = Path(temporary) / "probe"
            probe.touch()
            link = probe.with_suffix(".link")
            with suppress(OSError):
                os.link(probe, link)
            can_link = link.exists()
    except OSError as error:
        return Finding("bad", f"{folder}: {content} cannot be written there ({error.strerror}); {advice}")
    if hard_links and not can_link:
        return Finding("bad", f"{folder}: its file system has no hard links, which {content} need; {advice}")
    free = shutil.disk_usage(existing).free / _GIB
    if free < needed:
        return Finding("bad", f"{folder}: only {free:.2f} GiB are free, but {content} need about {needed:g}; {advice}")
    return Finding("ok", f"{content} go to {folder.absolute()}, {free:.0f} GiB free")
