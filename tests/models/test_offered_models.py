"""Networks that an installed package offers, also if it registers them with timm."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
from timm.models import _registry as timm_registry

from kd_bench.models import registry as models
from kd_bench.utils.errors import UserError

SOURCE = """
import timm
from timm.models import register_model


@register_model
def net_with_timm(pretrained=False, **kwargs):
    \"\"\"A small ResNet.\"\"\"
    return timm.create_model("resnet10t", stem_width=8, **kwargs)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with two entry points, one of which leads nowhere."""
    (tmp_path / "pack_with_timm.py").write_text(SOURCE)
    meta = tmp_path / "pack_with_timm-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: pack-with-timm\nVersion: 1.0\n")
    names = "net_with_timm = pack_with_timm:net_with_timm\nlost_net = pack_with_timm:Lost\n"
    (meta / "entry_points.txt").write_text(f"[kd_bench.models]\n{names}")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "pack_with_timm.py"
    sys.modules.pop("pack_with_timm", None)
    for names_of_timm in vars(timm_registry).values():
        if isinstance(names_of_timm, dict):
            names_of_timm.pop("net_with_timm", None)
    timm_registry._module_to_models.pop("pack_with_timm", None)


def test_a_network_that_registers_with_timm_is_the_same_plug_in_before_and_after(package: Path) -> None:
    before = models.source_hash("net_with_timm")
    assert before is not None
    for _ in range(2):  # the first call imports the package, by which timm knows the name
        built = models.create("net_with_timm", 7, image_size=32)
        assert built.num_classes == 7
        assert timm.is_model("net_with_timm")
        assert models.source_hash("net_with_timm") == before


def test_a_file_with_a_function_that_registers_with_timm(package: Path) -> None:
    built = models.create(f"{package}:net_with_timm", 7, image_size=32)
    assert built.num_classes == 7


def test_a_network_that_cannot_be_used_hides_no_other(package: Path) -> None:
    offered = models.offered_models()
    assert offered["net_with_timm"] == "A small ResNet."
    assert offered["lost_net"] == (
        f"cannot be used: model 'lost_net': no class or function of {package} is called 'Lost'; "
        "there are: net_with_timm"
    )


def test_the_prefix_of_our_networks_may_be_left_out_for_small_images_only() -> None:
    with pytest.raises(UserError) as caught:
        models.resolve("resnet14", "r.yaml: pairs", prefix="")
    assert str(caught.value) == (
        "r.yaml: pairs: no network is called 'resnet14'; write 'cifar_resnet14': the prefix may be left out only if "
        "the data set's images have at most 64 pixels"
    )
