"""Which students train in one cohort: students without a teacher join others, and idle slots split a cohort."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kd_bench.config.trial import Trial
from kd_bench.launch.cohort_task import CohortTask, group_into_cohorts, parts_for_idle_slots
from kd_bench.launch.executor import Devices, Executor
from kd_bench.launch.options import RunOptions
from kd_bench.launch.progress_display import ProgressDisplay
from kd_bench.launch.scheduler import Scheduler
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

    splits_cohorts = True

    def __init__(self, slots: int) -> None:
        super().__init__([("cpu",)] * slots)
        self.jobs: list[list[str]] = []

    def start_workers(self, job: WorkerJob, devices: Devices, log: Path) -> WorkerGroup:
        self.jobs.append([Trial.model_validate_json(json.dumps(settings)).id for settings in job.trials])
        return WorkerGroup([])


def finish_teacher(out: Path) -> None:
    assert KD.teacher is not None
    finish(out / "teachers" / KD.teacher.id, KD.teacher)


def idle_scheduler(out: Path, slots: int, size: int = 8) -> tuple[Scheduler, RecordingExecutor]:
    display = ProgressDisplay("r", Console(file=io.StringIO()))
    scheduler = Scheduler("r", RunOptions(out=out, cohort_size=size), display)
    scheduler._executor = executor = RecordingExecutor(slots)
    return scheduler, executor


def started(out: Path, trials: Sequence[Trial], slots: int = 1, size: int = 8, taught: bool = True) -> list[set[str]]:
    """Returns the trials of each cohort that starts at once, if so many slots are free."""
    if taught:
        finish_teacher(out)
    scheduler, executor = idle_scheduler(out, slots, size)
    scheduler._waiting = group_into_cohorts(trials, out / "r", size)
    scheduler._start_waiting()
    names = {one.id: one for one in trials}
    assert all(set(ids) <= names.keys() for ids in executor.jobs)
    return [set(ids) for ids in executor.jobs]


def ids(*trials: Trial) -> set[str]:
    return {one.id for one in trials}


def test_a_student_alone_joins_the_methods_that_see_the_same_batches(tmp_path: Path) -> None:
    assert started(tmp_path, [NONE, WIDE, OTHER_SEED, OTHER_BATCHES, KD, DKD]) == [ids(KD, DKD, NONE, WIDE)]


def test_an_idle_slot_splits_a_cohort(tmp_path: Path) -> None:
    assert started(tmp_path, [NONE, KD], slots=2) == [ids(KD), ids(NONE)]
    assert started(tmp_path, [NONE, WIDE, KD, DKD], slots=2) == [ids(KD, DKD), ids(NONE, WIDE)]
    assert started(tmp_path, [NONE, WIDE, KD, DKD], slots=3) == [ids(KD), ids(DKD), ids(NONE, WIDE)]
    assert started(tmp_path, [NONE, WIDE, KD, DKD], slots=5) == [ids(KD), ids(DKD), ids(NONE), ids(WIDE)]


def test_a_cluster_splits_no_cohort(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(RecordingExecutor, "splits_cohorts", False)
    assert started(tmp_path, [NONE, KD, DKD], slots=3) == [ids(KD, DKD, NONE)]


def test_teachers_train_side_by_side(tmp_path: Path) -> None:
    assert started(tmp_path, [NONE, WIDE], slots=2, taught=False) == [ids(NONE), ids(WIDE)]


@pytest.mark.parametrize(
    ("sizes", "slots", "parts"),
    [
        ([8], 1, [1]),
        ([8], 2, [2]),
        ([8], 4, [4]),
        ([3], 16, [3]),
        ([8, 8], 2, [1, 1]),
        ([8, 8, 8], 2, [1, 1, 2]),  # two rounds of 9 become one of 9 and one of 5
        ([8, 8, 8], 4, [1, 1, 1]),  # halves of one of them would end no earlier
        ([8, 8, 8, 8, 8, 8], 4, [1, 1, 1, 1, 2, 2]),
        ([8, 8, 1], 2, [1, 1, 1]),  # 9 and 2, then a half of 5 and another: later than 9 and 9, then 2
        ([8, 1, 1], 2, [2, 1, 1]),
        ([], 4, []),
    ],
)
def test_the_last_round_fills_all_slots(sizes: list[int], slots: int, parts: list[int]) -> None:
    assert parts_for_idle_slots([(size, True) for size in sizes], slots) == parts


def test_a_cohort_is_split_when_its_turn_comes(tmp_path: Path) -> None:
    finish_teacher(tmp_path)
    scheduler, executor = idle_scheduler(tmp_path, slots=2)
    cohorts = group_into_cohorts([KD, DKD, trial("kd", seed=4), trial("dkd", seed=4)], tmp_path / "r", 8)
    scheduler._waiting = [*cohorts, CohortTask(tmp_path / "r", [OTHER_BATCHES, trial("none", batch_size=32, seed=4)])]
    scheduler._start_waiting()
    assert [len(job) for job in executor.jobs] == [2, 2]
    assert [len(cohort.trials) for cohort in scheduler._waiting] == [1, 1]


def test_a_student_alone_does_not_wait_for_a_teacher(tmp_path: Path) -> None:
    assert started(tmp_path, [KD, NONE], taught=False) == [ids(NONE)]


def test_a_cohort_takes_no_more_than_its_size(tmp_path: Path) -> None:
    assert started(tmp_path, [NONE, WIDE, KD, DKD], size=3) == [ids(KD, DKD, NONE)]


def test_what_is_left_of_a_cohort_starts_in_the_next_slot(tmp_path: Path) -> None:
    assert started(tmp_path, [NONE, WIDE, KD, DKD], size=3, slots=2) == [ids(KD, DKD, NONE), ids(WIDE)]


def test_nothing_joins_a_cohort_that_has_failed(tmp_path: Path) -> None:
    finish_teacher(tmp_path)
    scheduler, executor = idle_scheduler(tmp_path, slots=1)
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
        "methods": {"none": {}, "kd": {}, "dkd": {"warmup_epochs": 0}},
        "teacher_training": {"epochs": 1},
    }
    recipe.write_text(json.dumps(content))
    out, alone = tmp_path / "out", tmp_path / "alone"
    done = run("run", str(recipe), "--out", str(out), "--jobs", jobs)
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in out.glob("small/*/result.json")]
    assert [result["cohort"] for result in results] == ([3] * 3 if jobs == "1" else [1] * 3)
    assert sorted(result["teacher_top1"] is None for result in results) == [False, False, True]
    assert ("kd, dkd, none: started" in done.stderr) == (jobs == "1")
    assert run("run", str(recipe), "--out", str(alone), "--only", "method=none,dkd").returncode == 0
    assert weights(alone).items() < weights(out).items()
