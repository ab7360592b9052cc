"""The share of a loss in a step of training on ImageNet: IKL-KD, 256 images, 1000 classes, ResNet-50 the student.

The method's forward and backward pass is timed at full size. The student's is timed on fewer images, in turns with it,
and scaled up by images. The teacher's pass, data and optimiser are left out, which would only make the step longer, so
the share is an upper bound. The memory of the published form follows from its tensors of (images, classes, classes), of
which its forward pass holds at least two at once.
"""

from __future__ import annotations

import argparse
import statistics

import timm
import torch

from benchmarks.measure import wall_and_cpu_seconds
from kd_bench.methods import _registry as methods
from kd_bench.types import Batch, Outputs, Pair, Shapes

CLASSES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256, help="images of the loss")
    parser.add_argument("--images", type=int, default=8, help="images of the timed network pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="resnet50")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = timm.create_model(options.model, num_classes=CLASSES)
    images = torch.rand(options.images, 3, 224, 224)
    shapes = Shapes(logits=(CLASSES,), stages=(), preacts=(), pooled=None)
    pair = Pair(CLASSES, 1_281_167, shapes, shapes, options.model, "teacher")
    method = methods.build("ikl_kd", pair, methods.check("ikl_kd", {"weights": "class", "tau": 1, "temperature": 1}))
    labels, index = torch.randint(CLASSES, (options.batch,)), torch.arange(options.batch)
    batch = Batch(torch.empty(options.batch, 0), labels, index, epoch=1, step=0)
    teacher = Outputs(3 * torch.randn(options.batch, CLASSES))

    def run_network() -> None:
        network(images).sum().backward()

    def run_loss() -> None:
        student = Outputs((2 * torch.randn(options.batch, CLASSES)).requires_grad_())
        torch.stack(list(method(student, teacher, batch).values())).sum().backward()

    run_network(), run_loss()  # the first runs set things up
    shares = []
    for _ in range(options.rounds):
        step = wall_and_cpu_seconds(run_network)[0] * options.batch / options.images
        loss = statistics.median(wall_and_cpu_seconds(run_loss)[0] for _ in range(5))
        shares.append(100 * loss / (loss + step))
        print(f"loss {1000 * loss:.1f} ms, {options.model} forward and backward {step:.1f} s: {shares[-1]:.3f} %")
    share, published = statistics.median(shares), 2 * 4 * options.batch * CLASSES**2 / 2**30
    print(f"IKL-KD, {options.batch} images, {CLASSES} classes: {share:.3f} % of a step at most")
    print(f"the published form holds {published:.1f} GiB at least in (images, classes, classes) tensors, ours none")


if __name__ == "__main__":
    main()
