"""Projected gradient ascent: exact balls, known optima, and nothing changed behind its back."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kd_bench.robustness.norm_ball import Ball, distance
from kd_bench.robustness.pgd import NOISE, cross_entropy, pgd
from tests.robustness.parts import network


def images(count: int = 32, size: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 256, (count, 3, size, size), generator=generator)
    drawn[: count // 4] = drawn[: count // 4] % 2 * 255  # black and white, where [0, 1] cuts
    return drawn.float() / 255


def labels(count: int = 32) -> torch.Tensor:
    return torch.arange(count) % 10


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lengths(adversarial: torch.Tensor, originals: torch.Tensor, norm: str) -> np.ndarray:
    """How far images are from the originals, by NumPy in float64."""
    change = (adversarial.numpy().astype(np.float64) - originals.numpy().astype(np.float64)).reshape(
        len(adversarial), -1
    )
    return np.abs(change).max(1) if norm == "Linf" else np.sqrt((change**2).sum(1))


@pytest.mark.parametrize("start", ["none", "gaussian", "uniform"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("norm", "eps"), [("Linf", 8 / 255), ("Linf", 0.1), ("Linf", 2**-6), ("Linf", 1e-4), ("L2", 0.5), ("L2", 3.0)]
)
def test_result_never_leaves_the_ball_or_0_to_1(norm: Any, eps: float, dtype: torch.dtype, start: Any) -> None:
    x = images().to(dtype)
    adversarial = pgd(
        network().to(dtype), x, cross_entropy(labels()), eps=eps, steps=4, step_size=eps / 2, norm=norm, start=start,
        generator=generator(),
    )  # fmt: skip
    assert adversarial.dtype == dtype
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert lengths(adversarial, x, norm).max() <= eps
    # and the attack uses the room that it has
    assert np.median(lengths(adversarial, x, norm)) > 0.9 * eps


def test_single_precision_alone_would_leave_the_ball() -> None:
    x, eps = images(), 0.1
    naive = torch.min(torch.max(x + 1, x - eps), x + eps).clamp(0, 1)
    assert lengths(naive, x, "Linf").max() > eps
    exact = Ball(x, eps, "Linf").project(x + 1)
    assert lengths(exact, x, "Linf").max() <= eps
    torch.testing.assert_close(exact, naive)


class Linear(nn.Module):
    """Logits that are linear in the pixels, so that the worst image is known."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(10, 3 * 8 * 8, generator=generator(3))
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_finds_the_worst_image_of_a_linear_network(norm: Any) -> None:
    net, eps = Linear(), 0.05
    x = torch.full((4, 3, 8, 8), 0.5)  # far from black and white
    adversarial = pgd(
        net, x, lambda logits: logits[:, 3], eps=eps, steps=20, step_size=eps / 4, norm=norm, start="none"
    )
    gradient = net.weight[3].detach().double()
    best = gradient.abs().sum() if norm == "Linf" else gradient.norm()
    gained = ((adversarial - x).double().flatten(1) @ gradient) / (eps * best)
    torch.testing.assert_close(gained, torch.ones_like(gained), rtol=1e-4, atol=0)


def test_starts() -> None:
    x, net = images(), network()
    common = {"eps": 0.1, "steps": 0, "step_size": 0.1}
    assert torch.equal(pgd(net, x, cross_entropy(labels()), start="none", **common), x)
    for norm, start, eps in (("Linf", "uniform", 0.1), ("L2", "uniform", 0.1), ("Linf", "gaussian", 0.1)):
        drawn = [
            pgd(net, x, cross_entropy(labels()), eps=eps, steps=0, step_size=1, norm=norm, start=start,
                generator=generator(seed)) for seed in (1, 1, 2)
        ]  # fmt: skip
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
    inside = torch.full((64, 3, 8, 8), 0.5)
    noise = Ball(inside, 1, "Linf").add_normal_noise(NOISE, generator()) - inside
    assert noise.std().item() == pytest.approx(NOISE, rel=0.02)
    uniform = Ball(inside, 0.2, "Linf").sample_uniform(generator()) - inside
    assert uniform.std().item() == pytest.approx(0.2 / 3**0.5, rel=0.02)
    # in many dimensions nearly all of an L2 ball lies near its surface
    radius = distance(Ball(inside, 0.2, "L2").sample_uniform(generator()), inside, "L2")
    assert (radius > 0.18).all()
    assert (radius <= 0.2).all()


def test_network_is_left_as_it_was() -> None:
    net = network()
    net.train()
    net[1].eval()  # a frozen batch norm among others
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    net[0].weight.grad = torch.ones_like(net[0].weight)
    seen = []
    net[0].register_forward_hook(lambda module, *_: seen.append([layer.training for layer in net.modules()]))
    state = torch.get_rng_state()
    pgd(net, images(), cross_entropy(labels()), eps=0.1, steps=3, step_size=0.1, generator=generator())
    assert len(seen) == 3
    assert not any(any(training) for training in seen)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert all(parameter.grad is None for name, parameter in net.named_parameters() if name != "0.weight")
    assert torch.equal(torch.get_rng_state(), state)


def test_network_is_left_as_it_was_where_the_loss_fails() -> None:
    net = network().train()

    def failing(logits: torch.Tensor) -> torch.Tensor:
        raise ValueError("no loss")

    with pytest.raises(ValueError, match="no loss"):
        pgd(net, images(), failing, eps=0.1, steps=1, step_size=0.1)
    assert all(module.training for module in net.modules())


def test_works_where_gradients_are_off() -> None:
    x = images()
    with torch.no_grad():
        adversarial = pgd(
            network(), x, cross_entropy(labels()), eps=0.1, steps=2, step_size=0.05, generator=generator()
        )
    assert not adversarial.requires_grad
    again = pgd(network(), x, cross_entropy(labels()), eps=0.1, steps=2, step_size=0.05, generator=generator())
    assert torch.equal(adversarial, again)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_image_does_not_depend_on_its_batch(norm: Any) -> None:
    net, x, y = network().double().eval(), images().double(), labels()
    common = {"eps": 0.1, "steps": 5, "step_size": 0.03, "norm": norm, "start": "none"}
    whole = pgd(net, x, cross_entropy(y), **common)
    alone = pgd(net, x[5:6], cross_entropy(y[5:6]), **common)
    torch.testing.assert_close(whole[5:6], alone)
