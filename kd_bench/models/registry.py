"""Networks by name. Importing this module costs next to nothing: torch and timm come with the first call for them.

A network of ours is a function decorated with timm's ``register_model`` in a file of this package; nothing else lists
them. The names are read from the sources, so that the command line can list and check them at once.
"""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.errors import UserError, nearest, unknown

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


def register() -> None:
    """Makes our networks known to timm: after it, ``timm.create_model("cifar_resnet20")`` works. Safe to call again."""
    for module in _by_module():
        importlib.import_module(f"{__package__}.{module}")


def resolve(name: str, where: str = "", *, prefix: str = PREFIX) -> str:
    """The name under which timm knows the network that a user calls ``name``.

    One of ours goes first, with or without ``prefix`` or by its published name: "resnet20" and "cifar_resnet20" are the
    same network. Then timm's names count, with a pretrained tag or without.

    Args:
        name: As the user wrote it.
        where: Where it was written, for the error.
        prefix: What may be left out; pass "" where the images are not those that our networks are made for.

    Raises:
        UserError: For a name that nobody knows.
    """
    own = own_models()
    for candidate in (prefix + name, name, PUBLISHED_NAMES.get(name) if prefix else None):
        if candidate in own:
            return candidate
    import timm

    if name in timm.list_pretrained() or ("." not in name and timm.is_model(name)):
        return name
    short = {model.removeprefix(prefix) for model in own}
    every = {*own, *short, *timm.list_models(), *(timm.list_pretrained() if "." in name else ())}
    raise unknown("model", name, every if nearest(name, every) else short, where)


def create(name: str, num_classes: int, image_size: int | None = None, **kwargs: Any) -> nn.Module:
    """Builds a network, ours or timm's, with weights drawn from torch's global generator.

    Args:
        name: As timm knows it (see ``resolve``).
        num_classes: Width of the classifier.
        image_size: Height and width of its images, for networks that are built for one size (transformers); None for
            the network's own.
        **kwargs: As for ``timm.create_model``, e.g. ``in_chans``, ``pretrained``, ``checkpoint_path``.

    Raises:
        UserError: For an unknown name, or an argument that the network does not take.
    """
    resolve(name, prefix="")
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
