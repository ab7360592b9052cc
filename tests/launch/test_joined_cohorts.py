"""Which students train in one cohort: students without a teacher join others, and idle slots split a cohort."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kd_bench.config.data import Pipeline
from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.launch.cohort_order import parts_for_idle_slots
from kd_bench.launch.cohort_task import CohortLoad, CohortTask, group_into_cohorts
from kd_bench.launch.devices import Devices
from kd_bench.launch.executor import Executor
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
        kinds = [PretrainedTeacher if "weights" in settings else Trial for settings in job.trials]
        pairs = zip(kinds, job.trials, strict=True)
        self.jobs.append([kind.model_validate_json(json.dumps(settings)).id for kind, settings in pairs])
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
    names = {student.id: student for student in trials}
    assert all(set(ids) <= names.keys() for ids in executor.jobs)
    return [set(ids) for ids in executor.jobs]


def ids(*trials: Trial) -> set[str]:
    return {student.id for student in trials}


def test_a_student_alone_joins_the_methods_that_see_the_same_batches(tmp_path: Path) -> None:
    assert started(tmp_path, [NONE, WIDE, OTHER_SEED, OTHER_BATCHES, KD, DKD]) == [ids(KD, DKD, NONE, WIDE)]


def test_an_idle_slot_splits_a_cohort(tmp_path: Path) -> None:
    assert started(tmp_path, [NONE, KD], slots=2) == [ids(KD), ids(NONE)]
    assert started(tmp_path, [NONE, WIDE, KD, DKD], slots=2) == [ids(KD, DKD), ids(NONE, WIDE)]
    assert started(tmp_path, [NONE, WIDE, KD, DKD], slots=3) == [ids(KD), ids(DKD), ids(NONE, WIDE)]
    assert started(tmp_path, [NONE, WIDE, KD, DKD], slots=5) == [ids(KD), ids(DKD), ids(NONE), ids(WIDE)]


def test_a_cluster_splits_no_cohort(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(RecordingExecutor, "splits_cohorts", False)
    assert started(tmp_path, [NONE, KD, DKD], slots=3) == [ids(KD, DKD), ids(NONE)]
    assert started(tmp_path, [NONE, KD, DKD], slots=1) == [ids(KD, DKD, NONE)]


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
        ([8, 8, 8], 2, [2, 1, 1]),  # two rounds of 9 become one of 9 and one of 5
        ([8, 8, 8], 4, [1, 1, 1]),  # halves of one of them would end no earlier
        ([8, 8, 8], 8, [2, 2, 2]),  # a third part of some would leave the others last
        ([8, 8, 8, 8, 8, 8], 4, [2, 2, 1, 1, 1, 1]),
        ([8, 8, 1], 2, [1, 1, 1]),  # 9 beside 9 and 2 take 11; four halves and a 2 take 12
        ([8, 1, 1], 2, [2, 1, 1]),
        ([8, 1, 1], 4, [3, 1, 1]),
        ([], 4, []),
    ],
)
def test_as_many_parts_as_keep_all_slots_busy(sizes: list[int], slots: int, parts: list[int]) -> None:
    assert parts_for_idle_slots([CohortLoad(size, True, size) for size in sizes], slots) == parts
    assert parts_for_idle_slots([CohortLoad(size, True, 1) for size in sizes], slots) == [1] * len(sizes)


def test_a_student_without_a_teacher_does_not_use_a_slot_alone(tmp_path: Path) -> None:
    others = [trial("kd", hyperparameters={"temperature": float(number)}) for number in range(2, 8)]
    assert [len(job) for job in started(tmp_path, [NONE, KD, DKD, *others], slots=2)] == [4, 4]


def test_students_of_image_files_stay_together(tmp_path: Path) -> None:
    of_files = [student.model_copy(update={"pipeline": Pipeline()}) for student in (KD, DKD)]
    assert CohortTask(tmp_path, [KD, DKD]).load.most_parts == 2
    assert CohortTask(tmp_path, of_files).load.most_parts == 1


def test_teachers_start_first(tmp_path: Path) -> None:
    finish_teacher(tmp_path)
    scheduler, executor = idle_scheduler(tmp_path, slots=1)
    teacher = trial("none", model="cifar_resnet20")
    scheduler._waiting = group_into_cohorts([KD, DKD], tmp_path / "r", 8)
    scheduler._waiting += group_into_cohorts([teacher], tmp_path / "teachers", 8)
    scheduler._start_waiting()
    assert executor.jobs == [[teacher.id]]


def test_students_alone_wait_until_given_weights_are_read(tmp_path: Path) -> None:
    given = PretrainedTeacher(model="cifar_resnet14", dataset=KD.dataset, weights="0" * 64)
    taught = KD.model_copy(update={"teacher": given})
    scheduler, executor = idle_scheduler(tmp_path, slots=2)
    scheduler._waiting = group_into_cohorts([taught, NONE], tmp_path / "r", 8)
    scheduler._waiting += group_into_cohorts([given], tmp_path / "teachers", 8)
    scheduler._start_waiting()
    scheduler._start_waiting()
    assert executor.jobs == [[given.id]]
    finish(tmp_path / "teachers" / given.id, given)
    for cohort in scheduler._waiting:
        cohort.not_before = 0.0
    scheduler._start_waiting()
    assert executor.jobs == [[given.id], [taught.id]]
    assert [cohort.trials for cohort in scheduler._waiting] == [[NONE]]  # until the reader's slot is free


def test_only_trials_that_can_start_are_divided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    finish_teacher(tmp_path)
    trials = [KD, DKD, *(trial("kd", hyperparameters={"temperature": float(number)}) for number in (2, 3))]
    scheduler, executor = idle_scheduler(tmp_path, slots=2)
    monkeypatch.setattr(scheduler, "_unleased_trials", lambda cohort: cohort.trials[2:])
    scheduler._waiting = group_into_cohorts(trials, tmp_path / "r", 8)
    scheduler._start_waiting()
    assert executor.jobs == [[trials[2].id], [trials[3].id]]
    assert [cohort.trials for cohort in scheduler._waiting] == [[KD, DKD]]


def test_a_cohort_is_split_when_its_turn_comes(tmp_path: Path) -> None:
    finish_teacher(tmp_path)
    scheduler, executor = idle_scheduler(tmp_path, slots=2)
    trials = [trial(name, seed=seed) for seed in (3, 4, 5) for name in ("kd", "dkd")]
    scheduler._waiting = group_into_cohorts(trials, tmp_path / "r", 8)
    scheduler._start_waiting()
    assert [len(job) for job in executor.jobs] == [2, 2]
    assert [len(cohort.trials) for cohort in scheduler._waiting] == [1, 1]


def test_a_student_alone_does_not_wait_for_a_teacher(tmp_path: Path) -> None:
    assert started(tmp_path, [KD, NONE], taught=False) == [ids(NONE)]


def test_a_cohort_takes_no_more_than_its_size(tmp_path: Path) -> None:
    assert started(tmp_path, [NONE, WIDE, KD, DKD], size=3) == [ids(KD, DKD, NONE)]


def test_what_is_left_of_a_cohort_starts_in_the_next_slot(tmp_path: Path) -> None:
    finish_teacher(tmp_path)
    scheduler, executor = idle_scheduler(tmp_path, slots=1, size=3)
    scheduler._waiting = group_into_cohorts([NONE, WIDE, KD, DKD], tmp_path / "r", 3)
    scheduler._start_waiting()
    assert [cohort.trials for cohort in scheduler._waiting] == [[WIDE]]
    scheduler._executor = executor = RecordingExecutor(1)
    scheduler._start_waiting()
    assert executor.jobs == [[WIDE.id]]


def test_two_cohorts_with_the_same_batches_share_a_student_alone(tmp_path: Path) -> None:
    assert KD.teacher is not None
    other_teacher = KD.teacher.model_copy(update={"seed": 7})
    finish(tmp_path / "teachers" / other_teacher.id, other_teacher)
    of_other = KD.model_copy(update={"teacher": other_teacher})
    assert started(tmp_path, [NONE, KD, of_other], slots=2) == [ids(KD, NONE), ids(of_other)]


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
