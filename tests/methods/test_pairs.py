"""Every method on every pair of the published CIFAR-100 benchmark, and on timm's networks."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from kd_bench.methods import _registry as methods
from kd_bench.models import create
from kd_bench.models.outputs import observe, preact_norms, shapes
from kd_bench.types import Batch, Pair
from kd_bench.utils.errors import UserError

#: Teacher, student: the five pairs of Table 6, and the eight others. All but two take minutes: make test-all
PAIRS = [
    ("wrn_40_2", "shufflenet_v1"),
    ("vgg13", "mobilenet_v2"),
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
HYPERPARAMETERS: dict[str, dict[str, Any]] = {"crd": {"negatives": 64}, "reviewkd": {"max_mid_channels": 64}}
IMAGE = (3, 16, 16)
STEPS = 20


class Trained:
    """A pair and the teacher's outputs for one batch."""

    def __init__(self, teacher: str, student: str, image: tuple[int, ...] = IMAGE, size: int = 8) -> None:
        torch.manual_seed(0)
        self.student_name, self.teacher = student, create(teacher, 100).requires_grad_(False)
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
        needs = methods.load(name).needs_with(methods.check(name, hyperparameters))
        pair = Pair(
            num_classes=100,
            train_size=200,
            student=shapes(student, self.image, needs.student),
            teacher=shapes(self.teacher, self.image, needs.teacher),
            student_name=self.student_name,
            train_labels=torch.arange(200) % 100,
            teacher_norms=preact_norms(self.teacher, self.image) if "preacts" in needs.teacher else (),
        )
        return student, methods.build(name, pair, hyperparameters)

    def losses(self, name: str, **hyperparameters: Any) -> list[float]:
        """The method's own loss, without the cross-entropy, over steps that reduce it."""
        student, method = self.build(name, **hyperparameters)
        with torch.no_grad():
            teacher = observe(self.teacher, self.images, method.needs.teacher)
        parameters = [*student.parameters(), *method.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=1e-3)
        found = []
        for step in range(STEPS):
            torch.manual_seed(2)
            batch = Batch(self.images, self.labels, torch.arange(len(self.images)), 20, step)
            terms = method(observe(student, self.images, method.needs.student), teacher, batch)
            loss = torch.stack([value for key, value in terms.items() if key != "ce"]).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            found.append(loss.item())
        return found


@pytest.fixture(
    scope="module",
    params=[pytest.param(pair, marks=pytest.mark.slow if index > 1 else ()) for index, pair in enumerate(PAIRS)],
    ids="-".join,
)
def trained(request: pytest.FixtureRequest) -> Iterator[Trained]:
    teacher, student = request.param
    yield Trained(f"cifar_{teacher}", f"cifar_{student}")


@pytest.mark.parametrize("name", TAUGHT)
def test_every_method_learns_on_every_pair(trained: Trained, name: str) -> None:
    found = trained.losses(name, **HYPERPARAMETERS.get(name, {}))
    assert sum(found[-3:]) / 3 < found[0]


@pytest.mark.parametrize("name", TAUGHT)
def test_every_method_learns_between_timms_networks(timm_pair: Trained, name: str) -> None:
    found = timm_pair.losses(name, **HYPERPARAMETERS.get(name, {}))
    assert sum(found[-3:]) / 3 < found[0]


@pytest.fixture(scope="module")
def timm_pair() -> Trained:
    return Trained("resnet18", "mobilenetv3_small_050", (3, 32, 32), 4)


@pytest.mark.parametrize(
    "name",
    [name if name in ("kd", "crd") else pytest.param(name, marks=pytest.mark.slow) for name in TAUGHT if name != "ofd"],
)
def test_a_transformer_teaches_by_all_methods_that_it_can(transformer: Trained, name: str) -> None:
    hyperparameters = {"reviewkd": {"max_mid_channels": 64, "teacher_features": "stages"}}
    found = transformer.losses(name, **(HYPERPARAMETERS | hyperparameters).get(name, {}))
    assert sum(found[-3:]) / 3 < found[0]


@pytest.fixture(scope="module")
def transformer() -> Trained:
    return Trained("test_vit", "cifar_resnet8", (3, 160, 160), 8)


@pytest.mark.parametrize("name", ["ofd", "reviewkd"])
def test_what_a_transformer_cannot_give_is_said(transformer: Trained, name: str) -> None:
    with pytest.raises(UserError, match="preacts"):
        transformer.build(name)
