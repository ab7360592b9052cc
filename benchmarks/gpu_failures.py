"""Checks on a GPU that a recording that fails leaves nothing behind: ``python -m benchmarks.gpu_failures``, in seconds.

``make gpu-check`` records only what can be recorded, so that it does not show what happens after a failure: until
torch 2.12, the recorder ends a failed recording by functions of torch that are not documented.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_device
from kd_bench.training.recorder import CudaGraphRecorder, Lane, Recorder
from kd_bench.utils.errors import first_line
from kd_bench.utils.memory import is_out_of_memory

#: Bytes that a recording takes before it fails, and bytes that no device has.
TAKEN, TOO_MANY = 2**28, 2**52


def failures(values: Tensor) -> dict[str, Callable[[], Any]]:
    """Returns functions whose recording fails: one reads a number, one raises an error, one needs too much memory."""

    def read() -> None:
        values.add_(values.sum().item())

    def fail() -> None:
        values.add_(1)
        raise ValueError("a method's error")

    def exhaust() -> None:
        values.add_(torch.ones(TAKEN, dtype=torch.uint8, device=values.device)[0])
        torch.empty(TOO_MANY, dtype=torch.uint8, device=values.device)

    return {"a number is read": read, "an error is raised": fail, "memory is short": exhaust}


def find_problems(recorder: Recorder, device: torch.device) -> Iterator[str]:
    """Lets recordings fail, makes others afterwards in the same lane, and yields what is wrong, in sentences."""
    values, generator = torch.zeros(3, device=device), recorder.generator()
    for name, function in failures(values).items():
        for lane in recorder.lanes(2, one_queue=False):
            with lane.running():  # at a lane's first operation, libraries allocate memory
                values.fill_(1).sum().item()
            with lane.running():
                try:
                    lane.record(function, [generator])
                except Exception as error:
                    print(f"{name}: {type(error).__name__}: {first_line(error)}", flush=True)
                    if is_out_of_memory(error) != (name == "memory is short"):
                        yield f"{name}: the error is taken for another kind"
                else:
                    yield f"{name}: it was recorded"
                yield from (f"after {name}: {problem}" for problem in _use(lane, values, generator))
            lane.join()
        recorder.synchronize()
        gpu_device.reset_memory(device)
        if device.type == "cuda":
            print(f"{name}: {torch.cuda.memory_reserved(device) / 2**20:.0f} MiB are still reserved", flush=True)


def _use(lane: Lane, values: Tensor, generator: torch.Generator) -> Iterator[str]:
    """Draws in a lane, without and with a recording, and yields what is wrong."""

    def draw() -> None:
        values.add_(torch.rand(3, device=values.device, generator=generator))

    draws: list[list[float]] = []
    for function in (draw, lane.record(draw, [generator])):
        generator.manual_seed(5)
        values.fill_(1)
        function()
        draws.append(values.tolist())
    if draws[0] != draws[1]:
        yield f"a replay draws {draws[1]}, a step {draws[0]}"


def main() -> int:
    """Prints what is wrong. Returns 0 if nothing is, 1 if something is, 2 without a GPU."""
    if not torch.cuda.is_available():
        print("gpu_failures: there is no CUDA device that torch can use", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    problems = list(find_problems(CudaGraphRecorder(device), device))
    print(f"gpu_failures: torch {torch.__version__}; {len(problems)} problems", *problems, sep="\n  ")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
