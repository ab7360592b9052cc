"""Losses of adversarial training, between a network's logits of images (natural) and of perturbed images (adversarial).

Both are outputs of the network that is trained, so both sides have a gradient. The cross-entropy is not included.
"""

import torch
from torch import Tensor

from kd_bench.losses.arguments import check_positive
from kd_bench.losses.ikl import ikl
from kd_bench.losses.kl import kd
from kd_bench.losses.precision import at_least_float32


def trades(natural_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """KL(softmax(n) || softmax(a)), summed over the classes, mean over the batch.

    Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy" (2019), eq. 5 with the divergence
    of their code, without its weight 1 / lambda. Both sides have a gradient.

    Args:
        natural_logits, adversarial_logits: (B, C), n and a.

    >>> import torch
    >>> from kd_bench.losses import trades
    >>> logits = torch.tensor([[1.0, 2.0, 4.0]])
    >>> trades(logits, logits).item()
    0.0
    """
    return kd(adversarial_logits, natural_logits, temperature=1.0)


def ikl_adversarial(
    natural_logits: Tensor, adversarial_logits: Tensor, weights: Tensor, alpha: float, beta: float
) -> Tensor:
    """IKL between natural and adversarial logits, in O(B C) time and memory.

    alpha * 1/4 sum_jk w_j w_k ((n_j - n_k) - (a_j - a_k))^2 + beta * -sum_j softmax(stop(n))_j log_softmax(a)_j, mean
    over the batch. Cui et al., "Decoupled Kullback-Leibler Divergence Loss", appendix eq. 13 to 15. Both sides have a
    gradient from the pairwise term, and only the adversarial side from the soft cross-entropy, as in the released code.

    Args:
        natural_logits, adversarial_logits: (B, C), n and a.
        weights: (B, C) or (C,), w, detached; in the paper the mean of ``class_weights`` over the image's class.
        alpha: Weight of the pairwise term (``beta`` in the released code).
        beta: Weight of the soft cross-entropy (``alpha`` in the released code).

    >>> import torch
    >>> from kd_bench.losses import ikl_adversarial
    >>> natural, adversarial = torch.tensor([[2.0, 0.0, 0.0, 2.0]]), torch.zeros(1, 4)
    >>> round(ikl_adversarial(natural, adversarial, torch.full((4,), 0.25), 20.0, 3.0).item(), 4)  # 20 / 2 + 3 log 4
    14.1589
    """
    return ikl(adversarial_logits, natural_logits, weights, alpha, beta)


@torch.no_grad()
def class_weights(logits: Tensor, tau: float) -> Tensor:
    """softmax(logits / tau), (B, C), without gradient: an image's contribution to the weights of its class (eq. 15).

    Args:
        logits: (B, C).
        tau: The temperature.

    >>> import torch
    >>> from kd_bench.losses import class_weights
    >>> class_weights(torch.zeros(1, 4), tau=4.0)
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    check_positive(tau=tau)
    return (at_least_float32(logits) / tau).softmax(-1)
