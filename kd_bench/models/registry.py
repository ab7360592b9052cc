"""Networks by name. Importing this module costs next to nothing: torch and timm come with the first call for them.

A network of ours is a function decorated with timm's ``register_model`` in a file of this package; nothing else lists
them. The names are read from the sources, so that the command line can list and check them at once. A network of the
user's own is a plug-in (see ``kd_bench.utils.plugins``): a function or class that takes ``num_classes``, optionally
``image_size`` and ``drop_path_rate``, and returns a network for (B, 3, H, W) images. Logits are all that is asked of
it; methods that need more find it by timm's interface (``forward_intermediates``, ``forward_features``, ``forward_head``), where it has
that.
"""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.utils import plugins
from kd_bench.utils.errors import UserError, nearest, unknown
from kd_bench.utils.plugins import MODEL, Plugin

if TYPE_CHECKING:
    from torch import nn

#: What the names of our networks begin with, so that they never hide one of timm's.
PREFIX = "cifar_"

#: What the distillation literature's code and checkpoints call our networks, where that is not our name without prefix.
PUBLISHED_NAMES = {
    "ResNet18": "cifar_resnet18",
    "ResNet50": "cifar_resnet50",
    "MobileNetV2": "cifar_mobilenet_v2",
    "ShuffleV1": "cifar_shufflenet_v1",
    "ShuffleV2": "cifar_shufflenet_v2",
}


def own_models() -> dict[str, str]:
    """Name and first docstring line of every network of ours, in the order of the sources."""
    return {name: line for models in _by_module().values() for name, line in models.items()}


def offered_models() -> dict[str, str]:
    """Name and first docstring line of every network that an installed package offers."""
    return {name: describe(name).partition("\n")[0] for name in plugins.offered_names(MODEL)}


def register() -> None:
    """Makes our networks known to timm: after it, ``timm.create_model("cifar_resnet20")`` works. Safe to call again."""
    for module in _by_module():
        importlib.import_module(f"{__package__}.{module}")


def resolve(name: str, context: str = "", *, prefix: str = PREFIX) -> str:
    """The name under which timm knows the network that a user calls ``name``.

    One of ours goes first, with or without ``prefix`` or by its published name: "resnet20" and "cifar_resnet20" are the
    same network. Then timm's names count, with a pretrained tag or without, and then those of installed packages.
    ``path/to/file.py:name`` is one of the user's own.

    Args:
        name: As the user wrote it.
        context: Where it was written, for the error.
        prefix: What may be left out; pass "" where the images are not those that our networks are made for.

    Raises:
        UserError: For a name that nobody knows, and a plug-in that cannot be called as a network is.
    """
    own = own_models()
    for candidate in (prefix + name, name, PUBLISHED_NAMES.get(name) if prefix else None):
        if candidate in own:
            return candidate
    plugin = _plugin(name, context)
    if plugin is not None:
        plugin.source(context)
        return plugin.name
    if _is_timms(name):
        return name
    import timm

    short = {model.removeprefix(prefix) for model in own}
    every = {*own, *short, *timm.list_models(), *(timm.list_pretrained() if "." in name else ())}
    every.update(plugins.offered_names(MODEL))
    raise unknown("model", name, every if nearest(name, every) else short, context)


def describe(name: str, context: str = "") -> str:
    """The documentation of a network of the user's own.

    Raises:
        UserError: As ``resolve``.
    """
    return plugins.find(MODEL, name, own_models(), context).source(context).doc


def source_hash(name: str) -> str | None:
    """SHA-256 of a plug-in's file; None for a network of ours or timm's.

    Args:
        name: As ``resolve`` gives it.

    Raises:
        UserError: If there is no such file.
    """
    plugin = _plugin(name)
    return plugin.hash() if plugin else None


def check_source(name: str, planned: str | None) -> None:
    """Makes sure that a plug-in is what a trial was planned with.

    Raises:
        UserError: If its file was changed since, or is gone.
    """
    plugins.refuse_changes(name, source_hash(name), planned)


def create(name: str, num_classes: int, image_size: int | None = None, **kwargs: Any) -> nn.Module:
    """Builds a network, ours or timm's, with weights drawn from torch's global generator.

    Args:
        name: As timm knows it (see ``resolve``).
        num_classes: Width of the classifier.
        image_size: Height and width of its images, for networks that are built for one size (transformers); None for
            the network's own.
        **kwargs: As for ``timm.create_model``, e.g. ``in_chans``, ``pretrained``, ``checkpoint_path``.

    Raises:
        UserError: For an unknown name, or an argument that the network does not take; and for a plug-in that fails, or
            is no network of so many classes.
    """
    resolve(name, prefix="")
    plugin = _plugin(name)
    if plugin is not None:
        return _create_own(plugin, num_classes, image_size, kwargs)
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
    """None for a network of ours or timm's, and for a name that nobody knows."""
    if plugins.is_file(name):
        return plugins.find(MODEL, name, (), context)
    if name in own_models() or name not in plugins.offered_names(MODEL) or _is_timms(name):
        return None
    return plugins.find(MODEL, name, (), context)


def _is_timms(name: str) -> bool:
    import timm

    return name in timm.list_pretrained() or ("." not in name and timm.is_model(name))


def _create_own(plugin: Plugin, num_classes: int, image_size: int | None, kwargs: dict[str, Any]) -> nn.Module:
    from torch import Tensor, nn

    from kd_bench.models.timm_interface import dry_run

    source = plugin.source()
    for key in kwargs:
        if not source.takes(key):
            raise UserError(f"model {plugin.name}: takes no argument {key!r}")
    sized = {} if image_size is None else {"image_size": image_size}
    network = plugin.call(num_classes=num_classes, **sized, **kwargs)
    if not isinstance(network, nn.Module) or next(network.parameters(), None) is None:
        raise UserError(f"model {plugin.name}: should be a torch.nn.Module with parameters, not {network!r:.60}")
    if image_size is not None:
        try:
            with dry_run(network, (3, image_size, image_size)) as black:
                logits = network(black)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"model {plugin.name}: its forward pass failed: {plugins.format_error(error)}") from error
        if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
            given = f"{tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"model {plugin.name}: should give logits (B, {num_classes}) for images (B, 3, {image_size}, "
                f"{image_size}); of one image it gives {given}"
            )
    return network


@functools.cache
def _by_module() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.FunctionDef) and any(_is_registration(one) for one in node.decorator_list):
                line = (ast.get_docstring(node) or "").partition("\n")[0]
                found.setdefault(path.stem, {})[node.name] = line
    return found


def _is_registration(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Name) and decorator.id == "register_model"
