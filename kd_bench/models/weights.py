"""Weights in files: any layout read safely, loaded strictly, written as safetensors."""

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

#: Under which keys training programs keep the weights, in the order in which they are preferred.
KEYS = ("model", "state_dict", "model_state_dict", "net", "network")

#: What wrappers put before every key.
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "student.", "net.")

_DEEPEST = 4  # mappings in mappings that are searched for weights
_LONGEST_FACT = 200  # letters
_ALIKE = 0.8  # of all parameters of two networks, those that both have: below, neither is the other's

_WHOLE = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}

_Shapes = frozenset[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class LoadedWeights:
    """What a file holds."""

    state: dict[str, Tensor]
    """The state dict, on the CPU, without wrappers' prefixes."""
    layout: str
    """For people: "'model' in a torch file, without the prefix 'module.'"."""
    facts: dict[str, str | int | float] = field(default_factory=dict)
    """Plain values that were found beside the weights, e.g. an epoch and an accuracy."""


def read(path: Path, key: str | None = None) -> LoadedWeights:
    """Reads a state dict: bare or in another mapping, of torch's or Lightning's making, or safetensors.

    Nothing in the file is executed: torch reads it with ``weights_only=True`` and a short list of harmless classes.

    Args:
        path: The file; what it is shows from its content, not from its name.
        key: Where in the file the weights are, with dots; also what the keys of a part of a state dict begin with. By
            default they are under the first of ``KEYS`` that holds any, or the only ones there are.

    Raises:
        UserError: For a file that is not there, damaged, of another kind, or that wants to run code; for weights that
            are not there, not dense or not finite.
    """
    content, kind = read_content(path)
    facts = _facts(about(path) if kind == SAFETENSORS else None)
    found = content
    for beside, inner in _walk(path, content, key or ""):
        facts |= _facts(beside)
        found = inner
    keys, state = _search(path, found)
    for one in keys:
        facts |= _facts(found)
        found = found[one]
    keys_path = ".".join([*([key] if key else []), *keys])
    state, layout = _unwrapped(dict(state), f"{keys_path!r} in {kind}" if keys_path else kind)
    _check(path, state)
    return LoadedWeights(state, layout, facts)


def load_into(network: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Loads weights strictly; they take the network's type.

    Args:
        network: Where to. Where the weights do not fit, those that do may have been loaded.
        state: The state dict.
        path: Where it came from, for errors.
        name: The network's name, for errors.

    Raises:
        UserError: Where keys or shapes differ: says whether only the number of classes is another, else the first
            keys that differ and the network that these weights most likely belong to.
    """
    own = {key: value.shape for key, value in network.state_dict().items()}
    other = [key for key in own if key in state and state[key].shape != own[key]]
    # Not strict, in order to have lists of what torch says in prose; they are as long as those of a strict loading.
    missing, unexpected = network.load_state_dict(
        {key: value for key, value in state.items() if key not in other}, strict=False
    )
    missing = [key for key in missing if key not in other]
    # What a network works out for itself (BEiT's tables of relative positions) stands in files of earlier versions.
    worked_out = {key for key, _ in network.named_buffers()} - own.keys()
    unexpected = [key for key in unexpected if key not in worked_out]
    if not (missing or unexpected or other):
        return
    of_classifier = [key for key in other if _is_under(_classifier_names(network), key)]
    if of_classifier == other and not missing and not unexpected:
        found, made = state[other[0]].shape[0], own[other[0]][0]
        raise UserError(f"{path}: holds {name} for {found} classes, and {made} are wanted")
    faults = [f"it lacks {missing[0]!r}"] if missing else []
    faults += [f"{unexpected[0]!r} is not the network's"] if unexpected else []
    if shape := next((key for key in other if key not in of_classifier), None):
        faults.append(f"{shape!r} is {tuple(state[shape].shape)} and should be {tuple(own[shape])}")
    likely = likeliest(state)
    hint = f"; these look like the weights of {likely}" if likely and likely != name else ""
    raise UserError(f"{path}: does not hold the weights of {name}: {', '.join(faults)}{hint}")


def likeliest(state: Mapping[str, Tensor]) -> str | None:
    """The network of ours whose parameters agree best with these, classifier aside; None where none agrees well."""
    scores = {}
    for name, (shapes, classifier) in _own_networks().items():
        given = _shapes({key: value for key, value in state.items() if not _is_under(classifier, key)})
        scores[name] = len(given & shapes) / len(given | shapes)
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] >= _ALIKE else None


def classes_of(state: Mapping[str, Tensor], network: nn.Module) -> int | None:
    """For how many classes these weights were made, if they are this network's."""
    names = _classifier_names(network)
    return next((value.shape[0] for key, value in state.items() if _is_under(names, key) and value.ndim), None)


def write(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Writes safetensors, whole or not at all; equal weights and metadata give equal bytes.

    Args:
        path: The file.
        state: A state dict.
        metadata: Plain values that are kept with it; ``about`` gives them back.

    Returns:
        SHA-256 of the file.

    Raises:
        OSError: The file cannot be written.
    """
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
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _walk(path: Path, content: Any, key: str) -> Iterator[tuple[Any, Any]]:
    """What stands beside each step of ``key``, and what the step leads to."""
    found, rest = content, key
    while rest:
        parts = rest.split(".")
        # A key may have dots of its own: the longest goes first.
        heads = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        mapping = found if isinstance(found, Mapping) else {}
        head = next((one for one in heads if one in mapping), None)
        if head is not None:
            yield found, found[head]
            found, rest = found[head], rest[len(head) + 1 :]
            continue
        part = {name[len(rest) + 1 :]: one for name, one in mapping.items() if str(name).startswith(f"{rest}.")}
        if part and _is_state(mapping):
            yield None, part
            return
        names = [str(name) for name in mapping]
        hint = nearest(parts[0], names)
        there = f"; did you mean {hint!r}?" if hint else f"; there are: {_listed(names)}" if names else ""
        raise UserError(f"{path}: has no key {parts[0]!r}{there}")


def _search(path: Path, content: Any) -> tuple[tuple[str, ...], Mapping[str, Tensor]]:
    """The keys that lead to the weights, and the weights."""
    found = dict(_states(content, (), set()))
    usual = {
        tuple(KEYS.index(one) for one in keys): keys for keys in found if all(one in KEYS for one in keys)
    }  # () where the content is the state dict itself
    if usual:
        keys = usual[min(usual)]
    elif len(found) == 1:
        keys = next(iter(found))
    elif found:
        raise UserError(f"{path}: holds weights under several keys, {_listed(map('.'.join, found))}; choose one")
    else:
        there = _listed(content) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"{path}: holds no weights that could be recognised, but {there or 'nothing'}")
    return keys, found[keys]


def _states(content: Any, keys: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All state dicts in a mapping of mappings, each once: a mapping in a file may hold itself."""
    if not isinstance(content, Mapping) or id(content) in seen or len(keys) > _DEEPEST:
        return
    seen.add(id(content))
    if _is_state(content):
        yield keys, content
        return
    for key, value in content.items():
        if isinstance(key, str):
            yield from _states(value, (*keys, key), seen)


def _is_state(found: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()) and any(
        value.ndim for value in found.values()
    )


def _unwrapped(state: dict[str, Tensor], layout: str) -> tuple[dict[str, Tensor], str]:
    while prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        layout += f", without the prefix {prefix!r}"
    if any("._orig_mod." in name for name in state):  # where parts of the network were compiled
        state = {name.replace("._orig_mod.", "."): value for name, value in state.items()}
        layout += ", without '_orig_mod.'"
    return state, layout


def _check(path: Path, state: Mapping[str, Tensor]) -> None:
    for key, value in state.items():
        dense = value.device.type == "cpu" and value.layout == torch.strided
        real = value.is_floating_point() or value.dtype in _WHOLE
        # One number that stands for very many would fill the memory when it is used.
        if not (dense and real) or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {key!r} is not a dense tensor of real numbers, as weights are")
        if value.is_floating_point():
            # There is no arithmetic for numbers of eight bits.
            numbers = value.float() if value.element_size() == 1 else value
            if not torch.isfinite(numbers).all():
                raise UserError(f"{path}: {key!r} holds numbers that are not finite")


def _facts(found: Any) -> dict[str, str | int | float]:
    facts: dict[str, str | int | float] = {}
    for key, value in found.items() if isinstance(found, Mapping) else ():
        scalar = isinstance(value, Tensor) and value.ndim == 0 and value.device.type == "cpu"
        plain = value.item() if scalar else value
        if isinstance(plain, str):
            good = len(plain) <= _LONGEST_FACT and plain.isprintable()
        else:
            good = isinstance(plain, int | float) and not isinstance(plain, bool) and math.isfinite(plain)
        if good and isinstance(key, str) and key.isprintable():
            facts[key] = plain
    return facts


def _listed(names: Any) -> str:
    names = [ascii(str(name)[:80]) for name in names]
    return ", ".join(names[:8]) + ", ..." * (len(names) > 8)


def _classifier_names(network: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that give logits: timm's distilled transformers have two."""
    classifier = network.get_classifier() if hasattr(network, "get_classifier") else ()  # type: ignore[operator]
    modules = classifier if isinstance(classifier, tuple) else (classifier,)
    return tuple(name for name, module in network.named_modules() if any(module is one for one in modules))


def _is_under(names: tuple[str, ...], key: str) -> bool:
    return any(key.startswith(f"{name}.") for name in names)


def _shapes(state: Mapping[str, Tensor]) -> _Shapes:
    """Batch norms' counters are left out: old files have none, and they look alike in all networks."""
    return frozenset((key, tuple(value.shape)) for key, value in state.items() if value.ndim)


@functools.cache
def _own_networks() -> dict[str, tuple[_Shapes, tuple[str, ...]]]:
    """Shapes without the classifier and the classifier's names, of every network of ours."""
    found = {}
    for name in registry.own_models():
        with torch.device("meta"):
            network = registry.create(name, num_classes=1)
        classifier = _classifier_names(network)
        state = {key: value for key, value in network.state_dict().items() if not _is_under(classifier, key)}
        found[name] = (_shapes(state), classifier)
    return found
