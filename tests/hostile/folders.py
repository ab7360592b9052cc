"""A results folder that holds the trials of a small recipe, ways to damage one of them, and commands that read it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from kd_bench.cli.main import main
from kd_bench.config.load import read_recipe
from kd_bench.plan import plan
from tests.trials.folders import finish

RECIPE = {
    "name": "small",
    "dataset": {"name": "digits", "test_images": 100},
    "epochs": 3,
    "batch_size": 100,
    "trials": 2,
    "schedule": {"name": "cosine"},
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": {"none": {}, "kd": {}},
}

#: Accuracies of the trial that is damaged, which no other trial has.
TOP1, BEST = 61.23, 71.87

#: Accuracy of kd with the other seed.
OTHER = 55.5

#: Seconds within which every command ends.
LIMIT = 60


@dataclass(frozen=True)
class Results:
    """Finished trials of the recipe.

    Attributes:
        root: The folder that holds the recipe's file and the results folder.
        victim: The trial of kd and seed 0, which is damaged.
        others: Ids of the other trials and of the teacher.
    """

    root: Path
    victim: str
    others: tuple[str, ...]

    @property
    def recipe(self) -> Path:
        """The recipe's file."""
        return self.root / "small.yaml"

    @property
    def out(self) -> Path:
        """The results folder."""
        return self.root / "out"

    @property
    def folder(self) -> Path:
        """The folder of the trial that is damaged."""
        return self.out / "small" / self.victim

    def copy(self, root: Path) -> Results:
        """Copies the results, all of which are still whole."""
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        return Results(root, self.victim, self.others)


def make(root: Path) -> Results:
    """Writes the recipe, and its trials as a run leaves them."""
    (root / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    cells = plan(read_recipe(RECIPE), "small")
    victim = next(cell for cell in cells if (cell.label, cell.seed) == ("kd", 0))
    teacher = victim.trial.teacher
    assert teacher is not None
    finish(root / "out" / "teachers" / teacher.id, teacher, 90.0, seconds_per_epoch=2.0)
    for cell in cells:
        top1 = {"top1": TOP1, "top1_best": BEST} if cell is victim else {"top1": OTHER if cell.label == "kd" else 40.0}
        finish(root / "out" / "small" / cell.trial_id, cell.trial, **top1, teacher_top1=90.0)
    others = (teacher.id, *(cell.trial_id for cell in cells if cell is not victim))
    return Results(root, victim.trial_id, others)


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    stdout: str
    stderr: str


def call(*arguments: object) -> Outcome:
    """Runs a command in this process. An error that is no sentence is raised, and so is one after ``LIMIT`` seconds."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    handlers = {name: signal.getsignal(name) for name in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(LIMIT)
    try:
        with (
            patch.object(sys, "argv", ["kd-bench", *map(str, arguments)]),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        signal.alarm(0)
        for name, handler in handlers.items():
            signal.signal(name, handler)
    assert "Traceback" not in stderr.getvalue(), stderr.getvalue()
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


def _too_late(*_: Any) -> None:
    raise TimeoutError(f"the command did not end within {LIMIT} s")


def rows(text: str) -> list[dict[str, str]]:
    """The rows of a table as CSV."""
    return list(csv.DictReader(io.StringIO(text)))


Damage = Callable[[Path], None]


def text(file: str, content: str | bytes) -> Damage:
    """Replaces a file's content."""
    return lambda folder: _write(folder / file, content if isinstance(content, bytes) else content.encode())


def edit(file: str, old: str, new: str) -> Damage:
    """Replaces a part of a file."""

    def damage(folder: Path) -> None:
        content = (folder / file).read_text()
        assert old in content
        (folder / file).write_text(content.replace(old, new, 1))

    return damage


def keys(file: str, **changes: Any) -> Damage:
    """Changes keys of a JSON file; None removes nothing, it is null."""
    return lambda folder: _write(folder / file, json.dumps(json.loads((folder / file).read_text()) | changes).encode())


def cut(file: str, end: int) -> Damage:
    """Cuts bytes off the end of a file."""
    return lambda folder: _write(folder / file, (folder / file).read_bytes()[:-end])


def gone(file: str) -> Damage:
    """Removes a file."""
    return lambda folder: (folder / file).unlink()


def instead(file: str, make: Callable[[Path], object]) -> Damage:
    """Puts something else in the place of a file; of the folder itself if ``file`` is empty."""

    def damage(folder: Path) -> None:
        path = folder / file if file else folder
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return damage


def flipped(file: str) -> Damage:
    """Flips a bit in the middle of a file."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / file).read_bytes())
        content[len(content) // 2] ^= 4
        (folder / file).write_bytes(content)

    return damage


def large(path: Path) -> None:
    """Makes a file that is large and takes no space."""
    with open(path, "wb") as file:
        file.truncate(2**36)


def pipe(path: Path) -> None:
    """Makes a named pipe that nobody writes to."""
    os.mkfifo(path)


def loop(path: Path) -> None:
    """Makes a link to itself."""
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    """Makes a link to what does not exist."""
    path.symlink_to("does-not-exist")


def device(path: Path) -> None:
    """Makes a link to a device that never ends."""
    path.symlink_to("/dev/zero")


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


_BRACKETS = "[" * 100_000

#: Name of a finding -> what it does to a trial's folder, and the file that every command must name.
FINDINGS: dict[str, tuple[Damage, str]] = {
    **{
        f"{file}: {name}": (damage, file)
        for file in ("trial.json", "result.json", "environment.json")
        for name, damage in (
            ("null", text(file, "null")),
            ("a list", text(file, "[]")),
            ("a number", text(file, "7")),
            ("empty", text(file, "")),
            ("cut off", cut(file, 9)),
            ("brackets", text(file, _BRACKETS)),
            ("braces", text(file, '{"a":' * 100_000)),
            ("no text", text(file, b"\xff\xfe\x00\x80")),
            ("NaN", text(file, '{"status": NaN}')),
            ("a named pipe", instead(file, pipe)),
            ("a folder", instead(file, Path.mkdir)),
            ("a link to itself", instead(file, loop)),
            ("a device", instead(file, device)),
            ("64 GiB", instead(file, large)),
        )
    },
    "trial.json: gone": (gone("trial.json"), "trial.json"),
    "trial.json: edited": (keys("trial.json", epochs=2), "trial.json"),
    "trial.json: numbers as text": (keys("trial.json", epochs="3"), "trial.json"),
    "trial.json: infinite": (edit("trial.json", '"epochs": 3', '"epochs": 1e999'), "trial.json"),
    "trial.json: a key more": (keys("trial.json", note="mine"), "trial.json"),
    "trial.json: nothing": (text("trial.json", "{}"), "trial.json"),
    "result.json: top1 as text": (keys("result.json", top1_last="61.23"), "result.json"),
    "result.json: top1 null": (keys("result.json", top1_last=None), "result.json"),
    "result.json: top1 NaN": (edit("result.json", "61.23", "NaN"), "result.json"),
    "result.json: top1 infinite": (edit("result.json", "61.23", "1e999"), "result.json"),
    "result.json: 150 %": (keys("result.json", top1_last=150), "result.json"),
    "result.json: below 0 %": (keys("result.json", top1_best=-0.5), "result.json"),
    "result.json: 5,000 digits": (edit("result.json", '"epochs": 3', '"epochs": ' + "3" * 5000), "result.json"),
    "result.json: epochs as text": (keys("result.json", epochs="3"), "result.json"),
    "result.json: other epochs": (keys("result.json", epochs=2), "result.json"),
    "result.json: a better best": (keys("result.json", top1_best=99.0), "result.json"),
    "result.json: another best epoch": (keys("result.json", best_epoch=1), "result.json"),
    "result.json: no status": (keys("result.json", status=None), "result.json"),
    "result.json: no checksum": (keys("result.json", weights_sha256=None), "result.json"),
    "result.json: classes over 100 %": (keys("result.json", class_top1_last=[101.0]), "result.json"),
    "metrics.csv: another top1": (keys("result.json", top1_last=61.24), "metrics.csv"),
    "metrics.csv: gone": (gone("metrics.csv"), "metrics.csv"),
    "metrics.csv: empty": (text("metrics.csv", ""), "metrics.csv"),
    "metrics.csv: a row cut off": (cut("metrics.csv", 7), "metrics.csv"),
    "metrics.csv: the last character cut off": (cut("metrics.csv", 1), "metrics.csv"),
    "metrics.csv: a row less": (
        lambda folder: _write(
            folder / "metrics.csv", b"".join((folder / "metrics.csv").read_bytes().splitlines(keepends=True)[:-1])
        ),
        "metrics.csv",
    ),
    "metrics.csv: NaN": (edit("metrics.csv", "61.23", "nan"), "metrics.csv"),
    "metrics.csv: text": (edit("metrics.csv", "61.23", "good"), "metrics.csv"),
    "metrics.csv: a formula": (edit("metrics.csv", "61.23", "=1+1"), "metrics.csv"),
    "metrics.csv: brackets": (edit("metrics.csv", "61.23", "[61.23]"), "metrics.csv"),
    "metrics.csv: 150 %": (edit("metrics.csv", "71.87", "150"), "metrics.csv"),
    "metrics.csv: no text": (text("metrics.csv", b"epoch,top1\n\xff,\xfe\n"), "metrics.csv"),
    "metrics.csv: no header": (edit("metrics.csv", "epoch,", "step,"), "metrics.csv"),
    "metrics.csv: an epoch twice": (edit("metrics.csv", "\n2,", "\n1,"), "metrics.csv"),
    "metrics.csv: a named pipe": (instead("metrics.csv", pipe), "metrics.csv"),
    "metrics.csv: a folder": (instead("metrics.csv", Path.mkdir), "metrics.csv"),
    "metrics.csv: a link to itself": (instead("metrics.csv", loop), "metrics.csv"),
    "metrics.csv: a device": (instead("metrics.csv", device), "metrics.csv"),
    "environment.json: gone": (gone("environment.json"), "environment.json"),
    "environment.json: packages a list": (keys("environment.json", packages=["torch"]), "environment.json"),
    "environment.json: command a number": (keys("environment.json", command=7), "environment.json"),
    "environment.json: earlier a number": (keys("environment.json", earlier=3), "environment.json"),
    "weights: a named pipe": (instead("student.safetensors", pipe), "student.safetensors"),
    "weights: a folder": (instead("student.safetensors", Path.mkdir), "student.safetensors"),
    "weights: a link to itself": (instead("student.safetensors", loop), "student.safetensors"),
    "weights: a device": (instead("student.safetensors", device), "student.safetensors"),
    "the folder: a file": (instead("", Path.touch), "is a file, not a folder"),
    "the folder: a link to itself": (instead("", loop), "is a link that leads to no folder"),
    "the folder: a link to nothing": (instead("", nowhere), "is a link that leads to no folder"),
    "the folder: a named pipe": (instead("", pipe), "is a file, not a folder"),
}


def changed_by_hand(name: str) -> bool:
    """Whether the settings of a finding are JSON, and those of another trial."""
    return name.startswith("trial.json: ") and name.split(": ")[1] in (
        "edited",
        "numbers as text",
        "a key more",
        "nothing",
    )


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raises an error inside after some seconds, also in a system call that blocks."""
    before = signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
