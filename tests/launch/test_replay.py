"""``kd-bench replay``: a kept trial is trained again and compared."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from kd_bench.cli.replay import describe
from kd_bench.config.trial import Trial
from kd_bench.launch import replay as replaying
from kd_bench.launch.options import RunOptions
from kd_bench.launch.replay import Replay, compare, replay
from kd_bench.trials.reader import WEIGHTS, read_trial, trial_settings
from kd_bench.utils.errors import RunFailed, UserError

DEMO = Path(__file__).parents[2] / "results" / "measured" / "demo"
RECIPE = {
    "dataset": {"name": "digits", "train_images": 120, "test_images": 60},
    "epochs": 2,
    "batch_size": 40,
    "seeds": [0],
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": {"kd": {}},
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kd_bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def kept_trial() -> Path:
    return next(path.parent for path in sorted(DEMO.glob("*/trial.json")) if json.loads(path.read_text())["seed"] == 0)


def replayed(tmp_path: Path, *changes: Callable[[Path], None]) -> Replay:
    """Compares a kept trial with a copy of it that has been changed."""
    copy = tmp_path / "demo" / kept_trial().name
    shutil.copytree(kept_trial(), copy)
    for change in changes:
        change(copy)
    kept, again = read_trial(kept_trial()), read_trial(copy)
    assert again.verdict == "done", again.sentences
    trial = trial_settings(kept)
    assert isinstance(trial, Trial)
    return compare(kept, again, trial)


def change_loss(folder: Path) -> None:
    """Changes the last digit of the training loss of the fourth epoch."""
    path = folder / "metrics.csv"
    lines = path.read_text().splitlines()
    cells, column = lines[4].split(","), lines[0].split(",").index("train_loss")
    cells[column] = repr(float(cells[column]) * (1 + 2**-52))
    lines[4] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n")


def add_energy(folder: Path) -> None:
    """Adds what energy counters, which the machine of the kept trial lacked, have measured in each epoch."""
    path = folder / "metrics.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{header},gpu_joules,cpu_joules", *(f"{row},5.5,7.25" for row in rows)]) + "\n")


def change_environment(folder: Path) -> None:
    environment = json.loads((folder / "environment.json").read_text())
    environment["processor"] = "another processor"
    environment["packages"]["torch"] = "9.9"
    (folder / "environment.json").write_text(json.dumps(environment))


def change_weights(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"weights_sha256": "0" * 64}))


def change_accuracy(points: float) -> Callable[[Path], None]:
    """Returns a function that moves the accuracy after the last epoch."""

    def change(folder: Path) -> None:
        result = json.loads((folder / "result.json").read_text())
        top1 = result["top1_last"] + points
        path = folder / "metrics.csv"
        lines = path.read_text().splitlines()
        cells, column = lines[-1].split(","), lines[0].split(",").index("top1")
        cells[column] = repr(top1)
        path.write_text("\n".join([*lines[:-1], ",".join(cells)]) + "\n")
        rows = [float(line.split(",")[column]) for line in [*lines[1:-1], ",".join(cells)]]
        best = max(rows)
        update = {"top1_last": top1, "top1_best": best, "best_epoch": rows.index(best) + 1}
        (folder / "result.json").write_text(json.dumps(result | update))

    return change


def test_equal_trainings_agree(tmp_path: Path) -> None:
    outcome = replayed(tmp_path)
    assert outcome.is_equal and outcome.agrees and outcome.same_weights
    assert describe(outcome)[-1].endswith("to the last bit, and so are the weights")


def test_energy_is_not_compared(tmp_path: Path) -> None:
    outcome = replayed(tmp_path, add_energy)
    assert outcome.replayed.metrics is not None and "gpu_joules" in outcome.replayed.metrics.columns
    assert outcome.is_equal and outcome.agrees


def test_a_digit_of_one_epoch_is_found(tmp_path: Path) -> None:
    outcome = replayed(tmp_path, change_loss)
    assert outcome.difference is not None and not outcome.agrees
    assert (outcome.difference.epoch, outcome.difference.column) == (4, "train_loss")
    assert "epoch 4: train_loss" in describe(outcome)[-2] and "differs" in describe(outcome)[-1]


def test_other_weights_are_found(tmp_path: Path) -> None:
    outcome = replayed(tmp_path, change_weights)
    assert outcome.difference is None and outcome.same_weights is False and not outcome.agrees


@pytest.mark.parametrize(("points", "agrees"), [(0.0, True), (-40.0, False)])
def test_elsewhere_the_spread_over_seeds_decides(points: float, agrees: bool, tmp_path: Path) -> None:
    outcome = replayed(tmp_path, change_environment, change_loss, *([change_accuracy(points)] if points else []))
    assert outcome.agrees is agrees and outcome.spread.n == 5
    text = "\n".join(describe(outcome))
    assert "another processor" in text and "torch" in text and "5 kept seeds" in text


def test_a_single_seed_decides_nothing(tmp_path: Path) -> None:
    lone = tmp_path / "lone" / kept_trial().name
    shutil.copytree(kept_trial(), lone)
    again = tmp_path / "again" / lone.name
    shutil.copytree(lone, again)
    change_environment(again)
    change_loss(again)
    trial = trial_settings(read_trial(lone))
    assert isinstance(trial, Trial)
    outcome = compare(read_trial(lone), read_trial(again), trial)
    assert not outcome.agrees and "not decided" in describe(outcome)[-1]


@pytest.mark.slow
def test_a_trial_and_its_teacher_are_trained_again(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    done = run("run", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stderr
    (folder,) = (path.parent for path in (tmp_path / "kept" / "small").glob("*/result.json"))
    shutil.rmtree(tmp_path / "kept" / "teachers")  # so that the teacher has to be trained again, too
    again = run("replay", str(folder), "--out", str(tmp_path / "out"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "agrees: every number of every epoch is the same" in again.stdout
    assert (tmp_path / "out" / "replays" / "small" / folder.name / "result.json").is_file()
    change_loss_of_last_row(folder)
    differing = run("replay", str(folder), "--out", str(tmp_path / "out"))
    assert differing.returncode == 1 and "the first difference is in epoch 2" in differing.stdout


def change_loss_of_last_row(folder: Path) -> None:
    path = folder / "metrics.csv"
    lines = path.read_text().splitlines()
    cells, column = lines[-1].split(","), lines[0].split(",").index("test_loss")
    cells[column] = repr(float(cells[column]) + 1)
    path.write_text("\n".join([*lines[:-1], ",".join(cells)]) + "\n")


def test_errors_are_sentences(tmp_path: Path) -> None:
    options = RunOptions(out=tmp_path)
    with pytest.raises(UserError, match="has no finished trial"):
        replay(tmp_path, options)
    with pytest.raises(UserError, match=re.escape("leave the option out")):
        replay(next(iter_taught()), options, weights=tmp_path / "a.pth")
    damaged = tmp_path / "demo" / kept_trial().name
    shutil.copytree(kept_trial(), damaged)
    (damaged / "result.json").write_text("null")
    with pytest.raises(UserError, match=r"result\.json"):
        replay(damaged, options)
    inside = tmp_path / "replays" / "demo" / kept_trial().name
    shutil.copytree(kept_trial(), inside)
    with pytest.raises(UserError, match="is a replay itself"):
        replay(inside, options)


def test_replays_at_once_copy_the_same_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = tmp_path / "kept" / "demo" / next(iter_taught()).name
    shutil.copytree(DEMO / trial.name, trial)
    settings = trial_settings(read_trial(trial))
    assert isinstance(settings, Trial) and settings.teacher is not None
    teacher = Path("teachers", settings.teacher.id)
    shutil.copytree(DEMO.parent / teacher, tmp_path / "kept" / teacher)
    (tmp_path / "kept" / teacher / WEIGHTS).write_bytes(bytes(2**20))
    copytree, both_copy = shutil.copytree, threading.Barrier(2, timeout=30)

    def copy_at_once(source: Path, target: Path) -> Path:
        copied = copytree(source, target)
        both_copy.wait()
        return copied

    def end(*_: object) -> None:
        raise RunFailed("not trained")

    monkeypatch.setattr(shutil, "copytree", copy_at_once)
    monkeypatch.setattr(replaying, "train_trials", end)
    options = RunOptions(out=tmp_path / "out")
    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(replay, trial, options) for _ in range(2)]
    assert [str(future.exception()) for future in futures] == ["not trained"] * 2
    assert [path.name for path in (tmp_path / "out" / "replays" / "teachers").iterdir()] == [teacher.name]
    assert read_trial(tmp_path / "out" / "replays" / teacher).has_weights


@pytest.mark.parametrize("path", [".", "link"])
def test_a_folder_is_found_by_any_path(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def end(name: str, *_: object) -> None:
        names.append(name)
        raise RunFailed("not trained")

    monkeypatch.setattr(replaying, "train_trials", end)
    (tmp_path / "link").symlink_to(kept_trial())
    monkeypatch.chdir(kept_trial() if path == "." else tmp_path)
    with pytest.raises(RunFailed, match="not trained"):
        replay(Path(path), RunOptions(out=tmp_path))
    assert names == ["demo"]


def iter_taught():
    return (path.parent for path in sorted(DEMO.glob("*/trial.json")) if json.loads(path.read_text()).get("teacher"))
