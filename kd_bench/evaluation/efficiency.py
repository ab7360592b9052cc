"""Efficiency of a deployed network: its size, its arithmetic, and its speed on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kd_bench.estimate.operation_counter import OperationCounter
from kd_bench.utils import seeding

#: Images of a batch of the throughput.
BATCH = 256

#: Seconds of runs before and during a measurement, and the least and largest number of timed runs.
_WARMUP_SECONDS, _SECONDS = 0.5, 3.0
_LEAST_RUNS, _MOST_RUNS = 5, 200


class Speed(NamedTuple):
    """Median seconds of a forward pass of a batch, and the number of timed passes."""

    seconds: float
    runs: int


def count_parameters(network: nn.Module) -> int:
    """Returns the number of parameters; one that two layers share counts once."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def count_macs(network: nn.Module, image_shape: Sequence[int]) -> int:
    """Returns the multiplications with addition in the products and convolutions of one image's forward pass.

    They are counted on the CPU as the operations run, so that attention and the layers of a method count, too.

    Args:
        network: In evaluation mode, on the CPU.
        image_shape: Channels, height, width of the network's input.
    """
    image = torch.zeros(1, *image_shape)
    with OperationCounter() as counter:
        network(image)
    return counter.counts.flops // 2


def measure_speed(network: nn.Module, images: Tensor) -> Speed:
    """Returns the median time of a forward pass in evaluation mode, on the device of the images.

    Passes of half a second go before, at least one and at most 200. A GPU is synchronised around each pass.

    Args:
        network: On the device of the images.
        images: The batch, (B, C, H, W).
    """

    def synchronise() -> None:
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)

    def timed_pass() -> float:
        synchronise()
        start = time.perf_counter()
        network(images)
        synchronise()
        return time.perf_counter() - start

    network.eval()
    with torch.inference_mode():
        _repeat(timed_pass, 1, _WARMUP_SECONDS)
        seconds = _repeat(timed_pass, _LEAST_RUNS, _SECONDS)
    return Speed(statistics.median(seconds), len(seconds))


def _repeat(timed_pass: Callable[[], float], least: int, enough: float) -> list[float]:
    """Repeats until ``enough`` seconds have passed, at least ``least`` times and at most 200 times."""
    seconds: list[float] = []
    while len(seconds) < least or (sum(seconds) < enough and len(seconds) < _MOST_RUNS):
        seconds.append(timed_pass())
    return seconds


def random_images(batch: int, image_shape: Sequence[int], device: torch.device) -> Tensor:
    """Returns normalised images of noise, (B, C, H, W); the time of a pass does not depend on their content."""
    generator = seeding.generator(0, seeding.TIMING)
    return torch.randn(batch, *image_shape, generator=generator).to(device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch uses one thread of the CPU for an operation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
