import subprocess
import sys

import pytest
import timm
import torch

from kd_bench.models import create, own_models, register, resolve
from kd_bench.utils.errors import UserError


def test_names_and_their_first_lines() -> None:
    models = own_models()
    assert "cifar_resnet32x4" in models
    assert models["cifar_wrn_40_2"] == "WRN-40-2 for 32x32 images, 2.26 M parameters."
    assert all(name.startswith("cifar_") and line.endswith(".") for name, line in models.items())


def test_the_sources_and_timm_know_the_same_networks() -> None:
    register()
    register()
    assert set(timm.list_models("cifar_*")) == set(own_models())


@pytest.mark.parametrize(
    ("written", "known"),
    [
        ("resnet20", "cifar_resnet20"),
        ("cifar_resnet20", "cifar_resnet20"),
        ("wrn_40_2", "cifar_wrn_40_2"),
        ("resnet10t", "resnet10t"),
        ("resnet18.a1_in1k", "resnet18.a1_in1k"),
    ],
)
def test_resolve(written: str, known: str) -> None:
    assert resolve(written) == known


def test_without_the_prefix_only_whole_names_count() -> None:
    assert resolve("cifar_resnet20", prefix="") == "cifar_resnet20"
    with pytest.raises(UserError):
        resolve("resnet20", prefix="")


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("resnt20", "did you mean 'resnet20'"),
        ("cifar_resnet23", "did you mean 'cifar_resnet"),
        ("convnext_attto", "did you mean 'convnext_atto'"),
        ("resnet18.a1_in1x", "did you mean 'resnet18.a1_in1k'"),
        ("?", "there are: "),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(written: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(written, "demo.yaml: pairs")
    message = str(caught.value)
    assert message.startswith(f"demo.yaml: pairs: no network is called {written!r}; ")
    assert hint in message
    assert "\n" not in message


def test_create_draws_from_torchs_generator_only() -> None:
    torch.manual_seed(1)
    state = create("cifar_resnet8", 10).state_dict()
    torch.manual_seed(1)
    other = create("cifar_resnet8", 10).state_dict()
    torch.manual_seed(2)
    third = create("cifar_resnet8", 10).state_dict()
    assert all(torch.equal(state[key], other[key]) for key in state)
    assert not torch.equal(state["conv1.weight"], third["conv1.weight"])


def test_create_names_what_is_wrong() -> None:
    with pytest.raises(UserError, match="no network is called 'cifar_resnet21'"):
        create("cifar_resnet21", 10)
    with pytest.raises(UserError, match="model cifar_resnet8: takes no argument 'drop_rat'"):
        create("cifar_resnet8", 10, drop_rat=0.1)


def test_listing_names_imports_neither_torch_nor_timm() -> None:
    code = (
        "import sys; from kd_bench.models import registry; "
        "assert len(registry.own_models()) >= 13; assert registry.resolve('resnet20') == 'cifar_resnet20'; "
        "print([name for name in ('torch', 'timm', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
