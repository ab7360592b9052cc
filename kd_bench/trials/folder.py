"""A trial's folder: what is in it, written so that a kill at any instant loses at most the epoch under way."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from kd_bench.config.trial import PlannedTrial, PretrainedTeacher, Trial, identity
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import json_text, read_json, write_atomic, write_json, write_new

Status = Literal["done", "failed", "missing"]

#: Checkpoints kept while a trial runs: the last, and the one before it should the last be damaged.
KEPT = 2

#: The recipe's name under which trained teachers lie, for all recipes of a results folder.
TEACHERS = "teachers"

_WITHIN = re.compile(r"within-(\d{6})-\d{9}-([0-9a-f]{16})\.pt")
_CHECKPOINT = re.compile(r"epoch-(\d{6})-([0-9a-f]{16})\.pt")


class TrialFolder:
    """``OUT/<recipe>/<trial id>/``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = path / "student.safetensors"

    @property
    def id(self) -> str:
        """The trial's identity."""
        return self.path.name

    def check(self) -> None:
        """Makes sure that the settings in the folder are those that its name stands for.

        Raises:
            UserError: Where ``trial.json`` was changed by hand, or is damaged.
        """
        file = self.path / "trial.json"
        try:
            settings = read_json(file)
        except ValueError:
            raise UserError(f"{file}: is damaged; remove the folder {self.path} to train this trial anew") from None
        if settings is None:
            return
        found = identity(settings) if isinstance(settings, dict) else "nothing"
        if found != self.id:
            raise UserError(
                f"{file}: was changed by hand: its settings are those of trial {found}, its folder says {self.id}; "
                f"restore it, or remove the folder to train this trial anew"
            )

    def begin(self, trial: Trial | PretrainedTeacher) -> None:
        """Makes the folder and writes the settings."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "trial.json").exists():
            write_json(self.path / "trial.json", trial.settings())

    def result(self) -> dict[str, Any] | None:
        """The content of ``result.json``; None where the trial is not finished.

        Raises:
            UserError: Where the file is damaged.
        """
        try:
            result = read_json(self.path / "result.json")
        except ValueError:
            result = {}
        if result is not None and (not isinstance(result, dict) or result.get("status") not in {"done", "failed"}):
            raise UserError(f"{self.path / 'result.json'}: is damaged; remove it to finish this trial anew")
        return result

    def status(self) -> Status:
        """Whether the trial is finished, and how."""
        result = self.result()
        if result is None:
            return "missing"
        status: Status = result["status"]
        return "missing" if status == "done" and not self.weights.exists() else status

    def write_environment(self, environment: Mapping[str, Any]) -> dict[str, Any] | None:
        """Says on what the trial runs; of a trial that is resumed, what was said before is kept and returned."""
        file = self.path / "environment.json"
        try:
            before = read_json(file)
        except ValueError:
            before = None
        before = before if isinstance(before, dict) else None
        earlier = [*before.pop("earlier", []), before] if before else []
        write_json(file, {**environment, "earlier": earlier})
        return before

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """``metrics.csv``, a row an epoch; always whole, so that no row is there twice after a kill."""
        rows = list(rows)
        text = io.StringIO()
        columns = dict.fromkeys(name for row in rows for name in row)  # what is measured may change with a resume
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path / "metrics.csv", text.getvalue())

    def write_checkpoint(self, epoch: int, content: bytes) -> None:
        """Keeps the state after ``epoch`` epochs; its hash is in its name, so that damage is noticed."""
        folder = self.path / "checkpoint"
        folder.mkdir(exist_ok=True)
        new = folder / f"epoch-{epoch:06d}-{_digest(content)}.pt"
        write_atomic(new, content)
        kept = {epoch, *sorted({one for one, _ in self._checkpoints() if one < epoch})[1 - KEPT :]}
        for one, path in self._checkpoints():
            if one not in kept or (one == epoch and path != new):
                path.unlink(missing_ok=True)

        for path in folder.glob("within-*.pt"):  # of an epoch that is over
            path.unlink(missing_ok=True)

    def write_mid_epoch(self, epoch: int, step: int, content: bytes) -> None:
        """Keeps the state after so many steps of an epoch (from 0), and no former one of it."""
        folder = self.path / "checkpoint"
        folder.mkdir(exist_ok=True)
        new = folder / f"within-{epoch:06d}-{step:09d}-{_digest(content)}.pt"
        write_atomic(new, content)
        for path in folder.glob("within-*.pt"):
            if path != new:
                path.unlink(missing_ok=True)

    def read_mid_epoch(self, epoch: int) -> Iterable[bytes]:
        """What was kept within this epoch (from 0), the last first, as far as it is not damaged."""
        for path in sorted((self.path / "checkpoint").glob(f"within-{epoch:06d}-*.pt"), reverse=True):
            content = path.read_bytes()
            found = _WITHIN.fullmatch(path.name)
            if found and found[2] == _digest(content):
                yield content

    def read_checkpoints(self) -> Iterable[tuple[int, Path, bytes | None]]:
        """Epoch, file and content of each checkpoint, the last first; the content is None where it is damaged."""
        for epoch, path in self._checkpoints():
            content = path.read_bytes()
            whole = path.name == f"epoch-{epoch:06d}-{_digest(content)}.pt"
            yield epoch, path, content if whole else None

    def finish(self, result: Mapping[str, Any]) -> bool:
        """Writes ``result.json``, which makes the trial finished, and then drops the checkpoints.

        Returns:
            Whether it did: a result that is there, because another process believed to hold the lease too, stays.
        """
        if not write_new(self.path / "result.json", json_text(result)):
            return False
        if (self.path / "checkpoint").is_dir():
            for path in (self.path / "checkpoint").iterdir():
                path.unlink(missing_ok=True)
            (self.path / "checkpoint").rmdir()
        return True

    def note_failure(self, reason: str) -> None:
        """Keeps why the trial could not be trained, for people; the next run tries again."""
        if self.path.is_dir():
            write_json(self.path / "failure.json", {"reason": reason})

    def forget_failure(self) -> None:
        """Forgets it, because somebody tries again."""
        (self.path / "failure.json").unlink(missing_ok=True)

    def forget_result(self) -> None:
        """Makes a failed trial one that is to be trained again, from the start."""
        (self.path / "result.json").unlink(missing_ok=True)

    def _checkpoints(self) -> list[tuple[int, Path]]:
        folder = self.path / "checkpoint"
        names = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
        return [(int(found[1]), path) for path in names if (found := _CHECKPOINT.fullmatch(path.name))]


def check_all(planned: Iterable[PlannedTrial], folder: Path) -> None:
    """Checks the folders of all planned trials under ``OUT/<recipe>``, and of their teachers.

    Raises:
        UserError: As ``TrialFolder.check``.
    """
    paths = {folder / one.trial_id for one in planned}
    paths |= {folder.parent / TEACHERS / one.teacher_id for one in planned if one.teacher_id}
    for path in sorted(paths):
        TrialFolder(path).check()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
