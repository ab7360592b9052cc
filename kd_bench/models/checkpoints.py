"""Reads files of weights without running code from them.

torch's reader is restricted to data (``weights_only=True``). Objects that published files pickle beside their tensors
are created from the stand-ins below instead of their own classes, because e.g. numpy's classes trust the pickle.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import pathlib
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch

from kd_bench.utils.errors import UserError, first_line

#: Names of the two file formats in messages.
TORCH, SAFETENSORS = "a torch file", "safetensors"

_MAX_HEADER = 100_000_000  # bytes, from the definition of safetensors
_START = 512  # first bytes of a file, which show its format


class Ignored:
    """Replaces a value that is not needed, e.g. a numpy array."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class _DType:
    """Replaces ``numpy.dtype``."""

    def __init__(self, code: str = "", *_: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _scalar(dtype: _DType, content: bytes = b"") -> float | int | Ignored:
    """Replaces numpy's function that creates a scalar from its bytes."""
    letter = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "u8": "Q", "u4": "I", "b1": "?"}.get(dtype.code)
    value: float | int | Ignored = struct.unpack(dtype.order + letter, content)[0] if letter else Ignored()
    return value


#: Replacements for the names that torch refuses by default; torch refuses all others.
_STAND_INS: list[tuple[Callable[..., Any], str]] = [
    (argparse.Namespace, "argparse.Namespace"),
    (_DType, "numpy.dtype"),
    (Ignored, "numpy.ndarray"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
    *((Ignored, f"numpy.{core}.multiarray._reconstruct") for core in ("_core", "core")),
    # Python 3.13 pickles paths as pathlib._local; and a file may come from another system.
    *((pathlib.PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((pathlib.PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
    *(
        (collections.OrderedDict, f"{module}.AttributeDict")  # Lightning's hyper-parameters
        for module in (
            "pytorch_lightning.utilities.parsing",
            "lightning.pytorch.utilities.parsing",
            "lightning.fabric.utilities.data",
            "lightning_fabric.utilities.data",
        )
    ),
]


def read_content(path: Path) -> tuple[Any, str]:
    """Returns the content of a file, with tensors on the CPU, and its format, ``TORCH`` or ``SAFETENSORS``.

    The first bytes of the file, not its name, decide the format.

    Raises:
        UserError: If the file does not exist, is damaged, has another format, or contains code.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: cannot be read: Is a {'directory' if path.is_dir() else 'device'}")
        with open(path, "rb") as file:
            start = file.read(_START)
            _refuse_other_formats(path, start)
            file.seek(0)
            if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < _MAX_HEADER:
                return _load_safetensors(path, file.read()), SAFETENSORS
            return _unpickle(path, file), TORCH
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _refuse_other_formats(path: Path, start: bytes) -> None:
    if not start:
        raise UserError(f"{path}: is empty; get it again")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: is a web page, not a file of weights; get it again")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is only a pointer of git-lfs to the weights; get them with: git lfs pull")


def _load_safetensors(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # its type depends on the damage
        reason = first_line(error)[:120]
        raise UserError(f"{path}: is a damaged safetensors file ({reason}); get it again") from None


def _unpickle(path: Path, file: io.BufferedReader) -> Any:
    try:
        with torch.serialization.safe_globals(list(_STAND_INS)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the errors below say what matters
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        _refuse_pickle(path, str(error))
    except Exception as error:  # its type depends on the damage
        if "TorchScript" in str(error):
            raise UserError(f"{path}: is a TorchScript archive, which holds a program; save its state_dict") from None
        reason = first_line(error)[:120]
        raise UserError(f"{path}: is no file of weights, or a damaged one ({reason}); get it again") from None


def _refuse_pickle(path: Path, message: str) -> NoReturn:
    content = _pickle_bytes(path)
    match = re.search(r"Unsupported global: GLOBAL (\S+)|unsupported GLOBAL (\S+)", message)
    name = match[1] or match[2] if match else next(_foreign_names(content), None)
    if name:
        shown = ascii(name[:80])[1:-1]  # escaped, because the name comes from an untrusted file
        raise UserError(f"{path}: was not read, because it wants to call {shown}, which is not data") from None
    if "Unsupported operand" in message and content[:1] == b"\x80" and content[1:2] not in {b"", b"\x02"}:
        raise UserError(
            f"{path}: is pickled by protocol {content[1]}, and only torch.save's default, 2, is read safely; "
            "save it again"
        ) from None
    raise UserError(f"{path}: is no file of weights, or a damaged one; get it again") from None


def _pickle_bytes(path: Path) -> bytes:
    """Returns the pickle in a torch file; no bytes if there is none."""
    with contextlib.suppress(OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        if not zipfile.is_zipfile(path):
            return path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
            return archive.read(name) if name else b""
    return b""


def _foreign_names(content: bytes) -> Iterator[str]:
    """Yields the names that a pickle would call, except torch's and replaced ones; it is disassembled, not executed."""
    replaced = {name for _, name in _STAND_INS}
    stream = io.BytesIO(content)
    pushed = ["", ""]  # the last two strings: a module and a name
    with contextlib.suppress(Exception):  # at the end of the pickles, or at the first invalid byte
        while True:
            memo: dict[Any, str] = {}
            for opcode, argument, _ in pickletools.genops(stream):
                if "UNICODE" in opcode.name:
                    pushed = [pushed[1], str(argument)]
                elif opcode.name in {"BINGET", "LONG_BINGET"}:
                    pushed = [pushed[1], memo.get(argument, "")]
                elif opcode.name == "MEMOIZE":
                    memo[len(memo)] = pushed[1]
                elif opcode.name in {"GLOBAL", "STACK_GLOBAL"}:
                    name = str(argument).replace(" ", ".") if opcode.name == "GLOBAL" else ".".join(pushed)
                    if name not in replaced and name.partition(".")[0] not in {"torch", "collections", "_codecs"}:
                        yield name
