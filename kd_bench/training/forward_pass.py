"""Forward passes in a trial's precision, as written or compiled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kd_bench.models.outputs import observe
from kd_bench.types import LOGITS, Output, Outputs

#: Compiled versions that torch may keep of one piece of code. All members of a cohort share this limit: students in
#: training and in evaluation, teachers, and the smaller last batches.
_RECOMPILE_LIMIT = 256

#: Maps (B, C, H, W) images, and optionally the needed outputs (default: logits), to ``Outputs``.
ForwardPass = Callable[..., Outputs]


def build_forward_pass(network: nn.Module, mode: str = "off") -> ForwardPass:
    """Returns the forward pass of a network.

    Args:
        network: The network.
        mode: A trial's ``compile``: "on" or "graphs" for ``torch.compile``, anything else for the network as written.
    """
    logits: Callable[[Tensor], Tensor] = network
    all_outputs: Callable[[nn.Module, Tensor, frozenset[Output]], Outputs] = observe
    if compiles_students(mode):
        dynamo: Any = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, _RECOMPILE_LIMIT)
        dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 8 * _RECOMPILE_LIMIT)
        logits = torch.compile(network, dynamic=False)
        all_outputs = torch.compile(observe, dynamic=False)

    def forward_pass(images: Tensor, needs: frozenset[Output] = LOGITS) -> Outputs:
        return Outputs(logits(images)) if needs <= LOGITS else all_outputs(network, images, needs)

    return forward_pass


def compiles_students(mode: str) -> bool:
    """Whether a trial's ``compile`` applies to students. "graphs" is "on": steps on a GPU are CUDA graphs anyway."""
    return mode in ("on", "graphs")


def precision_context(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Returns the context in which networks compute in this precision: "float32" or "bfloat16"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
