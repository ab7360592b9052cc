"""Forward passes as a trial's settings want them: as they are written, compiled, or as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kd_bench.models.outputs import observe
from kd_bench.types import LOGITS, Output, Outputs

#: Compiled versions that torch may keep of one piece of code: students in training and in evaluation, teachers, and
#: last batches that are smaller, of all members of a cohort, share one.
_VERSIONS = 256


class Observer:
    """One network's forward passes. It is no module, so that the network's parameters keep their names.

    Args:
        network: The network.
        mode: "on" for ``torch.compile``; "graphs" for that and CUDA graphs on a GPU; anything else for neither.
    """

    def __init__(self, network: nn.Module, mode: str = "off") -> None:
        self._logits: Callable[[Tensor], Tensor] = network
        self._observe: Callable[..., Outputs] = observe
        self._network = network
        if mode in ("on", "graphs"):
            limits: Any = torch._dynamo.config
            limits.recompile_limit = max(limits.recompile_limit, _VERSIONS)
            limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 8 * _VERSIONS)
            how: dict[str, Any] = {"mode": "reduce-overhead"} if mode == "graphs" else {}
            self._logits = torch.compile(network, dynamic=False, **how)
            self._observe = torch.compile(observe, dynamic=False, **how)

    def __call__(self, images: Tensor, needs: frozenset[Output] = LOGITS) -> Outputs:
        """As ``kd_bench.models.outputs.observe``."""
        if needs <= LOGITS:
            return Outputs(self._logits(images))
        return self._observe(self._network, images, needs)
