"""Weights of timm's on the public hub: what is said without a network, and files that were fetched by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from kd_bench.config.data import Input
from kd_bench.config.load import read_recipe
from kd_bench.data.registry import spec
from kd_bench.models import cards, pretrained, weights
from kd_bench.models.input_transform import InputTransform
from kd_bench.plan import plan
from kd_bench.utils.errors import RunFailed, UserError

V1 = "beit_large_patch16_224.in22k_ft_in22k_in1k"


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_BENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)


def test_fetching_without_a_network_says_what_to_fetch_and_where_to_put_it(tmp_path: Path) -> None:
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "kd_bench", "teacher", "fetch", "resnet34", "--dataset", "imagenet"]
    without_proxies = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    done = subprocess.run(
        command, env=without_proxies | nobody, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    path = tmp_path / "weights" / "imagenet" / "resnet34.safetensors"
    assert done.stderr.strip() == (
        "kd-bench: resnet34.tv_in1k: the hub that timm has its weights from cannot be reached; without a network, "
        "fetch model.safetensors of timm/resnet34.tv_in1k "
        "(http://127.0.0.1:9/timm/resnet34.tv_in1k/resolve/main/model.safetensors, about 87 MB) elsewhere "
        f"and put it at {path}, or name the file: --set teachers.resnet34.tv_in1k.weights=FILE"
    )


def test_without_the_file_a_recipe_says_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kd_bench", "run", "imagenet/table8", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    for words in (
        "get them with: kd-bench teacher fetch beitv2_large --dataset imagenet",
        "fetch model.safetensors of timm/beitv2_large_patch16_224.in1k_ft_in22k_in1k (",
        "about 1.22 GB",
        f"put it at {tmp_path / 'weights' / 'imagenet' / 'beitv2_large.safetensors'}",
        "--set teachers.beitv2_large_patch16_224.in1k_ft_in22k_in1k.weights=FILE",
    ):
        assert words in done.stderr


def test_what_a_mirror_would_have_given_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    card = cards.load("teachers", "cifar100", "resnet32x4")

    def fetch(urls: list[str], *rest: object, **more: object) -> None:
        raise RunFailed(f"{urls[0]}: does not answer")

    monkeypatch.setattr("kd_bench.utils.download.fetch", fetch)
    with pytest.raises(RunFailed) as error:
        pretrained.fetch(card)
    answers, _, advice = str(error.value).partition("; without a network, fetch ")
    for source in card.weights:
        assert f"{source.url}: does not answer" in answers and source.url in advice
    assert f"put it at {pretrained.weights_path(card)}" in str(error.value)


def test_a_file_by_its_option_for_names_with_dots(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(b"any")
    names = ("resnet34.tv_in1k", "resnet50.tv_in1k")
    read = read_recipe("imagenet/standard", [f"teachers.{name}.weights={file}" for name in names])
    assert {cell.weights for cell in plan(read, "standard")} == {file}
    changed = read_recipe("imagenet/standard", ["teachers.resnet34.tv_in1k.optimizer.lr=0.3"])
    assert changed.teachers["resnet34.tv_in1k"] == {"weights": "published", "optimizer": {"lr": 0.3}}
    assert read_recipe("imagenet/standard", ["teachers.resnet34.tv_in1k=null"]).teachers.keys() == {names[1]}


def test_the_first_version_of_beit_sees_images_in_its_own_normalisation(tmp_path: Path) -> None:
    file = pretrained.weights_path(cards.load("teachers", "imagenet", "beit_large"))
    file.parent.mkdir(parents=True)
    file.write_bytes(b"any")
    read = read_recipe("imagenet/table8_beit_v1")
    assert read.teachers == {V1: {"weights": "published"}}
    input_settings = Input(normalise="network")
    assert {cell.taught_by.input for cell in plan(read, "v1") if cell.taught_by} == {input_settings}
    by_path = read_recipe("imagenet/table8_beit_v1", [f"teachers.{V1}.weights={file}"])
    assert plan(by_path, "v1") == plan(read, "v1")

    imagenet = spec("imagenet")
    pixels = torch.rand(2, 3, 8, 8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (imagenet.mean, imagenet.std))
    for model, expected in (
        (V1, (pixels - 0.5) / 0.5),
        ("beitv2_large_patch16_224.in1k_ft_in22k_in1k", (pixels - mean) / std),
    ):
        stand_in = nn.Identity()
        stand_in.pretrained_cfg = timm.get_pretrained_cfg(model).to_dict()  # type: ignore[assignment]
        seen = InputTransform(stand_in, input_settings, 8, imagenet.mean, imagenet.std)((pixels - mean) / std)
        torch.testing.assert_close(seen, expected)


def test_tables_that_a_network_works_out_itself_may_stand_in_its_file(tmp_path: Path) -> None:
    """BEiT's relative positions do, in files of earlier versions."""
    network = nn.Linear(2, 1)
    network.register_buffer("relative_position_index", torch.arange(3), persistent=False)
    given = {"weight": torch.ones(1, 2), "bias": torch.ones(1), "relative_position_index": torch.zeros(3)}
    weights.load_into(network, given, tmp_path / "a.safetensors", "a")
    assert network.weight.tolist() == [[1.0, 1.0]] and network.relative_position_index.tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="'positions' is not the network's"):
        weights.load_into(network, given | {"positions": torch.zeros(3)}, tmp_path / "a.safetensors", "a")
