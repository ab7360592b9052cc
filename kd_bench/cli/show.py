"""What is known of a name, whatever it names: for ``kd-bench show``."""

from __future__ import annotations

from dataclasses import fields

from kd_bench.config.load import find_recipe, packaged_recipes
from kd_bench.data import registry as datasets
from kd_bench.methods import registry as methods
from kd_bench.models import cards
from kd_bench.models import registry as models
from kd_bench.utils import plugins
from kd_bench.utils.errors import UserError, unknown

ROLES: tuple[cards.Role, ...] = ("teachers", "students")


def describe(name: str) -> str:
    """The text for a method, network, teacher, student, data set or recipe.

    Raises:
        UserError: For a name that is none of them.
    """
    if plugins.is_file(name):
        return _plugin(name)
    if name in methods.names():
        return _method(name)
    if name in datasets.names():
        spec = datasets.spec(name)
        rows = ((field.name, getattr(spec, field.name)) for field in fields(spec))
        return "\n".join(f"{key}: {value}" for key, value in rows if value not in ((), None))
    if found := _network(name):
        return found
    try:
        path = find_recipe(name)
    except UserError:
        card_names = [card.name for role in ROLES for card in cards.cards(role)]
        names = [*methods.names(), *datasets.names(), *models.own_models(), *card_names, *packaged_recipes()]
        raise unknown("method, network, data set or recipe", name, dict.fromkeys(names)) from None
    return f"# {path}\n{path.read_text(encoding='utf-8').rstrip()}"


def _network(name: str) -> str | None:
    """A network of ours, and every card that it, or a network of timm's, has; ``dataset/name`` takes one card."""
    dataset, _, short = name.rpartition("/")
    own = models.own_models()
    model = next((one for one in (f"cifar_{short}", short, models.PUBLISHED_NAMES.get(short)) if one in own), None)
    lines = [f"{model}: {own[model]}"] if model and not dataset else []
    for role in ROLES:
        for one in sorted({card.dataset for card in cards.cards(role)}):
            found = cards.find(role, one, short) if dataset in ("", one) else None
            if found:
                lines += ["", cards.describe(found)] if lines else [cards.describe(found)]
    return "\n".join(lines) or None


def _plugin(name: str) -> str:
    """One of the user's own; of what kind it is, the arguments tell."""
    source = plugins.find(plugins.PluginKind("plug-in", ""), name).definition()
    kinds = (plugins.METHOD, plugins.AUGMENTATION, plugins.DATASET, plugins.MODEL)
    kind = next((one for one in kinds if all(source.takes(argument) for argument in one.takes)), None)
    if kind is None:
        wanted = "; ".join(f"a {one.noun} takes {' and '.join(one.takes)}" for one in kinds)
        raise UserError(f"{name}: it can be none of what kd-bench knows by its arguments: {wanted}")
    if kind is plugins.METHOD:
        return _method(name)
    plugin = plugins.find(kind, name)
    return f"{plugin.name} ({kind.noun})\n\n{plugin.source().doc}".rstrip()


def _method(name: str) -> str:
    info = methods.describe(name)
    lines = [
        f"{name} ({info.family}{'' if info.needs_teacher else ', needs no teacher'})",
        "",
        info.doc.partition("\nArgs:\n")[0].strip(),
        "",
    ]
    lines.append("Hyper-parameters:" if info.parameters else "It has no hyper-parameters.")
    for parameter in info.parameters:
        about = f"  {' '.join(parameter.text.split())}" if parameter.text else ""
        lines.append(f"  {parameter.name}: {parameter.annotation} = {parameter.default!r}{about}")
    return "\n".join(lines)
