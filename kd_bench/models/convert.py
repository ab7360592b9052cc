"""Converts weights of any layout to safetensors."""

from __future__ import annotations

from pathlib import Path

from kd_bench.models import registry, weights
from kd_bench.utils.errors import UserError


def convert(source: Path, target: Path, model: str | None, key: str | None) -> str:
    """Writes the weights of a file as safetensors and returns a line that describes them.

    Args:
        source: A file in any layout that ``weights.read`` reads.
        target: The file to write.
        model: Name of the network that the weights must fit; None does not check.
        key: Dotted key of the weights in the file; None searches for them.

    Raises:
        UserError: If the file cannot be read, the weights do not fit, or the target cannot be written.
    """
    loaded = weights.read(source, key)
    name = None
    if model is not None:
        name = registry.resolve(model, "--model")
        classes = weights.num_classes(loaded.state, registry.create(name, 1))
        network = registry.create(name, classes or 1)
        weights.load_into(network, loaded.state, source, name)
    try:
        digest = weights.write(target, loaded.state, {**loaded.facts, **({"model": name} if name else {})})
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from None
    numbers = sum(value.numel() for value in loaded.state.values())
    closest = name or weights.closest_network(loaded.state)
    origin = f" of {closest}" if name else f", most likely of {closest}" if closest else ""
    return f"{target}: {len(loaded.state)} tensors, {numbers:,} numbers{origin}, from {loaded.layout}; sha256 {digest}"
