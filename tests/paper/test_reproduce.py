"""``kd-bench reproduce cifar``: what it plans, where teachers come from, and a cut of its smoke run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.launch.options import RunOptions
from kd_bench.models import pretrained
from kd_bench.models.cards import Card
from kd_bench.paper.reproduce import Part, Reproduction
from kd_bench.trials.folder import TEACHERS
from kd_bench.utils.errors import RunFailed, UserError

ALL_PAIRS = 13
METHODS = {"none", "fitnet", "rkd", "crd", "ofd", "reviewkd", "dkd", "kd", "ikl_kd", "dist"}


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("KD_BENCH_")}
    return subprocess.run(
        [sys.executable, "-m", "kd_bench", "reproduce", "cifar", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=clean | {"COLUMNS": "160"} | environment,
    )


def full(out: Path, fetch: Any, log: Any, only: Sequence[str] = (), trials: int | None = None) -> list[Part]:
    run = Reproduction("cifar", RunOptions(out=out), log, only=only, trials=trials, fetch=fetch)
    return run.with_published_teachers(run.full())


def smoke(data: Path, only: Sequence[str] = ()) -> tuple[list[Part], str]:
    return Reproduction("cifar", RunOptions(out=data, data=data), print, only=only).smoke()


# --- the full budget ---


def unreachable(card: Card) -> None:
    raise RunFailed(f"{card.name}: no mirror answers")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_BENCH_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def reachable(card: Card) -> None:
    file = pretrained.weights_path(card)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(card.name.encode())


def test_teachers_are_fetched_first(weights: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    (part,) = full(tmp_path / "out", reachable, messages.append)
    assert [line.split(": ")[1] for line in messages] == ["published weights"] * 4
    assert len(part.planned) == 135 and len({cell.trial_id for cell in part.planned}) == 129
    assert all(isinstance(cell.taught_by, PretrainedTeacher) for cell in part.planned)
    assert {cell.weights.stem for cell in part.planned if cell.weights} == {
        "resnet32x4",
        "wrn_40_2",
        "vgg13",
        "resnet50",
    }


def test_a_teacher_that_cannot_be_fetched_is_trained_and_said_to_be(weights: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    (part,) = full(
        tmp_path / "out", lambda card: (unreachable if card.name == "vgg13" else reachable)(card), messages.append
    )
    (line,) = [line for line in messages if "could not be fetched" in line]
    assert line.startswith("cifar_vgg13: ") and "it is trained here" in line and "no mirror answers" in line
    kinds = {cell.teacher: type(cell.taught_by) for cell in part.planned}
    assert kinds.pop("cifar_vgg13") is Trial and set(kinds.values()) == {PretrainedTeacher}


def test_a_teacher_whose_training_was_begun_stays_the_one(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (first,) = full(out, unreachable, lambda line: None)
    begun = next(cell for cell in first.planned if cell.teacher == "cifar_resnet50")
    (out / TEACHERS / str(begun.teacher_id)).mkdir(parents=True)
    messages: list[str] = []
    (second,) = full(out, reachable, messages.append)
    assert any(line.startswith("cifar_resnet50: its training was begun here") for line in messages)
    again = {cell.trial_id for cell in second.planned if cell.teacher == "cifar_resnet50"}
    assert again == {cell.trial_id for cell in first.planned if cell.teacher == "cifar_resnet50"}


def test_only_teachers_that_are_needed_are_fetched(weights: Path, tmp_path: Path) -> None:
    fetched: list[str] = []
    only = ["student=mobilenet_v2", "teacher=vgg13"]
    (part,) = full(tmp_path, lambda card: (fetched.append(card.name), reachable(card)), print, only, trials=1)
    assert fetched == ["vgg13"] and len(part.planned) == 9
    (none,) = full(tmp_path, None, print, only)
    assert all(isinstance(cell.taught_by, Trial) for cell in none.planned)


def test_wrong_input(tmp_path: Path) -> None:
    for arguments, expected in (
        (["--budget", "smok"], "no budget is called 'smok'; did you mean 'smoke'?"),
        (["--budget", "smoke", "--trials", "2"], "--trials and --train-teachers must be left out"),
        (["--format", "latx"], "did you mean 'latex'?"),
        (["--only", "teacher=vgg14"], "did you mean 'vgg13'?"),
        (["--data", str(tmp_path / "nowhere")], str(tmp_path / "nowhere")),
    ):
        done = command(*arguments, "--out", str(tmp_path / "out"))
        assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()


# --- the smoke budget ---


def test_smoke_has_every_method_on_every_pair(tmp_path: Path) -> None:
    parts, images = smoke(tmp_path)
    assert images == f"scikit-learn's digits, since there is no CIFAR-100 in {tmp_path}"
    planned = [cell for part in parts for cell in part.planned]
    assert len({(cell.teacher, cell.student) for cell in planned}) == ALL_PAIRS
    assert {cell.label for cell in planned} == METHODS
    for trial in (cell.trial for cell in planned):
        steps = trial.epochs * trial.dataset.train_images / trial.batch_size  # type: ignore[operator]
        assert (trial.dataset.name, steps) == ("digits", 4)
    assert not {cell.trial_id for cell in planned} & {
        cell.trial_id for part in full(tmp_path, None, print) for cell in part.planned
    }


def test_smoke_selects_over_all_recipes(tmp_path: Path) -> None:
    parts, _ = smoke(tmp_path, ["teacher=resnet56"])
    assert [part.recipe.name for part in parts] == ["other_pairs"]
    with pytest.raises(UserError, match="no teacher of this recipe is called 'resnet57'"):
        smoke(tmp_path, ["teacher=resnet57"])


def test_smoke_is_on_cifar_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kd_bench.data import registry

    monkeypatch.setattr(registry, "locate", lambda dataset, data_dir: f"parquet in {data_dir}")
    parts, images = smoke(tmp_path)
    assert images == f"CIFAR-100 (parquet in {tmp_path})"
    assert {cell.trial.dataset.name for part in parts for cell in part.planned} == {"cifar100"}


def test_a_cut_of_the_smoke_run(tmp_path: Path) -> None:
    arguments = (
        "--budget",
        "smoke",
        "--only",
        "teacher=resnet56",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    )
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert "smoke run on scikit-learn's digits" in done.stderr and "to train: 10 trials and 1 teacher" in done.stderr
    assert "smoke run, measures nothing" in done.stdout
    assert all(f" {method} " in done.stdout for method in METHODS - {"none"}) and "student alone" in done.stdout
    assert "published" not in done.stdout.split("\n\n")[0]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["smoke"]
    results = [json.loads(path.read_text()) for path in (tmp_path / "out" / "smoke").glob("*/*/result.json")]
    assert len(results) == 11 and {result["status"] for result in results} == {"done"}
    again = command(*arguments, "--format", "csv")
    assert "nothing to train" in again.stderr and "smoke run, measures nothing" in again.stdout
