"""Files of weights as people have them, and files that are none."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kd_bench.errors import UserError
from kd_bench.models import create, weights
from kd_bench.models.weights import load_into, read

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return create("cifar_resnet8", 7).state_dict()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


LAYOUTS: dict[str, tuple[Callable[[State], Any], str]] = {
    "bare": (lambda state: state, "a torch file"),
    "ordered": (collections.OrderedDict, "a torch file"),
    "model": (lambda state: {"epoch": 240, "model": state}, "'model' in a torch file"),
    "state_dict": (lambda state: {"state_dict": state, "best_acc": 0.7}, "'state_dict' in a torch file"),
    "model_state_dict": (lambda state: {"model_state_dict": state}, "'model_state_dict' in a torch file"),
    "net": (lambda state: {"net": state, "acc": 70.0}, "'net' in a torch file"),
    "parallel": (lambda state: {"model": prefixed(state, "module.")}, "without the prefix 'module.'"),
    "compiled": (lambda state: prefixed(state, "_orig_mod."), "without the prefix '_orig_mod.'"),
    "both": (lambda state: prefixed(state, "module._orig_mod."), "'module.', without the prefix '_orig_mod.'"),
    "lightning": (
        lambda state: {
            "epoch": 3,
            "pytorch-lightning_version": "2.6.0",
            "state_dict": prefixed(state, "model."),
            "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
            "callbacks": {},
        },
        "'state_dict' in a torch file, without the prefix 'model.'",
    ),
    "namespace": (
        lambda state: {"opt": argparse.Namespace(lr=0.05, dataset="cifar100"), "model": state, "accuracy": 70.5},
        "'model' in a torch file",
    ),
    "numpy": (
        lambda state: {"model": state, "best": np.float64(70.5), "curve": np.arange(3.0)},
        "'model' in a torch file",
    ),
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before zip"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(state: State, tmp_path: Path, layout: str, old: bool) -> None:
    make, said = LAYOUTS[layout]
    path = tmp_path / "weights.pth"
    torch.save(make(state), path, _use_new_zipfile_serialization=not old)
    found = read(path)
    assert said in found.layout
    network = create("cifar_resnet8", 7)
    load_into(network, found.state, path, "cifar_resnet8")
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_facts_are_what_stands_beside_the_weights(state: State, tmp_path: Path) -> None:
    content = {"model": state, "epoch": 240, "accuracy": torch.tensor(70.5), "best": np.float64(71), "name": "a"}
    torch.save({**content, "opt": argparse.Namespace(lr=1)}, tmp_path / "a.pth")
    assert read(tmp_path / "a.pth").facts == {"epoch": 240, "accuracy": 70.5, "best": 71.0, "name": "a"}


def test_a_key_that_is_named(state: State, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {"a": torch.zeros(1)}, "ema": {"student": state}}, path)
    assert read(path, "ema.student").state.keys() == state.keys()
    with pytest.raises(UserError, match="has no key 'studnt'; did you mean 'student'"):
        read(path, "ema.studnt")


def test_safetensors_by_its_content(state: State, tmp_path: Path) -> None:
    save_file(prefixed(state, "module."), tmp_path / "a.bin")
    assert read(tmp_path / "a.bin").layout == "safetensors, without the prefix 'module.'"
    load_into(create("cifar_resnet8", 7), read(tmp_path / "a.bin").state, tmp_path, "cifar_resnet8")


def test_what_is_written_is_read_and_always_the_same(state: State, tmp_path: Path) -> None:
    metadata = {"model": "cifar_resnet8", "accuracy": 70.5}
    digests = {weights.write(tmp_path / f"{name}.safetensors", state, metadata) for name in "ab"}
    assert len(digests) == 1
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert weights.about(tmp_path / "a.safetensors") == metadata
    found = read(tmp_path / "a.safetensors")
    assert found.facts == metadata
    assert all(torch.equal(found.state[key], value) for key, value in state.items())


def test_weights_take_the_networks_type(state: State, tmp_path: Path) -> None:
    torch.save(
        {key: value.half() if value.is_floating_point() else value for key, value in state.items()}, tmp_path / "a"
    )
    network = create("cifar_resnet8", 7)
    load_into(network, read(tmp_path / "a").state, tmp_path / "a", "cifar_resnet8")
    assert network.fc.weight.dtype == torch.float32  # type: ignore[union-attr]


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before zip"])
def test_a_malicious_pickle_does_not_run(state: State, tmp_path: Path, old: bool) -> None:
    path = tmp_path / "a.pth"
    content = {"model": state, "opt": Malicious(tmp_path / "ran")}
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(
        UserError, match=r"a\.pth: was not read, because it wants to call \w+\.mkdir, which is not data"
    ):
        read(path)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError):
        read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"hello", "is no file of weights"),
        (b"PK\x03\x04 and no more", "is no file of weights"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{ and no JSON ..", "is a damaged safetensors file"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "a.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'a.pth'}: {said}")
    assert "\n" not in str(caught.value)


def test_truncated_missing_and_odd_files(state: State, tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save({"model": state}, whole)
    (tmp_path / "half.pth").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    torch.save({"loss": [1.0], "names": "a"}, tmp_path / "none.pth")
    torch.save({**state, "fc.bias": state["fc.bias"] * torch.nan}, tmp_path / "nan.pth")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pth"))
    expected = {
        "half.pth": "is no file of weights, or a damaged one",
        "nothing.pth": "cannot be read: No such file",
        ".": "cannot be read: Is a directory",
        "none.pth": "holds no weights that could be recognised, but 'loss', 'names'",
        "nan.pth": "'fc.bias' holds numbers that are not finite",
        "script.pth": "TorchScript",
    }
    for name, said in expected.items():
        with pytest.raises(UserError, match=said):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "classes", "said"),
    [
        ("cifar_resnet8", 100, "holds cifar_resnet8 for 7 classes, and 100 are wanted"),
        ("cifar_resnet14", 7, "it lacks 'layer1.1.conv1.weight'; these look like the weights of cifar_resnet8"),
        (
            "cifar_wrn_16_1",
            7,
            "it lacks 'block1.layer.0.bn1.weight' and 'layer1.0.conv1.weight' is not the network's; ",
        ),
        ("resnet10t", 7, "these look like the weights of cifar_resnet8"),
    ],
)
def test_weights_of_another_network(state: State, name: str, classes: int, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_into(create(name, classes), state, Path("a.pth"), name)
    assert said in str(caught.value)
    assert str(caught.value).startswith("a.pth: ")


def test_other_widths_are_told_by_shape(state: State) -> None:
    wide = {key: value.repeat_interleave(2, 0) if value.ndim else value for key, value in state.items()}
    with pytest.raises(UserError, match=r"'conv1\.weight' is \(32, 3, 3, 3\) and should be \(16, 3, 3, 3\)"):
        load_into(create("cifar_resnet8", 7), wide, Path("a.pth"), "cifar_resnet8")


def test_the_likeliest_network() -> None:
    for name in ("cifar_vgg13", "cifar_mobilenet_v2", "cifar_wrn_40_2"):
        assert weights.likeliest(create(name, 10).state_dict()) == name
    assert weights.likeliest({"a": torch.zeros(2)}) is None


def test_a_real_file() -> None:
    path = Path(os.environ.get("KD_BENCH_DATA", "nowhere")) / "teachers" / "wrn_16_2.pth"
    if not path.is_file():
        pytest.skip("KD_BENCH_DATA has no teachers/wrn_16_2.pth")
    found = read(path)
    load_into(create("cifar_wrn_16_2", 100), found.state, path, "cifar_wrn_16_2")
    assert json.dumps(found.facts)
    assert found.facts["accuracy"] == pytest.approx(70.81)
