"""A member of a cohort of whose network only a part is trained."""

from __future__ import annotations

from typing import Any

from torch import nn

from kd_bench.config.trial import Trial
from kd_bench.methods.base import Method
from kd_bench.training.result_writer import ResultWriter
from kd_bench.training.student import StudentModule

_AVERAGED = "module."  # prefix of the network's keys in the state of its moving average


class PartlyTrainedModule(StudentModule):
    """One trial in training, whose network is frozen except for some modules.

    All other modules stay in evaluation mode: batch norms keep their statistics, and nothing is dropped. Checkpoints
    have the trained part only, because the rest is in the file that the training starts from.

    Args:
        trial, network, view, method, writer: As for ``StudentModule``. Frozen parameters require no gradient.
        trained: The modules that are trained.
    """

    def __init__(
        self,
        trial: Trial,
        network: nn.Module,
        view: nn.Module,
        method: Method,
        writer: ResultWriter,
        trained: frozenset[nn.Module],
    ) -> None:
        super().__init__(trial, network, view, method, writer)
        self._frozen = tuple(module for module in network.modules() if module not in trained)
        prefixes = {f"{name}." if name else "" for name, module in network.named_modules() if module in trained}
        keys = network.state_dict().keys()
        self._trained_keys = frozenset(key for key in keys if f"{key.rpartition('.')[0]}." in prefixes)
        self.train(self.training)

    def train(self, mode: bool = True) -> PartlyTrainedModule:
        """Sets the mode of everything that is not frozen."""
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self

    def state(self) -> dict[str, Any]:
        """Returns everything that further training depends on, beside the frozen weights."""
        state = super().state()
        state["network"] = {key: value for key, value in state["network"].items() if key in self._trained_keys}
        if self.average is not None:
            network = {f"{_AVERAGED}{key}" for key in self.network.state_dict().keys() - self._trained_keys}
            state["average"] = {key: value for key, value in state["average"].items() if key not in network}
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a state returned by ``state()``."""
        whole = {**state, "network": {**self.network.state_dict(), **state["network"]}}
        if self.average is not None:
            whole["average"] = {**self.average.state_dict(), **state["average"]}
        super().restore(whole)
