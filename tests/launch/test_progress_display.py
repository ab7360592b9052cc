"""The progress display of a run."""

import io

from rich.console import Console

from kd_bench.launch import progress_display as module
from kd_bench.launch.progress_display import ProgressDisplay
from tests.training.parts import trial


def printed_lines(display: ProgressDisplay) -> list[str]:
    return display.console.file.getvalue().splitlines()


def plain() -> ProgressDisplay:
    return ProgressDisplay("r", Console(file=io.StringIO(), soft_wrap=True))


def test_plain_lines_where_there_is_no_terminal(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    first, second = trial("kd", epochs=2), trial("dkd", epochs=2)
    display = plain()
    display.start({first.id: "kd", second.id: "soft"}, [first.teacher], [first, second])
    display.cohort_started([first, second])
    clock[0] = 20.0
    display.cohort_progress([first, second], {"epoch": 0, "step": 3, "steps": 6, "rate": 100.0})
    display.epoch_finished(first, 1, 50.0)
    display.epoch_finished(second, 1, 60.0)
    clock[0] = 40.0
    display.trial_finished(first, 55.5, None)
    display.trial_finished(second, None, "the loss was no longer finite")
    display.close()
    assert printed_lines(display) == [
        "r: to train: 2 trials and 1 teacher",
        "cifar_resnet14 -> cifar_resnet8, seed 3: kd, soft: started",
        # Two of seven epochs took 20 seconds.
        "cifar_resnet14 -> cifar_resnet8, seed 3: epoch 1/2, kd 50.0  soft 60.0, 100 images/s, about 50 s left",
        "cifar_resnet14 -> cifar_resnet8, kd, seed 3: done, 55.50 %, about 2 min left",
        "cifar_resnet14 -> cifar_resnet8, soft, seed 3: failed: the loss was no longer finite",
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


def test_the_live_display_shows_every_cohort_on_a_line():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    display = ProgressDisplay("r", console)
    first, second = trial("kd"), trial("none")
    display.start({first.id: "kd", second.id: "none"}, [], [first, second])
    display.cohort_started([first])
    display.cohort_started([second])
    display.epoch_finished(first, 2, 40.0)
    plain_console = Console(file=io.StringIO(), width=100)
    plain_console.print(display._render())
    display.close()
    lines = plain_console.file.getvalue().splitlines()
    assert lines[0].startswith("r: 0 of 2 trainings done")
    assert [("epoch 2/3" in line, "kd 40.0" in line) for line in lines[1:]] == [(True, True), (False, False)]
