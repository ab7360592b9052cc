"""A student whose pooling and classifier are replaced by layers of its method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd_bench.models.timm_interface import evaluation_mode, last_feature_map
from kd_bench.utils.errors import UserError, first_line


class StudentWithHead(nn.Module):
    """Maps images to logits by a network's last feature map and a head on top of it.

    Args:
        network: A network with timm's ``forward_features``, whose own head is not used.
        head: Maps the last feature map, (B, D, H, W), to logits, (B, K).
    """

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps (B, 3, H, W) images to the last feature map, (B, D, H, W)."""
        network: Any = self.network
        return last_feature_map(network, network.forward_features(x))

    def forward_head(self, x: Tensor) -> Tensor:
        """Maps the last feature map to (B, K) logits."""
        logits: Tensor = self.head(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, 3, H, W) images to (B, K) logits."""
        return self.forward_head(self.forward_features(x))


@torch.no_grad()
def check_head(head: nn.Module, features: tuple[int, ...] | None, num_classes: int, method: str) -> None:
    """Checks that a head maps a feature map to logits, by one pass in evaluation mode, which does not change it.

    Args:
        head: The head.
        features: (D, H, W) of the student's last feature map; None if the method does not need it.
        num_classes: K.
        method: Name of the method, for the error message.

    Raises:
        UserError: If it does not.
    """
    if features is None:
        raise UserError(f"{method}: its inference_head reads the student's 'features', and needs.student lacks them")
    if any(parameter.is_meta for parameter in head.parameters()):  # the estimate of costs runs it later
        return
    like = next(head.parameters(), torch.empty(0))
    with evaluation_mode(head):
        try:
            shape = tuple(head(torch.zeros(1, *features, device=like.device, dtype=like.dtype)).shape)
        except (RuntimeError, ValueError, AttributeError) as error:
            reason = first_line(error)
        else:
            reason = "" if shape == (1, num_classes) else f"it returns {shape} for one image"
    if reason:
        expected = f"map {('B', *features)} to logits, {('B', num_classes)}".replace("'", "")
        raise UserError(f"{method}: its inference_head should {expected} ({reason})")


def has_head(state: Mapping[str, Tensor]) -> bool:
    """Whether a state is that of a ``StudentWithHead``."""
    return {key.partition(".")[0] for key in state} == {"network", "head"}


def remove_classifier(network: nn.Module, name: str, method: str) -> None:
    """Removes a network's classifier, in whose place a method's head comes.

    Args:
        network: The network, which is changed.
        name, method: Names of network and method, for the error message.

    Raises:
        UserError: If the network has no timm interface.
    """
    lacking = [function for function in ("reset_classifier", "forward_features") if not hasattr(network, function)]
    if lacking:
        raise UserError(f"{method} replaces the student's classifier, and {name} lacks {lacking[0]}, which timm's have")
    reset: Any = network
    reset.reset_classifier(0)
