"""GPUs by the figures of their data sheets, and how long counted operations would take on them.

An operation takes as long as the slowest of three things: its arithmetic at a fraction of the peak, its memory traffic
at a fraction of the bandwidth, and its launch. The fractions were chosen once to match published speeds
(``devices/speeds.csv``); ``benchmarks/estimate.py`` prints how close the estimates come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kd_bench.config.base import Settings
from kd_bench.config.numbers import Positive
from kd_bench.config.validate import parse
from kd_bench.config.yaml_reader import read_mapping
from kd_bench.utils.errors import UserError, unknown
from kd_bench.utils.paths import package_path

if TYPE_CHECKING:
    from kd_bench.estimate.operation_counter import Operation, OperationCounts


class Gpu(Settings):
    """A GPU's data sheet.

    Attributes:
        title: Product name.
        fp32: Peak of float32 without tensor cores, in TFLOP/s.
        tf32: Dense peak of TF32, in TFLOP/s; None if the GPU has no TF32.
        bf16: Dense peak of bfloat16 accumulated in float32, in TFLOP/s; None if the GPU has no bfloat16.
        fp16: The same for float16, for GPUs without bfloat16.
        bandwidth: Memory bandwidth in GB/s.
        memory: Memory in GB.
        source: The data sheet.
    """

    title: str
    fp32: Positive
    tf32: Positive | None
    bf16: Positive | None
    fp16: Positive | None = None
    bandwidth: Positive
    memory: Positive
    source: str


@dataclass(frozen=True)
class Assumptions:
    """Numbers that a data sheet does not have.

    Attributes:
        compute: Fraction of the peak that matrix products and convolutions reach.
        training: Fraction of the bandwidth that operations reach in passes with gradients.
        forward: The same for passes without gradients.
        launch: Shortest time of an operation, in seconds.
    """

    compute: float = 0.8
    training: float = 0.5
    forward: float = 0.7
    launch: float = 6e-6


def load_gpus() -> dict[str, Gpu]:
    """Reads all GPUs of ``devices/gpus.yaml``, by name."""
    path = package_path("devices", "gpus.yaml")
    return {
        name: parse(Gpu, content, f"{path}: {name}") for name, content in read_mapping(path, "list of GPUs").items()
    }


def select_gpus(names: str, context: str) -> dict[str, Gpu]:
    """Returns the GPUs with these names.

    Args:
        names: Names separated by commas, or ``none``.
        context: Name of the option, for error messages.

    Raises:
        UserError: If a name is unknown, or if there is no name.
    """
    gpus = load_gpus()
    selected = list(dict.fromkeys(name.strip().lower() for name in names.split(",") if name.strip()))
    if selected == ["none"]:
        return {}
    if not selected:
        raise UserError(f"{context}: names no card; there are: {', '.join(gpus)}; or none")
    for name in selected:
        if name not in gpus:
            raise unknown("card", name, gpus, context)
    return {name: gpus[name] for name in selected}


def estimate_seconds(
    counts: OperationCounts, gpu: Gpu, assumed: Assumptions, *, training: bool, half: float | None = None
) -> float:
    """Returns the seconds that a GPU takes for counted operations, one after the other.

    Args:
        counts: From ``kd_bench.estimate.operation_counter``.
        gpu: The GPU's data sheet.
        assumed: Numbers that the data sheet does not have.
        training: Whether it is a pass with gradients.
        half: Peak of operations in half precision, in TFLOP/s. Defaults to the peak of bfloat16, or of float32 if the
            GPU has no bfloat16.
    """
    peaks = dict.fromkeys(("single", "none"), gpu.fp32)
    peaks |= {"half": half or gpu.bf16 or gpu.fp32, "convolution": gpu.tf32 or gpu.fp32}
    bandwidth = gpu.bandwidth * 1e9 * (assumed.training if training else assumed.forward)

    def seconds(operation: Operation) -> float:
        arithmetic = operation.flops / (peaks[operation.arithmetic] * 1e12 * assumed.compute)
        return max(arithmetic, operation.moved / bandwidth, assumed.launch)

    return sum(seconds(operation) * times for operation, times in counts.items())
