"""Times a cohort in a process of its own: ``python -m kd_bench.estimate.timing_process``.

The process reads a pickled job from stdin, and writes the pickled timing, or the error, to stdout.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile

from kd_bench.estimate.timing_job import Timing, TimingJob
from kd_bench.launch.local_process import worker_environment
from kd_bench.utils.errors import RunFailed, UserError
from kd_bench.utils.python_process import module_command


class TimingProcess:
    """A process that times a cohort. It starts at once. ``title``, the cohort's networks, is for error messages."""

    def __init__(self, job: TimingJob, title: str) -> None:
        self._title = title
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            module_command("kd_bench.estimate.timing_process"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | worker_environment(job.options.threads),
        )
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            pickle.dump(job, stdin)

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
        timing: Timing | UserError = pickle.loads(answer)
        if isinstance(timing, UserError):
            raise timing
        return timing

    def stop(self) -> None:
        """Kills the process if it still runs."""
        self._process.kill()
        self._process.wait()
        self._log.close()


def main() -> None:
    """Reads a job from stdin, times it and writes the answer to stdout."""
    import psutil

    from kd_bench.estimate.timing import time_cohort

    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries goes to the log
    answer: Timing | UserError
    try:
        answer = time_cohort(pickle.load(sys.stdin.buffer), psutil.Process().create_time())
    except UserError as error:
        answer = error
    with output:
        pickle.dump(answer, output)


if __name__ == "__main__":
    main()
