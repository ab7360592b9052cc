"""Counts the batches of a network's batch norms in one operation, not in one for each: on a GPU every one costs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_bench.models.outputs import observe
from kd_bench.models.timm_interface import dry_run
from kd_bench.types import Output

_COUNTER = "num_batches_tracked"


class BatchNormCounters:
    """Takes the buffers ``num_batches_tracked`` out of training passes, and updates all of them after a pass.

    A batch norm adds one to its counter in every training pass, a kernel each. Nothing reads the counter but batch
    norms without momentum and synchronised ones, which keep theirs. State dicts are the same as without this class.

    Args:
        module: A network, or any module with batch norms.
        calls: How often a pass calls each batch norm, from ``count_calls``; batch norms that are missing keep their
            counters. Required if ``module`` is compiled. None: calls are counted in every pass.
    """

    def __init__(self, module: nn.Module, calls: Mapping[nn.Module, int] | None = None) -> None:
        self._norms = [
            norm
            for norm in module.modules()
            if isinstance(norm, _BatchNorm) and not isinstance(norm, nn.SyncBatchNorm) and norm.momentum is not None
        ]
        self._calls = calls

    @contextmanager
    def updated_together(self) -> Iterator[None]:
        """Inside, forward passes leave the counters alone; at the end all are updated, and are the same tensors.

        Reads no numbers from the device, so a CUDA graph that is captured inside has the update, too. If there is an
        error, no counter is updated.
        """
        counters: dict[_BatchNorm, Any] = {}
        stand_ins: dict[_BatchNorm, _Calls] = {}
        for norm in self._norms:
            is_known = self._calls is None or norm in self._calls
            if is_known and norm.training and norm.track_running_stats and norm._buffers[_COUNTER] is not None:
                counters[norm] = norm._buffers[_COUNTER]
                stand_ins[norm] = _Calls(0 if self._calls is None else self._calls[norm])
        try:
            for norm, stand_in in stand_ins.items():
                # Compiled passes accept None only.
                norm._buffers[_COUNTER] = stand_in if self._calls is None else None  # type: ignore[assignment]
            yield
        finally:
            for norm, counter in counters.items():
                norm._buffers[_COUNTER] = counter
        by_calls: defaultdict[int, list[Tensor]] = defaultdict(list)
        for norm, stand_in in stand_ins.items():
            by_calls[stand_in.count].append(counters[norm])
        for calls, same in by_calls.items():
            if calls:
                torch._foreach_add_(same, calls)


def count_calls(network: nn.Module, image: tuple[int, ...], needs: frozenset[Output]) -> dict[nn.Module, int]:
    """Returns how often a forward pass calls each batch norm; those that it does not call are missing.

    Runs one forward pass in evaluation mode, which does not change the network.

    Args:
        network: A network with timm's interface, not compiled.
        image: (C, H, W) of an image that it can process.
        needs: Outputs that the passes return, as for ``observe``.
    """
    calls: Counter[nn.Module] = Counter()
    with ExitStack() as hooks:
        for norm in network.modules():
            if isinstance(norm, _BatchNorm):
                hooks.enter_context(norm.register_forward_hook(lambda norm, *_: calls.update([norm])))
        with dry_run(network, image) as black:
            observe(network, black, needs)
    return dict(calls)


class _Calls:
    """Stands for a counter during a pass: counts in Python."""

    def __init__(self, count: int) -> None:
        self.count = count

    def add_(self, number: int) -> None:
        """Adds to the count, as ``Tensor.add_`` does."""
        self.count += number
