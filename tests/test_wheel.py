"""What travels in the wheel: all that an installed kd-bench reads, and nothing of the results that were measured."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: Folders of the checkout, and where the package has them.
SHARED = {
    "recipes": "kd_bench/_share/recipes",
    "teachers": "kd_bench/_share/teachers",
    "students": "kd_bench/_share/students",
    "devices": "kd_bench/_share/devices",
    "results/published": "kd_bench/_share/results/published",
    "kd_bench": "kd_bench",
}


def test_the_wheel_holds_what_is_read(tmp_path):
    builders = pytest.importorskip("hatchling.builders.wheel")
    (file,) = builders.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(file) as wheel:
        names = set(wheel.namelist())
        entry = wheel.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
        metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    wanted = {
        f"{inside}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, inside in SHARED.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "kd-bench = kd_bench.cli.main:main" in entry
    for extra in ("robust", "ray", "slurm", "tensorboard", "wandb"):
        assert f"Provides-Extra: {extra}" in metadata
