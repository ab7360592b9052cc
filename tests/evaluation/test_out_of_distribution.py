"""Test images against other images: the values, the sets, and ``kd-bench evaluate --metrics ood``."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import logsumexp, softmax

from kd_bench.cli.main import app
from kd_bench.config.data import Dataset
from kd_bench.data import other_images, registry
from kd_bench.evaluation import efficiency
from kd_bench.evaluation import out_of_distribution as ood
from kd_bench.evaluation.dataset_reader import DatasetReader
from kd_bench.models import create, weights
from kd_bench.report.column_cells import trial_values
from kd_bench.trials.evaluation_file import EVALUATION, Evaluation, OutOfDistribution, read_evaluation_file
from kd_bench.utils.errors import RunFailed, UserError
from tests.evaluation.results import Made, make


def naive(scores: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Both values by their definitions: all pairs, and all thresholds."""
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in scores for b in other]
    thresholds = [value for value in {*scores, *other} if np.mean(scores >= value) >= 0.95]
    return 100 * sum(pairs) / len(pairs), 100 * float(np.mean(other >= max(thresholds)))


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 40), st.integers(1, 30))
def test_separation_with_ties(seed, count, other, levels):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, levels, count) + 1.0, rng.integers(0, levels, other) + 0.0
    separation = ood.separate(torch.tensor(first), torch.tensor(second))
    assert separation == pytest.approx(naive(first, second))


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_scores_of_random_logits(scale):
    rng = np.random.default_rng(1)
    logits, other = (scale * rng.standard_normal((count, 7)).astype(np.float32) for count in (90, 70))
    logits[:, 0] += 2 * scale
    wanted = [
        naive(softmax(logits.astype(float), 1).max(1), softmax(other.astype(float), 1).max(1)),
        naive(logsumexp(logits.astype(float), 1), logsumexp(other.astype(float), 1)),
    ]
    for score, expected in zip((ood.maximum_softmax, ood.energy_score), wanted, strict=True):
        separation = ood.separate(score(torch.tensor(logits)), score(torch.tensor(other)))
        assert separation == pytest.approx(expected, abs=0.1)  # scores that differ in the last bits only may be ties
        assert separation.auroc > 60


def test_equal_scores_separate_nothing_and_distinct_ones_everything():
    ones = torch.ones(20, dtype=torch.float64)
    assert ood.separate(ones, ones[:7]) == (50, 100)
    assert ood.separate(2 * ones, ones) == (100, 0)
    assert ood.separate(ones, 2 * ones) == (0, 100)
    # 19 of 20 are 95 %: the lowest own score need not be reached
    scores = torch.arange(20, dtype=torch.float64)
    assert ood.separate(scores, torch.full((4,), 0.5, dtype=torch.float64)).fpr95 == 0


def pictures(folder: Path, count: int = 12, seed: int = 0) -> Path:
    """A folder of photos of several sizes, one of them below, and files that are no images."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        shape = (40 + number, 50, 3) if number % 2 else (32, 32, 3)
        path = folder / ("below" if number % 3 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


def test_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    first = other_images.open_folder(pictures(tmp_path / "a"))
    assert (first.name, first.count, first.folder) == ("a", 12, (tmp_path / "a").resolve())
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "renamed.png")
    assert other_images.open_folder(tmp_path / "a").digest == first.digest
    (tmp_path / "a" / "renamed.png").unlink()
    assert other_images.open_folder(tmp_path / "a").digest != first.digest
    (part,) = other_images.open_folder(tmp_path / "a").parts(24)
    assert part.shape == (11, 3, 24, 24) and part.dtype == torch.uint8


def test_parts_are_all_images_in_their_order(tmp_path: Path, monkeypatch) -> None:
    other = other_images.open_folder(pictures(tmp_path / "a"))
    (whole,) = other.parts(32)
    monkeypatch.setattr(other_images, "_PART_BYTES", 5 * 3 * 32 * 32)
    parts = list(other.parts(32))
    assert [len(part) for part in parts] == [5, 5, 2] and torch.equal(torch.cat(parts), whole)
    digits = other_images.open_set("digits", tmp_path)
    assert digits.count == 1597 and [len(part) for part in digits.parts(32)][:2] == [5, 5]
    images = registry.load(Dataset(name="digits")).test_images
    assert torch.equal(torch.cat(list(digits.parts(32))), images)
    (small, *_) = digits.parts(16)
    assert small.shape[1:] == (3, 16, 16)


def test_bad_folders_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no images"):
        other_images.open_folder(tmp_path / "empty")
    (tmp_path / "empty" / "a.jpg").write_text("no image")
    broken = other_images.open_folder(tmp_path / "empty")
    with pytest.raises(UserError, match=r"a\.jpg: the image cannot be decoded"):
        list(broken.parts(32))


@pytest.fixture(scope="module")
def made_once(tmp_path_factory) -> Made:
    return make(tmp_path_factory.mktemp("made"), {"methods": {"none": {}}})


@pytest.fixture
def made(made_once: Made, tmp_path: Path, monkeypatch) -> Made:
    """Results that a test may change, and no data folder."""
    monkeypatch.setenv("KD_BENCH_DATA", str(tmp_path / "no data"))
    return made_once.copied(tmp_path)


def evaluate(*arguments: Any) -> None:
    app(["evaluate", *map(str, arguments), "--device", "cpu"], standalone_mode=False)


def kept(folder: Path) -> list[OutOfDistribution]:
    evaluation = read_evaluation_file(folder / EVALUATION)
    assert isinstance(evaluation, Evaluation)
    return evaluation.ood


def test_a_trial_against_a_folder(made: Made, tmp_path: Path, capsys) -> None:
    folder, images = made.folder("none"), pictures(tmp_path / "photos")
    evaluate(folder, "--metrics", "ood", "--ood", images)
    shown = capsys.readouterr()
    assert "AUROC, softmax" in shown.out and "against photos (12 images, digest" in shown.out
    (comparison,) = kept(folder)
    network = create("cifar_resnet8", 10).eval()
    network.load_state_dict(weights.read(folder / "student.safetensors").state)
    data = DatasetReader(None).open(_trial(made))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    (others,) = other_images.open_folder(images).parts(32)
    with torch.no_grad():
        logits, other = (network((part.float() / 255 - mean) / std) for part in (data.test_images, others))  # type: ignore[union-attr]
    for score, values in (
        (ood.maximum_softmax, (comparison.auroc, comparison.fpr95)),
        (ood.energy_score, (comparison.auroc_energy, comparison.fpr95_energy)),
    ):
        assert values == pytest.approx(naive(score(logits).numpy(), score(other).numpy()), abs=0.5)
    assert (comparison.images, comparison.test_images, comparison.folder) == (12, 60, str(images.resolve()))
    # what is known is not measured again, other content is
    before = (folder / EVALUATION).read_bytes()
    evaluate(folder, "--metrics", "ood", "--ood", images)
    assert (folder / EVALUATION).read_bytes() == before
    (images / "0.png").unlink()
    evaluate(folder, "--metrics", "ood", "--ood", images)
    (again,) = kept(folder)
    assert (again.name, again.images) == ("photos", 11) and again.digest != comparison.digest


def _trial(made: Made) -> Any:
    return next(cell.trial for cell in made.planned if cell.label == "none")


def test_several_folders_have_a_mean_that_names_them(made: Made, tmp_path: Path) -> None:
    folder = made.folder("none")
    for name, seed in (("photos", 0), ("scans", 1)):
        pictures(tmp_path / name, seed=seed)
    evaluate(folder, "--metrics", "ood", "--ood", tmp_path / "photos", "--ood", tmp_path / "scans")
    comparisons = kept(folder)
    values, _ = trial_values(folder, [])
    assert values["auroc"] == pytest.approx((comparisons[0].auroc + comparisons[1].auroc) / 2)
    assert "photos (12 images" in values["auroc_protocol"] and " and scans (12 images" in values["auroc_protocol"]


def test_what_cannot_be_compared_with_is_a_sentence(made: Made, tmp_path: Path, capsys) -> None:
    folder = made.folder("none")

    def refused(*arguments: Any) -> str:
        with pytest.raises(UserError) as caught:
            evaluate(folder, *arguments)
        return str(caught.value)

    assert "there are no other data sets in the data folder" in refused("--metrics", "ood")
    assert "is no folder, and none of the data sets digits, cifar10" in refused("--metrics", "ood", "--ood", "cifar11")
    assert "digits is left out, because it is the network's own" in refused("--metrics", "ood", "--ood", "digits")
    assert "cifar10 is left out: cifar10 is not there" in refused("--metrics", "ood", "--ood", "cifar10")
    assert "--ood: has no meaning for --metrics calibration" in refused("--metrics", "calibration", "--ood", "digits")
    pictures(tmp_path / "a" / "photos"), pictures(tmp_path / "b" / "photos")
    two = ("--ood", tmp_path / "a" / "photos", "--ood", tmp_path / "b" / "photos")
    assert "have one name" in refused("--metrics", "ood", *two)
    empty, long = tmp_path / "empty", pictures(tmp_path / ("x" * 201))
    assert "--ood: is empty; it needs a folder" in refused("--metrics", "ood", "--ood", "")
    assert "needs a name of 1 to 200 printable characters" in refused("--metrics", "ood", "--ood", long)
    assert "is no folder" in refused("--metrics", "ood", "--ood", tmp_path / "a" / "photos", "--ood", empty)
    assert not (folder / EVALUATION).exists()  # names are checked before anything is measured
    # nobody asked for it
    capsys.readouterr()
    evaluate(folder, "--metrics", "calibration")
    assert "left out" not in capsys.readouterr().err
    evaluate(folder, "--metrics", "ood", "--ood", tmp_path / "a" / "photos", "--ood", "cifar10")
    assert "cifar10 is left out" in capsys.readouterr().err and len(kept(folder)) == 1


def test_a_recipe_without_other_sets_says_so_and_has_no_empty_column(made: Made, monkeypatch, capsys) -> None:
    monkeypatch.setattr(efficiency, "_SECONDS", 0.0)
    evaluate(made.recipe, "--out", made.out, "--trials", 1)
    shown = capsys.readouterr()
    assert shown.err.count("out of distribution is left out, because there are no other data sets in the data") == 1
    assert "AUROC" not in shown.out and "ECE" in shown.out


def test_verify_computes_it_again(made: Made, tmp_path: Path, capsys) -> None:
    folder, images = made.folder("none"), pictures(tmp_path / "photos")
    evaluate(folder, "--metrics", "ood", "--ood", images)
    verify = ["verify", str(made.out), "--accuracy", "--device", "cpu"]
    app(verify, standalone_mode=False)
    assert "no faults found" in capsys.readouterr().out
    content = json.loads((folder / EVALUATION).read_text())
    recorded = content["ood"][0]["auroc"]
    content["ood"][0]["auroc"] = math.fmod(recorded + 50, 100)
    (folder / EVALUATION).write_text(json.dumps(content))
    with pytest.raises(RunFailed):
        app(verify, standalone_mode=False)
    assert f"ood.photos.auroc is {content['ood'][0]['auroc']}, but" in capsys.readouterr().out
    shutil.rmtree(images)  # what is gone cannot be compared with
    app(verify, standalone_mode=False)
