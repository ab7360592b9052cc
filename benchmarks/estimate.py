"""Compares estimated speeds of GPUs with published ones (devices/speeds.csv). Counts operations, so it needs no GPU."""

from __future__ import annotations

import csv
import functools
import math

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from kd_bench.estimate.gpus import Assumptions, estimate_seconds, load_gpus
from kd_bench.estimate.operation_counter import OperationCounter, OperationCounts
from kd_bench.estimate.step_cost import convert_to_fake
from kd_bench.models import registry as models
from kd_bench.utils.paths import package_path


@functools.cache
def count_pass(model_name: str, training: bool, half: bool, batch: int) -> OperationCounts:
    """Counts the operations of a pass over a batch of 224x224 images, with gradients if ``training``."""
    with OperationCounter(), torch.device("meta"):
        model = models.create(model_name, 1000).train(training)
    mode = FakeTensorMode()
    convert_to_fake(model, mode)
    with mode:
        images, labels = torch.zeros(batch, 3, 224, 224), torch.zeros(batch, dtype=torch.int64)
        with OperationCounter() as counter:
            with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.set_grad_enabled(training):
                logits = model(images)
            if training:
                F.cross_entropy(logits.float(), labels).backward()
    return counter.counts


def speed_ratio(row: dict[str, str]) -> float:
    """Returns the estimated over the published images per second of a row of the file."""
    gpu, training = load_gpus()[row["card"]], row["work"] == "training"
    counts = count_pass(row["network"], training, row["precision"] == "half", int(row["batch"]))
    peak = gpu.bf16 or gpu.fp16  # the sources' mixed precision is float16, which is as fast as bfloat16
    seconds = estimate_seconds(counts, gpu, Assumptions(), training=training, half=peak)
    return int(row["batch"]) / seconds / float(row["images_per_second"])


def read_speeds() -> list[dict[str, str]]:
    """Returns the rows of the published speeds."""
    with open(package_path("devices", "speeds.csv"), newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Prints the ratio of each published speed, and their spread."""
    logs = []
    for row in read_speeds():
        ratio = speed_ratio(row)
        logs.append(math.log(ratio))
        label = f"{row['card']:10} {row['network']:26} {row['work']:8} {row['precision']:7}"
        print(f"{label} published {float(row['images_per_second']):8.0f} images/s, estimated {ratio:4.2f} times that")
    factor = math.exp(math.sqrt(sum(log * log for log in logs) / len(logs)))
    print(f"typical factor {factor:.2f}, from {math.exp(min(logs)):.2f} to {math.exp(max(logs)):.2f}")


if __name__ == "__main__":
    main()
