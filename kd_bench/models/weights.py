"""Weights in files: any layout read safely, loaded strictly, written as safetensors."""

from __future__ import annotations

import argparse
import functools
import io
import json
import pathlib
import pickle
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy._core.multiarray as _numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from kd_bench.errors import UserError, nearest
from kd_bench.files import write_atomic
from kd_bench.models import registry

#: Under which keys training programs keep the weights, in the order in which they are looked for.
KEYS = ("model", "state_dict", "model_state_dict", "net", "network")

#: What wrappers put before every key.
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "student.", "net.")

#: Classes that published files pickle beside their tensors and that do nothing when they are made.
_HARMLESS = (
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    np.dtype,
    np.ndarray,
    _numpy.scalar,
    _numpy._reconstruct,
    *(type(np.dtype(kind)) for kind in "bBhHiIlLfd?"),
)
#: numpy's functions by the module names that older versions pickle.
_OLD_NAMES = [
    (_numpy.scalar, "numpy.core.multiarray.scalar"),
    (_numpy._reconstruct, "numpy.core.multiarray._reconstruct"),
]


@dataclass(frozen=True)
class Loaded:
    """What a file holds."""

    state: dict[str, Tensor]
    """The state dict, on the CPU, without wrappers' prefixes."""
    layout: str
    """For people: "'model' in a torch file, without the prefix 'module.'"."""
    facts: dict[str, str | int | float] = field(default_factory=dict)
    """Plain values that were found beside the weights, e.g. an epoch and an accuracy."""


def read(path: Path, key: str | None = None) -> Loaded:
    """Reads a state dict: bare or under one of ``KEYS``, of torch's or Lightning's making, or safetensors.

    Nothing in the file is executed: torch reads it with ``weights_only=True`` and a short list of harmless classes.

    Args:
        path: The file; what it is shows from its content, not from its name.
        key: Where in the file the weights are, with dots; by default looked for.

    Raises:
        UserError: For a file that is not there, damaged, of another kind, or that wants to run code.
    """
    content = _bytes(path)
    if _is_safetensors(content):
        try:
            state, layout = _unwrapped(load_safetensors(content), "safetensors")
            return Loaded(_clean(path, state), layout, _facts(about(path) or {}))
        except SafetensorError as error:
            raise UserError(f"{path}: is a damaged safetensors file ({_line(error)}); get it again") from None
    found = _unpickle(path, content)
    layout, facts = "a torch file", _facts(found)
    for part in key.split(".") if key else ():
        if not isinstance(found, Mapping) or part not in found:
            names = [str(one) for one in found] if isinstance(found, Mapping) else []
            hint = nearest(part, names)
            there = f"; did you mean {hint!r}?" if hint else f"; there are: {', '.join(names[:8])}" if names else ""
            raise UserError(f"{path}: has no key {part!r}{there}")
        found = found[part]
    if key:
        layout = f"{key!r} in {layout}"
    while not key and isinstance(found, Mapping) and not _is_state(found):
        inner = next((one for one in KEYS if isinstance(found.get(one), Mapping | nn.Module)), None)
        if inner is None:
            break
        found, layout = found[inner], f"{inner!r} in {layout}"
    if not isinstance(found, Mapping) or not _is_state(found):
        keys = ", ".join(repr(one) for one in list(found)[:8]) if isinstance(found, Mapping) else type(found).__name__
        raise UserError(f"{path}: holds no weights that could be recognised, but {keys or 'nothing'}")
    state, layout = _unwrapped({str(name): value for name, value in found.items()}, layout)
    return Loaded(_clean(path, state), layout, facts)


def load_into(network: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Loads weights strictly; they take the network's type.

    Args:
        network: Where to.
        state: The state dict.
        path: Where it came from, for errors.
        name: The network's name, for errors.

    Raises:
        UserError: Where keys or shapes differ: says whether only the number of classes is another, else the first
            keys that differ and the network that these weights most likely belong to.
    """
    try:
        network.load_state_dict(dict(state))
        return
    except RuntimeError:  # says it in many lines; what follows finds the one that matters
        own = network.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    other = [key for key in own if key in state and own[key].shape != state[key].shape]
    head = _classifier_key(network)
    if not missing and not unexpected and head and all(key.startswith(f"{head}.") for key in other):
        found = state[f"{head}.weight"].shape[0]
        made = own[f"{head}.weight"].shape[0]
        raise UserError(f"{path}: holds {name} for {found} classes, and {made} are wanted")
    faults = [f"it lacks {missing[0]!r}"] if missing else []
    faults += [f"{unexpected[0]!r} is not the network's"] if unexpected else []
    if other and not faults:
        theirs, ours = (tuple(one[other[0]].shape) for one in (state, own))
        faults = [f"{other[0]!r} is {theirs} and should be {ours}"]
    likely = likeliest(state)
    hint = f"; these look like the weights of {likely}" if likely and likely != name else ""
    raise UserError(f"{path}: does not hold the weights of {name}: {' and '.join(faults)}{hint}")


def likeliest(state: Mapping[str, Tensor]) -> str | None:
    """The network of ours whose parameters agree best with these, classifier aside; None where none agrees well."""
    given = {(key, tuple(value.shape)) for key, value in state.items()}
    scores = {
        name: len(given & shapes) / max(len(given | shapes), 1) for name, shapes in _shapes_of_own_networks().items()
    }
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0.5 else None


def classes_of(state: Mapping[str, Tensor], network: nn.Module) -> int | None:
    """For how many classes these weights were made, if they are this network's."""
    head = _classifier_key(network)
    weight = state.get(f"{head}.weight") if head else None
    return None if weight is None else weight.shape[0]


def write(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Writes safetensors, whole or not at all; equal weights and metadata give equal bytes.

    Args:
        path: The file.
        state: A state dict.
        metadata: Plain values that are kept with it; ``about`` gives them back.

    Returns:
        SHA-256 of the file.
    """
    import hashlib

    # Clones: safetensors refuses tensors that share memory.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    # One entry only: safetensors writes several in random order.
    content = save_safetensors(tensors, metadata={"kd_bench": json.dumps(dict(metadata), sort_keys=True)})
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def about(path: Path) -> dict[str, Any] | None:
    """The metadata that ``write`` kept in a file; None where there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})["kd_bench"])
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not content:
        raise UserError(f"{path}: is empty; get it again")
    if content[:256].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: is a web page, not a file of weights; get it again")
    return content


def _is_safetensors(content: bytes) -> bool:
    return len(content) > 9 and content[8:9] == b"{" and int.from_bytes(content[:8], "little") < 100_000_000


def _unpickle(path: Path, content: bytes) -> Any:
    allowed: list[Any] = [*_HARMLESS, *_OLD_NAMES]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content)) if _is_zip(content) else []
        text = str(error)
        if "GLOBAL " in text or blocked:
            name = text.partition("GLOBAL ")[2].split()[0] if "GLOBAL " in text else blocked[0]
            raise UserError(f"{path}: was not read, because it wants to call {name}, which is not data") from None
        raise UserError(f"{path}: is no file of weights, or a damaged one; get it again") from None
    except Exception as error:  # what torch raises for garbage depends on the garbage
        if "TorchScript" in str(error):
            raise UserError(f"{path}: is a TorchScript archive, which holds a program; save its state_dict") from None
        raise UserError(f"{path}: is no file of weights, or a damaged one ({_line(error)}); get it again") from None


def _is_zip(content: bytes) -> bool:
    return content[:2] == b"PK"


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def _is_state(found: Mapping[Any, Any]) -> bool:
    return bool(found) and all(isinstance(value, Tensor) for value in found.values())


def _clean(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    if not state:
        raise UserError(f"{path}: holds no weights")
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{path}: {key!r} holds numbers that are not finite")
    return state


def _unwrapped(state: dict[str, Tensor], layout: str) -> tuple[dict[str, Tensor], str]:
    """Without the prefixes that all keys have, and the layout with a word about them."""
    while state and (prefix := next((one for one in PREFIXES if all(key.startswith(one) for key in state)), None)):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        layout += f", without the prefix {prefix!r}"
    return state, layout


def _facts(found: Any) -> dict[str, str | int | float]:
    facts: dict[str, str | int | float] = {}
    for key, value in found.items() if isinstance(found, Mapping) else ():
        plain = value.item() if isinstance(value, np.generic | Tensor) and np.ndim(value) == 0 else value
        if isinstance(plain, str | int | float) and not isinstance(plain, bool):
            facts[str(key)] = plain
    return facts


def _classifier_key(network: nn.Module) -> str | None:
    classifier = network.get_classifier() if hasattr(network, "get_classifier") else None  # type: ignore[operator]
    return next((name for name, module in network.named_modules() if module is classifier), None)


@functools.cache
def _shapes_of_own_networks() -> dict[str, set[tuple[str, tuple[int, ...]]]]:
    return dict(_shapes())


def _shapes() -> Iterator[tuple[str, set[tuple[str, tuple[int, ...]]]]]:
    for name in registry.own_models():
        with torch.device("meta"):
            network = registry.create(name, num_classes=100)
        yield name, {(key, tuple(value.shape)) for key, value in network.state_dict().items()}
