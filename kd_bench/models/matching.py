"""Finds the weights of a network in a state dict: below prefixes, and beside the weights of other networks."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kd_bench.models import registry
from kd_bench.utils.errors import UserError

#: Prefixes that wrappers put before every key.
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "student.", "net.")

#: What torch's ``AveragedModel`` stores beside the network's weights, whose keys then start with "module.".
_AVERAGED = "n_averaged"

_MIN_OVERLAP = 0.8  # share of common parameters from which on weights are taken for those of a network

_Shapes = frozenset[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Part:
    """A part of a state dict that resembles the weights of a network.

    Attributes:
        prefix: Start of its keys in the state dict, e.g. "student."; "" for the whole.
        state: The part, with the network's keys.
        overlap: Share of common parameters, names and shapes, among all of the part and the network.
        overlap_without_classifier: The same without the classifier, whose shape depends on the number of classes.
    """

    prefix: str
    state: dict[str, Tensor]
    overlap: float
    overlap_without_classifier: float


def unwrap(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Returns a state dict without wrappers' prefixes, and a description of each removed one, the outermost first."""
    names = dict(zip(state, state, strict=True))
    removed = []
    while prefix := _common_prefix(names.values()):
        names = {name: inner.removeprefix(prefix) for name, inner in names.items() if inner != _AVERAGED}
        removed.append(f"the prefix {prefix!r}")
    if any("._orig_mod." in inner for inner in names.values()):  # parts of the network were compiled
        names = {name: inner.replace("._orig_mod.", ".") for name, inner in names.items()}
        removed.append("'_orig_mod.'")
    return {inner: state[name] for name, inner in names.items()}, removed


def find_weights(network: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> Part:
    """Returns the part of a state dict that fits a network best; the whole if no part resembles its weights.

    A checkpoint of Lightning has e.g. the prefix "backbone." before the keys of the network, and other keys beside
    them. Prefixes of wrappers do not count: neither ``state`` nor the network need have the other's.

    Args:
        network: The network; only names and shapes of its state dict matter.
        state: The state dict, as ``weights.read`` returns it.
        path: File of the state dict, for errors.
        name: Name of the network, for errors.

    Raises:
        UserError: If several parts fit equally well.
    """
    target = network.state_dict()
    unwrapped, _ = unwrap(target)
    if state.keys() == target.keys():
        return Part("", dict(state), 1.0, 1.0)
    own_keys = dict(zip(unwrapped, target, strict=True)) if len(unwrapped) == len(target) else {}
    classifier = {key for key, own_key in own_keys.items() if is_under(classifier_names(network), own_key)}
    parts = list(_parts(state, unwrapped, classifier))
    if not parts:
        return Part("", dict(state), 0.0, 0.0)
    best = max(_fit(part) for part in parts)
    equal = [part for part in parts if _fit(part) == best]
    if len(equal) > 1:
        raise _several(path, name, [part.prefix for part in equal])
    part = equal[0]
    renamed = {own_keys.get(key, key): value for key, value in part.state.items()}
    return Part(part.prefix, renamed, part.overlap, part.overlap_without_classifier)


def closest_networks(state: Mapping[str, Tensor]) -> str:
    """Returns the name of our network that a state dict resembles most; "" if it resembles none.

    If it has parts that resemble networks, all are listed: "cifar_resnet8 (under 'student') and cifar_resnet14 (under
    'teacher')". The classifier does not count.
    """
    best: dict[str, tuple[float, str]] = {}
    for name, (target, classifier) in _own_networks().items():
        for part in _parts(state, target, classifier):
            if part.overlap_without_classifier >= _MIN_OVERLAP:
                best[part.prefix] = max(best.get(part.prefix, (0.0, "")), (part.overlap_without_classifier, name))
    listed = [f"{name} (under {quoted(prefix)})" if prefix else name for prefix, (_, name) in sorted(best.items())]
    return " and ".join(listed)


def classifier_names(network: nn.Module) -> tuple[str, ...]:
    """Returns the names of the modules that compute logits; timm's distilled transformers have two."""
    classifier = network.get_classifier() if hasattr(network, "get_classifier") else ()  # type: ignore[operator]
    modules = classifier if isinstance(classifier, tuple) else (classifier,)
    return tuple(name for name, module in network.named_modules() if any(module is layer for layer in modules))


def is_under(names: tuple[str, ...], key: str) -> bool:
    """Returns whether a key of a state dict belongs to one of these modules."""
    return any(key.startswith(f"{name}.") for name in names)


def key_advice(path: Path, key: str) -> str:
    """Returns the advice for a file that holds the weights of several networks; ``key`` is an example."""
    return f"choose one by --key, as in: kd-bench teacher convert {path} NEW.safetensors --key {quoted(key)}"


def quoted(prefix: str) -> str:
    """Returns a prefix as the key that ``--key`` takes, escaped, because it comes from an untrusted file."""
    return ascii(prefix.removesuffix(".")[:80])


def _common_prefix(names: Iterable[str]) -> str | None:
    """Returns the wrapper's prefix that all names have."""
    names = set(names)
    others = names - {_AVERAGED}
    for prefix in PREFIXES:
        if others and all(name.startswith(prefix) for name in others) and (others == names or prefix == "module."):
            return prefix
    return None


def _parts(state: Mapping[str, Tensor], target: Mapping[str, Tensor], classifier: Iterable[str]) -> Iterator[Part]:
    """Yields the parts of a state dict that have most of a network's keys.

    Keys in a part that has an own prefix, e.g. "teacher.", belong only to that part.

    Args:
        state: The state dict.
        target: The network's state dict.
        classifier: Keys of its classifier.
    """
    shapes, whole = _shapes(target, classifier), _shapes(target)
    depth = max((key.count(".") for key in target), default=0) + 1
    names = {key for key, value in target.items() if value.ndim}
    counts = Counter(start for key in state for start, rest in _splits(key, depth) if rest in names)
    prefixes: list[str] = []
    # The longest first, because the keys of inner parts are left out of outer ones.
    for prefix in sorted(counts, key=len, reverse=True):
        if counts[prefix] < _MIN_OVERLAP * len(whole):
            continue
        inner = tuple(start for start in prefixes if start.startswith(prefix))
        part = {}
        for key, value in state.items():
            rest = key.removeprefix(prefix)
            if key.startswith(prefix) and (rest in target or not key.startswith(inner)):
                part[rest] = value
        prefixes.append(prefix)
        overlap = _overlap(_shapes(part), whole)
        yield Part(prefix, part, overlap, _overlap(_shapes(part, classifier), shapes) if shapes else overlap)


def _splits(key: str, depth: int) -> Iterator[tuple[str, str]]:
    """Yields the ways to split a key into a prefix and at most ``depth`` names: ("a.", "b"), ("", "a.b")."""
    start = len(key) + 1
    for _ in range(depth):
        start = key.rfind(".", 0, start - 1) + 1
        yield key[:start], key[start:]
        if not start:
            return


def _fit(part: Part) -> tuple[float, float]:
    return part.overlap_without_classifier, part.overlap


def _overlap(shapes: _Shapes, other_shapes: _Shapes) -> float:
    return len(shapes & other_shapes) / len(shapes | other_shapes)


def _several(path: Path, name: str, prefixes: list[str]) -> UserError:
    keys = [quoted(prefix) for prefix in sorted(prefixes) if prefix]
    places = [*(["no key"] if "" in prefixes else []), *keys]
    listed = f"{', '.join(places[:-1])} and {places[-1]}"
    advice = key_advice(path, min(prefix for prefix in prefixes if prefix))
    return UserError(f"{path}: holds weights of {name} under {listed}, which fit equally well; {advice}")


def _shapes(state: Mapping[str, Tensor], left_out: Iterable[str] = ()) -> _Shapes:
    """Returns names and shapes without some keys and without scalars, the batch norms' counters.

    Old files lack these counters, and all networks have the same ones.
    """
    left_out = set(left_out)
    return frozenset((key, tuple(value.shape)) for key, value in state.items() if value.ndim and key not in left_out)


@functools.cache
def _own_networks() -> dict[str, tuple[dict[str, Tensor], frozenset[str]]]:
    """Returns the state dict, without values, and the classifier's keys of every network of ours."""
    networks = {}
    for name in registry.own_models():
        with torch.device("meta"):
            network = registry.create(name, num_classes=1)
        state = network.state_dict()
        classifier = classifier_names(network)
        networks[name] = (state, frozenset(key for key in state if is_under(classifier, key)))
    return networks
