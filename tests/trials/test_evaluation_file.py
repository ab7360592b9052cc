"""The reader of ``evaluation.json``: what was written is read, and anything else is a sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_bench.config.corruptions import CORRUPTIONS
from kd_bench.trials.evaluation_file import (
    EVALUATION,
    evaluation_faults,
    read_evaluation_file,
    write_evaluation_file,
)
from kd_bench.trials.integrity import check_trial
from kd_bench.utils.regular_files import BadFile
from tests.training.parts import trial
from tests.trials.folders import finish

TEACHER = "a" * 16
MACHINE = {
    "version": "0.1.0",
    "torch": "2.9.0",
    "device": "cpu",
    "device_name": "A Processor",
    "threads": 1,
    "finished": "2026-11-28T12:00:00+00:00",
}


def corruptions(**changes: Any) -> dict[str, Any]:
    """Accuracies on corrupted images: 20 to 60 % at the severities of each corruption."""
    return {
        "source": "made",
        "origin": "imagecorruptions-imaug 1.1.5",
        "libraries": {"numpy": "2.4.6"},
        "images": 100,
        "accuracy": {name: [60.0, 50.0, 40.0, 30.0, 20.0] for name in CORRUPTIONS},
        "digests": {name: ["4" * 32] * 5 for name in CORRUPTIONS},
        "mean": 40.0,
        "machine": MACHINE,
        **changes,
    }


def other_images(**changes: Any) -> dict[str, Any]:
    """How far the test images are told from those of a folder."""
    return {
        "name": "val",
        "digest": "5" * 32,
        "folder": "/images/val",
        "images": 50,
        "test_images": 100,
        "auroc": 75.0,
        "fpr95": 81.5,
        "auroc_energy": 77.0,
        "fpr95_energy": 79.0,
        "machine": MACHINE,
        **changes,
    }


def content(**changes: Any) -> dict[str, Any]:
    """A whole evaluation."""
    errors = {"ece": 3.5, "nll": 1.25, "brier": 0.5}
    return {
        "kind": "evaluation",
        "model": "cifar_resnet8",
        "weights_sha256": "0" * 64,
        "images": {"digest": "1" * 32, "order": "2" * 32, "kind": "pixels"},
        "calibration": {
            "images": 100,
            "plain": errors,
            "fitted_on": "cross-fitted",
            "temperatures": [1.5, 1.25],
            "scaled": errors | {"ece": 1.5},
            "machine": MACHINE,
        },
        "fidelity": {
            TEACHER: {
                "images": 100,
                "teacher": "cifar_resnet14",
                "teacher_weights": "3" * 64,
                "agreement": 75.0,
                "kl": 0.25,
                "teacher_errors": 10,
                "agreement_on_errors": 40.0,
                "machine": MACHINE,
            }
        },
        "efficiency": {
            "input": [3, 32, 32],
            "parameters": 78042,
            "macs": 12_501_632,
            "file_bytes": 320_000,
            "timings": [
                {"latency": 0.5, "throughput": 400.0, "batch": 256, "runs": [200, 5], "machine": MACHINE},
            ],
        },
        "corruptions": [corruptions()],
        "ood": [other_images()],
        **changes,
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    """A whole evaluation with one other value; ``path`` has dots, and REMOVED removes the key."""
    whole = json.loads(json.dumps(content()))
    part: Any = whole
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in parents:
        part = part[key]
    if value is REMOVED:
        del part[last]
    else:
        part[last] = value
    return whole


REMOVED = object()


def fault(file: Path) -> str:
    with pytest.raises(BadFile) as caught:
        read_evaluation_file(file)
    return str(caught.value)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "folder" / EVALUATION
    assert read_evaluation_file(file) is None
    file.parent.mkdir()
    file.write_text(json.dumps(content(of_a_later_version=[1])))
    evaluation = read_evaluation_file(file)
    assert evaluation is not None
    other = tmp_path / "new" / EVALUATION
    write_evaluation_file(other, evaluation)
    assert json.loads(other.read_text()) == content()
    assert read_evaluation_file(other) == evaluation
    assert [path.name for path in other.parent.iterdir()] == [EVALUATION]


def test_metrics_may_be_absent(tmp_path: Path) -> None:
    file = tmp_path / EVALUATION
    metrics = ("calibration", "fidelity", "efficiency", "corruptions", "ood")
    short = {key: value for key, value in content().items() if key not in metrics}
    file.write_text(json.dumps(short))
    evaluation = read_evaluation_file(file)
    assert evaluation is not None
    assert (evaluation.calibration, evaluation.fidelity, evaluation.efficiency) == (None, {}, None)
    assert evaluation.corruptions == [] and evaluation.ood == []


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("kind", REMOVED, "is damaged: it does not say that it is an evaluation"),
        ("kind", "attack", "is damaged: it has: kind: 'attack' is none of 'evaluation'"),
        ("model", 3, "is damaged: it has: model: should be text (it is 3)"),
        ("weights_sha256", "12", "weights_sha256: should be a SHA-256 checksum"),
        ("images", REMOVED, "is damaged: it has: images: this key is missing"),
        ("images.digest", None, "images.digest: should be text (it is None)"),
        ("calibration", [], "calibration: should be a mapping"),
        ("calibration.plain.ece", 100.5, "calibration.plain.ece: should be at most 100 (it is 100.5)"),
        ("calibration.plain.ece", None, "calibration.plain.ece: should be a number (it is None)"),
        ("calibration.plain.nll", "1.5", "calibration.plain.nll: should be a number (it is '1.5')"),
        ("calibration.plain.nll", -0.5, "calibration.plain.nll: should be at least 0 (it is -0.5)"),
        ("calibration.plain.brier", [0.5], "calibration.plain.brier: should be a number"),
        ("calibration.temperatures", [1.5], "calibration: temperatures and scaled do not fit fitted_on"),
        ("calibration.temperatures", [1.5, 0], "calibration.temperatures.1: should be above 0 (it is 0)"),
        ("calibration.temperatures", [1.0] * 5, "calibration.temperatures: should be at most 2 entries long"),
        ("calibration.scaled", None, "calibration: temperatures and scaled do not fit fitted_on"),
        ("calibration.fitted_on", "test", "calibration.fitted_on: 'test' is none of"),
        ("calibration.machine.threads", True, "calibration.machine.threads: should be a whole number"),
        ("calibration.machine.device_name", "x" * 201, "should be text of at most 200 characters"),
        ("fidelity", {"a": {}}, "is damaged"),
        (f"fidelity.{TEACHER}.agreement", 1e999, "is damaged: it is no JSON"),
        (f"fidelity.{TEACHER}.teacher_errors", 101, "agreement_on_errors does not fit teacher_errors, which is 101"),
        (f"fidelity.{TEACHER}.agreement_on_errors", None, "agreement_on_errors does not fit teacher_errors"),
        (f"fidelity.{TEACHER}.kl", {}, "kl: should be a number"),
        ("efficiency.macs", 2**63, "efficiency.macs: should be at most"),
        ("efficiency.parameters", 7.5, "efficiency.parameters: should be a whole number (it is 7.5)"),
        ("efficiency.timings.0.latency", 0, "efficiency.timings.0.latency: should be above 0"),
        ("efficiency.timings", [{}] * 101, "efficiency.timings"),
        ("efficiency.input", [3, 32, -32], "efficiency.input.2: should be at least 1"),
        ("corruptions.0.source", "drawn", "corruptions.0.source: 'drawn' is none of"),
        ("corruptions.0.accuracy.fog", [50.0] * 6, "corruptions.0.accuracy.fog: should be at most 5 entries long"),
        ("corruptions.0.accuracy.fog", [101.0], "corruptions.0.accuracy.fog.0: should be at most 100"),
        ("corruptions.0.accuracy", {"rain": []}, "corruptions.0: accuracy has 'rain', which is no corruption"),
        ("corruptions.0.accuracy.fog", [60.0], "corruptions.0: digests are not of the copies that accuracy is on"),
        ("corruptions.0.digests.fog", ["x"] * 5, "corruptions.0.digests.fog.0"),
        ("ood.0.auroc", 101.0, "ood.0.auroc: should be at most 100"),
        ("ood.0.images", 0, "ood.0.images: should be at least 1"),
        ("corruptions.0.mean", 41.0, "corruptions.0: mean is 41.0, but the mean of the accuracies is 40.0"),
        ("corruptions.0.mean", None, "corruptions.0: mean is None, but the mean of the accuracies is 40.0"),
    ],
)
def test_other_values_are_sentences(path: str, value: Any, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / EVALUATION
    file.write_text(json.dumps(changed(path, value)))
    message = fault(file)
    assert sentence in message and message.startswith("is damaged") and "\n" not in message


@pytest.mark.parametrize("text", ["null", "[]", "3", '"text"', "", "{", '{"kind": NaN}', "[" * 500, "\x00"])
def test_other_files_are_sentences(text: str, tmp_path: Path) -> None:
    (tmp_path / EVALUATION).write_text(text)
    assert fault(tmp_path / EVALUATION).startswith("is damaged: it ")


def test_what_is_no_regular_file_is_a_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert fault(tmp_path / "pipe") == "is a named pipe, not a regular file"
    assert fault(tmp_path) == "is a folder, not a regular file"
    with open(tmp_path / "large", "wb") as large:
        large.truncate(2**30)
    assert "is larger than" in fault(tmp_path / "large")


PATHS = ["kind", "model", "images", "images.kind", "calibration", "calibration.plain", "calibration.machine",
         "calibration.temperatures", "fidelity", f"fidelity.{TEACHER}", f"fidelity.{TEACHER}.images", "efficiency",
         "efficiency.input", "efficiency.timings", "efficiency.timings.0", "efficiency.timings.0.runs", "corruptions",
         "corruptions.0", "corruptions.0.accuracy", "corruptions.0.accuracy.fog", "corruptions.0.digests",
         "corruptions.0.mean"]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=150)
@given(st.sampled_from(PATHS), JSON)
def test_nothing_but_a_sentence_is_raised(tmp_path_factory, path: str, value: Any) -> None:
    file = tmp_path_factory.mktemp("evaluation") / EVALUATION
    file.write_text(json.dumps(changed(path, value)))
    try:
        assert read_evaluation_file(file) is not None
    except BadFile as error:
        assert str(error).startswith("is damaged") and "\n" not in str(error)


def test_verify_names_the_file(tmp_path: Path) -> None:
    of = trial("kd")
    folder = finish(tmp_path / of.id, of)
    assert check_trial(folder).faults == ()
    weights = json.loads((folder / "result.json").read_text())["weights_sha256"]
    (folder / EVALUATION).write_text(json.dumps(content(weights_sha256=weights)))
    assert check_trial(folder).faults == ()
    (folder / EVALUATION).write_text(json.dumps(content()))
    (sentence,) = check_trial(folder).faults
    assert sentence.startswith(f"{folder / EVALUATION}: is of other weights than the trial's")
    (folder / EVALUATION).write_text("null")
    assert check_trial(folder).faults == (f"{folder / EVALUATION}: is damaged: it holds no mapping",)
    (folder / EVALUATION).unlink()
    os.mkfifo(folder / EVALUATION)
    assert check_trial(folder).faults == (f"{folder / EVALUATION}: is a named pipe, not a regular file",)


def test_images_are_compared_if_they_were_digested_alike(tmp_path: Path) -> None:
    (tmp_path / EVALUATION).write_text(json.dumps(content()))
    same = {"digest": "1" * 32, "order": "2" * 32, "kind": "pixels"}
    assert evaluation_faults(tmp_path, "0" * 64, same) == []
    assert evaluation_faults(tmp_path, "0" * 64, None) == []  # a result of an earlier version
    assert evaluation_faults(tmp_path, "0" * 64, {**same, "digest": "9" * 32, "kind": "names and sizes"}) == []
    (sentence,) = evaluation_faults(tmp_path, "0" * 64, {**same, "digest": "9" * 32})
    assert "is of other images than the trial's" in sentence
