"""What is known of a name, whatever it names: for ``kd-bench show``."""

from __future__ import annotations

from dataclasses import fields

from kd_bench.data import registry as datasets
from kd_bench.errors import UserError, unknown
from kd_bench.methods import registry as methods
from kd_bench.models import registry as models
from kd_bench.reading import find_recipe, packaged_recipes


def describe(name: str) -> str:
    """The text for a method, network, data set or recipe.

    Raises:
        UserError: For a name that is none of them.
    """
    if name in methods.names() or ".py:" in name:
        return _method(name)
    if name in datasets.names():
        spec = datasets.spec(name)
        rows = ((field.name, getattr(spec, field.name)) for field in fields(spec))
        return "\n".join(f"{key}: {value}" for key, value in rows if value not in ((), None))
    networks = models.own_models()
    for candidate in (f"cifar_{name}", name):
        if candidate in networks:
            return f"{candidate}: {networks[candidate]}"
    try:
        path = find_recipe(name)
    except UserError:
        names = [*methods.names(), *datasets.names(), *networks, *packaged_recipes()]
        raise unknown("method, network, data set or recipe", name, names) from None
    return f"# {path}\n{path.read_text(encoding='utf-8').rstrip()}"


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
