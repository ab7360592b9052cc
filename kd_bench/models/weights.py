"""Reads weights from files of any layout safely, loads them strictly, and writes them as safetensors."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from kd_bench.models import registry
from kd_bench.models.checkpoints import SAFETENSORS, read_content
from kd_bench.utils.errors import UserError, nearest
from kd_bench.utils.files import write_atomic

#: Keys under which training programs store the weights, the preferred one first.
KEYS = ("model", "state_dict", "model_state_dict", "net", "network")

#: Prefixes that wrappers put before every key.
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "student.", "net.")

_MAX_DEPTH = 4  # of nested mappings that are searched for weights
_MAX_FACT_LENGTH = 200  # characters
_MIN_OVERLAP = 0.8  # share of common parameters from which on weights are taken for those of a network

_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}

_Shapes = frozenset[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class LoadedWeights:
    """Content of a file of weights."""

    state: dict[str, Tensor]
    """The state dict, on the CPU, without wrappers' prefixes."""
    layout: str
    """Description, e.g. "'model' in a torch file, without the prefix 'module.'"."""
    facts: dict[str, str | int | float] = field(default_factory=dict)
    """Plain values stored beside the weights, e.g. an epoch and an accuracy."""


def read(path: Path, key: str | None = None) -> LoadedWeights:
    """Reads a state dict from a file of torch, Lightning or safetensors, bare or inside another mapping.

    Nothing in the file is executed: torch reads it with ``weights_only=True`` and a short list of harmless classes.

    Args:
        path: The file; its content, not its name, decides its format.
        key: Dotted key of the weights in the file, or the prefix of the keys of a part of a state dict. By default the
            first of ``KEYS`` that holds weights, or the only weights in the file.

    Raises:
        UserError: If the file does not exist, is damaged, has another format or contains code, or if the weights are
            missing, not dense or not finite.
    """
    content, kind = read_content(path)
    facts = _facts(read_metadata(path) if kind == SAFETENSORS else None)
    for parent, child in _follow_key(path, content, key or ""):
        facts |= _facts(parent)
        content = child
    keys, state = _search(path, content)
    for part in keys:
        facts |= _facts(content)
        content = content[part]
    full_key = ".".join([*([key] if key else []), *keys])
    state, layout = _unwrap(dict(state), f"{full_key!r} in {kind}" if full_key else kind)
    _check_values(path, state)
    return LoadedWeights(state, layout, facts)


def load_into(network: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Loads weights strictly and converts them to the network's dtype.

    Args:
        network: Receives the weights. If the weights do not fit, some of them may have been loaded.
        state: The state dict.
        path: File of the state dict, for errors.
        name: Name of the network, for errors.

    Raises:
        UserError: If keys or shapes differ. The message names the class counts if only these differ, else the first
            differing keys and the network that the weights probably belong to.
    """
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    misshapen = [key for key in shapes if key in state and state[key].shape != shapes[key]]
    # Not strict, because torch then returns lists of keys instead of a message.
    missing, unexpected = network.load_state_dict(
        {key: value for key, value in state.items() if key not in misshapen}, strict=False
    )
    missing = [key for key in missing if key not in misshapen]
    # Files of earlier versions contain buffers that the network computes (BEiT's tables of relative positions).
    computed = {key for key, _ in network.named_buffers()} - shapes.keys()
    unexpected = [key for key in unexpected if key not in computed]
    if not (missing or unexpected or misshapen):
        return
    of_classifier = [key for key in misshapen if _is_under(_classifier_names(network), key)]
    if of_classifier == misshapen and not missing and not unexpected:
        in_file, expected = state[misshapen[0]].shape[0], shapes[misshapen[0]][0]
        raise UserError(f"{path}: holds {name} for {in_file} classes, and {expected} are wanted")
    faults = [f"it lacks {missing[0]!r}"] if missing else []
    faults += [f"{unexpected[0]!r} is not the network's"] if unexpected else []
    if key := next((key for key in misshapen if key not in of_classifier), None):
        faults.append(f"{key!r} is {tuple(state[key].shape)} and should be {tuple(shapes[key])}")
    closest = closest_network(state)
    hint = f"; these look like the weights of {closest}" if closest and closest != name else ""
    raise UserError(f"{path}: does not hold the weights of {name}: {', '.join(faults)}{hint}")


def closest_network(state: Mapping[str, Tensor]) -> str | None:
    """Returns our network whose parameters, except the classifier's, overlap most with these; None if none is close."""
    overlaps = {}
    for name, (shapes, classifier) in _own_networks().items():
        in_state = _shapes(state, classifier)
        overlaps[name] = len(in_state & shapes) / len(in_state | shapes)
    best = max(overlaps, key=lambda name: overlaps[name])
    return best if overlaps[best] >= _MIN_OVERLAP else None


def num_classes(state: Mapping[str, Tensor], network: nn.Module) -> int | None:
    """Returns the number of classes of a network's weights; None if they lack its classifier."""
    names = _classifier_names(network)
    return next((value.shape[0] for key, value in state.items() if _is_under(names, key) and value.ndim), None)


def write(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Writes safetensors atomically, and returns the SHA-256 of the file.

    The bytes depend only on the weights and the metadata: plain values, which ``read_metadata`` returns.

    Raises:
        OSError: If the file cannot be written.
    """
    # Cloned, because safetensors refuses tensors that share memory.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    # One entry, because safetensors writes several in random order.
    content = save_safetensors(tensors, metadata={"kd_bench": json.dumps(dict(metadata), sort_keys=True)})
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Returns the metadata that ``write`` stored in a file; None if there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["kd_bench"])
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError):
        return None
    return metadata if isinstance(metadata, dict) else None


def _follow_key(path: Path, content: Any, key: str) -> Iterator[tuple[Any, Any]]:
    """Yields the mapping (None for a part of a state dict) and the value of each step along a dotted key."""
    while key:
        parts = key.split(".")
        # Keys may contain dots, so the longest prefix is tried first.
        heads = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        mapping = content if isinstance(content, Mapping) else {}
        head = next((head for head in heads if head in mapping), None)
        if head is not None:
            yield content, content[head]
            content, key = content[head], key[len(head) + 1 :]
            continue
        part = {name[len(key) + 1 :]: value for name, value in mapping.items() if str(name).startswith(f"{key}.")}
        if part and _is_state(mapping):
            yield None, part
            return
        names = [str(name) for name in mapping]
        near = nearest(parts[0], names)
        hint = f"; did you mean {near!r}?" if near else f"; there are: {_listed(names)}" if names else ""
        raise UserError(f"{path}: has no key {parts[0]!r}{hint}")


def _search(path: Path, content: Any) -> tuple[tuple[str, ...], Mapping[str, Tensor]]:
    """Returns the keys that lead to the weights, and the weights."""
    states = dict(_states(content, (), set()))
    # Indices in KEYS of the keys that lead to each state dict; () if the content is a state dict itself.
    ranks = {tuple(map(KEYS.index, keys)): keys for keys in states if set(keys) <= set(KEYS)}
    if ranks:
        keys = ranks[min(ranks)]
    elif len(states) == 1:
        keys = next(iter(states))
    elif states:
        raise UserError(f"{path}: holds weights under several keys, {_listed(map('.'.join, states))}; choose one")
    else:
        names = _listed(content) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"{path}: holds no weights that could be recognised, but {names or 'nothing'}")
    return keys, states[keys]


def _states(content: Any, keys: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields each state dict in nested mappings once, because a mapping in a file may contain itself."""
    if not isinstance(content, Mapping) or id(content) in seen or len(keys) > _MAX_DEPTH:
        return
    seen.add(id(content))
    if _is_state(content):
        yield keys, content
        return
    for key, value in content.items():
        if isinstance(key, str):
            yield from _states(value, (*keys, key), seen)


def _is_state(mapping: Mapping[Any, Any]) -> bool:
    are_tensors = all(isinstance(key, str) and isinstance(value, Tensor) for key, value in mapping.items())
    return are_tensors and any(value.ndim for value in mapping.values())


def _unwrap(state: dict[str, Tensor], layout: str) -> tuple[dict[str, Tensor], str]:
    while prefix := next((start for start in PREFIXES if all(name.startswith(start) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        layout += f", without the prefix {prefix!r}"
    if any("._orig_mod." in name for name in state):  # parts of the network were compiled
        state = {name.replace("._orig_mod.", "."): value for name, value in state.items()}
        layout += ", without '_orig_mod.'"
    return state, layout


def _check_values(path: Path, state: Mapping[str, Tensor]) -> None:
    for key, value in state.items():
        dense = value.device.type == "cpu" and value.layout == torch.strided
        real = value.is_floating_point() or value.dtype in _INTEGERS
        # An expanded tensor, whose storage is smaller than its size, could fill the memory when it is used.
        if not (dense and real) or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {key!r} is not a dense tensor of real numbers, as weights are")
        if value.is_floating_point():
            # torch has no arithmetic for 8-bit floats.
            numbers = value.float() if value.element_size() == 1 else value
            if not torch.isfinite(numbers).all():
                raise UserError(f"{path}: {key!r} holds numbers that are not finite")


def _facts(content: Any) -> dict[str, str | int | float]:
    facts: dict[str, str | int | float] = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        scalar = isinstance(value, Tensor) and value.ndim == 0 and value.device.type == "cpu"
        plain = value.item() if scalar else value
        if isinstance(plain, str):
            valid = len(plain) <= _MAX_FACT_LENGTH and plain.isprintable()
        else:
            valid = isinstance(plain, int | float) and not isinstance(plain, bool) and math.isfinite(plain)
        if valid and isinstance(key, str) and key.isprintable():
            facts[key] = plain
    return facts


def _listed(names: Any) -> str:
    names = [ascii(str(name)[:80]) for name in names]
    return ", ".join(names[:8]) + ", ..." * (len(names) > 8)


def _classifier_names(network: nn.Module) -> tuple[str, ...]:
    """Returns the names of the modules that compute logits; timm's distilled transformers have two."""
    classifier = network.get_classifier() if hasattr(network, "get_classifier") else ()  # type: ignore[operator]
    modules = classifier if isinstance(classifier, tuple) else (classifier,)
    return tuple(name for name, module in network.named_modules() if any(module is layer for layer in modules))


def _is_under(names: tuple[str, ...], key: str) -> bool:
    return any(key.startswith(f"{name}.") for name in names)


def _shapes(state: Mapping[str, Tensor], classifier: tuple[str, ...]) -> _Shapes:
    """Returns names and shapes without the classifier and without scalars, the batch norms' counters.

    Old files lack these counters, and all networks have the same ones.
    """
    return frozenset(
        (key, tuple(value.shape)) for key, value in state.items() if value.ndim and not _is_under(classifier, key)
    )


@functools.cache
def _own_networks() -> dict[str, tuple[_Shapes, tuple[str, ...]]]:
    """Returns shapes without the classifier, and the classifier's names, of every network of ours."""
    networks = {}
    for name in registry.own_models():
        with torch.device("meta"):
            network = registry.create(name, num_classes=1)
        classifier = _classifier_names(network)
        networks[name] = (_shapes(network.state_dict(), classifier), classifier)
    return networks
