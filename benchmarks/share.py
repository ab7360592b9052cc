"""What a loss costs of a step of training on ImageNet: IKL-KD with 256 images and 1000 classes, ResNet-50 the student.

The method's own forward and backward pass is timed at the full size; the student's forward and backward pass on fewer
images, in turns with it, and scaled up by images. The teacher's pass, data and optimiser would only make the step
longer and so are left out: the share is an upper bound. The published form's memory follows from its tensors of
(images, classes, classes), of which its forward pass holds two at once at least.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor

from kd_bench.methods import registry
from kd_bench.types import Batch, Outputs, Pair, Shapes

CLASSES = 1000


def seconds(work: Callable[[], object]) -> float:
    """Of one run."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    """Prints one line a form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256, help="images of the loss")
    parser.add_argument("--images", type=int, default=8, help="images of the timed network pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="resnet50")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    network = timm.create_model(chosen.model, num_classes=CLASSES)
    images = torch.rand(chosen.images, 3, 224, 224)
    shapes = Shapes(logits=(CLASSES,), stages=(), preacts=(), pooled=None)
    pair = Pair(CLASSES, 1_281_167, shapes, shapes, chosen.model, "teacher")
    method = registry.build("ikl_kd", pair, registry.check("ikl_kd", {"weights": "class", "tau": 1, "temperature": 1}))
    labels = torch.randint(CLASSES, (chosen.batch,))
    batch = Batch(torch.empty(chosen.batch, 0), labels, torch.arange(chosen.batch), epoch=1, step=0)
    taught = Outputs(3 * torch.randn(chosen.batch, CLASSES))

    def of_network() -> None:
        network(images).sum().backward()

    def of_loss() -> None:
        student: Tensor = (2 * torch.randn(chosen.batch, CLASSES)).requires_grad_()
        torch.stack(list(method(Outputs(student), taught, batch).values())).sum().backward()

    of_network(), of_loss()  # the first runs set things up
    shares = []
    for _ in range(chosen.rounds):
        step = seconds(of_network) * chosen.batch / chosen.images
        loss = statistics.median(seconds(of_loss) for _ in range(5))
        shares.append(loss / (loss + step))
        print(f"loss {1000 * loss:.1f} ms, {chosen.model} forward and backward {step:.1f} s: {100 * shares[-1]:.3f} %")
    published = 2 * 4 * chosen.batch * CLASSES**2 / 2**30
    print(
        f"IKL-KD, {chosen.batch} images, {CLASSES} classes: {100 * statistics.median(shares):.3f} % of a step at most"
    )
    print(f"the published form holds {published:.1f} GiB at least in (images, classes, classes) tensors, ours none")


if __name__ == "__main__":
    main()
