"""Files of weights as people have them, and loading them into networks."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.utilities.parsing import AttributeDict
from safetensors.torch import save_file
from torch import Tensor

from kd_bench.models import create, weights
from kd_bench.models.matching import closest_networks
from kd_bench.models.weights import load_into, read
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import sha256

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
    "under another key": (lambda state: {"teacher": state, "args": {"lr": 0.1}}, "'teacher' in a torch file"),
    "beside a mapping of that name": (
        lambda state: {"model": {"name": "a"}, "state_dict": state},
        "'state_dict' in a torch file",
    ),
    "deep": (lambda state: {"last": {"model": state, "epoch": 3}}, "'last.model' in a torch file"),
    "ours": (
        lambda state: {"network": state, "method": {"a.weight": torch.ones(2)}, "optimizer": {}, "history": []},
        "'network' in a torch file",
    ),
    "compiled in part": (
        lambda state: {key.replace("layer1.", "layer1._orig_mod."): value for key, value in state.items()},
        "a torch file, without '_orig_mod.'",
    ),
    "compiled": (lambda state: prefixed(state, "_orig_mod."), "without the prefix '_orig_mod.'"),
    "both": (lambda state: prefixed(state, "module._orig_mod."), "'module.', without the prefix '_orig_mod.'"),
    "lightning": (
        lambda state: {
            "epoch": 3,
            "pytorch-lightning_version": "2.6.0",
            "state_dict": prefixed(state, "model."),
            "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.7)}},
            "hyper_parameters": AttributeDict(lr=0.1, out=pathlib.Path("runs")),
        },
        "'state_dict' in a torch file, without the prefix 'model.'",
    ),
    "namespace": (
        lambda state: {"opt": argparse.Namespace(lr=0.05, dataset="cifar100"), "model": state, "accuracy": 70.5},
        "'model' in a torch file",
    ),
    "numpy": (
        lambda state: {"model": state, "all": [np.int64(3), np.bool_(True), np.str_("a"), np.arange(3.0)]},
        "'model' in a torch file",
    ),
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before zip"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(state: State, tmp_path: Path, layout: str, old: bool) -> None:
    make, message = LAYOUTS[layout]
    path = tmp_path / "weights.pth"
    torch.save(make(state), path, _use_new_zipfile_serialization=not old)
    content = read(path)
    assert message in content.layout
    network = create("cifar_resnet8", 7)
    load_into(network, content.state, path, "cifar_resnet8")
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_facts_are_what_stands_beside_the_weights(state: State, tmp_path: Path) -> None:
    content = {"model": state, "epoch": 240, "accuracy": torch.tensor(70.5), "best": np.float32(71), "name": "a"}
    other = {"opt": argparse.Namespace(lr=1), "done": True, "loss": float("nan"), "log": "a" * 1000, "ansi": "\x1b[31m"}
    torch.save({**content, **other}, tmp_path / "a.pth")
    expected = {"epoch": 240, "accuracy": 70.5, "best": 71.0, "name": "a"}
    assert read(tmp_path / "a.pth").facts == expected
    torch.save({"seed": 1, "last": content, "first": {"epoch": 1}}, tmp_path / "b.pth")
    assert read(tmp_path / "b.pth").facts == expected | {"seed": 1}
    assert read(tmp_path / "b.pth", "last.model").facts == expected | {"seed": 1}
    torch.save(state, tmp_path / "c.pth")
    assert read(tmp_path / "c.pth").facts == {}


def test_a_key_that_is_named(state: State, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {"a": torch.zeros(1)}, "ema": {"student": state}}, path)
    assert read(path, "ema.student").state.keys() == state.keys()
    with pytest.raises(UserError, match="has no key 'studnt'; did you mean 'student'"):
        read(path, "ema.studnt")
    with pytest.raises(UserError, match="has no key 'further'"):
        read(path, "model.a.further")


def test_a_part_of_a_state_dict(state: State, tmp_path: Path) -> None:
    both = prefixed(state, "student.") | {f"teacher.net.{key}": value.clone() for key, value in state.items()}
    torch.save({"state_dict": both, "a.b": {"c": state}}, tmp_path / "a.pth")
    for key in ("state_dict.student", "state_dict.teacher", "a.b", "a.b.c"):
        assert read(tmp_path / "a.pth", key).state.keys() == state.keys()
    save_file(both, tmp_path / "a.safetensors")
    content = read(tmp_path / "a.safetensors", "student")
    assert (content.state.keys(), content.layout) == (state.keys(), "'student' in safetensors")


def test_several_weights_of_which_none_is_usual(state: State, tmp_path: Path) -> None:
    torch.save({"teacher": state, "best": {"model": state.copy()}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth: holds weights under several keys, 'teacher', 'best\.model'; choose"):
        read(tmp_path / "a.pth")


def test_safetensors_by_its_content(state: State, tmp_path: Path) -> None:
    save_file(prefixed(state, "module."), tmp_path / "a.bin")
    assert read(tmp_path / "a.bin").layout == "safetensors, without the prefix 'module.'"
    load_into(create("cifar_resnet8", 7), read(tmp_path / "a.bin").state, tmp_path, "cifar_resnet8")


def test_what_is_written_is_read_and_always_the_same(state: State, tmp_path: Path) -> None:
    metadata = {"model": "cifar_resnet8", "accuracy": 70.5}
    backwards = dict(reversed(state.items()))
    tensor = torch.rand(2, 3)
    shared = {"whole": tensor, "again": tensor, "part": tensor[1], "turned": tensor.T}
    digests = {
        weights.write(tmp_path / f"{name}.safetensors", each, metadata)
        for name, each in zip("ab", (state, backwards), strict=True)
    }
    assert digests == {sha256(tmp_path / "a.safetensors")}
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert weights.read_metadata(tmp_path / "a.safetensors") == metadata
    weights.write(tmp_path / "shared.safetensors", shared, {})
    assert all(torch.equal(read(tmp_path / "shared.safetensors").state[key], shared[key]) for key in shared)
    content = read(tmp_path / "a.safetensors")
    assert content.facts == metadata
    assert all(torch.equal(content.state[key], value) for key, value in state.items())


def test_only_what_is_written_here_has_metadata(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "a.safetensors", metadata={"format": "pt"})
    save_file(state, tmp_path / "b.safetensors", metadata={"kd_bench": "[" * 100_000})
    assert [weights.read_metadata(tmp_path / f"{name}.safetensors") for name in "abc"] == [None] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_take_the_networks_type(state: State, dtype: torch.dtype) -> None:
    source = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    network = create("cifar_resnet8", 7)
    load_into(network, source, Path("a.pth"), "cifar_resnet8")
    for key, value in network.state_dict().items():
        assert value.dtype == state[key].dtype
        torch.testing.assert_close(value, source[key].to(value.dtype), rtol=0, atol=0)


def test_files_of_before_batch_norms_counted(state: State) -> None:
    old = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    load_into(create("cifar_resnet8", 7), old, Path("a.pth"), "cifar_resnet8")
    with pytest.raises(UserError, match="holds cifar_resnet8 for 7 classes, and 5 are wanted"):
        load_into(create("cifar_resnet8", 5), old, Path("a.pth"), "cifar_resnet8")
    assert closest_networks(old) == "cifar_resnet8"


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("cifar_resnet8", 100, "holds cifar_resnet8 for 7 classes, and 100 are wanted"),
        ("cifar_resnet14", 7, "it lacks 'layer1.1.conv1.weight'; these look like the weights of cifar_resnet8"),
        (
            "cifar_wrn_16_1",
            7,
            "it lacks 'block1.layer.0.bn1.weight', 'layer1.0.conv1.weight' is not the network's, "
            "'bn1.weight' is (16,) and should be (64,); these look like the weights of cifar_resnet8",
        ),
        ("resnet10t", 7, "these look like the weights of cifar_resnet8"),
    ],
)
def test_weights_of_another_network(state: State, name: str, classes: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_into(create(name, classes), state, Path("a.pth"), name)
    assert message in str(caught.value)
    assert str(caught.value).startswith("a.pth: ")


def test_two_classifiers() -> None:
    source = create("deit_tiny_distilled_patch16_224", 3).state_dict()
    with pytest.raises(UserError, match="holds deit for 3 classes, and 4 are wanted"):
        load_into(create("deit_tiny_distilled_patch16_224", 4), source, Path("a.pth"), "deit")


def test_what_a_network_leaves_out_is_not_complained_of() -> None:
    source = create("cifar_wrn_16_1", 7).state_dict()
    source |= {f"sub_{key}": value for key, value in source.items() if key.startswith("block1.")}
    load_into(create("cifar_wrn_16_1", 7), source, Path("a.pth"), "cifar_wrn_16_1")
    del source["conv1.weight"]
    with pytest.raises(UserError) as caught:
        load_into(create("cifar_wrn_16_1", 7), source, Path("a.pth"), "cifar_wrn_16_1")
    assert str(caught.value) == "a.pth: does not hold the weights of cifar_wrn_16_1: it lacks 'conv1.weight'"


def test_other_widths_are_told_by_shape(state: State) -> None:
    wide = {key: value.repeat_interleave(2, 0) if value.ndim else value for key, value in state.items()}
    with pytest.raises(UserError, match=r"'conv1\.weight' is \(32, 3, 3, 3\) and should be \(16, 3, 3, 3\)"):
        load_into(create("cifar_resnet8", 7), wide, Path("a.pth"), "cifar_resnet8")


def test_the_likeliest_network() -> None:
    for name in ("cifar_vgg13", "cifar_mobilenet_v2", "cifar_wrn_40_2"):
        assert closest_networks(create(name, 10).state_dict()) == name
    assert closest_networks({"a": torch.zeros(2)}) == ""


def test_the_number_of_classes() -> None:
    state = create("cifar_vgg8", 10).state_dict()
    assert weights.num_classes(state, create("cifar_vgg8", 1)) == 10
    assert weights.num_classes({"a": torch.zeros(2)}, create("cifar_vgg8", 1)) is None


def test_a_real_file() -> None:
    path = Path(os.environ.get("KD_BENCH_DATA", "nowhere")) / "teachers" / "wrn_16_2.pth"
    if not path.is_file():
        pytest.skip("KD_BENCH_DATA has no teachers/wrn_16_2.pth")
    content = read(path)
    load_into(create("cifar_wrn_16_2", 100), content.state, path, "cifar_wrn_16_2")
    assert json.dumps(content.facts)
    assert content.layout == "'model' in a torch file"
    assert content.facts["accuracy"] == pytest.approx(70.81)
