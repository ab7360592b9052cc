"""Times a cohort in a process of its own: ``python -m kd_bench.estimate.timing_process``.

The process reads a job as one line of JSON, and writes the timing, or the error, as one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from typing import Any

from kd_bench.estimate.timing_job import EpochTime, Timing, TimingJob
from kd_bench.launch.local_process import worker_environment
from kd_bench.utils.errors import RunFailed, UserError


class TimingProcess:
    """A process that times a cohort. It starts at once.

    Args:
        job: The cohort to time.
        title: The cohort's networks, for error messages.
    """

    def __init__(self, job: TimingJob, title: str) -> None:
        self._title = title
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kd_bench.estimate.timing_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | worker_environment(job.threads),
        )
        assert self._process.stdin is not None
        self._process.stdin.write((json.dumps(asdict(job)) + "\n").encode())
        self._process.stdin.close()

    def result(self) -> Timing:
        """Waits for the timing and returns it.

        Raises:
            UserError: If the cohort cannot be timed.
            RunFailed: If the process ends without an answer.
        """
        assert self._process.stdout is not None
        answer = self._process.stdout.read()
        code = self._process.wait()
        if code or not answer:
            self._log.seek(0)
            lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
            reason = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            last_line = f": {lines[-1]}" if lines else ""
            raise RunFailed(f"{self._title}: the process that timed it {reason}{last_line}")
        timing = json.loads(answer)
        if "error" in timing:
            raise UserError(timing["error"])
        epoch = timing["epoch"]
        return Timing(**timing | {"epoch": EpochTime(**epoch | {"own": tuple(epoch["own"])})})

    def stop(self) -> None:
        """Kills the process if it still runs."""
        self._process.kill()
        self._process.wait()
        self._log.close()


def main() -> int:
    """Reads a job from stdin, times it and writes the answer to stdout."""
    import psutil

    from kd_bench.estimate.timing import time_cohort

    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries goes to the log
    job = TimingJob(**json.loads(sys.stdin.readline()))
    try:
        answer: dict[str, Any] = asdict(time_cohort(job, psutil.Process().create_time()))
    except UserError as error:
        answer = {"error": str(error)}
    output.write(json.dumps(answer) + "\n")
    output.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
