"""``kd-bench show`` and ``list`` with plug-ins: of files, and of installed packages of which one is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_bench.cli.list import list_
from kd_bench.cli.show import describe
from kd_bench.utils.errors import UserError

SOURCE = '''
from kd_bench.methods.base import Method


class Views(Method):
    """Reads the labels."""

    def forward(self, student, teacher, batch):
        return {"ce": self.label_loss(student, batch)}


class Weighted(Method):
    """Weighs the labels."""

    def __init__(self, pair, *, weight: float):
        super().__init__(pair)
        self.weight = weight

    def forward(self, student, teacher, batch):
        return {"ce": self.weight * self.label_loss(student, batch)}


def net(pretrained=False, **kwargs):
    """Is made in timm's style."""


def flip(images, generator):
    """Returns mirror images."""
    return images.flip(-1)


def other(number):
    """Is no plug-in."""
'''


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(SOURCE)
    return "mine.py"


def test_the_kind_of_a_plug_in_follows_from_its_arguments(file: str) -> None:
    assert "Reads the labels." in describe(f"{file}:Views")  # without hyper-parameters it needs no __init__
    weighted = describe(f"{file}:Weighted").splitlines()
    assert [line for line in weighted if line.startswith("  weight")] == ["  weight: float"]  # it has no default
    assert describe(f"{file}:net").startswith(f"{file}:net (model)\n\nIs made in timm's style.")
    with pytest.raises(UserError, match="its arguments are those of no kind of plug-in; the kinds and their arguments"):
        describe(f"{file}:other")


def test_a_broken_package_does_not_hide_the_methods_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = tmp_path / "broken_pack-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-pack\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text(
        "[kd_bench.methods]\nlost_method = broken_pack:Lost\n[kd_bench.datasets]\nlost_set = broken_pack:Lost\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for kind, name, known in (("methods", "lost_method", "ikl_kd"), ("datasets", "lost_set", "cifar100")):
        list_(kind)
        shown = capsys.readouterr().out
        assert known in shown and f"{name} " in shown and "cannot be used: " in shown
