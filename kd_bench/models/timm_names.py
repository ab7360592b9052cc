"""The names of timm's networks, kept in the cache: importing timm for a list of names takes longer than a command."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from kd_bench.utils.files import write_atomic
from kd_bench.utils.paths import cache_folder


class TimmNames(NamedTuple):
    """The names of timm's networks: without a tag, with the tag of pretrained weights, and those of earlier versions
    that timm still takes.
    """

    models: frozenset[str]
    pretrained: frozenset[str]
    earlier: frozenset[str]


def is_timm_model(name: str) -> bool:
    """Whether the installed timm has a network of this name."""
    if "timm" in sys.modules:
        import timm

        return name in timm.list_pretrained() or ("." not in name and timm.is_model(name))
    return any(name in names for names in timm_names())


def is_registered_elsewhere(name: str) -> bool:
    """Whether code outside of timm has registered a network of this name with timm in this process."""
    if "timm" not in sys.modules:
        return False
    import timm

    return timm.is_model(name) and not timm.model_entrypoint(name).__module__.startswith("timm.")


def timm_names() -> TimmNames:
    """Returns the names of the installed timm. Only the first call after an installation imports timm."""
    return cached_timm_names() or _read_timm()


def cached_timm_names() -> TimmNames | None:
    """Returns the names if they are in the cache, and None if timm would have to be imported."""
    file = _file()
    return None if file is None or "timm" in sys.modules else _read_file(file)


def _read_timm() -> TimmNames:
    """Reads the names from timm, and caches them unless something else may have been registered already."""
    is_new, file = "timm" not in sys.modules, _file()
    import timm
    from timm.models import _registry

    models = frozenset(timm.list_models())
    earlier = frozenset(getattr(_registry, "_model_entrypoints", models)) - models
    names = TimmNames(models, frozenset(timm.list_pretrained()), earlier)
    if is_new and file is not None:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps({key: sorted(value) for key, value in names._asdict().items()}))
    return names


@functools.cache
def _read_file(file: Path) -> TimmNames | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(file.read_text(encoding="utf-8"))
        names = TimmNames(*(frozenset(content[key]) for key in TimmNames._fields))
        if names.models and all(isinstance(name, str) for part in names for name in part):
            return names
    return None


def _file() -> Path | None:
    """Returns the file of the installed timm's names; another version, or a changed one, has another file."""
    with suppress(PackageNotFoundError, ImportError, ValueError, OSError, AttributeError):
        spec = importlib.util.find_spec("timm")
        if spec is not None and spec.origin is not None:
            changed = (Path(spec.origin).parent / "models" / "__init__.py").stat().st_mtime_ns
            return cache_folder() / "timm" / f"names-{version('timm')}-{changed:x}.json"
    return None
