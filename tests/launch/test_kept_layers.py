"""A method that keeps layers in the student, and one that sees two views, from the command line."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kd_bench.trials.exported_student import load_exported_student
from kd_bench.utils.errors import UserError
from tests.launch.test_end_to_end import WEIGHTS, run

RECIPE = {
    "dataset": {"name": "digits", "test_images": 100},
    "epochs": 2,
    "batch_size": 20,
    "trials": 1,
    "ema": 0.9,
    "optimizer": {"lr": 0.05},
    "schedule": {"name": "cosine"},
    "teacher_training": {"epochs": 2, "ema": None},
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": {
        "kd": {},
        "simkd": {},
        "mlkd": {},
        "two_views": {"method": "mlkd", "training": {"second_view": {"cutout": 4}}},
    },
}

#: Convolutions and batch norms of the projector from 64 to 64 channels by 32, and the classifier of ten classes.
KEPT = 64 * 32 + 9 * 32 * 32 + 32 * 64 + 2 * (32 + 32 + 64) + 64 * 10 + 10
STUDENT = 78_042


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe and its results."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "small.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    done = run("run", str(folder / "small.yaml"), "--out", str(folder / "runs"))
    assert done.returncode == 0, done.stderr
    return folder


def printed(*words: str) -> str:
    done = run(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def words_of(*words: str) -> str:
    """What a command prints, in one line."""
    return " ".join(printed(*words).split())


def trials(root: Path) -> dict[str, Path]:
    """The trials' folders by their row."""
    lines = printed("export", "csv", "--recipe", str(root / "small.yaml"), "--out", str(root / "runs"))
    return {row["label"]: root / "runs/small" / row["trial_id"] for row in csv.DictReader(io.StringIO(lines))}


def test_weights_and_result_have_the_layers(root: Path) -> None:
    folders = trials(root)
    result = json.loads((folders["simkd"] / "result.json").read_text())
    assert result["kept_parameters"] == KEPT
    assert result["method_parameters"] == 0
    assert result["parameters"] == STUDENT - (64 * 10 + 10) + KEPT
    state = load_file(folders["simkd"] / WEIGHTS)
    assert {name.partition(".")[0] for name in state} == {"network", "head"}
    counted = [value.numel() for name, value in state.items() if not re.search("running|tracked", name)]
    assert sum(counted) == result["parameters"]
    for label in ("kd", "mlkd", "two_views"):
        other = json.loads((folders[label] / "result.json").read_text())
        assert "kept_parameters" not in other
        assert other["parameters"] == STUDENT


def test_table_and_page_name_what_a_row_costs(root: Path) -> None:
    share = 100 * KEPT / (STUDENT - 650)
    kept = (
        f"Larger students: simkd keeps layers at inference, in place of the classifier: +{KEPT:,} parameters "
        f"({share:.1f} % of the student's others)."
    )
    views = (
        "Two views: each step of two_views runs student and teacher on two views of every image; the seconds include "
        "both."
    )
    recipe = str(root / "small.yaml")
    text = words_of("table", recipe, "--out", str(root / "runs"), "--format", "markdown")
    assert kept in text
    assert views in text
    page = root / "report.html"
    words_of("report", "--recipe", recipe, "--out", str(root / "runs"), "--output", str(page))
    html = page.read_text().replace("&#39;", "'")
    assert kept in html
    assert views in html


@pytest.mark.slow
def test_verify_measures_the_layers_again(root: Path) -> None:
    assert "no faults found" in words_of("verify", str(root / "runs"), "--accuracy")
    assert "5 done" in words_of("status", str(root / "small.yaml"), "--out", str(root / "runs"))


@pytest.mark.slow
def test_an_attack_goes_through_the_layers(root: Path) -> None:
    folder = trials(root)["simkd"]
    text = words_of("attack", str(folder), "--attacks", "apgd-ce", "--images", "20", "--out", str(root / "runs"))
    assert "simkd, seed 0" in text
    (record,) = (folder / "attacks").glob("*.json")
    assert json.loads(record.read_text())


@pytest.mark.slow
def test_the_exported_student_is_loaded_without_images_and_teacher(root: Path, monkeypatch) -> None:
    folder, card = trials(root)["simkd"], root / "card"
    words_of("export", "card", str(folder), "--output", str(card))
    assert {path.name for path in card.iterdir()} == {"README.md", "model.safetensors", "student.json"}
    text = (card / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert "library_name" not in metadata
    assert "timm" not in metadata["tags"]
    assert f"{STUDENT - 650 + KEPT:,}, of which {KEPT:,} in layers of simkd" in text
    layers = re.findall(r"^\| (head\.\S+) \| (\w+)\(.* \| ([\d,]+) \|$", text, re.MULTILINE)
    assert sum(int(count.replace(",", "")) for _, _, count in layers) == KEPT
    assert [kind for _, kind, _ in layers] == ["Conv2d", "BatchNorm2d"] * 3 + ["Linear"]
    monkeypatch.chdir(card)
    monkeypatch.setenv("KD_BENCH_DATA", str(root / "nothing"))
    space: dict = {}
    exec(re.search("```python\n(.*?)```", text, re.DOTALL)[1], space)
    network, state = space["network"], load_file(folder / WEIGHTS)
    assert not network.training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    images = torch.randn(4, 3, 32, 32)
    features = network.network.forward_features(images)
    assert torch.equal(network(images), network.head(features))
    assert network(images).shape == (4, 10)


def test_a_damaged_export_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"student.json: there is no such file; name a folder"):
        load_exported_student(tmp_path)
    for content, message in (
        ("[]", r"student.json: "),
        ('{"trial": {}}', r"lacks trial, image_shape or num_classes"),
        ('{"trial": {}, "image_shape": [3, 8, 8], "num_classes": 10}', r"student.json: trial"),
    ):
        (tmp_path / "student.json").write_text(content)
        with pytest.raises(UserError, match=message):
            load_exported_student(tmp_path)
