"""Converts weights of any layout to safetensors."""

from __future__ import annotations

from pathlib import Path

from kd_bench.models import registry, weights
from kd_bench.models.matching import closest_networks, find_weights, quoted
from kd_bench.utils.errors import UserError


def convert(source: Path, target: Path, model: str | None, key: str | None) -> str:
    """Writes the weights of a file as safetensors and returns a line that describes them.

    Args:
        source: A file in any layout that ``weights.read`` reads.
        target: The file to write.
        model: Name of the network that the weights must fit; None does not check.
        key: Dotted key of the weights in the file, as for ``weights.read``; None searches for them.

    Raises:
        UserError: If the file cannot be read, the weights do not fit, or the target cannot be written.
    """
    loaded = weights.read(source, key)
    state, layout, name = loaded.state, loaded.layout, None
    if model is not None:
        name = registry.resolve(model, "--model")
        network = registry.create(name, 1)
        part = find_weights(network, state, source, name)
        network = registry.create(name, weights.num_classes(part.state, network) or 1)
        weights.load_into(network, state, source, name)
        state = part.state
        layout += f", under {quoted(part.prefix)}" if part.prefix else ""
    try:
        digest = weights.write(target, state, {**loaded.facts, **({"model": name} if name else {})})
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from None
    numbers = sum(value.numel() for value in state.values())
    closest = name or closest_networks(state)
    origin = f" of {name}" if name else f", most likely of {closest}" if closest else ""
    return f"{target}: {len(state)} tensors, {numbers:,} numbers{origin}, from {layout}; sha256 {digest}"
