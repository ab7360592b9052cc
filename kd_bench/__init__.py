"""kd-bench: the benchmark suite for knowledge distillation.

The public names are imported on first use, so that ``import kd_bench`` does not import torch. ``Method`` is the base
class of methods, ``Batch``, ``Outputs``, ``Needs`` and ``Pair`` are what its arguments and attributes are made of, and
``losses`` holds the losses as functions of tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd_bench import losses
    from kd_bench.methods.base import Method
    from kd_bench.types import Batch, Needs, Outputs, Pair

__version__ = "0.1.0"

__all__ = ["Batch", "Method", "Needs", "Outputs", "Pair", "losses"]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    from importlib import import_module

    if name == "losses":
        return import_module("kd_bench.losses")
    if name in __all__:
        return getattr(import_module("kd_bench.methods.base" if name == "Method" else "kd_bench.types"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
