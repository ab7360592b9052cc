"""What a file of weights holds, read without running anything of it.

torch's reader is restricted to data (``weights_only=True``), and what published files pickle beside their tensors is
made of the stand-ins below rather than of the classes themselves: numpy's, for one, believe what a pickle says of them.
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

import torch
from safetensors.torch import load as load_safetensors

from kd_bench.utils.errors import UserError

#: As the messages name the two kinds of file.
TORCH, SAFETENSORS = "a torch file", "safetensors"

_LONGEST_HEADER = 100_000_000  # of safetensors, by their definition
_START = 512  # bytes that show what a file is


class Ignored:
    """Stands for a value that nobody asks for, e.g. a numpy array."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class _DType:
    """Stands for ``numpy.dtype``: a kind of number."""

    def __init__(self, code: str = "", *_: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _scalar(dtype: _DType, content: bytes = b"") -> float | int | Ignored:
    """Stands for numpy's function that makes a number of its bytes."""
    letter = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "u8": "Q", "u4": "I", "b1": "?"}.get(dtype.code)
    value: float | int | Ignored = struct.unpack(dtype.order + letter, content)[0] if letter else Ignored()
    return value


#: What torch makes of the names that it does not know by itself; anything else is refused.
_STAND_INS: list[tuple[Callable[..., Any], str]] = [
    (argparse.Namespace, "argparse.Namespace"),
    (_DType, "numpy.dtype"),
    (Ignored, "numpy.ndarray"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
    *((Ignored, f"numpy.{core}.multiarray._reconstruct") for core in ("_core", "core")),
    # Python 3.13 says pathlib._local; and a file may come from another system.
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
    """The content of a file and what kind of file it is, which shows from its beginning and not from its name.

    Args:
        path: The file.

    Returns:
        What was saved, tensors on the CPU; and ``TORCH`` or ``SAFETENSORS``.

    Raises:
        UserError: For a file that is not there, damaged, of another kind, or that wants to run code.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: cannot be read: Is a {'directory' if path.is_dir() else 'device'}")
        with open(path, "rb") as file:
            start = file.read(_START)
            _refuse_other_kinds(path, start)
            file.seek(0)
            if _is_safetensors(start):
                return _safetensors(path, file.read()), SAFETENSORS
            return _unpickle(path, file), TORCH
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    if not start:
        raise UserError(f"{path}: is empty; get it again")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: is a web page, not a file of weights; get it again")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: only points to the weights, which git-lfs keeps; get them with: git lfs pull")


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < _LONGEST_HEADER


def _safetensors(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return load_safetensors(content)
    except Exception as error:  # of several kinds, by what is damaged
        raise UserError(f"{path}: is a damaged safetensors file ({_line(error)}); get it again") from None


def _unpickle(path: Path, file: io.BufferedReader) -> Any:
    try:
        with torch.serialization.safe_globals(list(_STAND_INS)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is to be told, the errors below tell
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        _refuse_pickle(path, str(error))
    except Exception as error:  # what torch raises for garbage depends on the garbage
        if "TorchScript" in str(error):
            raise UserError(f"{path}: is a TorchScript archive, which holds a program; save its state_dict") from None
        raise UserError(f"{path}: is no file of weights, or a damaged one ({_line(error)}); get it again") from None


def _refuse_pickle(path: Path, message: str) -> NoReturn:
    named = re.search(r"Unsupported global: GLOBAL (\S+)|unsupported GLOBAL (\S+)", message)
    name = named[1] or named[2] if named else next(_foreign_names(path), None)
    if name:
        raise UserError(f"{path}: was not read, because it wants to call {_shown(name)}, which is not data") from None
    if "Unsupported operand" in message and _pickle_protocol(path) not in {None, 2}:
        raise UserError(
            f"{path}: is pickled by protocol {_pickle_protocol(path)}, and only torch.save's own, 2, is read safely; "
            "save it again"
        ) from None
    raise UserError(f"{path}: is no file of weights, or a damaged one; get it again") from None


def _pickled(path: Path) -> bytes:
    """The pickle in a torch file; no bytes where there is none."""
    with contextlib.suppress(OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        if not zipfile.is_zipfile(path):
            return path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            name = next((one for one in archive.namelist() if one.endswith("data.pkl")), None)
            return archive.read(name) if name else b""
    return b""


def _pickle_protocol(path: Path) -> int | None:
    content = _pickled(path)
    return content[1] if content[:1] == b"\x80" and len(content) > 1 else None


def _foreign_names(path: Path) -> Iterator[str]:
    """What a pickle wants to call that is neither torch's nor stood in for: only read, by Python's disassembler."""
    known = {name for _, name in _STAND_INS}
    content = io.BytesIO(_pickled(path))
    pushed = ["", ""]  # the last two strings: a module and a name
    with contextlib.suppress(Exception):  # at the end of the pickles or of what can be understood
        while True:
            memo: dict[Any, str] = {}
            for opcode, argument, _ in pickletools.genops(content):
                if "UNICODE" in opcode.name:
                    pushed = [pushed[1], str(argument)]
                elif opcode.name in {"BINGET", "LONG_BINGET"}:
                    pushed = [pushed[1], memo.get(argument, "")]
                elif opcode.name == "MEMOIZE":
                    memo[len(memo)] = pushed[1]
                elif opcode.name in {"GLOBAL", "STACK_GLOBAL"}:
                    name = str(argument).replace(" ", ".") if opcode.name == "GLOBAL" else ".".join(pushed)
                    if name not in known and name.partition(".")[0] not in {"torch", "collections", "_codecs"}:
                        yield name


def _shown(name: str) -> str:
    """A name out of a file that nobody has checked, for a message."""
    return ascii(name[:80])[1:-1]


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
