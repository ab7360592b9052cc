"""How near the estimate for GPUs comes to published speeds (devices/speeds.csv): counted, so no GPU is needed."""

from __future__ import annotations

import csv
import functools
import math

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from kd_bench.estimate.gpus import Assumptions, cards, seconds
from kd_bench.estimate.operation_counter import OperationCounter, OperationCounts
from kd_bench.estimate.step_cost import without_content
from kd_bench.models import registry as models
from kd_bench.utils.paths import package_path


@functools.cache
def count(network: str, training: bool, half: bool, batch: int) -> OperationCounts:
    """The operations of a pass over a batch of 224x224 images, with gradients or without."""
    with OperationCounter(), torch.device("meta"):
        model = models.create(network, 1000).train(training)
    mode = FakeTensorMode()
    without_content(model, mode)
    with mode:
        images, labels = torch.zeros(batch, 3, 224, 224), torch.zeros(batch, dtype=torch.int64)
        with OperationCounter() as tally:
            with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.set_grad_enabled(training):
                logits = model(images)
            if training:
                F.cross_entropy(logits.float(), labels).backward()
    return tally.counts


def ratio(row: dict[str, str], assumed: Assumptions | None = None) -> float:
    """Estimated over published images a second of a line of the file."""
    card, training = cards()[row["card"]], row["work"] == "training"
    counts = count(row["network"], training, row["precision"] == "half", int(row["batch"]))
    peak = card.bf16 or card.fp16  # mixed precision of the sources is float16, as fast as bfloat16 where there is that
    took = seconds(counts, card, assumed or Assumptions(), training=training, half=peak)
    return int(row["batch"]) / took / float(row["images_per_second"])


def speeds() -> list[dict[str, str]]:
    """The published speeds."""
    with open(package_path("devices", "speeds.csv"), newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    logs = []
    for row in speeds():
        found = ratio(row)
        logs.append(math.log(found))
        about = f"{row['card']:10} {row['network']:26} {row['work']:8} {row['precision']:7}"
        print(f"{about} published {float(row['images_per_second']):8.0f} images/s, estimated {found:4.2f} times that")
    spread = math.exp(math.sqrt(sum(one * one for one in logs) / len(logs)))
    print(f"typical factor {spread:.2f}, from {math.exp(min(logs)):.2f} to {math.exp(max(logs)):.2f}")


if __name__ == "__main__":
    main()
