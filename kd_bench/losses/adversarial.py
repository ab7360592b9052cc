"""The losses of adversarial training: how far a network's outputs of perturbed images are from those of the images.

Both sides are one network's, so both learn: the gradient goes to the natural logits, those of the images as they are,
and to the adversarial ones. The cross-entropy with the labels stands beside these losses, not in them.
"""

import torch
from torch import Tensor

from kd_bench.losses.ikl import ikl
from kd_bench.losses.kl import kd
from kd_bench.losses.precision import at_least_float32


def trades(natural_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """KL(softmax(n) || softmax(a)), summed over the classes, mean over the batch.

    Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy" (2019), eq. 5 with the divergence
    as the surrogate of their code, without its weight 1 / lambda. The gradient goes to both sides.

    Args:
        natural_logits: (B, C), n.
        adversarial_logits: (B, C), a.

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
    """IKL between an image's and its perturbed image's logits, in O(B C) time and memory.

    alpha * 1/4 sum_jk w_j w_k ((n_j - n_k) - (a_j - a_k))^2 + beta * -sum_j softmax(stop(n))_j log_softmax(a)_j, mean
    over the batch. Cui et al., "Decoupled Kullback-Leibler Divergence Loss", appendix eq. 13 to 15. The gradient of the
    pairwise term goes to both sides, that of the soft cross-entropy to the adversarial one alone, as in the released
    code, where the two letters are exchanged.

    Args:
        natural_logits: (B, C), n.
        adversarial_logits: (B, C), a.
        weights: (B, C) or (C,), w; in the paper each image's row is ``class_weights`` averaged over its class. The
            gradient would reach them too: the caller detaches them.
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
    """softmax(logits / tau), (B, C), without gradient: an image's part of its class's weights (appendix eq. 15).

    Args:
        logits: (B, C).
        tau: The temperature; the larger, the more even are the weights.

    >>> import torch
    >>> from kd_bench.losses import class_weights
    >>> class_weights(torch.zeros(1, 4), tau=4.0)
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    return (at_least_float32(logits) / tau).softmax(-1)
