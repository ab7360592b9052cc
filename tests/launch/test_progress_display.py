"""The progress display of a run."""

import io

import pytest
from rich.console import Console

from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.launch import progress_display as module
from kd_bench.launch.progress_display import ProgressDisplay
from tests.training.parts import trial


def printed_lines(display: ProgressDisplay) -> list[str]:
    return display.console.file.getvalue().splitlines()


def plain(width: int = 80) -> ProgressDisplay:
    return ProgressDisplay("r", Console(file=io.StringIO(), soft_wrap=True, width=width))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: seconds[0])
    return seconds


def test_plain_lines_where_there_is_no_terminal(clock):
    first, second = trial("kd", epochs=2), trial("dkd", epochs=2)
    display = plain()
    display.start({first.id: "kd", second.id: "soft"}, [first.teacher], [first, second])
    display.cohort_started([first, second])
    clock[0] = 20.0
    display.cohort_progress([first, second], {"epoch": 0, "step": 3, "steps": 6, "rate": 100.0})
    display.epoch_finished(first, 1, 50.0)
    display.epoch_finished(second, 1, 60.0)
    clock[0] = 40.0
    display.epoch_finished(first, 2, 55.5)
    display.trial_finished(first, 55.5, None)
    display.trial_finished(second, None, "the loss was no longer finite")
    display.close()
    assert printed_lines(display) == [
        "r: to train: 2 trials and 1 teacher",
        "resnet14 -> resnet8, seed 3: kd, soft: started",
        # Two of seven epochs took 20 seconds.
        "resnet14 -> resnet8, seed 3: epoch 1/2, kd 50.0, soft 60.0 %, 50 s left in all",
        # Three of seven epochs took 40 seconds.
        "resnet14 -> resnet8, kd, seed 3: done, 55.50 %, 53 s left in all",
        "resnet14 -> resnet8, soft, seed 3: failed: the loss was no longer finite",
    ]


def test_teachers_that_differ_in_their_seed_are_told_apart(clock):
    first = trial("kd", epochs=2)
    second = first.model_copy(update={"teacher": first.teacher.model_copy(update={"seed": first.teacher.seed + 1})})
    display = plain()
    display.start({first.id: "kd", second.id: "kd"}, [], [first, second])
    display.cohort_started([first])
    display.cohort_started([second])
    display.trial_finished(second, 55.5, None)
    seed = first.teacher.seed
    assert printed_lines(display)[1:] == [
        f"resnet14 (seed {seed}) -> resnet8, seed 3: kd: started",
        f"resnet14 (seed {seed + 1}) -> resnet8, seed 3: kd: started",
        f"resnet14 (seed {seed + 1}) -> resnet8, kd, seed 3: done, 55.50 %",
    ]


def test_a_teacher_from_a_file_counts_as_done(clock):
    student = trial("kd", epochs=3)
    teacher = PretrainedTeacher(dataset=student.dataset, model="cifar_resnet14", weights="0" * 64)
    student = student.model_copy(update={"teacher": teacher})
    display = plain()
    display.start({student.id: "kd"}, [teacher], [student])
    display.trial_finished(teacher, 70.0, None)
    display.cohort_started([student])
    clock[0] = 40.0
    display.epoch_finished(student, 2, 50.0)
    assert printed_lines(display)[-1].endswith("epoch 2/3, kd 50.0 %, 13 s left")  # one of four epochs, not two


def test_a_resumed_cohort_is_not_called_new(clock):
    first, second = trial("kd", epochs=10), trial("dkd", epochs=10)
    display = plain()
    display.start({first.id: "kd", second.id: "soft"}, [], [first, second])
    display.cohort_started([first, second], 8)
    clock[0] = 20.0
    for member in (first, second):
        display.epoch_finished(member, 9, 50.0)
    assert printed_lines(display)[1:] == [
        "resnet14 -> resnet8, seed 3: kd, soft: resumed after epoch 8",
        # One of two epochs took 20 seconds.
        "resnet14 -> resnet8, seed 3: epoch 9/10, kd 50.0, soft 50.0 %, 20 s left",
    ]


def test_the_time_that_is_left_counts_parts_of_epochs(clock):
    member = trial("kd", epochs=10)
    display = plain()
    display.start({member.id: "kd"}, [], [member])
    display.cohort_started([member])
    clock[0] = 660.0
    display.cohort_progress([member], {"epoch": 0, "step": 30, "steps": 60, "rate": 10.0})
    # Half of one of ten epochs took 11 minutes.
    assert printed_lines(display)[-1] == "resnet14 -> resnet8, seed 3: epoch 0.50/10, kd, 10 images/s, 3.5 h left"


def test_what_an_earlier_run_did_of_an_epoch_took_no_time_of_this_one(clock):
    first, second = trial("kd", epochs=10), trial("dkd", epochs=10)
    display = plain()
    display.start({first.id: "kd", second.id: "soft"}, [], [first, second])
    display.cohort_started([first, second], 8)
    display.cohort_resumed([first, second], {"epoch": 8, "step": 45, "steps": 60})
    clock[0] = 20.0
    for member in (first, second):
        display.epoch_finished(member, 9, 50.0)
    # A quarter of an epoch took 20 seconds.
    assert printed_lines(display)[-1] == "resnet14 -> resnet8, seed 3: epoch 9/10, kd 50.0, soft 50.0 %, 80 s left"


def test_a_member_that_is_ahead_of_its_cohort_has_not_more_to_do(clock):
    first, second = trial("kd", epochs=10), trial("dkd", epochs=10)
    display = plain()
    display.start({first.id: "kd", second.id: "soft"}, [], [first, second])
    display.cohort_started([second], 8)
    display.cohort_started([first, second], 4)
    clock[0] = 660.0
    display.cohort_progress([first, second], {"epoch": 6, "step": 0, "steps": 60, "rate": 10.0})
    # Two of the eight epochs that both have left took 11 minutes.
    assert printed_lines(display)[-1].endswith(" 33 min left")


def test_the_epochs_of_a_preparation_are_named_and_counted(clock):
    first, second = trial("ab", epochs=2), trial("kd", epochs=2)  # two epochs of preparation, and none
    display = plain()
    display.start({first.id: "ab", second.id: "kd"}, [], [first, second])
    display.cohort_started([first, second])
    clock[0] = 20.0
    display.cohort_progress([first, second], {"epoch": -2, "step": 3, "steps": 6, "rate": 100.0})
    display.preparation_epoch_finished(first, 1)
    clock[0] = 40.0
    display.preparation_epoch_finished(first, 2)
    display.epoch_finished(first, 1, 50.0)
    display.epoch_finished(second, 1, 60.0)
    display.close()
    assert printed_lines(display)[2:] == [
        # One of six epochs took 20 seconds, and four of them 40.
        "resnet14 -> resnet8, seed 3: preparation, epoch 1/2, ab, kd, 2 min left",
        "resnet14 -> resnet8, seed 3: epoch 1/2, ab 50.0, kd 60.0 %, 20 s left",
    ]


def test_nothing_to_do_is_said():
    display = plain()
    display.start({trial("kd").id: "kd"}, [], [])
    assert printed_lines(display) == ["r: all is done (1 trial); nothing to train"]


def test_what_others_finish_is_no_longer_ours_to_do():
    first, second = trial("kd"), trial("dkd")
    display = plain()
    display.start({first.id: "kd", second.id: "dkd"}, [], [first, second])
    display.trial_finished_by_other_process(first, 71.0)
    display.trial_finished_by_other_process(second, None)
    assert [line.partition(", ")[2] for line in printed_lines(display)[1:]] == [
        "kd, seed 3: done, 71.00 % (by another process)",
        "dkd, seed 3: failed (by another process)",
    ]


def started(display: ProgressDisplay, rows: dict[str, str], **settings: object) -> list[Trial]:
    """Starts a display and a cohort of trials whose labels are given by their methods, and returns the trials."""
    trials = [trial(method, **settings) for method in rows]
    labels = {student.id: label for student, label in zip(trials, rows.values(), strict=True)}
    display.start(labels, [], trials)
    display.cohort_started(trials)
    return trials


LABELS = {"kd": "kd", "dkd": "dkd", "ikl_kd": "ikl_kd", "dist": "ikl_kd_class"}


@pytest.mark.parametrize(
    ("width", "model", "line"),
    [
        (140, "cifar_resnet8", "resnet14 -> resnet8, seed 3: epoch 12/240, kd 70.0, dkd 71.0, ikl_kd 72.0, "
                               "ikl_kd_class 73.0 %, 900 images/s, 2.1 h left"),
        (110, "cifar_resnet8", "resnet14 -> resnet8, seed 3: epoch 12/240, kd 70.0, dkd 71.0, ikl_kd 72.0, "
                               "ikl_kd_class 73.0 %, 2.1 h left"),
        (80, "cifar_resnet8", "resnet14 -> resnet8, seed 3: epoch 12/240, 4 students 70.0-73.0 %, 2.1 h left"),
        (80, "cifar_shufflenet_v1", "resnet14 -> shufflenet_v1, seed 3: epoch 12/240, 70.0-73.0 %, 2.1 h left"),
        (60, "cifar_shufflenet_v1", "resnet14 -..., seed 3: epoch 12/240, 70.0-73.0 %, 2.1 h left"),
    ],
)  # fmt: skip
def test_a_line_of_a_log_fits_into_its_width(clock, width, model, line):
    display = plain(width)
    trials = started(display, LABELS, model=model, epochs=240)
    clock[0] = 400.0
    display.cohort_progress(trials, {"epoch": 11, "step": 3, "steps": 6, "rate": 900.0})
    for index, member in enumerate(trials):
        display.epoch_finished(member, 12, 70.0 + index)
    assert printed_lines(display)[-1] == line
    assert len(line) <= width


def test_a_log_has_fewer_and_fewer_lines_and_one_now_and_then_within_a_long_epoch(clock):
    display = plain()
    (member,) = started(display, {"kd": "kd"}, epochs=240)
    for epoch in range(1, 101):
        clock[0] += 20.0
        display.epoch_finished(member, epoch, 50.0)
    epochs = [int(line.partition("epoch ")[2].partition("/")[0]) for line in printed_lines(display)[2:]]
    assert epochs[:3] == [1, 2, 3]
    assert epochs[-3:] == [94, 97, 100]
    for step, seconds in ((1, 300.0), (2, 300.0), (3, 10.0)):
        clock[0] += seconds
        display.cohort_progress([member], {"epoch": 100, "step": step, "steps": 4, "rate": 10.0})
    lines = printed_lines(display)[2 + len(epochs) :]
    assert lines == ["resnet14 -> resnet8, seed 3: epoch 100.75/240, kd 50.0 %, 60 min left"]


def test_a_member_that_fails_does_not_silence_the_others(clock):
    display = plain()
    first, second = started(display, {"kd": "kd", "dkd": "dkd"}, epochs=240)
    display.trial_finished(second, None, "so (log: x.log)")
    clock[0] = 30.0
    display.epoch_finished(first, 1, 50.0)
    assert printed_lines(display)[-2:] == [
        "resnet14 -> resnet8, dkd, seed 3: failed: so (log: x.log)",
        "resnet14 -> resnet8, seed 3: epoch 1/240, kd 50.0 %, 2.0 h left",
    ]


def live_lines(display: ProgressDisplay, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(display._render())
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (80, ["r: 0 of 5 trainings done, 2.7 h left",
              "resnet14 -> resnet8, seed 3  12/240  4 students 70.0-73.0 %  38.0 h left",
              "shufflenet_v1, seed 3        0/240   none"]),
        (60, ["r: 0 of 5 trainings done, 2.7 h left",
              "resnet14 ->..., seed 3  12/240  70.0-73.0 %  38.0 h left",
              "shufflenet_v1, seed 3   0/240   none"]),
    ],
)  # fmt: skip
def test_the_live_display_has_a_line_for_each_cohort(clock, width, lines):
    trials = [trial(method, epochs=240) for method in LABELS]
    alone = trial("none", epochs=240, model="cifar_shufflenet_v1")
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    display = ProgressDisplay("r", console)
    labels = dict(zip([student.id for student in trials], LABELS.values(), strict=True)) | {alone.id: "none"}
    display.start(labels, [], [*trials, alone])
    try:
        display.cohort_started(trials)
        display.cohort_started([alone])
        clock[0] = 100.0
        display.cohort_progress(trials, {"epoch": 11, "step": 3, "steps": 6, "rate": 900.0})
        clock[0] = 400.0
        for index, member in enumerate(trials):
            display.epoch_finished(member, 12, 70.0 + index)
        assert live_lines(display, width) == lines
    finally:
        display.close()


def test_a_wide_live_display_shows_speed_and_a_bar(clock):
    display = ProgressDisplay("r", Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None))
    (member,) = started(display, {"kd": "kd"}, epochs=2)
    try:
        display.cohort_progress([member], {"epoch": 1, "step": 3, "steps": 6, "rate": 900.0})
        (line,) = live_lines(display, 120)[1:]
        assert line == f"resnet14 -> resnet8, seed 3  1/2  kd    900 images/s  {'━' * 12}"
    finally:
        display.close()


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch):
    """rich shows no live table there, so these lines are all that is seen of a run of days."""
    monkeypatch.setenv("TERM", "dumb")
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    display = ProgressDisplay("r", console)
    (member,) = started(display, {"kd": "kd"}, epochs=2)
    display.trial_finished(member, 70.0, None)
    display.close()
    assert "resnet14 -> resnet8, kd, seed 3: done, 70.00 %" in console.file.getvalue()
