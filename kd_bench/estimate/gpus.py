"""GPUs by the figures of their data sheets, and how long counted operations would take on them.

Each operation takes as long as the slowest of three things: its arithmetic at a fraction of the peak, its memory
traffic at a fraction of the bandwidth, and its launch. The fractions were chosen once, so that published speeds come
out; ``benchmarks/estimate.py`` shows how near (``devices/speeds.csv``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kd_bench.config.base import Positive, Settings
from kd_bench.config.load import parse, read_mapping
from kd_bench.utils.errors import UserError, unknown
from kd_bench.utils.paths import package_path

if TYPE_CHECKING:
    from kd_bench.estimate.operation_counter import Operation, OperationCounts


class Gpu(Settings):
    """A GPU's data sheet.

    Attributes:
        title: For people.
        fp32: Peak of float32 without tensor cores, in TFLOP/s.
        tf32: Peak of TF32, dense; None where there is none.
        bf16: Peak of bfloat16 accumulated in float32, dense; None where there is none.
        fp16: The same of float16, where there is no bfloat16.
        bandwidth: Of the memory, in GB/s.
        memory: In GB.
        source: Where the figures are from.
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
    """What a data sheet does not say.

    Attributes:
        compute: Fraction of the peak that products of matrices and convolutions reach.
        training: Fraction of the bandwidth that operations reach in passes with gradients.
        forward: The same in passes without.
        launch: Seconds below which no operation comes.
    """

    compute: float = 0.8
    training: float = 0.5
    forward: float = 0.7
    launch: float = 6e-6


def cards() -> dict[str, Gpu]:
    """All that are known, by name."""
    path = package_path("devices", "gpus.yaml")
    return {
        name: parse(Gpu, content, f"{path}: {name}") for name, content in read_mapping(path, "list of GPUs").items()
    }


def chosen(names: str, context: str) -> dict[str, Gpu]:
    """Those with these names.

    Args:
        names: With commas between; ``none`` for none of them.
        context: Where they were written, for the error.

    Raises:
        UserError: For a name that is not known, and where there is no name.
    """
    known = cards()
    wanted = list(dict.fromkeys(name.strip().lower() for name in names.split(",") if name.strip()))
    if wanted == ["none"]:
        return {}
    if not wanted:
        raise UserError(f"{context}: names no card; there are: {', '.join(known)}; or none")
    for name in wanted:
        if name not in known:
            raise unknown("card", name, known, context)
    return {name: known[name] for name in wanted}


def seconds(
    counts: OperationCounts, card: Gpu, assumed: Assumptions, *, training: bool, half: float | None = None
) -> float:
    """How long a card takes for counted operations.

    Args:
        counts: From ``kd_bench.estimate.operation_counter``.
        card: The card.
        assumed: What its data sheet does not say.
        training: Whether it is a pass with gradients.
        half: Peak to go by for operations in half precision, in TFLOP/s; None for bfloat16's, or float32's where the
            card has no bfloat16.
    """
    peaks = {
        "half": half or card.bf16 or card.fp32,
        "convolution": card.tf32 or card.fp32,
        "single": card.fp32,
    }
    bandwidth = card.bandwidth * 1e9 * (assumed.training if training else assumed.forward)

    def of(one: Operation) -> float:
        arithmetic = one.flops / (peaks[one.arithmetic] * 1e12 * assumed.compute) if one.flops else 0.0
        return max(arithmetic, one.moved / bandwidth, assumed.launch)

    return counts.seconds(of)
