"""What a run tells a person."""

import io

from rich.console import Console

from kd_bench.launch import progress_display as module
from kd_bench.launch.progress_display import Display
from tests.training.parts import trial


def told(display: Display) -> list[str]:
    return display.console.file.getvalue().splitlines()


def plain() -> Display:
    return Display("r", Console(file=io.StringIO(), soft_wrap=True))


def test_plain_lines_where_there_is_no_terminal(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    one, other = trial("kd", epochs=2), trial("dkd", epochs=2)
    display = plain()
    display.begin({one.id: "kd", other.id: "soft"}, [one.teacher], [one, other])
    display.started([one, other])
    clock[0] = 20.0
    display.progress([one, other], {"epoch": 0, "step": 3, "steps": 6, "rate": 100.0})
    display.epoch(one, 1, 50.0)
    display.epoch(other, 1, 60.0)
    clock[0] = 40.0
    display.finished(one, 55.5, None)
    display.finished(other, None, "the loss was no longer finite")
    display.end()
    assert told(display) == [
        "r: to train: 2 trials and 1 teacher",
        "cifar_resnet14 -> cifar_resnet8, seed 3: kd, soft: started",
        # Two of seven epochs took 20 seconds.
        "cifar_resnet14 -> cifar_resnet8, seed 3: epoch 1/2, kd 50.0  soft 60.0, 100 images/s, about 50 s left",
        "cifar_resnet14 -> cifar_resnet8, kd, seed 3: done, 55.50 %, about 2 min left",
        "cifar_resnet14 -> cifar_resnet8, soft, seed 3: failed: the loss was no longer finite",
    ]


def test_nothing_to_do_is_said():
    display = plain()
    display.begin({trial("kd").id: "kd"}, [], [])
    assert told(display) == ["r: all is done (1 trial); nothing to train"]


def test_what_others_finish_is_no_longer_ours_to_do():
    one, other = trial("kd"), trial("dkd")
    display = plain()
    display.begin({one.id: "kd", other.id: "dkd"}, [], [one, other])
    display.finished_elsewhere(one, 71.0)
    display.finished_elsewhere(other, None)
    assert [line.partition(", ")[2] for line in told(display)[1:]] == [
        "kd, seed 3: done, 71.00 % (by another process)",
        "dkd, seed 3: failed (by another process)",
    ]


def test_the_live_display_shows_every_cohort_on_a_line():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    display = Display("r", console)
    one, other = trial("kd"), trial("none")
    display.begin({one.id: "kd", other.id: "none"}, [], [one, other])
    display.started([one])
    display.started([other])
    display.epoch(one, 2, 40.0)
    plain_console = Console(file=io.StringIO(), width=100)
    plain_console.print(display._render())
    display.end()
    lines = plain_console.file.getvalue().splitlines()
    assert lines[0].startswith("r: 0 of 2 trainings done")
    assert [("epoch 2/3" in line, "kd 40.0" in line) for line in lines[1:]] == [(True, True), (False, False)]
