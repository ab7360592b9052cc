"""Students without a teacher in the cohorts of students with one."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kd_bench.config.trial import Trial
from kd_bench.launch.executor import Devices, Executor
from kd_bench.launch.options import RunOptions
from kd_bench.launch.progress_display import ProgressDisplay
from kd_bench.launch.scheduler import CohortTask, Scheduler, group_into_cohorts
from kd_bench.launch.worker_group import WorkerGroup
from kd_bench.launch.worker_protocol import WorkerJob
from tests.launch.test_end_to_end import run, weights
from tests.training.parts import trial
from tests.trials.folders import finish

KD, DKD = trial("kd"), trial("dkd")
NONE, WIDE = trial("none"), trial("none", model="cifar_wrn_16_1")
OTHER_SEED, OTHER_BATCHES = trial("none", seed=4), trial("none", batch_size=32)


class RecordingExecutor(Executor):
    """Starts nothing and remembers the ids of each job's trials."""

    def __init__(self, slots: int) -> None:
        super().__init__([("cpu",)] * slots)
        self.jobs: list[list[str]] = []

    def start_workers(self, job: WorkerJob, devices: Devices, log: Path) -> WorkerGroup:
        self.jobs.append([Trial.model_validate_json(json.dumps(settings)).id for settings in job.trials])
        return WorkerGroup([])


def finish_teacher(out: Path) -> None:
    assert KD.teacher is not None
    finish(out / "teachers" / KD.teacher.id, KD.teacher)


def started(out: Path, trials: Sequence[Trial], slots: int = 1, size: int = 8, taught: bool = True) -> list[set[str]]:
    """Returns the trials of each cohort that starts at once, if so many slots are free."""
    if taught:
        finish_teacher(out)
    display = ProgressDisplay("r", Console(file=io.StringIO()))
    scheduler = Scheduler("r", RunOptions(out=out, cohort_size=size), display)
    scheduler._executor = executor = RecordingExecutor(slots)
    scheduler._waiting = group_into_cohorts(trials, out / "r", size)
    scheduler._start_waiting()
    names = {one.id: one for one in trials}
    assert all(set(ids) <= names.keys() for ids in executor.jobs)
    return [set(ids) for ids in executor.jobs]


def ids(*trials: Trial) -> set[str]:
    return {one.id for one in trials}


def test_a_student_alone_joins_the_methods_that_see_the_same_batches(tmp_path: Path) -> None:
    assert started(tmp_path, [NONE, WIDE, OTHER_SEED, OTHER_BATCHES, KD, DKD]) == [ids(KD, DKD, NONE, WIDE)]


def test_a_student_alone_uses_a_slot_that_would_be_idle(tmp_path: Path) -> None:
    assert started(tmp_path, [NONE, KD], slots=2) == [ids(KD), ids(NONE)]


def test_a_student_alone_does_not_wait_for_a_teacher(tmp_path: Path) -> None:
    assert started(tmp_path, [KD, NONE], taught=False) == [ids(NONE)]


def test_a_cohort_takes_no_more_than_its_size(tmp_path: Path) -> None:
    assert started(tmp_path, [NONE, WIDE, KD, DKD], size=3) == [ids(KD, DKD, NONE)]


def test_what_is_left_of_a_cohort_starts_in_the_next_slot(tmp_path: Path) -> None:
    trials = [NONE, WIDE, OTHER_SEED, KD, DKD]
    assert started(tmp_path, trials, size=3, slots=2) == [ids(KD, DKD, NONE), ids(WIDE)]


def test_nothing_joins_a_cohort_that_has_failed(tmp_path: Path) -> None:
    finish_teacher(tmp_path)
    scheduler = Scheduler("r", RunOptions(out=tmp_path), ProgressDisplay("r", Console(file=io.StringIO())))
    scheduler._executor = executor = RecordingExecutor(1)
    failed, alone = CohortTask(tmp_path / "r", [KD], fresh=True), CohortTask(tmp_path / "r", [NONE])
    scheduler._waiting = [alone, failed]
    scheduler._start_waiting()
    assert executor.jobs == [[KD.id]]
    assert scheduler._waiting == [replace(alone)]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_the_bytes_do_not_depend_on_it(jobs: str, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    content = {
        "dataset": {"name": "digits", "train_images": 200, "test_images": 100},
        "epochs": 1,
        "batch_size": 50,
        "trials": 1,
        "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
        "methods": {"none": {}, "kd": {}},
        "teacher_training": {"epochs": 1},
    }
    recipe.write_text(json.dumps(content))
    out, alone = tmp_path / "out", tmp_path / "alone"
    done = run("run", str(recipe), "--out", str(out), "--jobs", jobs)
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in out.glob("small/*/result.json")]
    assert [result["cohort"] for result in results] == ([2, 2] if jobs == "1" else [1, 1])
    assert sorted(result["teacher_top1"] is None for result in results) == [False, True]
    assert ("kd, none: started" in done.stderr) == (jobs == "1")
    assert run("run", str(recipe), "--out", str(alone), "--only", "method=none").returncode == 0
    assert weights(alone).items() < weights(out).items()
