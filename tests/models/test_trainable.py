"""The part of a network that is trained: exactly the classifier, or the last block and what comes behind it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kd_bench.models import registry
from kd_bench.models.trainable import freeze
from kd_bench.utils.errors import UserError


def trained(name: str, part: str, size: int = 32) -> set[str]:
    """Returns the modules whose parameters are trained."""
    network = registry.create(name, 5, size)
    freeze(network, part, (3, size, size), name)  # type: ignore[arg-type]
    return {key.rpartition(".")[0] for key, value in network.named_parameters() if value.requires_grad}


def under(name: str, prefixes: tuple[str, ...]) -> set[str]:
    """Returns all modules with parameters that are, or are inside of, one of these."""
    network = registry.create(name, 5, 32)
    modules = {key.rpartition(".")[0] for key, _ in network.named_parameters()}
    return {module for module in modules if any(f"{module}.".startswith(f"{prefix}.") for prefix in prefixes)}


@pytest.mark.parametrize(
    ("name", "head", "last_block"),
    [
        ("test_vit", "head", ("blocks.5", "norm")),
        ("test_resnet", "fc", ("layer4.0",)),
        ("test_convnext", "head.fc", ("stages.3.blocks.1", "head.norm")),
        ("mobilenetv3_small_050", "classifier", ("blocks.5.0", "conv_head")),
        ("regnetx_002", "head.fc", ("s4.b7",)),
    ],
)
def test_exactly_these_layers_are_trained(name: str, head: str, last_block: tuple[str, ...]) -> None:
    assert trained(name, "head") == {head}
    modules = trained(name, "last_block")
    assert modules == under(name, (*last_block, head))
    assert len(modules) > 2


def test_a_parameter_that_a_layer_reads_from_another_one_is_trained_with_it() -> None:
    # The pooling by attention has a query of its own, and reads it without calling a module.
    assert "attn_pool" in trained("vit_base_patch16_siglip_224", "last_block", 224)


def test_the_frozen_part_has_no_gradient_and_the_forward_pass_is_the_same() -> None:
    torch.manual_seed(0)
    network, images = registry.create("test_resnet", 5).eval(), torch.randn(4, 3, 32, 32)
    before = network(images).detach()
    parts = freeze(network, "last_block", (3, 32, 32), "test_resnet")
    assert network not in parts
    logits = network(images)
    assert torch.equal(logits.detach(), before)
    logits.sum().backward()
    for key, parameter in network.named_parameters():
        assert (parameter.grad is not None) == key.startswith(("layer4.0", "fc")), key


def test_a_network_that_does_not_show_its_parts() -> None:
    with pytest.raises(UserError, match=r"cifar_resnet8: trainable: its last block is not known.*train the head"):
        trained("cifar_resnet8", "last_block")
    assert trained("cifar_resnet8", "head") == {"fc"}
    with pytest.raises(UserError, match="its classifier is not known, because it has no get_classifier"):
        freeze(nn.Linear(3, 3), "head", (3,), "own.py:Net")


def test_all_freezes_nothing() -> None:
    network = registry.create("test_resnet", 5)
    assert freeze(network, "all", (3, 32, 32), "test_resnet") == frozenset(network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
