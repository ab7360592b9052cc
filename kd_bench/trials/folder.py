"""A trial's folder and its files. A kill at any instant loses at most the current epoch."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from kd_bench.config.trial import PlannedTrial, PretrainedTeacher, Trial, identity
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import json_text, read_json, write_atomic, write_json, write_new

Status = Literal["done", "failed", "missing"]

#: Number of checkpoints in the folder of an unfinished trial: the last, and one more in case the last is damaged.
KEPT_CHECKPOINTS = 2

#: Name of the folder of trained teachers, which all recipes of a results folder share.
TEACHERS = "teachers"

_CHECKPOINT = re.compile(r"epoch-(\d{6})-([0-9a-f]{16})\.pt")


class TrialFolder:
    """``OUT/<recipe>/<trial id>/``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = path / "student.safetensors"

    @property
    def id(self) -> str:
        """The trial's id."""
        return self.path.name

    def check_settings(self) -> None:
        """Checks that the hash of the settings in the folder is the folder's name.

        Raises:
            UserError: If ``trial.json`` was changed by hand or is damaged.
        """
        file = self.path / "trial.json"
        try:
            settings = read_json(file)
        except ValueError:
            raise UserError(f"{file}: is damaged; remove the folder {self.path} to train this trial again") from None
        if settings is None:
            return
        trial_id = identity(settings) if isinstance(settings, dict) else "nothing"
        if trial_id != self.id:
            raise UserError(
                f"{file}: was changed by hand: its settings are those of trial {trial_id}, its folder is {self.id}; "
                f"restore it, or remove the folder to train this trial again"
            )

    def create(self, trial: Trial | PretrainedTeacher) -> None:
        """Creates the folder and writes the settings, if they do not exist yet."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "trial.json").exists():
            write_json(self.path / "trial.json", trial.settings())

    def result(self) -> dict[str, Any] | None:
        """Returns the content of ``result.json``, or None if the trial is not finished.

        Raises:
            UserError: If the file is damaged.
        """
        try:
            result = read_json(self.path / "result.json")
        except ValueError:
            result = {}
        if result is not None and (not isinstance(result, dict) or result.get("status") not in {"done", "failed"}):
            raise UserError(f"{self.path / 'result.json'}: is damaged; remove it to finish this trial again")
        return result

    def status(self) -> Status:
        """Returns the status. A trial that is done but has lost its weights is missing."""
        result = self.result()
        if result is None:
            return "missing"
        status: Status = result["status"]
        return "missing" if status == "done" and not self.weights.exists() else status

    def read(self, name: str) -> dict[str, Any] | None:
        """Returns the content of one of the folder's JSON files, or None if it cannot be read or is damaged."""
        with suppress(OSError, ValueError):
            content = read_json(self.path / name)
            return content if isinstance(content, dict) else None
        return None

    def write_environment(self, environment: Mapping[str, Any]) -> dict[str, Any] | None:
        """Writes ``environment.json``. Keeps the environments from before a resume, and returns the last of these."""
        previous = self.read("environment.json")
        earlier = [*previous.pop("earlier", []), previous] if previous else []
        write_json(self.path / "environment.json", {**environment, "earlier": earlier})
        return previous

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes ``metrics.csv``, one row per epoch. Rewrites the whole file, so a kill leaves no duplicate rows."""
        rows = list(rows)
        text = io.StringIO()
        columns = dict.fromkeys(name for row in rows for name in row)  # columns may change with a resume
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path / "metrics.csv", text.getvalue())

    def write_checkpoint(self, epoch: int, content: bytes) -> None:
        """Writes the state after ``epoch`` epochs. The file name has the content's hash, to detect damage."""
        new = self._write_state(f"epoch-{epoch:06d}", content)
        kept = {epoch, *sorted({other for other, _ in self._checkpoints() if other < epoch})[1 - KEPT_CHECKPOINTS :]}
        for other, path in self._checkpoints():
            if other not in kept or (other == epoch and path != new):
                path.unlink(missing_ok=True)
        for path in new.parent.glob("within-*.pt"):  # of an epoch that is over
            path.unlink(missing_ok=True)

    def write_mid_epoch(self, epoch: int, step: int, content: bytes) -> None:
        """Writes the state after ``step`` steps of an epoch (from 0), and removes earlier states within an epoch."""
        new = self._write_state(f"within-{epoch:06d}-{step:09d}", content)
        for path in new.parent.glob("within-*.pt"):
            if path != new:
                path.unlink(missing_ok=True)

    def _write_state(self, name: str, content: bytes) -> Path:
        path = self.path / "checkpoint" / f"{name}-{_digest(content)}.pt"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, content)
        return path

    def read_mid_epoch(self, epoch: int) -> Iterable[bytes]:
        """Yields the undamaged states within this epoch (from 0), the last first."""
        for path in sorted((self.path / "checkpoint").glob(f"within-{epoch:06d}-*.pt"), reverse=True):
            content = path.read_bytes()
            if path.name.endswith(f"-{_digest(content)}.pt"):
                yield content

    def read_checkpoints(self) -> Iterable[tuple[int, Path, bytes | None]]:
        """Yields epoch, file and content of each checkpoint, the last first. The content is None if it is damaged."""
        for epoch, path in self._checkpoints():
            content = path.read_bytes()
            yield epoch, path, content if path.name.endswith(f"-{_digest(content)}.pt") else None

    def epochs_done(self) -> int:
        """Returns the number of epochs of the last checkpoint; 0 without a checkpoint."""
        return max((epoch for epoch, _ in self._checkpoints()), default=0)

    def finish(self, result: Mapping[str, Any]) -> bool:
        """Writes ``result.json``, which makes the trial finished, and then removes the checkpoints.

        Returns:
            False if there is a result already, from a process that believed to hold the lease too. That result stays.
        """
        if not write_new(self.path / "result.json", json_text(result)):
            return False
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)
        return True

    def write_failure(self, reason: str) -> None:
        """Writes ``failure.json``, which says why the trial could not be trained. The next run tries again."""
        if self.path.is_dir():
            write_json(self.path / "failure.json", {"reason": reason})

    def remove_failure(self) -> None:
        """Removes ``failure.json``, before another attempt."""
        (self.path / "failure.json").unlink(missing_ok=True)

    def remove_result(self) -> None:
        """Removes ``result.json``, so that a failed trial is trained again."""
        (self.path / "result.json").unlink(missing_ok=True)

    def _checkpoints(self) -> list[tuple[int, Path]]:
        paths = sorted((self.path / "checkpoint").glob("epoch-*.pt"), reverse=True)
        return [(int(match[1]), path) for path in paths if (match := _CHECKPOINT.fullmatch(path.name))]


def check_settings_of(planned: Iterable[PlannedTrial], folder: Path) -> None:
    """Checks the settings of all planned trials under ``OUT/<recipe>``, and of their teachers.

    Raises:
        UserError: As ``TrialFolder.check_settings``.
    """
    paths = {folder / cell.trial_id for cell in planned}
    paths |= {folder.parent / TEACHERS / cell.teacher_id for cell in planned if cell.teacher_id}
    for path in sorted(paths):
        TrialFolder(path).check_settings()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
