"""docs/moving.md: the class that moves from mdistiller computes the same losses before and after."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_bench.models import registry
from kd_bench.models.outputs import observe, shapes
from kd_bench.testing import SmallRun
from kd_bench.types import Batch, Output, Pair

PAGE = Path(__file__).parents[2] / "docs/moving.md"
OUTPUTS: frozenset[Output] = frozenset({"logits", "pooled"})


def block(title: str) -> str:
    """The content of the page's block with a title."""
    (body,) = re.findall(rf'^```python title="{re.escape(title)}"\n(.*?)^```$', PAGE.read_text(), re.M | re.S)
    return str(body)


class Distiller(nn.Module):
    """Stands for the class of this name in mdistiller: what the page's class takes from it."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return list(self.student.parameters())


class WithFeatures(nn.Module):
    """Returns logits and features as the networks of mdistiller do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Any]]:
        outputs = observe(self.network, images, OUTPUTS)
        return outputs.logits, {"pooled_feat": outputs.pooled}


@pytest.mark.parametrize("epoch", [0, 3, 30])
def test_both_classes_compute_the_same(epoch: int) -> None:
    before: dict[str, Any] = {"Distiller": Distiller}
    after: dict[str, Any] = {}
    exec(block("mdistiller/distillers/Imitation.py").replace("from ._base import Distiller\n", ""), before)
    exec(block("imitation.py"), after)
    torch.manual_seed(0)
    student, teacher = (registry.create(name, 10).eval() for name in ("cifar_resnet8", "cifar_vgg8"))
    images, labels = torch.randn(6, 3, 32, 32), torch.randint(10, (6,))
    cfg = SimpleNamespace(IMITATION=SimpleNamespace(WEIGHT=3.0, WARMUP=20, STUDENT_DIM=64, TEACHER_DIM=512))
    distiller = before["Imitation"](WithFeatures(student), WithFeatures(teacher), cfg)
    pair = Pair(10, 6, *(shapes(network, (3, 32, 32), OUTPUTS) for network in (student, teacher)))
    method = after["Imitation"](pair, weight=3.0, warmup_epochs=20)
    method.project.load_state_dict(distiller.project.state_dict())
    logits, expected = distiller.forward_train(images, labels, epoch=epoch + 1, index=None)
    with torch.no_grad():
        taught = observe(teacher, images, OUTPUTS)
    losses = method(observe(student, images, OUTPUTS), taught, Batch(images, labels, torch.arange(6), epoch, 0))
    assert torch.equal(logits, observe(student, images, OUTPUTS).logits)
    assert expected["loss_kd"] > 0
    torch.testing.assert_close([losses["ce"], losses["imitation"]], [expected["loss_ce"], expected["loss_kd"]])
    trained = [*student.parameters(), *method.parameters()]
    assert sorted(map(Tensor.numel, distiller.get_learnable_parameters())) == sorted(map(Tensor.numel, trained))


def test_the_class_after_is_trained(tmp_path: Path) -> None:
    (tmp_path / "imitation.py").write_text(block("imitation.py"))
    small = SmallRun(method=f"{tmp_path / 'imitation.py'}:Imitation", hyperparameters={"warmup_epochs": 2})
    small.check_gradients()
    assert "imitation" in small.first_step()[0].method(*small.first_step()[2:], small.first_step()[1])
