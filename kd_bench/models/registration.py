"""Registers our networks with timm as soon as both packages are imported, without importing timm."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from types import ModuleType

from kd_bench.models import registry


def register_with_timm() -> None:
    """Registers our networks now if timm is imported, otherwise right after timm's import.

    Importing timm takes seconds, which commands that only list names must not take.
    """
    if "timm" in sys.modules:
        registry.register()
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())


class _TimmFinder(MetaPathFinder):
    """Finds timm as Python does, with a loader that registers our networks; finds nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = find_spec("timm")
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _TimmLoader(spec.loader.name, spec.loader.path)
        return spec


class _TimmLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        # Otherwise a file of ours is importing timm, and the files of networks cannot import that one yet.
        if f"{__package__}.cifar_network" not in sys.modules:
            registry.register()
