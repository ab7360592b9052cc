"""``kd_bench.create_model``, networks in timm's registry, and weights from the cards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import kd_bench
from kd_bench.models import cards, create, own_models, pretrained
from kd_bench.utils.errors import RunFailed, UserError
from kd_bench.utils.files import sha256


def run(code: str) -> str:
    """Runs code in a new process, where warnings are errors, and returns its output."""
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def same(model: nn.Module, other: nn.Module) -> bool:
    first, second = model.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("name", ["resnet20", "cifar_resnet20"])
def test_networks_by_name(name: str) -> None:
    torch.manual_seed(0)
    network = kd_bench.create_model(name, num_classes=7)
    torch.manual_seed(0)
    assert same(network, create("cifar_resnet20", 7))
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_other_networks(tmp_path: Path) -> None:
    assert kd_bench.create_model("resnet10t", 5)(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    maps = kd_bench.create_model("vgg8", 0, in_chans=1, features_only=True)(torch.zeros(1, 1, 32, 32))
    assert [feature_map.shape[1] for feature_map in maps] == [64, 128, 256, 512, 512]
    file = tmp_path / "own.py"
    file.write_text("from torch import nn\ndef tiny(num_classes):\n    return nn.Linear(2, num_classes)\n")
    assert kd_bench.create_model(f"{file}:tiny", 4)(torch.zeros(1, 2)).shape == (1, 4)


@pytest.mark.parametrize(
    "code",
    [
        "import kd_bench.models, timm",
        pytest.param("import timm, kd_bench.models", marks=pytest.mark.slow),
        pytest.param(
            "import kd_bench.models; from timm.models import create_model; import timm", marks=pytest.mark.slow
        ),
        pytest.param("import kd_bench; kd_bench.create_model('resnet8', 3); import timm", marks=pytest.mark.slow),
    ],
)
def test_timm_knows_the_networks_once_both_are_imported(code: str) -> None:
    ending = "print(timm.create_model('cifar_resnet20', num_classes=3).num_classes, len(timm.list_models('cifar_*')))"
    assert run(f"{code}; {ending}") == f"3 {len(own_models())}"


@pytest.mark.slow
def test_a_file_of_ours_may_import_timm_first() -> None:
    code = "import kd_bench.models.swish_wide_resnet, timm; print(timm.is_model('cifar_wrn_28_10_swish'))"
    assert run(code) == "True"


def test_importing_is_light() -> None:
    heavy = "print([name for name in ('torch', 'timm', 'numpy', 'kd_bench.models.factory') if name in sys.modules])"
    assert run(f"import sys, kd_bench, kd_bench.models; dir(kd_bench); {heavy}") == "[]"


CARD = """\
model: cifar_resnet8
published_name: R
weights:
  - url: {url}
    sha256: {digest}
"""


@pytest.fixture
def weights_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of weights for 100 classes, which a card in the working folder names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KD_BENCH_WEIGHTS", str(tmp_path / "weights"))
    torch.manual_seed(5)
    path = tmp_path / "published.pth"
    torch.save({"model": create("cifar_resnet8", 100).state_dict(), "epoch": 240}, path)
    write_card("cifar100", path)
    # The cards' addresses are of the web; this one is served from the disk.
    monkeypatch.setattr(
        "kd_bench.utils.download._download", lambda url, to, progress: to.write_bytes(path.read_bytes())
    )
    return path


def write_card(dataset: str, path: Path, digest: str | None = None) -> None:
    folder = Path("teachers") / dataset
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "resnet8.yaml").write_text(CARD.format(url="https://a/b.pth", digest=digest or sha256(path)))


def published(path: Path) -> nn.Module:
    network = create("cifar_resnet8", 100)
    network.load_state_dict(torch.load(path)["model"])
    return network


def test_weights_from_a_card(weights_file: Path, tmp_path: Path) -> None:
    network = kd_bench.create_model("resnet8", 100, pretrained=True)
    assert same(network, published(weights_file))
    assert (tmp_path / "weights" / "cifar100" / "resnet8.pth").read_bytes() == weights_file.read_bytes()
    weights_file.write_bytes(b"")  # further networks need no download
    for other in (
        timm.create_model("cifar_resnet8", pretrained=True),
        kd_bench.create_model("resnet8", 100, pretrained=True, dataset="cifar100"),
    ):
        assert same(other, network)
        assert "state_dict" not in other.pretrained_cfg
        assert other.pretrained_cfg["num_classes"] == 100


def test_weights_under_the_key_that_the_card_names(weights_file: Path) -> None:
    """A file may hold others that would be read without the key."""
    torch.manual_seed(6)
    average = create("cifar_resnet8", 100)
    torch.save({**torch.load(weights_file), "ema": average.state_dict()}, weights_file)
    write_card("cifar100", weights_file)
    card = Path("teachers/cifar100/resnet8.yaml")
    card.write_text(f"{card.read_text()}    key: ema\n")
    assert same(kd_bench.create_model("resnet8", 100, pretrained=True), average)

    teacher = cards.find("teachers", "cifar100", "resnet8")
    with pytest.raises(UserError) as caught:
        pretrained.require_weights(teacher, "resnet8", "cifar100", "teachers.resnet8.weights")
    path = weights_file.parent / "weights" / "cifar100" / "resnet8.pth"
    assert str(caught.value) == (
        f"teachers.resnet8.weights: teachers/cifar100/resnet8.yaml names the weights 'ema' in {path}, and a training "
        "reads others from this file; write them to a file of their own: kd-bench teacher convert "
        f"{path} NEW.safetensors --key ema, and name it: --set teachers.resnet8.weights=NEW.safetensors"
    )
    torch.save({"ema": average.state_dict(), "epoch": 1}, path)  # the only weights are read without the key
    assert pretrained.require_weights(teacher, "resnet8", "cifar100", "") == path


def test_another_classifier_other_channels_and_features(weights_file: Path) -> None:
    source = published(weights_file)
    torch.manual_seed(1)
    fine = kd_bench.create_model("resnet8", 10, pretrained=True)
    torch.manual_seed(1)
    fresh = kd_bench.create_model("resnet8", 10)
    state, expected = fine.state_dict(), {**source.state_dict(), **fresh.get_submodule("fc").state_dict(prefix="fc.")}
    assert all(torch.equal(value, expected[key]) for key, value in state.items())

    grey: Any = kd_bench.create_model("resnet8", 100, pretrained=True, in_chans=1)
    kernels: Any = source.get_submodule("conv1").weight
    torch.testing.assert_close(grey.conv1.weight, kernels.sum(1, keepdim=True))

    x = torch.randn(1, 3, 32, 32)
    stages: Any = source.eval()
    maps = kd_bench.create_model("resnet8", 0, pretrained=True, features_only=True).eval()(x)
    expected_maps = stages.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(feature_map, other) for feature_map, other in zip(maps, expected_maps, strict=True))


def test_pretrained_is_checked(weights_file: Path) -> None:
    write_card("cifar100", weights_file, digest="a" * 64)
    with pytest.raises(RunFailed, match=r"its SHA-256 is .*, and a{64} was expected; without a network, fetch"):
        kd_bench.create_model("resnet8", 100, pretrained=True)

    other = create("cifar_resnet14", 100).state_dict()
    torch.save(other, weights_file)
    write_card("cifar100", weights_file)
    wrong = r"does not hold the weights of cifar_resnet8: .*; these look like the weights of cifar_resnet14$"
    with pytest.raises(UserError, match=wrong):
        kd_bench.create_model("resnet8", 100, pretrained=True)


def test_cards_of_several_data_sets(weights_file: Path) -> None:
    write_card("cifar10", weights_file)
    expected = (
        "model cifar_resnet8: pretrained=True, but weights for several data sets are known ('cifar10', 'cifar100'); "
        "choose one, as in kd_bench.create_model('cifar_resnet8', ..., dataset='cifar10')"
    )
    for call in (
        lambda: kd_bench.create_model("resnet8", 100, pretrained=True),
        lambda: timm.create_model("cifar_resnet8", pretrained=True),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value) == expected
    network = kd_bench.create_model("resnet8", 100, pretrained=True, dataset="cifar100")
    assert same(network, published(weights_file))


def test_a_file_that_is_given_needs_no_card(weights_file: Path, tmp_path: Path) -> None:
    torch.manual_seed(8)
    given = create("cifar_resnet8", 100)
    torch.save(given.state_dict(), tmp_path / "given.pth")
    overlay = {"file": str(tmp_path / "given.pth")}
    assert same(kd_bench.create_model("resnet8", 100, pretrained=True, pretrained_cfg_overlay=overlay), given)
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "resnet14", "num_classes": 100, "pretrained": True},
            "model cifar_resnet14: pretrained=True, but no weights come with it; give a file, as in "
            "checkpoint_path='FILE' or pretrained_cfg_overlay={'file': 'FILE'}",
        ),
        (
            {"name": "resnet56", "num_classes": 10, "pretrained": True, "dataset": "imagenet"},
            "model cifar_resnet56: pretrained=True, but no weights of it for imagenet are known",
        ),
        (
            {"name": "test_vit4", "num_classes": 10, "pretrained": True},
            "model test_vit4: pretrained=True, but timm has no weights of it",
        ),
        ({"name": 3}, "create_model: name: should be the name of a network, e.g. 'resnet20' (it is 3)"),
        (
            {"name": "resnet8"},
            "create_model: num_classes is missing, the number of classes: create_model('resnet8', 100)",
        ),
        (
            {"name": "resnet8", "num_classes": True},
            "create_model: num_classes: should be a whole number of at least 0 (it is True)",
        ),
        (
            {"name": "resnet8", "num_classes": -1},
            "create_model: num_classes: should be a whole number of at least 0 (it is -1)",
        ),
        (
            {"name": "resnet8", "num_classes": "10"},
            "create_model: num_classes: should be a whole number of at least 0 (it is '10')",
        ),
        (
            {"name": "resnet8", "num_classes": 10, "dataset": "cifar100"},
            "create_model: dataset='cifar100' chooses weights, and goes only with pretrained=True",
        ),
        (
            {"name": "resnt20", "num_classes": 10},
            "create_model: no network is called 'resnt20'; did you mean 'resnet20'?",
        ),
        ({"name": "resnet8", "num_classes": 10, "dropp": 1}, "model cifar_resnet8: takes no argument 'dropp'"),
    ],
)
def test_errors_are_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        kd_bench.create_model(**arguments)
    assert str(caught.value).startswith(message)


def test_timms_weights_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KD_BENCH_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RunFailed) as caught:
        kd_bench.create_model("resnet10t", 10, pretrained=True)
    assert str(caught.value) == "resnet10t: the hub that timm has its weights from cannot be reached"
    with pytest.raises(RunFailed, match=r"^resnet34\.tv_in1k: the hub .* cannot be reached; without a network, fetch"):
        kd_bench.create_model("resnet34.tv_in1k", 10, pretrained=True)
