"""``kd-bench evaluate --metrics corruptions`` as a user types it: measured, continued, verified, shown, refused."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_bench.cli.main import app
from kd_bench.config.corruptions import CORRUPTIONS, SEVERITIES
from kd_bench.config.data import Dataset
from kd_bench.data import corrupted, made_corruptions
from kd_bench.data import registry as datasets
from kd_bench.data.corrupted import CorruptedCopy
from kd_bench.evaluation import efficiency
from kd_bench.models import create, weights
from kd_bench.trials.evaluation_file import EVALUATION, Corruptions, read_evaluation_file
from kd_bench.utils.errors import RunFailed, UserError
from tests.data.opencv import require_opencv
from tests.evaluation.results import Made, make

IMAGES = 10
COPIES = [(corruption, severity) for corruption in CORRUPTIONS for severity in SEVERITIES]
require_opencv()


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Made:
    changes = {"dataset": {"name": "digits", "test_images": IMAGES}, "methods": {"none": {}, "kd": {}}}
    return make(tmp_path_factory.mktemp("made"), changes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def made(made_once: Made, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Results that a test may change, and a cache of the copies that all tests make."""
    monkeypatch.setenv("KD_BENCH_CACHE", str(cache))
    return made_once.copied(tmp_path)


def run(*arguments: Any) -> None:
    app([*map(str, arguments), "--device", "cpu"], standalone_mode=False)


def evaluate(*arguments: Any, metrics: str = "corruptions") -> None:
    run("evaluate", *arguments, "--metrics", metrics)


def corruptions_of(folder: Path) -> list[Corruptions]:
    evaluation = read_evaluation_file(folder / EVALUATION)
    return [] if evaluation is None else evaluation.corruptions


class Published:
    """Copies that are the images themselves, all of one colour for some corruptions."""

    source, origin = "published", "CIFAR-100-C"

    def __init__(self, colour: int = 0) -> None:
        self.libraries: dict[str, str] = {}
        images = datasets.open_dataset(Dataset(name="digits", test_images=IMAGES), None, Path("data"))
        self.images, self.labels = images.test_images, images.test_labels  # type: ignore[union-attr]
        self.colour = colour

    def copy(self, corruption: str, severity: int, progress: Any = None) -> CorruptedCopy:
        images = torch.full_like(self.images, self.colour) if severity > 3 else self.images
        return CorruptedCopy(images, f"{self.colour:032x}")


def test_accuracy_is_that_of_a_plain_loop(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made.folder("kd")
    evaluate(folder)
    shown = capsys.readouterr()
    assert "corrupted: jpeg compression" in shown.out and "made by imagecorruptions-imaug" in shown.out
    assert "jpeg compression: batch 5 of 5" in shown.err
    (value,) = corruptions_of(folder)
    images = datasets.open_dataset(Dataset(name="digits", test_images=IMAGES), None, Path("data"))
    network = create("cifar_resnet8", 10)
    network.load_state_dict(weights.read(folder / "student.safetensors").state)
    network.eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.mean, images.std))
    accuracies = []
    for corruption, severity in COPIES:
        pixels = made_corruptions.corrupt(images.test_images.numpy(), corruption, severity)  # type: ignore[union-attr]
        with torch.no_grad():
            logits = network((torch.from_numpy(pixels).float() / 255 - mean) / std)
        right = (logits.argmax(1) == images.test_labels).double().mean()
        accuracies.append(100 * float(right))
        assert value.accuracy[corruption][severity - 1] == pytest.approx(accuracies[-1]), (corruption, severity)
    assert value.mean == pytest.approx(statistics.fmean(accuracies)) and len(set(accuracies)) > 1
    assert value.images == IMAGES and value.source == "made" and value.libraries["numpy"] == np.__version__
    assert value.origin.startswith("imagecorruptions-imaug ") and value.machine.device == "cpu"


def test_every_copy_that_is_known_is_kept(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, original = made.folder("kd"), made_corruptions.MadeCorruptions.copy
    asked: list[tuple[str, int]] = []

    def killed(self: Any, corruption: str, severity: int, progress: Any = None) -> CorruptedCopy:
        asked.append((corruption, severity))
        if len(asked) == 8:
            raise MemoryError
        return original(self, corruption, severity, progress)

    with monkeypatch.context() as patched:
        patched.setattr(made_corruptions.MadeCorruptions, "copy", killed)
        with pytest.raises(MemoryError):
            evaluate(folder)
        (partial,) = corruptions_of(folder)
        assert partial.mean is None
        assert {key: len(values) for key, values in partial.accuracy.items()} == {"gaussian_noise": 5, "shot_noise": 2}
        evaluate(folder)
    assert asked == [*COPIES[:7], *COPIES[7:8], *COPIES[7:]]
    (whole,) = corruptions_of(folder)
    evaluate(made.folder("kd", 1))
    again = made.folder("kd") / EVALUATION
    again.unlink()
    evaluate(folder)
    assert corruptions_of(folder)[0].accuracy == whole.accuracy and corruptions_of(folder)[0].digests == whole.digests

    def never(*_: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(made_corruptions.MadeCorruptions, "copy", never)
    before = again.read_bytes()
    evaluate(folder)
    assert again.read_bytes() == before
    # what was made with other libraries is not continued, but what is finished stays
    content = json.loads(before)
    content["corruptions"][0] |= {"libraries": {"numpy": "1.0"}}
    again.write_text(json.dumps(content))
    evaluate(folder)
    content["corruptions"][0]["accuracy"].pop("fog")
    content["corruptions"][0]["digests"].pop("fog")
    content["corruptions"][0]["mean"] = None
    again.write_text(json.dumps(content))
    with pytest.raises(AssertionError, match="computed again"):
        evaluate(folder)


def test_published_and_made_copies_are_never_averaged(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        evaluate(made.folder("kd", seed))
    evaluate(made.folder("none", 0))
    monkeypatch.setattr(corrupted, "find", lambda *_: Published())
    evaluate(made.folder("none", 1))
    evaluate(made.folder("none", 0))
    both = corruptions_of(made.folder("none", 0))
    assert [value.source for value in both] == ["made", "published"]
    capsys.readouterr()
    run_table = ["table", str(made.recipe), "--out", str(made.out), "--columns", "top1,corrupted"]
    app([*run_table, "--format", "csv"], standalone_mode=False)
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    kd = [corruptions_of(made.folder("kd", seed))[0].mean or 0.0 for seed in (0, 1)]
    assert float(rows["kd"]["corrupted_mean"]) == pytest.approx(statistics.fmean(kd))
    assert rows["kd"]["corrupted_n"] == "2" and rows["none"]["corrupted_n"] == "1"
    assert float(rows["none"]["corrupted_mean"]) == both[0].mean
    app(run_table, standalone_mode=False)
    notes = " ".join(capsys.readouterr().out.split())
    assert "made by imagecorruptions-imaug" in notes and "with the strengths of ImageNet-C." in notes
    assert "Left out of means, because it was measured otherwise: corrupted of student alone" in notes
    assert "published CIFAR-100-C, digest" in notes
    app(["export", "csv", "--recipe", str(made.recipe), "--out", str(made.out)], standalone_mode=False)
    lines = {(row["label"], row["seed"]): row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    fog = corruptions_of(made.folder("kd"))[0].accuracy["fog"]
    assert float(lines["kd", "0"]["corrupted_fog"]) == pytest.approx(statistics.fmean(fog))
    assert float(lines["kd", "1"]["corrupted"]) == pytest.approx(kd[1])
    assert "made by" in lines["kd", "0"]["corrupted_protocol"]
    assert "published" in lines["none", "1"]["corrupted_protocol"]
    assert lines["none", "0"]["corrupted"] == ""  # one line has no place for two


def test_the_page_has_a_heat_map_of_what_was_evaluated_alike(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    page = made.out.parent / "report.html"
    report = ["report", "--recipe", str(made.recipe), "--out", str(made.out), "--output", str(page)]
    app(report, standalone_mode=False)
    assert "under corruptions" not in page.read_text()
    for seed in (0, 1):
        evaluate(made.folder("kd", seed))
    app(report, standalone_mode=False)
    text = page.read_text()
    values = [corruptions_of(made.folder("kd", seed))[0] for seed in (0, 1)]
    fog = statistics.fmean(accuracy for value in values for accuracy in value.accuracy["fog"])
    assert f"<title>kd, fog: {fog:.2f} ± " in text and "student alone, fog" not in text
    mean = statistics.fmean(value.mean or 0.0 for value in values)
    assert f"kd: {mean:.1f} % in the mean, from " in text and "made by imagecorruptions-imaug" in text


def test_a_trial_without_evaluation_is_an_empty_cell(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(made.recipe, "--out", made.out, "--only", "method=kd")
    shown = capsys.readouterr().out
    assert "corrupted %" in shown and "fog" not in shown
    app(
        ["table", str(made.recipe), "--out", str(made.out), "--columns", "corrupted,corrupted_fog"],
        standalone_mode=False,
    )
    shown = capsys.readouterr().out
    (alone,) = (line for line in shown.splitlines() if line.strip().startswith("student alone"))
    assert alone.split() == ["student", "alone"]
    assert "Empty cells: not evaluated yet; see kd-bench evaluate." in shown.replace("\n  ", " ")


@pytest.mark.slow
def test_it_is_measured_only_if_it_is_asked_for(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_WARMUP_SECONDS", "_SECONDS"):
        monkeypatch.setattr(efficiency, name, 0.0)
    monkeypatch.setattr(efficiency, "BATCH", 4)
    folder = made.folder("kd")
    run("evaluate", folder)
    assert corruptions_of(folder) == []
    evaluate(folder, metrics="all")
    (value,) = corruptions_of(folder)
    assert value.mean is not None


def test_verify_measures_it_again(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made.folder("kd")
    evaluate(folder)
    run("verify", made.out, "--accuracy")
    assert "no faults found" in capsys.readouterr().out
    file = folder / EVALUATION
    content = json.loads(file.read_text())
    value = content["corruptions"][0]
    before = value["accuracy"]["fog"][1]
    value["accuracy"]["fog"][1] = 99.0
    value["mean"] += (99.0 - before) / 75
    file.write_text(json.dumps(content))
    with pytest.raises(RunFailed):
        run("verify", made.out, "--accuracy")
    line = capsys.readouterr().out.splitlines()[0]
    assert f"{file}: corruptions.fog.2 is 99.0, but {before} when it is computed again" in line
    file.unlink()
    monkeypatch.setattr(corrupted, "find", lambda *_: Published())
    evaluate(folder)
    monkeypatch.setattr(corrupted, "find", lambda *_: Published(colour=9))
    with pytest.raises(RunFailed):
        run("verify", made.out, "--accuracy")
    assert "corruptions.gaussian_noise.1.digest is " in capsys.readouterr().out
    monkeypatch.setattr(corrupted, "find", lambda *_: "they are gone")
    run("verify", made.out, "--accuracy")
    assert "no faults found" in capsys.readouterr().out


def test_what_cannot_be_corrupted_is_a_sentence(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made.folder("kd")
    monkeypatch.setattr(made_corruptions, "LEAST_SIZE", 64)
    with pytest.raises(UserError) as caught:
        evaluate(folder)
    assert str(caught.value) == (
        "cifar_resnet8 (kd, seed 0): corruptions are left out, because imagecorruptions-imaug needs images of at least "
        "64 pixels, and those of digits (10 test images) have 32"
    )
    evaluate(folder, metrics="calibration,corruptions")
    assert "corruptions are left out, because" in capsys.readouterr().err
