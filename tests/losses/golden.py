"""Cases that published implementations computed in float64: random inputs, settings, value and gradients."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

#: A loss as a function of a case's settings, its inputs and its labels.
Loss = Callable[[dict[str, Any], list[Tensor], Tensor | None], Tensor]


def read_cases(file: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "golden" / file).read_bytes())
    return cases


def name_and_seed(case: dict[str, Any]) -> str:
    return f"{case['name']} {case['seed']}"


def inputs_of(case: dict[str, Any]) -> tuple[list[Tensor], Tensor | None]:
    """Returns the inputs, which require gradients, and the labels, None if none are drawn."""
    rng = np.random.default_rng(case["seed"])
    inputs = [
        torch.from_numpy(rng.standard_normal(shape) * scale).requires_grad_()
        for shape, scale in zip(case["shapes"], case["scales"], strict=True)
    ]
    labels = None
    if case["labels"]:
        batch, classes = case["labels"]
        labels = torch.from_numpy(rng.integers(0, classes, batch))
    return inputs, labels


def assert_equals_published(case: dict[str, Any], loss: Loss) -> None:
    """Equal value, and equal gradients of the inputs that the case lists, to a relative 1e-9."""
    inputs, labels = inputs_of(case)
    value = loss(case["params"], inputs, labels)
    value.backward()
    assert value.item() == pytest.approx(case["loss"], rel=1e-9)
    for index, expected in case["grads"].items():
        gradient = inputs[int(index)].grad
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(expected["norm"], rel=1e-9)
        assert gradient.flatten()[:5].tolist() == pytest.approx(expected["first5"], rel=1e-9)
