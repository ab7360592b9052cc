"""Looks at what a run needs, and says what to do about what is missing: each with the command that mends it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from packaging.requirements import Requirement

from kd_bench.config.data import Dataset
from kd_bench.data import registry as datasets
from kd_bench.models import cards, pretrained
from kd_bench.utils.errors import UserError, first_line
from kd_bench.utils.paths import cache_folder

#: Packages whose version is told where nothing is wrong with them.
_TOLD = ("torch", "torchvision", "pytorch-lightning", "timm", "numpy", "pandas", "scikit-learn", "safetensors")

#: What only some uses need, by extra: the package, and for what.
_EXTRAS = {
    "robust": ("pyautoattack", "kd-bench attack"),
    "ray": ("ray", "--executor ray"),
    "slurm": ("submitit", "--executor slurm"),
    "tensorboard": ("tensorboard", "--tensorboard"),
    "wandb": ("wandb", "--wandb"),
}

_DRIVER = Path("/proc/driver/nvidia/gpus")
_SHARED = Path("/dev/shm")
_GIB = 2**30


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
    """Looks at Python, packages, devices, data sets, weights, and the folders that are written to."""
    yield Finding("ok", f"Python {platform.python_version()} at {sys.executable}")
    yield from _packages()
    yield from _extras()
    memory = psutil.virtual_memory()
    yield Finding("ok", f"{os.cpu_count()} cores, {memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free")
    broken = _torch()
    if broken:
        yield broken
    else:
        yield from _gpus()
        yield from _compiler()
    yield from _shared_memory()
    yield from _data(data)
    yield _weights()
    yield _folder(out, "results", 1.0, "name another folder with --out, or export KD_BENCH_OUT=FOLDER", linked=True)
    yield _folder(cache_folder(), "decoded images and fetched weights", 2.0, "export KD_BENCH_CACHE=FOLDER")


def _packages() -> Iterator[Finding]:
    """Whether what is installed is what kd-bench, and torchvision of torch, asks for."""
    try:
        wanted = [Requirement(one) for one in requires("kd-bench") or ()]
    except PackageNotFoundError:
        yield Finding("note", "kd-bench is not installed but run from its sources; install it with: pip install -e .")
        return
    for one in wanted:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        there = _version(one.name)
        if there is None:
            yield Finding("bad", f"{one.name} is not installed; mend it with: pip install '{one.name}{one.specifier}'")
        elif not one.specifier.contains(there, prereleases=True):
            both = "'torchvision'" if one.name == "torch" else ""
            yield Finding(
                "bad",
                f"{one.name} {there} is not what kd-bench works with, which is {one.specifier}; mend it with: "
                + f"pip install --upgrade '{one.name}{one.specifier}' {both}".rstrip(),
            )
        elif one.name in _TOLD:
            yield Finding("ok", f"{one.name} {there}")
    yield from _pair()


def _pair() -> Iterator[Finding]:
    """Whether torchvision is for this torch."""
    vision, torch = _version("torchvision"), _version("torch")
    if vision is None or torch is None:
        return
    for one in map(Requirement, requires("torchvision") or ()):
        if one.name == "torch" and not one.specifier.contains(torch, prereleases=True):
            yield Finding(
                "bad",
                f"torchvision {vision} is made for torch{one.specifier}, and {torch} is installed; mend it with: "
                "pip install --upgrade --force-reinstall torch torchvision",
            )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _extras() -> Iterator[Finding]:
    for extra, (package, use) in _EXTRAS.items():
        if _version(package) is None:
            yield Finding(
                "note", f"{package} is not installed, for {use} only; get it with: pip install 'kd-bench[{extra}]'"
            )


def _torch() -> Finding | None:
    """What keeps torch and torchvision from loading."""
    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401  (one that does not fit torch fails here)
    except Exception as error:
        return Finding(
            "bad",
            f"torch does not load ({first_line(error)}); mend it with: "
            "pip install --upgrade --force-reinstall torch torchvision",
        )
    return None


def _gpus() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding("ok", f"cuda:{index} {properties.name}, {properties.total_memory / _GIB:.0f} GiB")
        return
    cards, cuda, failed = _nvidia()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if failed:
        yield Finding("bad", f"nvidia-smi fails ({failed}); after an update of the driver mend it with: sudo reboot")
    elif not cards and _DRIVER.is_dir() and any(_DRIVER.iterdir()):
        yield Finding(
            "note",
            "there is an NVIDIA driver, but no access to its cards: kd-bench runs on the CPU; "
            "give a container access with: docker run --gpus all",
        )
    elif not cards:
        yield Finding("note", "no GPU: kd-bench runs on the CPU")
    elif torch.version.cuda is None:
        yield Finding(
            "bad",
            f"torch {torch.__version__} is built without CUDA, and here is {cards[0]}; mend it with: {_install(cuda)}",
        )
    elif hidden is not None and not re.match(r"\d|GPU-|MIG-", hidden):
        yield Finding(
            "note",
            f"CUDA_VISIBLE_DEVICES={hidden} hides {cards[0]}: kd-bench runs on the CPU; "
            "show it with: unset CUDA_VISIBLE_DEVICES",
        )
    else:
        reason = "it does not say why"
        try:
            torch.cuda.init()
        except Exception as error:
            reason = first_line(error)
        if "too old" in reason:
            mend = f"update the driver, or install a torch for it: {_install(cuda)}"
        else:
            mend = "look at: python -m torch.utils.collect_env"
        yield Finding("bad", f"torch cannot use {cards[0]} ({reason}); {mend}")


def _nvidia() -> tuple[list[str], tuple[int, int] | None, str]:
    """What NVIDIA's own tool says: the cards, the newest CUDA that the driver can, and why it fails."""
    if shutil.which("nvidia-smi") is None:
        return [], None, ""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
        about = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], None, first_line(error)
    if listed.returncode:
        said = (listed.stdout + listed.stderr).strip().splitlines()
        return [], None, said[0] if said else f"exit code {listed.returncode}"
    found = re.search(r"CUDA Version: (\d+)\.(\d+)", about.stdout)
    cards = re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", listed.stdout, re.MULTILINE)
    return cards, (int(found[1]), int(found[2])) if found else None, ""


def _install(cuda: tuple[int, int] | None) -> str:
    """The command that installs a torch that the driver can run: it runs all of its own major version of CUDA."""
    build = "cu130" if cuda is None or cuda >= (13, 0) else "cu128" if cuda >= (12, 8) else "cu126"
    index = f"--index-url https://download.pytorch.org/whl/{build}"
    first = "" if cuda is None or cuda >= (12, 0) else "(after an update of the driver) "
    return f"{first}pip install --upgrade --force-reinstall torch torchvision {index}"


def _compiler() -> Iterator[Finding]:
    import torch

    from kd_bench.training.teacher import can_compile

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not can_compile(device):
        mend = "apt-get install g++" if device.type == "cpu" else "pip install triton"
        yield Finding("note", f"nothing to compile with: compile is off for {device.type} whatever recipes say; "
                      f"get it with: {mend}")  # fmt: skip


def _shared_memory() -> Iterator[Finding]:
    if _SHARED.is_dir() and (free := shutil.disk_usage(_SHARED).free / _GIB) < 1:
        yield Finding(
            "note",
            f"only {free:.2f} GiB of shared memory, through which workers hand on decoded images (imagenet, folder): "
            "give a container more with: docker run --shm-size=8g, or do without with: kd-bench run --workers 0",
        )


def _data(data: Path | None) -> Iterator[Finding]:
    data_folder = datasets.data_dir(data)
    if not data_folder.is_dir():
        yield Finding(
            "note",
            f"there is no data folder {data_folder}: digits need none; for the others name yours with: "
            "export KD_BENCH_DATA=FOLDER, or --data FOLDER",
        )
    for name in datasets.names():
        if "path" in datasets.spec(name).takes:
            continue  # the user's own images, wherever they are
        try:
            yield Finding("ok", f"{name}: {datasets.locate(Dataset(name=name), data_folder)}")
        except UserError as error:
            yield Finding("note", str(error))


def _weights() -> Finding:
    published = [card for card in cards.cards("teachers") if card.weights or card.timm]
    missing = [card for card in published if not pretrained.place(card).is_file()]
    present = len(published) - len(missing)
    there = f"published weights of {present} of {len(published)} teachers are in {pretrained.folder()}"
    if not missing:
        return Finding("ok", there)
    names = ", ".join(f"{card.dataset}/{card.name}" for card in missing)
    return Finding(
        "note",
        f"{there}; recipes that train their teachers do without. Not there: {names}; get one with: "
        f"kd-bench teacher fetch {missing[0].name} --dataset {missing[0].dataset}",
    )


def _folder(folder: Path, use: str, needed: float, mend: str, linked: bool = False) -> Finding:
    """Whether something can be kept in a folder.

    Args:
        folder: Which; it need not be there yet.
        use: What for.
        needed: GiB.
        mend: What to do where it cannot.
        linked: Whether it takes hard links, by which results are published.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        with TemporaryDirectory(dir=there, prefix=".kd-bench-") as place:
            (Path(place) / "probe").touch()
            links = not linked or _links(Path(place) / "probe")
    except OSError as error:
        return Finding("bad", f"{folder}: {use} cannot be written there ({error.strerror}); {mend}")
    if not links:
        return Finding("bad", f"{folder}: its file system has no hard links, which {use} need; {mend}")
    free = shutil.disk_usage(there).free / _GIB
    if free < needed:
        return Finding(
            "bad", f"{folder}: only {free:.2f} GiB of disk are free, and {use} need about {needed:g}; {mend}"
        )
    return Finding("ok", f"{use} go to {folder.absolute()}, {free:.0f} GiB free")


def _links(file: Path) -> bool:
    try:
        os.link(file, file.with_suffix(".link"))
    except OSError:
        return False
    return True
