"""Files that want to run code, and files that are damaged or hold no weights."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kd_bench.models import create
from kd_bench.models.weights import read
from kd_bench.utils.errors import UserError

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return create("cifar_resnet8", 7).state_dict()


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", ["zip", "before zip", "bare pickle"])
def test_a_malicious_pickle_does_not_run(state: State, tmp_path: Path, form: str, protocol: int) -> None:
    path = tmp_path / "a.pth"
    content = {"model": state, "opt": Malicious(tmp_path / "ran")}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"opt": content["opt"]}, protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")
    message = rf"a\.pth: was not read, because it wants to call {os.name}\.mkdir, which is not data"
    with pytest.raises(UserError, match=message):
        read(path)
    assert not (tmp_path / "ran").exists()


class Crafted:
    """Pickles as a call of numpy's functions that numpy would believe, with a pointer to nowhere among its data."""

    def __reduce__(self) -> Any:
        return np.float64(0).__reduce__()[0], (np.dtype("O"), b"AAAAAAAA")


def test_numpy_makes_nothing_of_what_a_file_says(state: State, tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save({"model": state, "best": Crafted()}, tmp_path / "a.pth")
    assert read(tmp_path / "a.pth").facts == {}
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_whole_network_is_code(tmp_path: Path) -> None:
    torch.save({"net": torch.nn.Linear(2, 2)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"it wants to call torch\.nn\.modules\.linear\.Linear"):
        read(tmp_path / "a.pth")


def test_another_protocol(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "a.pth", pickle_protocol=4)
    with pytest.raises(UserError, match=r"a\.pth: is pickled by protocol 4"):
        read(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(10**12),
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
        torch.ones(3, dtype=torch.complex64),
    ],
    ids=["one for many", "sparse", "meta", "complex"],
)
def test_tensors_that_are_no_weights(tmp_path: Path, value: Tensor) -> None:
    torch.save({"a": torch.ones(2), "b": value}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth: 'b' is not a dense tensor"):
        read(tmp_path / "a.pth")


def test_mappings_that_have_no_end(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    for _ in range(6):
        content = {str(number): content for number in range(1000)}
    torch.save(content, tmp_path / "b.pth")
    for name in ("a", "b"):
        with pytest.raises(UserError, match="holds no weights"):
            read(tmp_path / f"{name}.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is only a pointer of git-lfs to the weights"),
        (b"hello", "is no file of weights"),
        (b"PK\x03\x04 and no more", "is no file of weights"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{ and no JSON ..", "is a damaged safetensors file"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "a.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'a.pth'}: {message}")
    assert "\n" not in str(caught.value)


def test_truncated_missing_and_odd_files(state: State, tmp_path: Path) -> None:
    for name, zipped in (("half.pth", True), ("old.pth", False)):
        torch.save({"model": state}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        os.truncate(tmp_path / name, (tmp_path / name).stat().st_size // 2)
    save_file(state, tmp_path / "half.safetensors")
    os.truncate(tmp_path / "half.safetensors", 20_000)
    torch.save({"accuracy": torch.tensor(70.0)}, tmp_path / "scalar.pth")
    torch.save({"loss": [1.0], "names": "a"}, tmp_path / "none.pth")
    torch.save({**state, "fc.bias": state["fc.bias"] * torch.nan}, tmp_path / "nan.pth")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pth"))
    expected = {
        "half.pth": "is no file of weights, or a damaged one",
        "old.pth": "is no file of weights, or a damaged one",
        "half.safetensors": "is a damaged safetensors file",
        "scalar.pth": "holds no weights",
        "nothing.pth": "cannot be read: No such file",
        ".": "cannot be read: Is a directory",
        "none.pth": "holds no weights that could be recognised, but 'loss', 'names'",
        "nan.pth": "'fc.bias' holds numbers that are not finite",
        "script.pth": "TorchScript",
    }
    for name, message in expected.items():
        with pytest.raises(UserError, match=message) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
