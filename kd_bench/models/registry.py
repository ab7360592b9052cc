"""Networks by name. Importing this module is cheap: torch and timm are imported by the first call that needs them.

A network of ours is a function in a file of this package, decorated with timm's ``register_model``. The names are read
from the sources, so that the command line can list and check them without importing torch. A user's network is a
plug-in (see ``kd_bench.utils.plugins``): a function or class that takes ``num_classes``, optionally ``image_size`` and
``drop_path_rate``, and returns a network that maps (B, 3, H, W) images to logits. Methods that need more than logits
use timm's interface (``forward_intermediates``, ``forward_features``, ``forward_head``), if the network has it.
"""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.config.network_names import PREFIX
from kd_bench.models.timm_names import is_registered_elsewhere, is_timm_model, timm_names
from kd_bench.utils import plugins
from kd_bench.utils.errors import UserError, nearest, unknown
from kd_bench.utils.errors import prefix as context_prefix
from kd_bench.utils.plugins import MODEL, Plugin

if TYPE_CHECKING:
    from torch import nn

#: Names of our networks in the literature's code and checkpoints, if they differ from our name without prefix.
PUBLISHED_NAMES = {
    "ResNet18": "cifar_resnet18",
    "ResNet50": "cifar_resnet50",
    "PreActResNet18": "cifar_preact_resnet18",
    "MobileNetV2": "cifar_mobilenet_v2",
    "ShuffleV1": "cifar_shufflenet_v1",
    "ShuffleV2": "cifar_shufflenet_v2",
}


def own_models() -> dict[str, str]:
    """Returns name and first docstring line of every network of ours, in the order of the sources."""
    return {name: line for models in _by_module().values() for name, line in models.items()}


def offered_models() -> dict[str, str]:
    """Returns name and first docstring line of every network that an installed package offers.

    The line of a network that cannot be used says why, so that one package does not hide the others.
    """
    lines = {}
    for name in plugins.entry_point_names(MODEL):
        try:
            lines[name] = plugins.find(MODEL, name).check().doc.partition("\n")[0]
        except UserError as error:
            lines[name] = f"cannot be used: {error}"
    return lines


def register() -> None:
    """Registers our networks with timm, so that ``timm.create_model("cifar_resnet20")`` works; may be called again."""
    import timm  # noqa: F401  first, because its import may register our networks, which cannot be done halfway

    for module in _by_module():
        importlib.import_module(f"{__package__}.{module}")


def resolve(name: str, context: str = "", *, prefix: str = PREFIX) -> str:
    """Returns timm's name of a network.

    Our networks are found first, with or without ``prefix`` or by their published name: "resnet20" and "cifar_resnet20"
    are the same network. Then come timm's names, with or without a pretrained tag, and then those of installed
    packages. ``path/to/file.py:name`` is a user's network. ``context`` is where the name was written, for the error.

    Args:
        prefix: Prefix that may be left out; pass "" if the images are not those that our networks are made for.

    Raises:
        UserError: If the name is unknown, or a plug-in does not take a network's arguments.
    """
    own_names = own_models()
    for candidate in (prefix + name, name, PUBLISHED_NAMES.get(name) if prefix else None):
        if candidate in own_names:
            return candidate
    plugin = _plugin(name, context)
    if plugin is not None:
        plugin.check(context)
        return plugin.name
    if is_timm_model(name):
        return name
    if not prefix and PREFIX + name in own_names:
        raise UserError(
            f"{context_prefix(context)}no network is called {name!r}; write {PREFIX + name!r}: the prefix may be left "
            "out only if the data set's images have at most 64 pixels"
        )
    timm = timm_names()
    short = {model.removeprefix(prefix) for model in own_names}
    choices = {*own_names, *short, *timm.models, *(timm.pretrained if "." in name else ())}
    choices.update(plugins.entry_point_names(MODEL))
    raise unknown("network", name, choices if nearest(name, choices) else short, context)


def source_hash(name: str) -> str | None:
    """Returns the SHA-256 of a plug-in's file; None for a network of ours or timm's."""
    plugin = _plugin(name)
    return plugin.hash() if plugin else None


def create(name: str, num_classes: int, image_size: int | None = None, **kwargs: Any) -> nn.Module:
    """Builds a network, ours or timm's, with weights drawn from torch's global generator.

    Args:
        name: Name returned by ``resolve``.
        num_classes: Width of the classifier.
        image_size: Height and width of the images, for networks that are built for one size (transformers); None for
            the network's default.
        **kwargs: As for ``timm.create_model``, e.g. ``in_chans``, ``pretrained``, ``checkpoint_path``.

    Raises:
        UserError: If the name is unknown, the network does not take an argument, or a plug-in fails or does not return
            a network with ``num_classes`` classes.
    """
    resolve(name, prefix="")
    plugin = _plugin(name)
    if plugin is not None:
        return _create_plugin(plugin, num_classes, image_size, kwargs)
    register()
    import timm

    cfg = timm.get_pretrained_cfg(name)
    if image_size is not None and cfg is not None and cfg.fixed_input_size and image_size != cfg.input_size[-1]:
        kwargs["img_size"] = image_size
    try:
        network: nn.Module = timm.create_model(name, num_classes=num_classes, **kwargs)
    except TypeError as error:
        _, unexpected, key = str(error).partition("unexpected keyword argument ")
        if not unexpected:
            raise
        raise UserError(f"model {name}: takes no argument {key.split()[0]}") from None
    return network


def _plugin(name: str, context: str = "") -> Plugin | None:
    """Returns the plug-in of a name; None for a network of ours or timm's, and for an unknown name."""
    offered = name in plugins.entry_point_names(MODEL) and name not in own_models()
    if offered and is_timm_model(name):
        # A package may register the network that it offers with timm. timm knows the name after the first import only,
        # and the network must be the same plug-in before and after it.
        offered = is_registered_elsewhere(name)
    return plugins.find(MODEL, name, (), context) if offered or plugins.is_file_name(name) else None


def _create_plugin(plugin: Plugin, num_classes: int, image_size: int | None, kwargs: dict[str, Any]) -> nn.Module:
    from torch import Tensor, nn

    from kd_bench.models.timm_interface import dry_run

    source = plugin.check()
    for key in kwargs:
        if not source.takes(key):
            raise UserError(f"model {plugin.name}: takes no argument {key!r}")
    # Not into **kwargs, which the functions that timm registers have, and which they pass on to the network.
    has_size = "image_size" in {*source.positional, *source.keywords}
    size = {"image_size": image_size} if image_size is not None and has_size else {}
    network = plugin.call(num_classes=num_classes, **size, **kwargs)
    if not isinstance(network, nn.Module) or next(network.parameters(), None) is None:
        raise UserError(f"model {plugin.name}: should be a torch.nn.Module with parameters, not {network!r:.60}")
    if image_size is not None:
        failed = plugins.one_sentence(f"model {plugin.name}: its forward pass failed", UserError)
        with failed, dry_run(network, (3, image_size, image_size)) as black:
            logits = network(black)
        if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"model {plugin.name}: should return logits (B, {num_classes}) for images (B, 3, {image_size}, "
                f"{image_size}); for one image it returns {shape}"
            )
    return network


@functools.cache
def _by_module() -> dict[str, dict[str, str]]:
    models: dict[str, dict[str, str]] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.FunctionDef) and "register_model" in map(ast.unparse, node.decorator_list):
                line = (ast.get_docstring(node) or "").partition("\n")[0]
                models.setdefault(path.stem, {})[node.name] = line
    return models
