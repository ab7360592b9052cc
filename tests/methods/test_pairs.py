"""Every method on every pair of the published CIFAR-100 benchmark, and on timm's networks."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from kd_bench.methods import _registry as methods
from kd_bench.models import create
from kd_bench.models.outputs import average_classifier, observe, preact_norms, shapes
from kd_bench.types import Batch, Output, Pair
from kd_bench.utils.errors import UserError
from tests.methods.test_preparation import NAMES as PREPARED

#: Teacher, student: the five pairs of Table 6, and the eight others. All but the first take minutes: make test-all
PAIRS = [
    ("vgg13", "mobilenet_v2"),
    ("wrn_40_2", "shufflenet_v1"),
    ("resnet32x4", "shufflenet_v1"),
    ("resnet50", "mobilenet_v2"),
    ("resnet32x4", "shufflenet_v2"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet110", "resnet20"),
    ("resnet32x4", "resnet8x4"),
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("vgg13", "vgg8"),
    ("resnet50", "vgg8"),
]
TAUGHT = [name for name in methods.names() if methods.describe(name).needs_teacher]
#: Those with a term of their own in the student's epochs; the others train before them only.
IN_MAIN_STAGE = [name for name in TAUGHT if methods.load(name).needs.teacher]
#: Pairs of networks with equal channels, which fsp needs.
EQUAL_CHANNELS = {
    ("resnet56", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet110", "resnet20"),
    ("resnet32x4", "resnet8x4"),
    ("wrn_40_2", "wrn_16_2"),
    ("vgg13", "vgg8"),
}
READS_MAPS: frozenset[Output] = frozenset({"features", "class_maps"})
#: Those of which the student's classifier must read the average of its last feature map, and the teacher's.
MAPS_OF_STUDENT = [name for name in TAUGHT if "class_maps" in methods.needs(name, {}).student]
MAPS_OF_TEACHER = [name for name in TAUGHT if READS_MAPS & methods.needs(name, {}).teacher]
HYPERPARAMETERS: dict[str, dict[str, Any]] = {"crd": {"negatives": 64}, "reviewkd": {"max_mid_channels": 64}}
IMAGE = (3, 16, 16)
STEPS = 20


class Trained:
    """A pair and the teacher's outputs for one batch."""

    def __init__(self, teacher: str, student: str, image: tuple[int, ...] = IMAGE, size: int = 8) -> None:
        torch.manual_seed(0)
        self.teacher_name, self.student_name = teacher, student
        self.teacher = create(teacher, 100).requires_grad_(False)
        self.images, self.labels = torch.randn(size, *image), torch.randint(100, (size,))
        # An untrained network's running statistics are not those of its images, and deep ones explode by them.
        with torch.no_grad():
            for _ in range(2):
                self.teacher.train()(self.images)
        self.teacher.eval()
        self.image = image

    def build(self, name: str, **hyperparameters: Any) -> tuple[nn.Module, Any]:
        torch.manual_seed(1)
        student = create(self.student_name, 100)
        needs = methods.needs(name, hyperparameters)
        pair = Pair(
            num_classes=100,
            train_size=200,
            student=shapes(student, self.image, needs.student),
            teacher=shapes(self.teacher, self.image, needs.teacher),
            student_name=self.student_name,
            train_labels=torch.arange(200) % 100,
            teacher_norms=preact_norms(self.teacher, self.image) if "preacts" in needs.teacher else (),
            teacher_classifier=average_classifier(self.teacher, self.image) if READS_MAPS & needs.teacher else None,
        )
        return student, methods.build(name, pair, hyperparameters)

    def losses(self, name: str, preparation: bool = False, **hyperparameters: Any) -> list[float]:
        """The method's own loss, without the cross-entropy, over steps that reduce it."""
        student, method = self.build(name, **hyperparameters)
        needs = method.needs_in(preparation)
        with torch.no_grad():
            teacher = observe(self.teacher, self.images, needs.teacher)
        parameters = [*student.parameters(), *method.parameters()]
        optimizer: torch.optim.Optimizer = torch.optim.Adam(parameters, lr=1e-3)
        if preparation:  # as published; steps of Adam are too large for convolutions of a ResNet50's 2048 channels
            optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
        history = []
        for step in range(STEPS):
            torch.manual_seed(2)
            batch = Batch(self.images, self.labels, torch.arange(len(self.images)), -1 if preparation else 20, step)
            outputs = observe(student, self.images, needs.student) if needs.student else None
            terms = (method.prepare if preparation else method)(outputs, teacher, batch)
            loss = torch.stack([value for key, value in terms.items() if key != "ce"]).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            history.append(loss.item())
        return history


def with_enough_pixels(trained: Trained, name: str) -> Trained:
    """Returns the pair for a method, with images of twice the size if ft would compare maps of a single pixel."""
    if name != "ft" or trained.student_name not in ("cifar_mobilenet_v2", "mobilenetv3_small_050"):
        return trained
    channels, *size = trained.image
    with pytest.raises(UserError, match=r"ft: the last feature map of .* has a single pixel for these images"):
        trained.build(name)
    return Trained(trained.teacher_name, trained.student_name, (channels, *(2 * edge for edge in size)), 4)


@pytest.fixture(
    scope="module",
    params=[pytest.param(pair, marks=pytest.mark.slow if index > 0 else ()) for index, pair in enumerate(PAIRS)],
    ids="-".join,
)
def trained(request: pytest.FixtureRequest) -> Iterator[Trained]:
    teacher, student = request.param
    yield Trained(f"cifar_{teacher}", f"cifar_{student}")


@pytest.mark.parametrize("name", IN_MAIN_STAGE)
def test_every_method_learns_on_every_pair(trained: Trained, name: str) -> None:
    history = with_enough_pixels(trained, name).losses(name, **HYPERPARAMETERS.get(name, {}))
    assert sum(history[-3:]) / 3 < history[0]


@pytest.mark.parametrize("name", PREPARED)
def test_every_preparation_learns_on_every_pair(trained: Trained, name: str, request: pytest.FixtureRequest) -> None:
    if name == "fsp" and request.node.callspec.params["trained"] not in EQUAL_CHANNELS:
        with pytest.raises(UserError, match="fsp: compares stages with equal channels, but those of cifar_"):
            trained.build(name)
        return
    history = with_enough_pixels(trained, name).losses(name, preparation=True)
    assert sum(history[-3:]) / 3 < history[0]


@pytest.mark.parametrize("name", [name for name in PREPARED if name != "fsp"])
def test_preparations_learn_between_timms_networks(timm_pair: Trained, name: str) -> None:
    history = with_enough_pixels(timm_pair, name).losses(name, preparation=True)
    assert sum(history[-3:]) / 3 < history[0]


@pytest.mark.parametrize("name", [name for name in IN_MAIN_STAGE if name not in MAPS_OF_STUDENT])
def test_every_method_learns_between_timms_networks(timm_pair: Trained, name: str) -> None:
    history = with_enough_pixels(timm_pair, name).losses(name, **HYPERPARAMETERS.get(name, {}))
    assert sum(history[-3:]) / 3 < history[0]


@pytest.mark.parametrize("name", MAPS_OF_STUDENT)
def test_class_maps_teach_one_of_timms_networks(name: str) -> None:
    history = Trained("resnet18", "test_resnet", (3, 64, 64), 4).losses(name)
    assert sum(history[-3:]) / 3 < history[0]


@pytest.fixture(scope="module")
def timm_pair() -> Trained:
    return Trained("resnet18", "mobilenetv3_small_050", (3, 32, 32), 4)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("kd", "crd") else pytest.param(name, marks=pytest.mark.slow)
        for name in IN_MAIN_STAGE
        if name not in ("ofd", *MAPS_OF_TEACHER)
    ],
)
def test_a_transformer_teaches_by_all_methods_that_it_can(transformer: Trained, name: str) -> None:
    hyperparameters = {"reviewkd": {"max_mid_channels": 64, "teacher_features": "stages"}}
    history = transformer.losses(name, **(HYPERPARAMETERS | hyperparameters).get(name, {}))
    assert sum(history[-3:]) / 3 < history[0]


@pytest.fixture(scope="module")
def transformer() -> Trained:
    return Trained("test_vit", "cifar_resnet8", (3, 160, 160), 8)


@pytest.mark.parametrize(
    ("name", "output"),
    [("ofd", "preacts"), ("reviewkd", "preacts"), ("ab", "preacts"), *((name, "feat") for name in MAPS_OF_TEACHER)],
)
def test_what_a_transformer_cannot_give_is_said(transformer: Trained, name: str, output: str) -> None:
    with pytest.raises(UserError, match=f"test_vit: has no output .*{output}"):
        transformer.build(name)
