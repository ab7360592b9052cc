"""Weights of any layout to safetensors."""

from __future__ import annotations

from pathlib import Path

from kd_bench.models import registry, weights
from kd_bench.utils.errors import UserError


def convert(source: Path, target: Path, model: str | None, key: str | None) -> str:
    """Writes the weights of a file as safetensors and says what they were.

    Args:
        source: A file in any layout that can be read.
        target: The file to write.
        model: The network that they should fit; None does not check.
        key: Where in the file they are; None looks for them.

    Raises:
        UserError: Where the file cannot be read, the weights do not fit, or the target cannot be written.
    """
    loaded = weights.read(source, key)
    name = None
    if model is not None:
        name = registry.resolve(model, "--model")
        classes = weights.classes_of(loaded.state, registry.create(name, 1))
        network = registry.create(name, classes or 1)
        weights.load_into(network, loaded.state, source, name)
    try:
        digest = weights.write(target, loaded.state, {**loaded.facts, **({"model": name} if name else {})})
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from None
    numbers = sum(value.numel() for value in loaded.state.values())
    likely = name or weights.likeliest(loaded.state)
    of = f" of {likely}" if name else f", most likely of {likely}" if likely else ""
    return f"{target}: {len(loaded.state)} tensors, {numbers:,} numbers{of}, from {loaded.layout}; sha256 {digest}"
