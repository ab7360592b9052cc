"""Measures the gain from more hardware queues for CUDA streams. A process reads their number when CUDA starts."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_cohort import Context
from benchmarks.gpu_speed import plan_cases
from benchmarks.markdown import Section, Table
from kd_bench.utils.errors import RunFailed
from kd_bench.utils.files import read_json

ROOT = Path(__file__).resolve().parents[1]
#: CUDA's default number of queues.
DEFAULT = 8
#: Most seconds of the process; on a large card it takes about thirty.
SECONDS = 120


def measure_queues(context: Context, arguments: Sequence[str]) -> dict[str, Any]:
    """Times the first case of the section "speed" in a process with CUDA's default number of queues.

    Args:
        context: The context.
        arguments: Arguments with which ``gpu.py`` measures on the same device and images.

    Returns:
        "case", its name, and "recorded", seconds per step in each round.

    Raises:
        RunFailed: If the process has no result.
    """
    case = plan_cases(context)["speed"][0].name
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.md"
        command = [sys.executable, "-m", "benchmarks.gpu", "--sections", "speed", "--only", case, "--out", str(page)]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        variables = os.environ | {"CUDA_DEVICE_MAX_CONNECTIONS": str(DEFAULT), "PYTHONPATH": path}
        try:
            done = subprocess.run(
                [*command, *arguments], check=False, env=variables, capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            raise RunFailed(f"the process with {DEFAULT} queues did not end within {SECONDS} seconds") from None
        parts = (read_json(page.with_suffix(".json")) or {}).get("parts", {})
    result = parts.get(f"speed: {case}", {}).get("result")
    if result is None:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RunFailed(f"the process with {DEFAULT} queues has no result: {lines[-1] if lines else done.returncode}")
    return {"case": case, "recorded": result["recorded"]}


def section(result: Mapping[str, Any], usual: Mapping[str, Any], queues: str) -> Section:
    """Returns the table.

    Args:
        result: Result of ``measure_queues``.
        usual: Result of the same case in this process.
        queues: Number of queues of this process.
    """
    rows = [
        [number, f"{1e3 * statistics.median(seconds):.2f}"]
        for number, seconds in ((str(DEFAULT), result["recorded"]), (queues, usual["recorded"]))
    ]
    introduction = f"{result['case']}, by the number of hardware queues (`CUDA_DEVICE_MAX_CONNECTIONS`)."
    return Section("Queues for streams", introduction, [Table(["queues", "recorded, ms a step"], rows)])
