"""``kd-bench attack`` as a user types it: files of weights, trials, recipes; killed and resumed; what it refuses."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from kd_bench.cli.main import app
from kd_bench.models import create
from kd_bench.report.attack_table import FOLDER as ATTACKS
from kd_bench.report.attack_table import read_evaluation
from kd_bench.utils.errors import RunFailed, UserError

RECIPE = {
    "name": "small",
    "dataset": {"name": "digits", "test_images": 300},
    "trials": 2,
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": ["none", "kd"],
}


def attack(*arguments: Any) -> None:
    app(["attack", *map(str, arguments)], standalone_mode=False)


def refused(*arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        attack(*arguments)
    return str(caught.value)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A ResNet-8 that knows digits somewhat, as a data-parallel training would save it."""
    from kd_bench.config.data import Dataset
    from kd_bench.data import registry as datasets

    torch.manual_seed(0)
    splits = datasets.load(Dataset(name="digits"))
    images = (splits.train_images.float() / 255 - splits.mean[0]) / splits.std[0]
    network = create("cifar_resnet8", 10)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9)
    for _ in range(8):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), splits.train_labels).backward()
        optimizer.step()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the statistics of the next pass, as they are
    with torch.no_grad():
        network(images)
    path = tmp_path_factory.mktemp("weights") / "student.pt"
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 8}, path)
    return path


def result(out: Path) -> dict[str, Any]:
    (file,) = (out / ATTACKS).glob("*.json")
    content: dict[str, Any] = json.loads(file.read_text())
    return content


GIVEN = ("--model", "resnet8", "--dataset", "digits")
KILLED = (*GIVEN, "--images", "40", "--batch-size", "5", "--eps", "4/255",
          "--attacks", "pgd-20,apgd-ce", "--save-examples")  # fmt: skip


@pytest.mark.slow
def test_killed_twice_it_gives_the_flags_of_the_undisturbed(weights: Path, tmp_path: Path) -> None:
    attack(weights, *KILLED, "--out", tmp_path / "whole")
    whole = result(tmp_path / "whole")
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "kd_bench", "attack", str(weights), *KILLED, "--out", str(out)]
    seen = -1
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        start = seen
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            seen = attacked(out)
            if seen > start + 2:
                break
            time.sleep(0.002)
        process.kill()
        process.wait()
        seen = attacked(out)
        assert result(out)["status"] == "running", "it was too fast to be killed"
        assert seen > start
    attack(weights, *KILLED, "--out", out)
    content = result(out)
    assert content["status"] == "done"
    for key in ("flags", "accuracy", "robust", "warnings", "index", "attack", "subject"):
        assert content[key] == whole[key], key
    assert len(content["about"]["earlier"]) == 2
    attack(weights, *KILLED, "--out", out, "--check")


def attacked(out: Path) -> int:
    """How many batches an evaluation has done."""
    try:
        content = result(out)
    except ValueError:
        return 0
    flags = [flag for flags in content["flags"].values() for flag in flags]
    return sum(flag != "?" for flag in flags) // 5


def test_several_radii_rise_and_each_is_as_if_alone(weights: Path, tmp_path: Path, capsys) -> None:
    common = (weights, *GIVEN, "--images", 20, "--attacks", "pgd-3,apgd-ce")
    attack(*common, "--eps", "8/255,2/255", "--out", tmp_path / "both")
    shown = capsys.readouterr().out
    assert shown.index("Linf 2/255, 20 of 1597 images") < shown.index("Linf 8/255, 20 of 1597 images")
    attack(*common, "--eps", "8/255", "--out", tmp_path / "alone")
    alone = result(tmp_path / "alone")
    both = [json.loads(file.read_text()) for file in (tmp_path / "both" / ATTACKS).glob("*.json")]
    assert len(both) == 2
    (same,) = [content for content in both if content["attack"]["eps"] == 8 / 255]
    assert same["flags"] == alone["flags"]


@pytest.mark.parametrize(("screen", "title"), [("pgd-20", "PGD-20"), ("apgd-ce", "APGD-CE")])
def test_screen_is_called_an_upper_bound_wherever_it_stands(
    weights: Path, screen: str, title: str, tmp_path: Path, capsys
) -> None:
    common = (weights, *GIVEN, "--images", 10, "--screen", screen)
    for format_ in ("terminal", "markdown", "latex", "csv"):
        attack(*common, "--out", tmp_path, "--format", format_)
        shown = capsys.readouterr().out
        assert f"{title} (upper bound)" in shown
        assert "AA" not in shown
    content = result(tmp_path)
    assert content["robust_is"] == "upper bound of the accuracy under AutoAttack"
    (file,) = (tmp_path / ATTACKS).glob("*.json")
    evaluation = read_evaluation(file)
    assert evaluation is not None and not evaluation.complete


def test_normalisation_is_part_of_the_network(weights: Path, tmp_path: Path, capsys) -> None:
    common = (weights, *GIVEN, "--images", 200, "--attacks", "pgd-1")
    accuracies = {}
    for normalise in ("dataset", "none", None):
        out = tmp_path / str(normalise)
        attack(*common, "--out", out, *(("--normalise", normalise) if normalise else ()))
        accuracies[normalise] = result(out)["accuracy"]["clean"]
    assert accuracies[None] == accuracies["dataset"] > accuracies["none"]
    assert "normalised with mean and standard deviation of digits; for others: --normalise" in capsys.readouterr().err


def test_published_layout_of_wrn_34_10_loads_by_path(tmp_path: Path, capsys) -> None:
    """As adversarial training's code saves it: data-parallel, with TRADES' second first block, for pixels in [0, 1]."""
    torch.manual_seed(0)
    state = create("cifar_wrn_34_10", 10).state_dict()
    unused = {f"sub_{key}": value for key, value in state.items() if key.startswith("block1.")}
    path = tmp_path / "model-epoch200.pt"
    torch.save({"state_dict": {f"module.{key}": value for key, value in (state | unused).items()}}, path)
    out = tmp_path / "out"
    attack(path, "--model", "wrn_34_10", "--dataset", "digits", "--attacks", "pgd-1", "--images", 2, "--out", out)
    content = result(out)
    assert content["subject"]["normalise"] == "network"  # which for this network is none
    assert content["subject"]["model"] == "cifar_wrn_34_10"
    assert "cifar_wrn_34_10 on digits" in capsys.readouterr().out


@pytest.fixture(scope="module")
def trained(weights: Path, tmp_path_factory) -> tuple[Path, Path]:
    """A recipe, and a results folder that holds all its trials but one, as if they had been trained."""
    from kd_bench.config.load import read_recipe
    from kd_bench.models.weights import read
    from kd_bench.plan import plan
    from kd_bench.trials.folder import TrialFolder
    from kd_bench.utils.files import sha256

    folder = tmp_path_factory.mktemp("trained")
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(RECIPE))
    state = read(weights).state
    planned = plan(read_recipe(str(file)), str(file))
    for number, cell in enumerate(planned[:-1]):
        trial_folder = TrialFolder(folder / "runs" / "small" / cell.trial_id)
        trial_folder.create(cell.trial)
        noise = torch.Generator().manual_seed(number)
        noisy = {
            key: value + 0.05 * value.std() * torch.randn(value.shape, generator=noise)
            if key.endswith("conv1.weight")
            else value
            for key, value in state.items()
        }
        save_file({key: value.contiguous() for key, value in noisy.items()}, trial_folder.weights)
        trial_folder.write_environment({"command": "kd-bench run small.yaml"})
        epochs = cell.trial.epochs
        trial_folder.write_metrics([{"epoch": epoch, "top1": 50.0} for epoch in range(1, epochs + 1)])
        numbers = {
            "top1_last": 50.0,
            "top1_best": 50.0,
            "epochs": epochs,
            "weights_sha256": sha256(trial_folder.weights),
        }
        trial_folder.finish({"status": "done", "reason": None, **numbers})
    return file, folder / "runs"


def test_recipe_gives_clean_and_robust_accuracy_by_method(trained: tuple[Path, Path], capsys) -> None:
    recipe, out = trained
    common = (recipe, "--out", out, "--images", 20, "--eps", "4/255", "--attacks", "apgd-ce")
    attack(*common)
    captured = capsys.readouterr()
    assert captured.err.count("not trained yet") == 1
    shown = captured.out
    assert "cifar_resnet14 → cifar_resnet8 on digits" in shown
    lines = {line.split()[0]: line for line in shown.splitlines() if line.startswith(("student alone", "kd"))}
    assert "±" in lines["student"]
    assert lines["student"].rstrip().split("  ")[-1].strip() != "–"  # a difference to kd, over the seed that both have
    assert "±" not in lines["kd"]
    assert "APGD-CE (upper bound)" in shown
    attack(*common, "--only", "method=none", "--format", "csv")
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3
    values = [json.loads(file.read_text()) for file in out.glob(f"small/*/{ATTACKS}/*.json")]
    assert len(values) == 3
    assert len({file.name for file in out.glob(f"small/*/{ATTACKS}/*.json")}) == 1  # the attack's settings name it


def test_trial_is_attacked_as_it_was_trained_and_not_twice(trained: tuple[Path, Path], capsys) -> None:
    _, out = trained
    folder = next(path for path in (out / "small").iterdir() if (path / "result.json").exists())
    common = (folder, "--images", 10, "--screen", "pgd-20", "--eps", "2/255")
    attack(*common)
    first = capsys.readouterr()
    assert "PGD-20: batch 1 of 1" in first.err
    attack(*common)
    second = capsys.readouterr()
    assert "batch" not in second.err
    assert first.out == second.out
    assert "pip" not in first.out


def test_evaluations_of_weights_of_before_are_left_out(trained: tuple[Path, Path], tmp_path: Path) -> None:
    from kd_bench.report.attack_table import read_evaluations

    _, out = trained
    folder = next(path for path in (out / "small").iterdir() if (path / "result.json").exists())
    attack(
        folder, "--images", 10, "--attacks", "pgd-20", "--eps", "3/255"
    )  # the tests before may run in another process
    evaluations = read_evaluations(folder)
    assert evaluations
    content = json.loads((folder / "result.json").read_text())
    try:
        (folder / "result.json").write_text(json.dumps(content | {"weights_sha256": "0" * 64}))
        assert read_evaluations(folder) == []
    finally:
        (folder / "result.json").write_text(json.dumps(content))


def test_network_that_cannot_be_attacked_is_left_out(trained: tuple[Path, Path], capsys) -> None:
    recipe, out = trained
    weights, *_ = sorted((out / "small").glob("*/student.safetensors"))
    content = weights.read_bytes()
    try:
        weights.write_bytes(content + b" ")
        with pytest.raises(RunFailed, match="1 of 3 networks is not attacked, see above"):
            attack(recipe, "--out", out, "--images", 10, "--eps", "5/255", "--attacks", "pgd-1")
    finally:
        weights.write_bytes(content)
    captured = capsys.readouterr()
    assert f"{weights}: is not what was written" in captured.err and "left out" in captured.err
    assert captured.err.count("PGD-1: batch 1 of 1") == 2
    assert "PGD-1 (upper bound)" in captured.out


def test_trial_of_other_images_is_not_attacked(trained: tuple[Path, Path]) -> None:
    _, out = trained
    folder = next(path for path in (out / "small").iterdir() if (path / "result.json").exists())
    contents = {folder / name: (folder / name).read_text() for name in ("result.json", "environment.json")}
    images = {"digest": "0" * 32, "order": "0" * 32, "kind": "pixels"}
    try:
        for file, content in contents.items():
            file.write_text(json.dumps(json.loads(content) | {"images": images}))
        message = refused(folder, "--images", 10, "--attacks", "pgd-1")
    finally:
        for file, content in contents.items():
            file.write_text(content)
    assert "its result is from other images than the present ones (digest 000000" in message


def test_evaluation_of_other_images_is_begun_anew(weights: Path, tmp_path: Path, capsys) -> None:
    common = (weights, *GIVEN, "--images", 5, "--attacks", "pgd-1", "--out", tmp_path)
    attack(*common)
    (file,) = (tmp_path / ATTACKS).iterdir()
    kept = json.loads(file.read_text())
    images = kept["about"]["images"] | {"order": "0" * 32}
    file.write_text(json.dumps(kept | {"about": kept["about"] | {"images": images}, "flags": {"clean": "11111"}}))
    capsys.readouterr()
    attack(*common)
    assert "PGD-1: batch 1 of 1" in capsys.readouterr().err
    renewed = json.loads(file.read_text())
    assert renewed["about"]["images"] == kept["about"]["images"]
    assert renewed["flags"] == kept["flags"]


def test_check_needs_a_finished_evaluation(weights: Path, tmp_path: Path) -> None:
    common = (
        weights,
        "--model",
        "resnet8",
        "--dataset",
        "digits",
        "--images",
        5,
        "--screen",
        "pgd-20",
        "--eps",
        "1/255",
    )
    assert "no finished evaluation" in refused(*common, "--check", "--out", tmp_path)
    attack(*common, "--out", tmp_path)
    assert "--save-examples" in refused(*common, "--check", "--out", tmp_path)
    attack(*common, "--out", tmp_path, "--save-examples")
    attack(*common, "--out", tmp_path, "--check")
    (file,) = (tmp_path / ATTACKS).glob("*.json")
    content = json.loads(file.read_text())
    content["flags"]["clean"] = "1" * 5  # as if images that the network never knew had fallen to the attack
    content["flags"]["pgd-20"] = "0" * 5
    file.write_text(json.dumps(content))
    with pytest.raises(RunFailed, match="the adversarial images do not agree with the evaluation"):
        attack(*common, "--out", tmp_path, "--check")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "needs --model and --dataset"),
        (("--model", "resnet8"), "needs --dataset"),
        ((*GIVEN, "--eps", "8/0"), "--eps: '8/0' is not a number"),
        ((*GIVEN, "--eps", "8/255;4"), "is not a number"),
        ((*GIVEN, "--eps", "-1"), "must be above 0"),
        ((*GIVEN, "--eps", "0.1,0.1"), "there twice"),
        ((*GIVEN, "--eps", "8"), "did you mean 8/255?"),
        ((*GIVEN, "--norm", "L2"), "--norm L2 needs --eps"),
        ((*GIVEN, "--norm", "L2", "--eps", "128"), "128 in L2 reaches all images of digits, whose 3072 values"),
        ((*GIVEN, "--norm", "L1"), "no norm is called 'L1'"),
        ((*GIVEN, "--attacks", "apgd"), "no attack is called 'apgd'; did you mean 'apgd-t'?"),
        ((*GIVEN, "--attacks", "apgd-ce,apgd-ce"), "each once"),
        ((*GIVEN, "--screen", "pgd-10"), "no screen is called 'pgd-10'"),
        ((*GIVEN, "--screen", "pgd-20", "--attacks", "square"), "--attacks must be left out"),
        ((*GIVEN, "--normalise", "datset"), "no normalisation is called 'datset'; did you mean 'dataset'?"),
        ((*GIVEN, "--images", "5000"), "--images 5000 is more than digits has, 1597"),
        ((*GIVEN, "--format", "pdf"), "no format is called 'pdf'"),
        ((*GIVEN, "--device", "cuda:7"), "there is no such device"),
        ((*GIVEN, "--only", "method=kd"), "--only has no meaning for a file of weights"),
        ((*GIVEN, "--key", "ema"), "has no key 'ema'"),
        (("--model", "resnet14", "--dataset", "digits"), "does not hold the weights of cifar_resnet14"),
        (("--model", "resnet9", "--dataset", "digits"), "no network is called 'resnet9'"),
        (("--model", "resnet8", "--dataset", "digit"), "no dataset is called 'digit'; did you mean 'digits'?"),
    ],
)
def test_bad_input_is_a_sentence(weights: Path, arguments: Any, expected: str, tmp_path: Path) -> None:
    assert expected in refused(weights, *arguments, "--out", tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_targets_are_sentences(trained: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, out = trained
    assert "there is no such file of weights" in refused(tmp_path / "a.pth", *GIVEN)
    assert "there is no trial.json in it" in refused(tmp_path)
    assert "there is no such recipe" in refused("demoo")
    assert "none of its 4 trials is finished" in refused(recipe, "--out", tmp_path)
    finished = next(path for path in (out / "small").iterdir() if (path / "result.json").exists())
    assert "--model has no meaning for a trial" in refused(finished, *GIVEN)
    file = tmp_path / "a.pth"
    file.write_bytes(b"\x80\x04]\x94.")
    assert "a.pth" in refused(file, *GIVEN)


def test_two_processes_do_not_evaluate_the_same_at_once(weights: Path, tmp_path: Path) -> None:
    common = (weights, *GIVEN, "--images", 5, "--attacks", "pgd-1", "--out", tmp_path)
    attack(*common)
    (file,) = (tmp_path / ATTACKS).iterdir()
    with open(file.with_suffix(".lock"), "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunFailed, match="another process is evaluating this"):
            attack(*common)
    attack(*common)
    assert [path.name for path in (tmp_path / ATTACKS).iterdir()] == [file.name]
