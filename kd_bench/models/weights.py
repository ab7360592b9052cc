"""Reads weights from files of any layout safely, loads them strictly, and writes them as safetensors."""

from __future__ import annotations

import contextlib
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

from kd_bench.models.checkpoints import SAFETENSORS, read_content
from kd_bench.models.matching import (
    classifier_names,
    closest_networks,
    find_weights,
    is_under,
    key_advice,
    quoted,
    unwrap,
)
from kd_bench.utils.errors import UserError, nearest
from kd_bench.utils.files import write_atomic

#: Keys under which training programs store the weights, the preferred one first.
KEYS = ("model", "state_dict", "model_state_dict", "net", "network")

_MAX_DEPTH = 4  # of nested mappings that are searched for weights
_MAX_FACT_LENGTH = 200  # characters

_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}


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
        key: Dotted key of the weights in the file, or the prefix of the keys of a part of a state dict, with or without
            the key of that state dict. By default the first of ``KEYS`` that holds weights, or the only weights in the
            file.

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
    unwrapped, removed = unwrap(state)
    layout = ", without ".join([f"{full_key!r} in {kind}" if full_key else kind, *removed])
    _check_values(path, unwrapped)
    return LoadedWeights(unwrapped, layout, facts)


def load_into(network: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Loads weights strictly and converts them to the network's dtype.

    If the file holds more than the network's weights, those of the prefix that fits best are loaded.

    Args:
        network: Receives the weights. If the weights do not fit, some of them may have been loaded.
        state: The state dict.
        path: File of the state dict, for errors.
        name: Name of the network, for errors.

    Raises:
        UserError: If keys or shapes differ, or several prefixes fit equally well. The message names the class counts if
            only these differ, else the first differing keys and the networks that the weights probably belong to.
    """
    part = find_weights(network, state, path, name)
    whole, state = state, part.state
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
    of_classifier = [key for key in misshapen if is_under(classifier_names(network), key)]
    if of_classifier == misshapen and not missing and not unexpected:
        in_file, expected = state[misshapen[0]].shape[0], shapes[misshapen[0]][0]
        raise UserError(f"{path}: holds {name} for {in_file} classes, and {expected} are wanted")
    faults = [f"it lacks {missing[0]!r}"] if missing else []
    faults += [f"{quoted(unexpected[0])} is not the network's"] if unexpected else []
    if key := next((key for key in misshapen if key not in of_classifier), None):
        faults.append(f"{key!r} is {tuple(state[key].shape)} and should be {tuple(shapes[key])}")
    faulty = f"under {quoted(part.prefix)} {', '.join(faults)}" if part.prefix else ", ".join(faults)
    closest = closest_networks(whole)
    hint = f"; these look like the weights of {closest}" if closest not in {"", name} else ""
    raise UserError(f"{path}: does not hold the weights of {name}: {faulty}{hint}")


def num_classes(state: Mapping[str, Tensor], network: nn.Module) -> int | None:
    """Returns the number of classes of a network's weights; None if they lack its classifier."""
    names = classifier_names(network)
    return next((value.shape[0] for key, value in state.items() if is_under(names, key) and value.ndim), None)


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
        if part := _part(mapping, key):
            yield None, part
            return
        # The state dict that would be read without a key, and the part of it that the key names.
        with contextlib.suppress(UserError):
            outer, state = _search(path, mapping)
            if part := _part(unwrap(state)[0], key):
                for step in outer:
                    yield content, content[step]
                    content = content[step]
                yield None, part
                return
        names = [str(name) for name in mapping]
        near = nearest(parts[0], names)
        hint = f"; did you mean {near!r}?" if near else f"; there are: {_listed(names)}" if names else ""
        raise UserError(f"{path}: has no key {parts[0]!r}{hint}")


def _part(mapping: Mapping[Any, Any], key: str) -> dict[str, Tensor]:
    """Returns the values of a state dict whose keys start with a key and a dot; none if it is no state dict."""
    if not _is_state(mapping):
        return {}
    return {name[len(key) + 1 :]: value for name, value in mapping.items() if name.startswith(f"{key}.")}


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
        several = list(map(".".join, states))
        raise UserError(f"{path}: holds weights under several keys, {_listed(several)}; {key_advice(path, several[0])}")
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
