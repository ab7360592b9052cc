"""A small pair of networks for the methods, and their batches."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kd_bench.methods import _registry as methods
from kd_bench.methods.base import Method
from kd_bench.models.cifar_network import StageOutputs
from kd_bench.models.outputs import average_classifier, observe, preact_norms, shapes
from kd_bench.types import Batch, Output, Outputs, Pair, Shapes

CLASSES = 5
IMAGES = 32
EVERYTHING: frozenset[Output] = frozenset({"logits", "stages", "preacts", "pooled", "features", "class_maps"})
ALONE = Pair(num_classes=CLASSES, train_size=32, student=Shapes(logits=(CLASSES,)), student_name="cifar_resnet8x4")


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Tiny(nn.Module):
    """The interface of our networks in four small layers: a stem and three stages, the last two at half the size."""

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        before, layers = 3, []
        for index, width in enumerate(widths):
            layers.append(
                nn.Sequential(
                    nn.Conv2d(before, width, 3, 1 + (index > 1), padding=1, bias=False), nn.BatchNorm2d(width)
                )
            )
            before = width
        self.layers = nn.ModuleList(layers)
        self.fc = nn.Linear(before, CLASSES)

    def forward_stages(self, x: Tensor, *, preacts: bool = False, last: int | None = None) -> StageOutputs:
        outputs = StageOutputs(x, [], [])
        for layer in self.layers[: None if last is None else last + 1]:
            before = layer(x)
            x = before.relu()
            outputs.stages.append(x)
            if preacts:
                outputs.preacts.append(before)
        return outputs._replace(features=x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = x.mean((2, 3))
        out: Tensor = pooled if pre_logits else self.fc(pooled)
        return out

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_stages(x).features)


def network(seed: int, widths: tuple[int, int, int, int] = (4, 6, 8, 10)) -> nn.Module:
    torch.manual_seed(seed)
    return Tiny(widths)


def pair(student: nn.Module, teacher: nn.Module, image: tuple[int, ...], images: int = IMAGES) -> Pair:
    """Returns the pair of two networks."""
    student_shapes = shapes(student, image, EVERYTHING)
    classes = student_shapes.logits[0]
    return Pair(
        num_classes=classes,
        train_size=images,
        student=student_shapes,
        teacher=shapes(teacher, image, EVERYTHING),
        train_labels=torch.arange(images) % classes,
        teacher_norms=preact_norms(teacher, image),
        teacher_classifier=average_classifier(teacher, image),
    )


PAIR = pair(network(0), network(0, (4, 8, 12, 16)), (3, 8, 8))
#: Two networks with equal channels, which fsp needs.
EQUAL_PAIR = pair(network(0), network(1), (3, 8, 8))


def pair_of(name: str) -> Pair:
    """Returns the pair for a method."""
    return EQUAL_PAIR if name == "fsp" else PAIR


def make(name: str, **hyperparameters: object) -> Method:
    """A built-in method for its pair, with the same initial weights every time; "ikl_kd class" for class weights."""
    name, _, weights = name.partition(" ")
    if weights:
        hyperparameters["weights"] = weights
    if name == "crd":
        hyperparameters.setdefault("negatives", 16)
    torch.manual_seed(5)
    return methods.build(name, pair_of(name), hyperparameters)


def call(method: Method, student: Outputs, teacher: Outputs | None, samples: Batch) -> dict[str, Tensor]:
    """The method's terms of a step, its draws being the same every time."""
    torch.manual_seed(7)
    terms = method(student, teacher, samples)
    method.on_step_end()
    return terms


def batch(seed: int = 0, size: int = IMAGES, epoch: int = 0, step: int = 0, mixed: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=generator)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    if mixed:
        one_hot = nn.functional.one_hot(labels, CLASSES).float()
        labels = 0.6 * one_hot + 0.4 * one_hot.roll(1, 0)
    return Batch(images, labels, torch.arange(size), epoch, step)


def outputs(seed: int, size: int = IMAGES, scale: float = 2.0, of: Shapes = PAIR.student) -> Outputs:
    """Random outputs of the shapes of ``PAIR``'s student, or of other shapes."""
    assert of.pooled is not None
    return Outputs(
        logits=draw(seed, size, *of.logits, scale=scale),
        stages=tuple(draw(seed + 10 + i, size, *shape).relu() for i, shape in enumerate(of.stages)),
        preacts=tuple(draw(seed + 20 + i, size, *shape) for i, shape in enumerate(of.preacts)),
        pooled=draw(seed + 30, size, *of.pooled).relu(),
        features=None if of.features is None else draw(seed + 40, size, *of.features).relu(),
        class_maps=None if of.class_maps is None else draw(seed + 50, size, *of.class_maps, scale=scale),
    )


def teacher_outputs(seed: int, size: int = IMAGES, scale: float = 2.0) -> Outputs:
    """Random outputs of the shapes of ``PAIR``'s teacher."""
    return taught_outputs("kd", seed, size, scale)


def taught_outputs(name: str, seed: int, size: int = IMAGES, scale: float = 2.0) -> Outputs:
    """Random outputs of the shapes of the teacher in a method's pair."""
    teacher = pair_of(name).teacher
    assert teacher is not None
    return outputs(seed, size, scale, teacher)


def tensors(network_outputs: Outputs) -> list[Tensor]:
    """All of them, in one order."""
    return network_outputs.tensors()


def mapped(network_outputs: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    """The same outputs with each tensor changed."""
    return network_outputs.map(change)


def seen(student: nn.Module, images: Tensor) -> Outputs:
    """Returns all outputs of a network."""
    return observe(student, images, EVERYTHING)
