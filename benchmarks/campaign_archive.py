"""Packs a results folder into few files that can be copied to another machine, and unpacks it there.

The archive is a tar file, compressed by xz and cut into parts; ``cat results.tar.xz.* | tar xJ`` unpacks it, too. It
has everything that training needs to go on: the last state of each unfinished trial, all but the weights of each
finished one, and the code of compiled teachers.
"""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from kd_bench.trials.reader import WEIGHTS
from kd_bench.utils.errors import UserError

MIB = 2**20
NAME = "results.tar.xz"
#: Largest size of a part, in bytes.
PART = 15 * MIB

#: The fastest match finder, and literals that are modelled by their position in a 32-bit number: on weights this
#: saves 15 %, where gzip saves 7 %, and takes less than half a minute for the state of a VGG13.
_FILTERS: list[dict[str, Any]] = [
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 0,
        "lc": 0,
        "lp": 2,
        "pb": 2,
        "dict_size": 2**16,
        "mode": lzma.MODE_FAST,
        "mf": lzma.MF_HC3,
        "nice_len": 16,
        "depth": 1,
    }
]


def pack(out: Path, folder: Path, keep: Collection[Path] = (), part: int = PART) -> list[Path]:
    """Packs a results folder in which nothing is running, and returns the parts.

    Args:
        out: The results folder.
        folder: Folder of the parts. Those of an earlier archive are replaced.
        keep: Weights of finished trials that are still needed.
        part: Largest size of a part, in bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = _PartWriter(folder, part)
    with lzma.LZMAFile(writer, "w", filters=_FILTERS) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        for path in sorted(_needed(out, keep)):
            archive.add(path, path.relative_to(out).as_posix(), recursive=False)
    return writer.finish()


def unpack(folder: Path, out: Path) -> bool:
    """Unpacks an archive into a results folder, unless there is something in it. Returns whether it was unpacked.

    Raises:
        UserError: If there is no archive, or it is damaged.
    """
    parts = sorted(folder.glob(f"{NAME}.[0-9][0-9]"))
    if not parts:
        raise UserError(f"--unpack {folder}: there is no file {NAME}.00")
    if out.is_dir() and any(out.iterdir()):
        return False
    out.mkdir(parents=True, exist_ok=True)
    try:
        with (
            io.BufferedReader(_PartReader(parts)) as content,
            lzma.LZMAFile(content) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            archive.extractall(out, filter="data")
    except (lzma.LZMAError, tarfile.TarError, EOFError) as error:
        raise UserError(f"--unpack {folder}: the archive is damaged or lacks a part ({error})") from None
    return True


def _needed(out: Path, keep: Collection[Path]) -> Iterator[Path]:
    """Yields the files of a results folder that training needs to go on, and those of its results."""
    last_states = {state for recipe in out.iterdir() if recipe.is_dir() for state in _last_states(recipe)}
    for path in out.rglob("*"):
        if not path.is_file() or path.is_symlink() or path.name.startswith((".", "lease.")):
            continue  # temporary files, and leases of processes that have ended
        is_finished = path.name == WEIGHTS and (path.parent / "result.json").exists()
        is_earlier = path.parent.name == "checkpoint" and path not in last_states
        if path in keep or not (is_finished or is_earlier):
            yield path


def _last_states(recipe: Path) -> Iterator[Path]:
    """Yields the state from which each unfinished trial of a recipe goes on.

    Members of a cohort go on within an epoch only if all have a state of the same step. If all trials of the recipe
    have one, which the stop has written, these states are yielded. Otherwise it is each trial's last state at the end
    of an epoch, which is up to a minute of training older, or the one within an epoch if there is no other. Two states
    of each trial would take twice the space.
    """
    folders = [folder for folder in recipe.glob("*/checkpoint") if any(folder.glob("*.pt"))]
    within = {folder: max(folder.glob("within-*.pt"), default=None) for folder in folders}
    steps = {None if state is None else tuple(state.name.split("-")[1:3]) for state in within.values()}
    for folder in folders:
        at_end = max(folder.glob("epoch-*.pt"), default=None)
        state = (within[folder] or at_end) if len(steps) == 1 else (at_end or within[folder])
        if state is not None:
            yield state


class _PartWriter(io.RawIOBase):
    """Writes a stream into numbered files, which get their names when all of them are complete."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._size = folder, size
        self._parts: list[io.BufferedWriter] = []
        self._left = 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        written = 0
        while written < len(view):
            if not self._left:
                self._parts.append((self._folder / f".{NAME}.{len(self._parts):02}.new").open("wb"))
                self._left = self._size
            piece = view[written : written + self._left]
            self._parts[-1].write(piece)
            self._left -= len(piece)
            written += len(piece)
        return written

    def finish(self) -> list[Path]:
        """Replaces an earlier archive, and returns the files."""
        for earlier in self._folder.glob(f"{NAME}.[0-9][0-9]"):
            earlier.unlink()
        paths = []
        for number, part in enumerate(self._parts):
            part.close()
            paths.append(Path(part.name).rename(self._folder / f"{NAME}.{number:02}"))
        return paths


class _PartReader(io.RawIOBase):
    """Reads several files as one stream."""

    def __init__(self, parts: list[Path]) -> None:
        self._waiting = list(reversed(parts))
        self._file: io.BufferedReader | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._file is None:
                if not self._waiting:
                    return 0
                self._file = self._waiting.pop().open("rb")
            count = self._file.readinto(buffer)
            if count:
                return count
            self._file.close()
            self._file = None
