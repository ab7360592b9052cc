"""The results folder, as the user names it: whether it can be read, and where a trial is in it. Imports nothing."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from kd_bench.utils.errors import UserError

#: The results folder where the user names none.
DEFAULT = Path("runs")

_MISSING = "there is no such folder"

_TRIAL_ID = re.compile(r"[0-9a-f]{16}")


def is_trial_id(name: str) -> bool:
    """Whether a name is that of a trial's folder."""
    return _TRIAL_ID.fullmatch(name) is not None


def check_results_folder(out: Path, must_exist: bool = True) -> None:
    """Checks that a results folder can be read.

    Args:
        out: The folder.
        must_exist: Whether it is an error that there is no such folder.

    Raises:
        UserError: If there is no such folder, it is a file, or it cannot be read.
    """
    problem = folder_problem(out)
    if problem == _MISSING:
        if must_exist:
            raise UserError(f"--out: there is no folder {out}; kd-bench run makes one")
    elif problem is not None:
        raise UserError(f"--out: {out} {problem}")


def folder_problem(path: Path) -> str | None:
    """Returns why a folder cannot be read, as in "is a file, not a folder"; None if it can be read."""
    try:
        with os.scandir(path):
            return None if os.access(path, os.X_OK) else "cannot be read: its files cannot be opened"
    except FileNotFoundError:
        return _MISSING
    except NotADirectoryError:  # the path is a file, or is below one
        return "is a file, not a folder" if os.path.lexists(path) else _MISSING
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def folder_name(*parts: str) -> str:
    """Returns a name for a results folder, made from names of data sets and networks, which may be paths."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def out_option(out: Path) -> str:
    """Returns what a command needs to use a results folder: `` --out DIR``; empty for the default folder."""
    return "" if out == DEFAULT else f" --out {shlex.quote(str(out))}"


def find_trial(trial_id: str, out: Path) -> Path | None:
    """Returns the folder of a student or teacher in a results folder; None if there is none.

    If several recipes have the trial, a finished one with its weights is preferred, then a finished one.

    Args:
        trial_id: Its identity.
        out: The results folder.
    """
    from kd_bench.trials.reader import read_trial

    # Not by a glob of the name, which would not see a link that leads nowhere.
    paths = [parent / trial_id for parent in sorted(out.glob("*"))] if is_trial_id(trial_id) else []
    present = [path for path in paths if os.path.lexists(path)]
    if len(present) < 2:
        return next(iter(present), None)
    records = [read_trial(path) for path in present]
    return max(records, key=lambda record: (record.verdict == "done", record.has_weights)).path
