"""``kd-bench evaluate`` as a user types it: trials, recipes, files of weights; resumed, verified, refused."""

from __future__ import annotations

import csv
import fcntl
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_bench.cli.main import app
from kd_bench.config.data import Dataset
from kd_bench.data import registry as datasets
from kd_bench.evaluation import calibration, efficiency, evaluate_network
from kd_bench.models import create, weights
from kd_bench.trials.evaluation_file import EVALUATION, Evaluation, read_evaluation_file
from kd_bench.trials.reader import read_trial
from kd_bench.utils.errors import RunFailed, UserError
from tests.evaluation.results import Made, make

#: Metrics without timing, which takes seconds.
FAST = ("--metrics", "calibration,fidelity")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory) -> Made:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def made(made_once: Made, tmp_path: Path) -> Made:
    """Results that a test may change."""
    return made_once.copied(tmp_path)


@pytest.fixture(autouse=True)
def short_timing(monkeypatch) -> None:
    for name in ("_WARMUP_SECONDS", "_SECONDS"):
        monkeypatch.setattr(efficiency, name, 0.0)
    monkeypatch.setattr(efficiency, "BATCH", 4)


def run(*arguments: Any) -> None:
    app([*map(str, arguments), "--device", "cpu"], standalone_mode=False)


def evaluate(*arguments: Any) -> None:
    run("evaluate", *arguments)


def refused(*arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        evaluate(*arguments)
    return str(caught.value)


def evaluation(folder: Path) -> Evaluation:
    measurements = read_evaluation_file(folder / EVALUATION)
    assert measurements is not None
    return measurements


def logits_of(network: torch.nn.Module, state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of a plain network on the recipe's test images, without kd-bench's loaders."""
    images = datasets.open_dataset(Dataset(name="digits", test_images=60), None, datasets.resolve_data_dir(None))
    network.load_state_dict(state)
    pixels = images.test_images.float() / 255  # type: ignore[union-attr]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.mean, images.std))
    with torch.no_grad():
        return network.eval()((pixels - mean) / std), images.test_labels


def test_a_trial_is_measured_against_its_teacher(made: Made, capsys) -> None:
    folder = made.folder("kd")
    evaluate(folder, *FAST)
    shown = capsys.readouterr()
    assert "agreement with teacher" in shown.out and "ECE" in shown.out and str(folder / EVALUATION) in shown.out
    measurements = evaluation(folder)
    logits, labels = logits_of(create("cifar_resnet8", 10), weights.read(folder / "student.safetensors").state)
    taught, _ = logits_of(create("cifar_resnet14", 10), weights.read(made.teacher / "student.safetensors").state)
    expected = calibration.probability_errors(logits, labels)
    assert measurements.calibration is not None and measurements.calibration.fitted_on == "cross-fitted"
    assert measurements.calibration.plain.model_dump() == pytest.approx(expected.model_dump(), rel=1e-4, abs=1e-3)
    ((teacher_id, fidelity),) = measurements.fidelity.items()
    assert teacher_id == made.teacher.name and fidelity.teacher == "cifar_resnet14"
    same = logits.argmax(1) == taught.argmax(1)
    assert fidelity.agreement == pytest.approx(100 * float(same.double().mean()))
    wrong = taught.argmax(1) != labels
    assert fidelity.teacher_errors == int(wrong.sum()) > 0
    assert fidelity.agreement_on_errors == pytest.approx(100 * float(same[wrong].double().mean()))
    result = read_trial(folder).result
    assert result is not None and measurements.weights_sha256 == result["weights_sha256"]
    assert measurements.images.model_dump() == result["images"]
    assert measurements.calibration.machine.threads == 1 and measurements.calibration.machine.device == "cpu"


def test_layers_that_a_method_keeps_are_part_of_the_deployed_student(made: Made) -> None:
    evaluate(made.folder("simkd"), "--metrics", "efficiency")
    evaluate(made.folder("kd"), "--metrics", "efficiency")
    with_head, without = (evaluation(made.folder(label)).efficiency for label in ("simkd", "kd"))
    assert with_head is not None and without is not None
    state = weights.read(made.folder("simkd") / "student.safetensors").state
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    counted = sum(value.numel() for key, value in state.items() if not key.endswith(buffers))
    assert with_head.parameters == counted > without.parameters == 78_042
    assert with_head.macs > without.macs
    assert with_head.file_bytes == (made.folder("simkd") / "student.safetensors").stat().st_size
    (timing,) = with_head.timings
    assert timing.latency > 0 and timing.throughput > 0 and timing.batch == 4
    assert timing.machine.threads == 1 and with_head.input == [3, 32, 32]


def test_what_is_there_is_not_computed_again(made: Made, monkeypatch, capsys) -> None:
    folder = made.folder("kd")
    evaluate(folder, "--metrics", "calibration")
    first = evaluation(folder)
    assert first.calibration is not None and not first.fidelity and first.efficiency is None
    evaluate(folder)  # all that apply
    second = evaluation(folder)
    assert second.calibration == first.calibration and second.fidelity and second.efficiency is not None
    before = (folder / EVALUATION).read_bytes()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    with monkeypatch.context() as patched:
        patched.setattr(evaluate_network, "logits_by_batch", never)
        patched.setattr(efficiency, "measure_speed", never)
        evaluate(folder)
    assert (folder / EVALUATION).read_bytes() == before

    content = json.loads(before)  # as if other weights had been evaluated, slowly, on another machine
    content["weights_sha256"] = "0" * 64
    (folder / EVALUATION).write_text(json.dumps(content))
    evaluate(folder, *FAST)
    third = evaluation(folder)
    assert third.weights_sha256 == first.weights_sha256 and third.efficiency is None
    assert third.calibration is not None and first.calibration is not None
    assert third.calibration.plain == first.calibration.plain


def test_each_machine_has_a_timing_of_its_own(made: Made) -> None:
    folder = made.folder("kd")
    evaluate(folder, "--metrics", "efficiency")
    content = json.loads((folder / EVALUATION).read_text())
    content["efficiency"]["timings"][0]["machine"]["device_name"] = "Another Processor"
    (folder / EVALUATION).write_text(json.dumps(content))
    evaluate(folder, "--metrics", "efficiency")
    size = evaluation(folder).efficiency
    assert size is not None and len({timing.machine.device_name for timing in size.timings}) == len(size.timings) == 2


def test_a_teacher_of_other_weights_is_compared_with_again(made: Made) -> None:
    folder = made.folder("kd")
    evaluate(folder, *FAST)
    content = json.loads((folder / EVALUATION).read_text())
    content["fidelity"][made.teacher.name] |= {"teacher_weights": "0" * 64, "kl": 77.0}
    (folder / EVALUATION).write_text(json.dumps(content))
    evaluate(folder, *FAST)
    assert evaluation(folder).fidelity[made.teacher.name].kl < 77


def test_a_teacher_without_weights_is_a_sentence(made: Made, capsys) -> None:
    folder = made.folder("kd")
    (made.teacher / "student.safetensors").unlink()
    sentence = refused(folder, "--metrics", "fidelity")
    assert "fidelity is left out, because the weights of its teacher cifar_resnet14 are not in" in sentence
    assert str(made.teacher) in sentence
    evaluate(folder, *FAST)
    assert "fidelity is left out" in capsys.readouterr().err
    assert evaluation(folder).fidelity == {} and evaluation(folder).calibration is not None


def test_a_student_alone_has_no_fidelity_unless_a_recipe_names_the_teacher(made: Made, capsys) -> None:
    alone = made.folder("none")
    evaluate(alone, *FAST)
    assert "has no known teacher, so fidelity is left out" in capsys.readouterr().err
    assert evaluation(alone).fidelity == {}
    evaluate(made.recipe, "--out", made.out, *FAST, "--only", "method=none", "--format", "csv")
    assert list(evaluation(alone).fidelity) == [made.teacher.name]
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert float(rows["none"]["kl_to_teacher_mean"]) > 0 and rows["none"]["agreement_n"] == "2"


def test_a_recipe_gives_a_table_and_table_the_same_columns(made: Made, capsys) -> None:
    evaluate(made.recipe, "--out", made.out, "--metrics", "calibration", "--only", "method=kd,none", "--format", "csv")
    names = ("ece", "nll", "brier", "ece_scaled", "nll_scaled", "brier_scaled")
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    for label in ("kd", "none"):
        for name in names:
            values = []
            for seed in (0, 1):
                errors = evaluation(made.folder(label, seed)).calibration
                assert errors is not None
                part = errors.scaled if name.endswith("_scaled") else errors.plain
                values.append(getattr(part, name.removesuffix("_scaled")))
            assert float(rows[label][f"{name}_mean"]) == pytest.approx(sum(values) / 2)
    app(["table", str(made.recipe), "--out", str(made.out), "--columns", "top1,ece,latency"], standalone_mode=False)
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.strip().startswith("simkd"))
    assert line.split()[1:] == line.split()[1:4] and "±" in line  # top-1 and nothing else
    assert "Empty cells: not evaluated yet; see kd-bench evaluate." in shown.replace("\n  ", " ")


def test_held_out_images_fit_the_temperature(tmp_path: Path) -> None:
    made = make(tmp_path, {"dataset": {"name": "digits", "test_images": 60, "holdout": 50}, "trials": 1})
    evaluate(made.folder("kd"), *FAST)
    fit = evaluation(made.folder("kd")).calibration
    assert fit is not None and fit.fitted_on == "held-out images"
    assert len(fit.temperatures) == 1 and fit.images == 60


def test_a_file_of_weights_has_a_file_of_its_own(made: Made, capsys) -> None:
    file = made.folder("kd") / "student.safetensors"
    of_trial = made.folder("kd")
    evaluate(of_trial, "--metrics", "calibration")
    common = (file, "--model", "resnet8", "--dataset", "digits", "--out", made.out, "--set", "dataset.test_images=60")
    evaluate(*common)
    assert "has no known teacher" not in capsys.readouterr().err  # it is none of those that apply
    (kept,) = (made.out / "evaluations").glob("*.json")
    measurements = read_evaluation_file(kept)
    assert measurements is not None and measurements.calibration is not None and measurements.efficiency is not None
    known = evaluation(of_trial).calibration
    assert known is not None
    assert measurements.calibration.plain.model_dump() == pytest.approx(known.plain.model_dump(), rel=1e-4, abs=1e-3)
    assert "has no known teacher" in refused(*common, "--metrics", "fidelity")
    with_head = made.folder("simkd") / "student.safetensors"
    assert refused(with_head, *common[1:]).endswith("settings describe; evaluate the trial's folder instead")


def test_the_key_says_which_weights_of_a_file_are_measured(made: Made, tmp_path: Path) -> None:
    model_state, other = (weights.read(made.folder("kd", seed) / "student.safetensors").state for seed in (0, 1))
    file = tmp_path / "two.pth"
    torch.save({"model": model_state, "ema": {"model": other}}, file)
    common = (file, "--model", "resnet8", "--dataset", "digits", "--out", made.out, "--set", "dataset.test_images=60")
    for key, state in {"model": model_state, "ema.model": other}.items():
        before = set((made.out / "evaluations").glob("*.json"))
        evaluate(*common, "--metrics", "calibration", "--key", key)
        (new,) = set((made.out / "evaluations").glob("*.json")) - before
        measurements = read_evaluation_file(new)
        expected = calibration.probability_errors(*logits_of(create("cifar_resnet8", 10), state))
        assert measurements is not None and measurements.calibration is not None
        assert measurements.calibration.plain.nll == pytest.approx(expected.nll, rel=1e-4)


def test_weights_of_another_trial_are_refused(made: Made) -> None:
    folder = made.folder("kd", 0)
    file = folder / "student.safetensors"
    file.write_bytes((made.folder("kd", 1) / "student.safetensors").read_bytes())
    assert refused(folder, *FAST).startswith(f"{file}: is not what was written: its checksum differs from that in")
    assert not (folder / EVALUATION).exists()


def test_one_trial_that_cannot_be_evaluated_does_not_stop_the_others(made: Made, capsys) -> None:
    first, second = (made.folder("kd", seed) for seed in (0, 1))
    (first / EVALUATION).write_text("[]")
    recipe = (made.recipe, "--out", made.out, "--only", "method=kd", "--metrics", "calibration")
    with pytest.raises(RunFailed, match=r"^1 of 2 networks is not evaluated, see above"):
        evaluate(*recipe)
    shown = capsys.readouterr()
    assert f"{first / EVALUATION}: is damaged: it holds no mapping" in shown.err and "(1 of 2)" in shown.out
    assert evaluation(second).calibration is not None
    # what concerns all trials is not said of each of them
    for folder in (first, second):
        (folder / EVALUATION).unlink(missing_ok=True)
    (made.teacher / "student.safetensors").write_bytes(b"other")
    sentence = refused(*recipe[:-1], "fidelity")
    assert "is not what was written" in sentence and capsys.readouterr().err.count("; left out") == 1


def test_verify_finds_what_was_changed(made: Made, capsys) -> None:
    for label in ("kd", "simkd"):
        evaluate(made.folder(label), *FAST)
    run("verify", made.out, "--accuracy")
    assert "no faults found" in capsys.readouterr().out
    file = made.folder("kd") / EVALUATION
    whole = json.loads(file.read_text())

    def fault(accuracy: bool, **changes: Any) -> str:
        content = json.loads(json.dumps(whole))
        for path, value in changes.items():
            *parents, last = path.split("__")
            part = content
            for parent in parents:
                part = part[parent]
            part[last] = value
        file.write_text(json.dumps(content))
        with pytest.raises(RunFailed):
            run("verify", made.out, *(["--accuracy"] if accuracy else []))
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1].endswith("1 fault found") and str(file) in lines[0]
        return lines[0]

    assert "calibration.plain.nll is 9.5, but" in fault(True, calibration__plain__nll=9.5)
    assert "calibration.scaled.ece is 99.0, but" in fault(True, calibration__scaled__ece=99.0)
    (teacher,) = whole["fidelity"]
    assert f"fidelity.{teacher}.kl is 5.0, but" in fault(True, **{f"fidelity__{teacher}__kl": 5.0})
    assert "is of other weights than the trial's" in fault(False, weights_sha256="1" * 64)
    assert "is of other images than the trial's" in fault(False, images__digest="1" * 32)
    assert "should be at most 100" in fault(False, calibration__plain__ece=101.0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--metrics", "calibratoin"), "--metrics: no metric is called 'calibratoin'; did you mean 'calibration'?"),
        (("--metrics", ""), "--metrics: no metric is called ''"),
        (("--format", "pdf"), "no format is called 'pdf'"),
        (("--model", "resnet8"), "--model has no meaning for a trial"),
        (("--only", "method=kd"), "--only has no meaning for a trial"),
    ],
)
def test_bad_options_are_sentences(made_once: Made, arguments: tuple[str, ...], expected: str) -> None:
    assert expected in refused(made_once.folder("kd"), *arguments)
    assert not (made_once.folder("kd") / EVALUATION).exists()


def test_bad_targets_are_sentences(made: Made, tmp_path: Path) -> None:
    assert "there is no such recipe" in refused("demoo")
    assert "there is no such file of weights" in refused(tmp_path / "a.pth")
    sentence = refused(made.out / "small")
    assert "is a folder of trials (6), not a trial's;" in sentence and f"with --out {made.out}" in sentence
    folder = made.folder("kd")
    (folder / EVALUATION).write_text("[]")
    assert refused(folder) == f"{folder / EVALUATION}: is damaged: it holds no mapping; remove it to evaluate anew"
    (folder / EVALUATION).unlink()
    (folder / "result.json").unlink()
    assert refused(folder) == f"{folder}: the trial is not finished, so there is no network to evaluate"
    other = made.folder("simkd")
    (other / "student.safetensors").unlink()
    assert refused(other) == f"{other}: its weights are gone, so there is no network to evaluate"


def test_trials_that_are_kept_without_weights_are_not_called_unfinished(made: Made, capsys) -> None:
    (made.folder("kd") / "student.safetensors").unlink()
    evaluate(made.recipe, *FAST, "--only", "method=none,kd", "--trials", 1, "--out", made.out)
    assert "left out: 1 kept without weights" in capsys.readouterr().err
    sentence = refused(made.recipe, "--only", "method=kd", "--trials", 1, "--out", made.out)
    assert "1 of 1 trial is finished in" in sentence and "weights were not kept" in sentence
    assert f"kd-bench report --recipe {made.recipe} --out {made.out}" in sentence


def test_two_processes_do_not_evaluate_the_same_at_once(made: Made) -> None:
    folder = made.folder("kd")
    with open(folder / "evaluation.lock", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunFailed, match="another process is evaluating this"):
            evaluate(folder)


def test_logits_that_are_not_finite_are_an_error(made: Made, monkeypatch) -> None:
    original = evaluate_network.logits_by_batch

    def broken(*arguments: Any) -> Any:
        for logits, labels in original(*arguments):
            yield logits * float("nan"), labels

    monkeypatch.setattr(evaluate_network, "logits_by_batch", broken)
    with pytest.raises(RunFailed, match="its logits are not finite"):
        evaluate(made.folder("kd"), *FAST)
    assert not (made.folder("kd") / EVALUATION).exists()
