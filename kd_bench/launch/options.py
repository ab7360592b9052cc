"""Options of a run: how to train, as opposed to what to train."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_bench.launch.devices import find_devices
from kd_bench.utils.errors import UserError, install_command, unknown

#: The largest number in an option of an executor. A year has about half a million minutes.
_LARGEST = 10**6

#: The options of each executor and their types.
EXECUTOR_OPTIONS: dict[str, dict[str, type]] = {
    "local": {},
    "ray": {"address": str, "gpus": float, "cpus": float},
    "slurm": dict.fromkeys(("partition", "account", "qos", "constraint", "cluster"), str)
    | dict.fromkeys(("minutes", "gpus", "cpus", "memory_gb"), int),
}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run a recipe. Results do not depend on it, except that ``threads`` changes the last bits on a CPU.

    Attributes:
        out: Results folder.
        data: Folder of the data sets; None for the default.
        jobs: Largest number of cohorts at a time; None for one per GPU, or as many as CPU cores
            and memory allow.
        threads: CPU threads of a cohort.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.
        cohort_size: Largest number of students in a cohort.
        retry_failed: Whether to train trials again that have failed before.
        loggers: Loggers to use in addition to the trial's folder: ``tensorboard``, ``wandb``.
        workers: Processes per cohort that decode images, for data sets that are not held in memory.
        devices: Devices per machine that share a cohort's batches, one process each; None for one.
        nodes: Number of machines on which a launcher has started the command, once per device.
        retries: How often to restart a cohort whose worker died without finishing another epoch.
        checkpoint_minutes: Minutes of training between two checkpoints within an epoch.
        eager: Whether a GPU runs every step operation by operation, in place of recorded steps with the same results.
        executor: ``local``, ``ray`` or ``slurm``.
        executor_options: Options of the executor, each ``key=value``.
    """

    out: Path
    data: Path | None = None
    jobs: int | None = None
    threads: int = 1
    device: str = "auto"
    cohort_size: int = 8
    retry_failed: bool = False
    loggers: tuple[str, ...] = ()
    workers: int = 0
    devices: int | None = None
    nodes: int | None = None
    retries: int = 2
    checkpoint_minutes: float = 10.0
    eager: bool = False
    executor: str = "local"
    executor_options: tuple[str, ...] = ()


def check_options(options: RunOptions) -> None:
    """Checks, before training begins, that loggers and device exist and that the results folder is writable.

    Raises:
        UserError: If one of these checks fails.
    """
    for name in options.loggers:
        require_package(name, f"--{name}", name)
    parse_executor_options(options.executor, options.executor_options)
    if options.executor == "local":
        if options.device != "auto":
            find_devices(options.device)
    elif options.device not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"--device {options.device}: --executor {options.executor} chooses the device of each cohort; write auto, "
            "cpu or cuda"
        )
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        probe = options.out / f".writable.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # in containers, several processes that start at once have the same number
    except OSError as error:
        raise UserError(f"{options.out}: results cannot be written there: {error.strerror or error}") from None


def require_package(package: str, option: str, extra: str) -> None:
    """Raises a UserError if the package that an option needs is not installed. It comes with an extra of kd-bench."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{option} needs another package; install it with: {install_command(extra)}")


def parse_executor_options(executor: str, options: Sequence[str]) -> dict[str, Any]:
    """Parses the options of an executor, each ``key=value``, into their types.

    Raises:
        UserError: If the executor or a key does not exist, or a value has the wrong type.
    """
    if executor not in EXECUTOR_OPTIONS:
        raise unknown("executor", executor, EXECUTOR_OPTIONS, "--executor")
    types = EXECUTOR_OPTIONS[executor]
    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--executor-option {option}: should be KEY=VALUE, e.g. minutes=240")
        if key not in types:
            raise unknown(f"option of the executor {executor}", key, types, f"--executor-option {option}")
        if key in parsed:
            raise UserError(f"--executor-option {option}: {key} is given twice")
        parsed[key] = _parse_value(types[key], key, value, option)
    return parsed


def _parse_value(kind: type, key: str, value: str, option: str) -> str | int | float:
    """Parses the value of an executor's option."""
    if kind is str:
        if not value:
            raise UserError(f"--executor-option {option}: the value is missing")
        return value
    least = 0 if kind is float or key == "gpus" else 1
    try:
        number: int | float = kind(value)
    except ValueError:
        number = -1
    if not least <= number <= _LARGEST:  # as it is for what is not a number
        noun = "number" if kind is float else "whole number"
        raise UserError(
            f"--executor-option {option}: {key} should be a {noun} from {least} to {_LARGEST:,} (it is {value!r})"
        )
    return number
