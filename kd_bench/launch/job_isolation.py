"""Keeps the jobs of a worker apart: each finds the process as a new one would be, except for what is imported."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from kd_bench.launch.worker_protocol import WorkerJob
from kd_bench.trials.environment import reset_peak_memory


@contextmanager
def isolated(job: WorkerJob) -> Iterator[None]:
    """Inside, the job runs. Afterwards its memory is free, and what it changed in the process is as before.

    Nothing is undone after an error or after a worker's last job, because then the process ends.
    """
    handlers, environment = list(logging.root.handlers), dict(os.environ)
    terminate = signal.getsignal(signal.SIGTERM)
    reset_peak_memory(job.device)
    with warnings.catch_warnings():
        yield
    if job.last:
        return
    signal.signal(signal.SIGTERM, terminate)
    logging.root.handlers[:] = handlers
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    _free_memory()


def _free_memory() -> None:
    """Forgets compiled code, and returns memory to the GPU and to the system."""
    if "torch._dynamo" in sys.modules:  # else nothing was compiled, and the import would take a second
        torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    # The C library keeps freed memory (see kd_bench.utils.allocator), which would count for the next job's peak.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
