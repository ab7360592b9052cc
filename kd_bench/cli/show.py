"""Describes whatever a name stands for, for ``kd-bench show``."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from kd_bench.cli.options import check_out
from kd_bench.cli.show_recipe import describe_recipe
from kd_bench.cli.show_setting import describe_setting, similar_keys
from kd_bench.config.load import find_recipe, packaged_recipes
from kd_bench.data import registry as datasets
from kd_bench.methods import _logit_settings
from kd_bench.methods import _registry as methods
from kd_bench.models import cards
from kd_bench.models import registry as models
from kd_bench.models.timm_names import cached_timm_names, timm_names
from kd_bench.trials.recipe_file import find_recipe_in, kept_recipes
from kd_bench.utils import plugins
from kd_bench.utils.errors import UserError, nearest, unknown
from kd_bench.utils.signatures import REQUIRED, Definition

ROLES: tuple[cards.Role, ...] = ("teachers", "students")


def describe(name: str, out: Path = Path("runs"), raw: bool = False, width: int = 100) -> str:
    """Returns a text about a method, network, teacher, student, data set, recipe, setting or plug-in.

    Args:
        name: The name.
        out: The results folder, where comparisons keep their recipes.
        raw: Whether to return a recipe's file as it is.
        width: Columns that a recipe's settings should fit in. Paragraphs are lines of any length.

    Raises:
        UserError: If there is none of this name, or the results folder, where it may be, cannot be read.
    """
    if raw:
        path = find_recipe(find_recipe_in(name, out))
        return f"# {path}\n{path.read_text(encoding='utf-8').rstrip()}"
    if plugins.is_file_name(name):
        return _describe_plugin(name)
    if name in methods.names():
        return _describe_method(name)
    if name in datasets.names():
        spec = datasets.spec(name)
        values = ((field.name, getattr(spec, field.name)) for field in fields(spec) if field.repr)
        return "\n".join(f"{key}: {value}" for key, value in values if value not in ((), None))
    if text := _describe_network(name):
        return text
    for kind in (plugins.MODEL, plugins.AUGMENTATION):
        if name in plugins.entry_point_names(kind):
            return _plugin_text(plugins.find(kind, name))
    try:
        recipe = find_recipe_in(name, out)
    except UserError:
        if name.endswith((".yaml", ".yml")):
            raise
        if text := describe_setting(name):
            return text
        card_names = [card.name for role in ROLES for card in cards.load_all(role)]
        names = [*methods.names(), *datasets.names(), *models.own_models(), *card_names, *packaged_recipes()]
        names += [*similar_keys(name), *kept_recipes(out)]
        if text := _describe_timm(name, is_similar=nearest(name, names) is not None):
            return text
        if nearest(name, names) is None:  # then it may be the name of a comparison
            check_out(out)
        raise unknown("method, network, data set, recipe or setting", name, dict.fromkeys(names)) from None
    return describe_recipe(find_recipe(recipe), width)


def _describe_network(name: str) -> str:
    """Describes a network of this package and all cards of a network; ``dataset/name`` selects one data set's cards."""
    dataset, _, short = name.rpartition("/")
    networks = models.own_models()
    names = (f"cifar_{short}", short, models.PUBLISHED_NAMES.get(short, ""))
    texts = [f"{full}: {networks[full]}" for full in names if full in networks and not dataset][:1]
    for role in ROLES:
        for card_dataset in sorted({card.dataset for card in cards.load_all(role)}):
            if dataset in ("", card_dataset) and (card := cards.find(role, card_dataset, short)):
                texts.append(cards.describe(card))
    return "\n\n".join(texts)


def _describe_timm(name: str, is_similar: bool) -> str:
    """Describes a network of timm, or pretrained weights of one; "" if timm has none of this name.

    If there ``is_similar`` a name, which may be meant, timm is not imported for the names that it has.
    """
    names = cached_timm_names() or (None if is_similar else timm_names())
    if names is None or name not in names.models | names.pretrained:
        return ""
    network, _, tag = name.partition(".")
    if tag:
        return f"{name}: pretrained weights of timm's network {network}"
    weights = sorted(pretrained for pretrained in names.pretrained if pretrained.partition(".")[0] == network)
    return "\n".join([f"{name}: a network of timm", *(f"  pretrained weights: {pretrained}" for pretrained in weights)])


def _describe_plugin(name: str) -> str:
    """Describes a plug-in, whose kind follows from its arguments."""
    source = plugins.find(plugins.PluginKind("plug-in", ""), name).definition()
    kinds = (plugins.METHOD, plugins.AUGMENTATION, plugins.DATASET, plugins.MODEL)
    kind = _kind_of(source)
    if kind is None:
        takes = [f"{kind.noun}: {' and '.join(kind.takes)}" for kind in kinds]
        expected = f"the kinds and their arguments are {'; '.join(takes)}"
        raise UserError(f"{name}: its arguments are those of no kind of plug-in; {expected}")
    if kind is plugins.METHOD:
        return _describe_method(name)
    return _plugin_text(plugins.find(kind, name))


def _plugin_text(plugin: plugins.Plugin) -> str:
    return f"{plugin.name} ({plugin.kind.noun})\n\n{_unwrapped(plugin.check().doc)}".rstrip()


def _kind_of(source: Definition) -> plugins.PluginKind | None:
    """Returns the kind that a class or function of a plug-in's file has; None if its arguments are those of none."""
    if source.is_class and ("pair" in source.positional or "Method" in source.bases):
        return plugins.METHOD  # without hyper-parameters it needs no __init__
    named = {*source.positional, *source.keywords}
    for kind in (plugins.AUGMENTATION, plugins.DATASET, plugins.MODEL):
        if named.issuperset(kind.takes):
            return kind
    if source.is_class and not source.has_init:
        return plugins.MODEL  # whose check says that it needs an __init__
    # Only functions that timm registers, (pretrained=False, **kwargs), leave their arguments open.
    return plugins.MODEL if any(name.startswith("**") for name in named) else None


def _unwrapped(doc: str) -> str:
    """Returns a docstring with a line for each paragraph. Lists and paragraphs with indented lines stay as they are."""
    paragraphs = doc.split("\n\n")
    return "\n\n".join(text if re.search(r"\n[ *-]", f"\n{text}") else text.replace("\n", " ") for text in paragraphs)


def _describe_method(name: str) -> str:
    info = methods.describe(name)
    lines = [
        f"{name} ({info.family}{'' if info.needs_teacher else ', needs no teacher'})",
        "",
        _unwrapped(info.doc.partition("\nArgs:\n")[0].strip()),
        "",
        "Hyper-parameters:" if info.parameters else "It has no hyper-parameters.",
    ]
    for parameter in info.parameters:
        text = f"  {' '.join(parameter.text.split())}" if parameter.text else ""
        default = "" if parameter.default is REQUIRED else f" = {parameter.default!r}"
        lines.append(f"  {parameter.name}: {parameter.annotation}{default}{text}")
    if keys := _logit_settings.combinable(info):
        lines += ["", f"A row of a recipe may set {' and '.join(keys)}, too."]
    return "\n".join(lines)
