"""Every network of ours against the published definitions: counts, keys, shapes, and logits under a fixed fill."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_bench.models import create, own_models
from kd_bench.models.outputs import observe
from tests.golden.fill import fill

ZOO: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[1] / "golden" / "zoo.json").read_text())

PUBLISHED = {
    "cifar_resnet8": "resnet8",
    "cifar_resnet14": "resnet14",
    "cifar_resnet20": "resnet20",
    "cifar_resnet32": "resnet32",
    "cifar_resnet44": "resnet44",
    "cifar_resnet56": "resnet56",
    "cifar_resnet110": "resnet110",
    "cifar_resnet8x4": "resnet8x4",
    "cifar_resnet32x4": "resnet32x4",
    "cifar_wrn_16_1": "wrn_16_1",
    "cifar_wrn_16_2": "wrn_16_2",
    "cifar_wrn_40_1": "wrn_40_1",
    "cifar_wrn_40_2": "wrn_40_2",
}


def test_every_network_of_ours_has_golden_values() -> None:
    assert set(own_models()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_the_published_definition(name: str) -> None:
    golden = ZOO[PUBLISHED[name]]
    network = create(name, num_classes=100).eval()
    state = network.state_dict()
    keys = list(state)
    assert sum(one.numel() for one in network.parameters()) == golden["params"]
    assert len(keys) == golden["keys"]
    assert keys[:3] == golden["first_keys"]
    assert keys[-2:] == golden["last_keys"]

    for key, one in state.items():
        state[key] = torch.tensor(fill(key, tuple(one.shape)), dtype=one.dtype)
    network.load_state_dict(state)
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32))
    with torch.no_grad():
        outputs = observe(network, images, frozenset({"logits", "stages", "preacts", "pooled"}))
    assert [list(stage.shape[1:]) for stage in outputs.stages] == golden["stages"]
    assert [list(preact.shape[1:]) for preact in outputs.preacts] == golden["preact"]
    assert outputs.pooled is not None
    assert list(outputs.pooled.shape[1:]) == golden["pooled"]
    assert outputs.logits[0, :5].tolist() == pytest.approx(golden["logits_first5"], abs=1e-4)
    assert outputs.logits.norm().item() == pytest.approx(golden["logits_norm"], abs=1e-4)
