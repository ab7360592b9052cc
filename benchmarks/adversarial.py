"""Time of a step of adversarial training: IKL-AT beside TRADES with the same attack, and IKL-AT by pairs of classes.

A step is all of it: the perturbation of the images by five steps of ascent on the method's own loss, that of the
weights, the forward and backward passes and the optimiser. Contestants take turns, and what counts is their ratio
within a round. Below, the losses alone, values and gradients to both sides. All on one thread, random images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the benchmarks and the forms by pairs

from benchmarks import measure  # first: it quietens the profiler

# isort: split

import torch
from torch import Tensor

from benchmarks.pairs import images
from benchmarks.writing import Promise, Section, Table, show
from kd_bench import losses
from kd_bench.config.trial import Trial, canonical
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.methods import registry
from kd_bench.methods.ikl_at import IKLAT
from kd_bench.training.fit import build_student, loaders
from kd_bench.training.student import MicroBatch, NullWriter, StudentModule
from kd_bench.types import Batch, Outputs
from tests.losses import naive

#: Times that a step of IKL-AT is promised to take of one of TRADES at most.
PROMISED = 1.05

CLASSES = 100


class ByPairs(IKLAT):
    """IKL-AT with a tensor of all pairs of classes, (B, K, K), as the paper and the released code write it."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        terms = super().forward(student, teacher, batch)
        terms["pairwise"] = self.alpha * naive.pairwise_mse(student.logits, teacher.logits, self.of_classes(batch))
        return terms

    def inner_loss(self, natural: Tensor, adversarial: Tensor, batch: Batch) -> Tensor:
        pairwise = naive.pairwise_mse(adversarial, natural, self.of_classes(batch))
        return pairwise + losses.soft_cross_entropy(adversarial, natural)


def trial(method: str, model: str, batch_size: int) -> Trial:
    settings = {
        "dataset": {"name": "cifar100"},
        "augment": {"crop": 4, "flip": True},
        "epochs": 2,
        "batch_size": batch_size,
        "optimizer": {"name": "sgd", "lr": 0.01},
        "schedule": {"name": "constant"},
        "model": model,
        "method": {"name": method, "hyperparameters": registry.check(method, {}), "source": None},
        "seed": 0,
        "adversarial": {"eps": 8 / 255, "schedule": "released", "weight_perturbation": {"from_epoch": 1}},
    }
    return Trial.model_validate_json(canonical(settings))


class Contestant:
    def __init__(self, method: str, model: str, data: ArrayDataset, batch: int, by_pairs: bool = False) -> None:
        one = trial(method, model, batch)
        self.member: StudentModule = build_student(one, data, None, NullWriter())
        if by_pairs:
            self.member.method = ByPairs(self.member.method.pair)
        self.member.train()
        self.batch = next(iter(loaders(one, data, torch.device("cpu"))[0]))

    def __call__(self) -> None:
        self.member.step(None, MicroBatch(self.batch), lambda loss: loss.backward())
        assert not self.member.stopped


def both_sides(classes: int, batch: int) -> list[list[float]]:
    """Seconds of TRADES, IKL in closed form and IKL by pairs."""
    natural, adversarial = (3 * torch.randn(batch, classes)).requires_grad_(), torch.randn(batch, classes)
    adversarial.requires_grad_()
    weights = torch.randn(batch, classes).softmax(-1)

    def pairs() -> Tensor:
        soft = losses.soft_cross_entropy(adversarial, natural.detach())
        return 20 * naive.pairwise_mse(adversarial, natural, weights) + 3 * soft

    forms = [
        lambda: losses.trades(natural, adversarial),
        lambda: losses.ikl_adversarial(natural, adversarial, weights, 20.0, 3.0),
        pairs,
    ]
    return measure.seconds([lambda form=form: form().backward() for form in forms], rounds=15, budget=30)


def find(model: str, batch: int, rounds: int, seconds: float, quick: bool = False) -> Section:
    """Steps, and the losses alone.

    Args:
        model: The network.
        batch: Images.
        rounds: Turns of each contestant, at most.
        seconds: After which no further round begins.
        quick: Whether to look at one size of losses only.
    """
    torch.manual_seed(0)
    data = images(batch)
    made = [
        Contestant(method, model, data, batch, by_pairs)
        for method, by_pairs in (("trades", False), ("ikl_at", False), ("ikl_at", True))
    ]
    trades, closed, pairs = measure.seconds(made, rounds, seconds, turn=0.0)
    ratio = measure.ratio(trades, closed)
    steps = [
        ["trades", f"{measure.spread(trades)[1]:.3f}", "1"],
        ["ikl_at", f"{measure.spread(closed)[1]:.3f}", f"{ratio:.3f}"],
        ["ikl_at by pairs", f"{measure.spread(pairs)[1]:.3f}", f"{measure.ratio(trades, pairs):.3f}"],
    ]
    rows = []
    for classes, size in ((10, 128),) if quick else ((10, 128), (100, 128), (1000, 32)):
        first, second, third = both_sides(classes, size)
        micros = (f"{1e6 * measure.spread(one)[1]:.0f}" for one in (first, second, third))
        rows.append([f"{size} x {classes}", *micros, f"{measure.ratio(second, third):.1f}"])
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cifar_resnet8")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=180, help="after which no further round begins")
    parser.add_argument("--quick", action="store_true", help="little of all, to see that it works")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.quick:
        return show(find(given.model, 4, 1, 0.0, True))
    return show(find(given.model, given.batch_size, given.rounds, given.seconds))


if __name__ == "__main__":
    sys.exit(main())
