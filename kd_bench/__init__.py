"""kd-bench: the benchmark suite for knowledge distillation.

The public names are imported on first use, so that ``import kd_bench`` does not import torch. ``compare`` and ``run``
train, and ``load`` reads results. ``distiller`` is a method in a training loop of one's own. ``Method`` is the base
class of methods, ``Batch``, ``Outputs``, ``Needs`` and ``Pair`` are what its arguments and attributes are made of,
``losses`` holds the losses as functions of tensors, and ``create_model`` builds networks. Errors that a user can cause
are ``UserError``, and work that failed is ``RunFailed``; the message is one sentence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd_bench import losses
    from kd_bench.methods.base import Method
    from kd_bench.models.factory import create_model
    from kd_bench.python_api.compare import compare, run
    from kd_bench.python_api.distiller import distiller
    from kd_bench.python_api.results import load
    from kd_bench.types import Batch, Needs, Outputs, Pair
    from kd_bench.utils.errors import RunFailed, UserError

__version__ = "0.2.0"

__all__ = [
    "Batch",
    "Method",
    "Needs",
    "Outputs",
    "Pair",
    "RunFailed",
    "UserError",
    "compare",
    "create_model",
    "distiller",
    "load",
    "losses",
    "run",
]

#: Modules of the public names that are not in ``kd_bench.types``.
_MODULES = {
    "Method": "kd_bench.methods.base",
    "RunFailed": "kd_bench.utils.errors",
    "UserError": "kd_bench.utils.errors",
    "compare": "kd_bench.python_api.compare",
    "create_model": "kd_bench.models.factory",
    "distiller": "kd_bench.python_api.distiller",
    "load": "kd_bench.python_api.results",
    "run": "kd_bench.python_api.compare",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    from importlib import import_module

    if name == "losses":
        return import_module("kd_bench.losses")
    if name in __all__:
        return getattr(import_module(_MODULES.get(name, "kd_bench.types")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
