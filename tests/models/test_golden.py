"""Every network of ours against the published definitions: counts, keys, shapes, and logits under a fixed fill."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_bench.models import create, own_models
from kd_bench.models.outputs import observe
from kd_bench.models.registry import PUBLISHED_NAMES
from tests.golden.fill import fill

ZOO: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[1] / "golden" / "zoo.json").read_text())

#: Our name and the one in zoo.json.
PUBLISHED = {PUBLISHED_NAMES.get(name, f"cifar_{name.removesuffix(' (robust)')}"): name for name in ZOO}
#: Of each published definition: SHA-256 of the lines "key shape" of its state dict, in its order.
KEYS: dict[str, str] = json.loads((Path(__file__).parents[1] / "golden" / "zoo_keys.json").read_text())


def test_every_network_of_ours_has_golden_values() -> None:
    assert set(own_models()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_the_published_definition(name: str) -> None:
    golden = ZOO[PUBLISHED[name]]
    network = create(name, num_classes=100).eval()
    state = network.state_dict()
    keys = list(state)
    assert sum(parameter.numel() for parameter in network.parameters()) == golden["params"]
    assert f" {golden['params'] / 1e6:.2f} M parameters" in own_models()[name]
    assert len(keys) == golden["keys"]
    lines = "".join(f"{key} {list(value.shape)}\n" for key, value in state.items())
    assert hashlib.sha256(lines.encode()).hexdigest() == KEYS[PUBLISHED[name]]

    for key, value in state.items():
        state[key] = torch.tensor(fill(key, tuple(value.shape)), dtype=value.dtype)
    network.load_state_dict(state)
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32))
    with torch.no_grad():
        outputs = observe(network, images, frozenset({"logits", "stages", "preacts", "pooled"}))
    if "stages" in golden:
        assert [list(stage.shape[1:]) for stage in outputs.stages] == golden["stages"]
        # The published MobileNet-V2 has no pre-activations; ours has.
        assert [list(preact.shape[1:]) for preact in outputs.preacts] == (golden["preact"] or golden["stages"])
        assert outputs.pooled is not None
        assert list(outputs.pooled.shape[1:]) == golden["pooled"]
    assert outputs.logits[0, :5].tolist() == pytest.approx(golden["logits_first5"], abs=1e-4)
    assert outputs.logits.norm().item() == pytest.approx(golden["logits_norm"], abs=1e-4)
