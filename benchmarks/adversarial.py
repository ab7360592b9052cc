"""Time of a step of adversarial training: IKL-AT, and IKL-AT by pairs of classes, compared with TRADES.

A step is the perturbation of the images by five steps of ascent on the method's own loss, the perturbation of the
weights, the forward and backward passes and the optimiser. The methods take turns, and ratios are taken within a round.
A second table has the losses alone, values and gradients to both sides. All on one thread, random images.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from benchmarks.markdown import Promise, Section, Table, argument_parser
from benchmarks.measure import median_ratio, time_in_turns
from benchmarks.pairs import CPU, random_images
from kd_bench import losses
from kd_bench.config.trial import Trial, canonical
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.methods import _registry as methods
from kd_bench.methods.ikl_at import IKLAT
from kd_bench.training.build import build_student
from kd_bench.training.loaders import loaders
from kd_bench.training.micro_batch import MicroBatch
from kd_bench.training.result_writer import ResultWriter
from kd_bench.types import Batch, Outputs
from tests.losses import naive

#: Promised ratio of a step of IKL-AT to one of TRADES, at most.
PROMISED = 1.05

CLASSES = 100


class PairwiseIKLAT(IKLAT):
    """IKL-AT with a tensor of all pairs of classes, (B, K, K), as in the paper and the released code."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        terms = super().forward(student, teacher, batch)
        terms["pairwise"] = self.alpha * naive.pairwise_mse(
            student.logits, teacher.logits, self.weights_of(teacher.logits, batch)
        )
        return terms

    def inner_loss(self, natural: Tensor, adversarial: Tensor, batch: Batch) -> Tensor:
        pairwise = naive.pairwise_mse(adversarial, natural, self.weights_of(natural, batch))
        return pairwise + losses.soft_cross_entropy(adversarial, natural)


def training_step(
    method: str, model: str, images: ArrayDataset, batch_size: int, pairwise: bool = False
) -> Callable[[], None]:
    """Returns a function that runs a step of a method."""
    settings = {
        "dataset": {"name": "cifar100"},
        "augment": {"crop": 4, "flip": True},
        "epochs": 2,
        "batch_size": batch_size,
        "optimizer": {"name": "sgd", "lr": 0.01},
        "schedule": {"name": "constant"},
        "model": model,
        "method": {"name": method, "hyperparameters": methods.check(method, {}), "source": None},
        "seed": 0,
        "adversarial": {"eps": 8 / 255, "schedule": "released", "weight_perturbation": {"from_epoch": 1}},
    }
    trial = Trial.model_validate_json(canonical(settings))
    member = build_student(trial, images, None, ResultWriter())
    if pairwise:
        member.method = PairwiseIKLAT(member.method.pair)
    member.train()
    batch = next(iter(loaders(trial, images, CPU)[0]))

    def step() -> None:
        member.step(None, MicroBatch(batch), lambda loss: loss.backward())
        assert not member.stopped

    return step


def time_losses(classes: int, batch: int) -> list[list[float]]:
    """Returns seconds by round of TRADES, IKL in closed form and IKL by pairs, with gradients to both sides."""
    natural, adversarial = (3 * torch.randn(batch, classes)).requires_grad_(), torch.randn(batch, classes)
    adversarial.requires_grad_()
    weights = torch.randn(batch, classes).softmax(-1)

    def pairwise_ikl() -> Tensor:
        soft = losses.soft_cross_entropy(adversarial, natural.detach())
        return 20 * naive.pairwise_mse(adversarial, natural, weights) + 3 * soft

    forms = [
        lambda: losses.trades(natural, adversarial),
        lambda: losses.ikl_adversarial(natural, adversarial, weights, 20.0, 3.0),
        pairwise_ikl,
    ]
    return time_in_turns([lambda form=form: form().backward() for form in forms], rounds=15, budget=30)


def benchmark(model: str, batch: int, rounds: int, seconds: float, quick: bool = False) -> Section:
    """Times steps of a network in ``rounds`` turns at most, none of which begins after ``seconds``, and the losses."""
    torch.manual_seed(0)
    images = random_images(batch)
    tasks = [
        training_step("trades", model, images, batch),
        training_step("ikl_at", model, images, batch),
        training_step("ikl_at", model, images, batch, pairwise=True),
    ]
    trades, closed, pairwise = time_in_turns(tasks, rounds, seconds, turn=0.0)
    ratio = median_ratio(closed, trades)
    steps = [
        ["trades", f"{median(trades):.3f}", "1"],
        ["ikl_at", f"{median(closed):.3f}", f"{ratio:.3f}"],
        ["ikl_at by pairs", f"{median(pairwise):.3f}", f"{median_ratio(pairwise, trades):.3f}"],
    ]
    rows = []
    for classes, size in ((10, 128),) if quick else ((10, 128), (100, 128), (1000, 32)):
        times = time_losses(classes, size)
        microseconds = [f"{1e6 * median(values):.0f}" for values in times]
        rows.append([f"{size} x {classes}", *microseconds, f"{median_ratio(times[2], times[1]):.1f}"])
    headers = ["logits", "trades, us", "ikl closed, us", "ikl by pairs, us", "pairs / closed"]
    return Section(
        "A step of adversarial training",
        f"{model}, {batch} images of {CLASSES} classes, CPU seconds as medians of {len(trades)} rounds; a step is the "
        "attack, the perturbation of the weights, both passes and the optimiser.",
        [
            Table(["method", "seconds a step", "of trades"], steps),
            Table(headers, rows, "The losses alone, with the gradients to both sides."),
        ],
        [Promise("a step of ikl_at", f"at most {PROMISED} of trades", f"{ratio:.3f}", ratio <= PROMISED)],
    )


def main() -> int:
    parser = argument_parser(__doc__, seconds=180)
    parser.add_argument("--model", default="cifar_resnet8")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = (4, 1, 0.0, True) if options.quick else (options.batch_size, options.rounds, options.seconds)
    return benchmark(options.model, *sizes).show()


if __name__ == "__main__":
    sys.exit(main())
