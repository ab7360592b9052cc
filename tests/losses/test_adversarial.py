"""The losses of adversarial training against the definitions and the published implementation, in float64."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kd_bench import losses
from tests.losses import naive
from tests.losses.cases import assert_same, batches, classes, draw, scales, seeds

CASE = next(
    case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_bytes())
    if case["name"] == "ikl adversarial"
)


def pairs(natural: Tensor, adversarial: Tensor, weights: Tensor, alpha: float, beta: float) -> Tensor:
    """The paper's form, with every pair of classes."""
    soft = naive.soft_cross_entropy(adversarial, natural.detach(), 1.0)
    return alpha * naive.pairwise_mse(adversarial, natural, weights) + beta * soft


@given(seeds, batches, classes, scales, st.floats(0.1, 30), st.floats(0.1, 10), st.floats(0.5, 8))
def test_closed_form_and_pairs_agree(
    seed: int, b: int, c: int, scale: float, alpha: float, beta: float, tau: float
) -> None:
    natural, adversarial = draw(seed, 2, b, c, scale=scale)
    prior = losses.class_weights(draw(seed + 1, c, c, scale=3.0), tau)
    weights = prior[torch.randint(c, (b,), generator=torch.Generator().manual_seed(seed))]
    assert_same(
        lambda n, a: losses.ikl_adversarial(n, a, weights, alpha, beta),
        lambda n, a: pairs(n, a, weights, alpha, beta),
        natural,
        adversarial,
    )


@given(seeds, batches, classes, scales)
def test_trades_is_the_divergence_from_the_natural_side(seed: int, b: int, c: int, scale: float) -> None:
    natural, adversarial = draw(seed, 2, b, c, scale=scale)
    assert_same(losses.trades, lambda n, a: naive.kd(a, n, 1.0), natural, adversarial)


def test_equals_the_published_implementation() -> None:
    rng = np.random.default_rng(CASE["seed"])
    natural, adversarial, prior = (
        torch.from_numpy(rng.standard_normal(shape) * scale).requires_grad_()
        for shape, scale in zip(CASE["shapes"], CASE["scales"], strict=True)
    )
    batch, count = CASE["labels"]
    labels = torch.from_numpy(rng.integers(0, count, batch))
    weights = losses.class_weights(prior, 1.0)[labels]
    params = CASE["params"]
    loss = losses.ikl_adversarial(natural, adversarial, weights, params["wmse_weight"], params["soft_ce_weight"])
    loss.backward()
    assert loss.item() == pytest.approx(CASE["loss"], rel=1e-9)
    for given_, expected in ((natural, CASE["grads"]["0"]), (adversarial, CASE["grads"]["1"])):
        assert given_.grad is not None
        assert given_.grad.norm().item() == pytest.approx(expected["norm"], rel=1e-9)
        assert given_.grad.flatten()[:5].tolist() == pytest.approx(expected["first5"], rel=1e-9)


@given(seeds, batches, classes)
def test_the_soft_label_is_not_trained_and_the_pairwise_term_is_on_both_sides(seed: int, b: int, c: int) -> None:
    natural, adversarial = (logits.requires_grad_() for logits in draw(seed, 2, b, c))
    weights = torch.full((c,), 1 / c, dtype=torch.float64)
    soft = losses.ikl_adversarial(natural, adversarial, weights, 0.0, 1.0)
    assert torch.autograd.grad(soft, natural, allow_unused=True)[0].abs().max() == 0
    pairwise = losses.ikl_adversarial(natural, adversarial, weights, 1.0, 0.0)
    to_natural, to_adversarial = torch.autograd.grad(pairwise, (natural, adversarial))
    torch.testing.assert_close(to_natural, -to_adversarial)
    assert to_natural.abs().max() > 0


@given(seeds, batches, classes, scales)
def test_with_the_natural_probabilities_as_weights_the_gradients_are_those_of_trades(
    seed: int, b: int, c: int, scale: float
) -> None:
    """Lemma 1 for each side: the pairwise term has the natural gradient, the soft cross-entropy the adversarial one."""
    natural, adversarial = (logits.requires_grad_() for logits in draw(seed, 2, b, c, scale=scale))
    to_natural, to_adversarial = torch.autograd.grad(losses.trades(natural, adversarial), (natural, adversarial))
    weights = losses.class_weights(natural, 1.0)
    pairwise = losses.ikl_adversarial(natural, adversarial.detach(), weights, 1.0, 0.0)
    soft = losses.ikl_adversarial(natural.detach(), adversarial, weights, 0.0, 1.0)
    torch.testing.assert_close(torch.autograd.grad(pairwise, natural)[0], to_natural, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(soft, adversarial)[0], to_adversarial, rtol=1e-7, atol=1e-12)


def test_class_weights_have_no_gradient_and_become_even() -> None:
    logits = draw(3, 4, 6, scale=5.0).requires_grad_()
    sharp, flat = losses.class_weights(logits, 1.0), losses.class_weights(logits, 100.0)
    assert not sharp.requires_grad
    torch.testing.assert_close(sharp, logits.detach().softmax(-1))
    assert (flat - 1 / 6).abs().max() < 0.1 * (sharp - 1 / 6).abs().max()
