"""A run records the images that its trials see, and refuses others for a trial that has begun or a teacher."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from kd_bench.config.data import Dataset
from kd_bench.data import registry
from tests.data.photos import photo, tree
from tests.launch.test_end_to_end import run

RECIPE = {
    "dataset": {"name": "folder", "path": "mine", "size": 16},
    "epochs": 1,
    "batch_size": 12,
    "trials": 1,
    "schedule": {"name": "cosine"},
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": {"none": {}, "kd": {}},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tree(tmp_path / "data" / "mine")
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def start(recipe: Path, *more: str):
    return run("run", str(recipe), "--data", str(recipe.parent / "data"), "--out", str(recipe.parent / "out"), *more)


@pytest.mark.slow
def test_images_are_recorded_and_others_are_refused(recipe: Path) -> None:
    data, out = recipe.parent / "data", recipe.parent / "out"
    done = start(recipe)
    assert done.returncode == 0, done.stderr
    dataset = Dataset(name="folder", path="mine", size=16)
    record = registry.open_dataset(dataset, None, data).record
    folders = sorted(path.parent for path in out.glob("*/*/trial.json"))
    assert len(folders) == 3
    for folder in folders:
        for name in ("result.json", "environment.json"):
            assert json.loads((folder / name).read_text())["images"] == record
    table = " ".join(run("table", str(recipe), "--out", str(out)).stdout.split())
    assert f"digest of the images {record['digest'][:16]}" in table

    # A trial with a checkpoint. What is in it does not matter, because the images are compared before it is read.
    (student,) = (path for path in folders if json.loads((path / "trial.json").read_text())["method"]["name"] == "kd")
    (student / "result.json").unlink()
    (student / "checkpoint").mkdir()
    state = student / "checkpoint" / f"epoch-000001-{hashlib.sha256(b'state').hexdigest()[:16]}.pt"
    state.write_bytes(b"state")
    image = data / "mine" / "val" / "bee" / "003.JPEG"
    before = image.read_bytes()
    photo(7).save(image.with_name("new.JPEG"))
    image.with_name("new.JPEG").replace(image)
    now = registry.open_dataset(dataset, None, data).record
    digests = f"from other images than the present ones (digest {record['digest']}, now {now['digest']})"
    refused = start(recipe)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert f"{student}: its checkpoints are {digests}" in " ".join(refused.stderr.split())
    assert state.exists() and not (student / "result.json").exists()
    assert json.loads((student / "environment.json").read_text())["images"] == record

    # Without the checkpoint, it is the teacher that is of other images.
    state.unlink()
    refused = start(recipe)
    (teacher,) = (path for path in folders if path.parent.name == "teachers")
    assert refused.returncode == 1
    assert f"{teacher}: this teacher's result is {digests}" in " ".join(refused.stderr.split())

    image.write_bytes(before)
    image.touch()
    image.rename(image.with_name("moved"))
    image.with_name("moved").rename(image)
    done = start(recipe)
    assert done.returncode == 0, done.stderr
    assert json.loads((student / "result.json").read_text())["images"] == record
