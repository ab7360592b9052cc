"""What is counted without computing it, against what is computed, and against arithmetic by hand."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from kd_bench.estimate import step_cost
from kd_bench.estimate.operation_counter import Operation, OperationCounter, OperationCounts
from kd_bench.estimate.step_cost import CohortCost, convert_to_fake, count_cohort
from kd_bench.models import registry as models
from kd_bench.training.build import build_network, build_student
from kd_bench.training.micro_batch import MicroBatch
from kd_bench.types import Batch
from tests.training.parts import MemoryWriter, splits, trial

IMAGES = splits()


def count_trial(method: str = "kd", **changes) -> CohortCost:
    return count_cohort([trial(method, **changes)], IMAGES)


@pytest.mark.parametrize("name", ["ab", "fsp", "ft"])
def test_a_method_with_a_preparation_is_counted_in_the_students_own_epochs(name: str) -> None:
    cost, alone = count_trial(name), count_trial("none")
    (member,) = cost.members
    assert not member.uncounted
    assert (cost.teacher.flops > 0) == (name == "ft")
    assert (member.step.flops > alone.members[0].step.flops) == (name == "ft")


def test_a_convolution_and_a_product_by_hand() -> None:
    mode = FakeTensorMode()
    layer, head = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Linear(8, 5, bias=False)
    for module in (layer, head):
        convert_to_fake(module, mode)
    with mode:
        images = torch.zeros(2, 3, 4, 4)
        with OperationCounter() as tally, torch.no_grad():
            head(layer(images).mean((2, 3)))
    convolution = 2 * (2 * 8 * 4 * 4) * (3 * 3 * 3)
    product = 2 * 2 * 8 * 5
    assert tally.counts.flops == convolution + product
    operations = {operation.arithmetic: operation for operation in tally.counts if operation.flops}
    assert operations["convolution"] == Operation(convolution, 4 * (2 * 3 * 16 + 8 * 27 + 2 * 8 * 16), "convolution")
    assert operations["single"] == Operation(product, 4 * (2 * 8 + 8 * 5 + 2 * 5), "single")
    assert tally.counts.total() == 3


CONVOLUTIONS = {
    "plain": nn.Conv2d(8, 16, 3, padding=1),
    "strided": nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
    "grouped": nn.Conv2d(8, 16, 3, padding=1, groups=4),
    "grouped pointwise": nn.Conv2d(8, 16, 1, groups=4, bias=False),
    "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
    "strided depthwise": nn.Conv2d(8, 16, 5, stride=2, padding=2, groups=8),
    "transposed": nn.ConvTranspose2d(8, 16, 3, stride=2),
    "grouped transposed": nn.ConvTranspose2d(8, 16, 3, groups=4),
}


def multiply_adds(layer: nn.Conv2d | nn.ConvTranspose2d, images: int, pixels: int) -> int:
    """Counts the multiply-adds one by one. Pixels are those of the output, or of a transposed convolution's input."""
    count = 0
    for _ in range(images * pixels):
        for output in range(layer.out_channels):
            for channel in range(layer.in_channels):
                same_group = channel * layer.groups // layer.in_channels == output * layer.groups // layer.out_channels
                for _ in range(layer.kernel_size[0] * layer.kernel_size[1]):
                    count += same_group
    return count


@pytest.mark.parametrize("fake", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_with_its_backward_pass_is_three_forward_passes(name: str, fake: bool) -> None:
    layer = copy.deepcopy(CONVOLUTIONS[name])
    mode = FakeTensorMode()
    if fake:
        convert_to_fake(layer, mode)
    with mode if fake else nullcontext():
        images = torch.zeros(2, 8, 6, 6, requires_grad=True)
        with OperationCounter() as forward:
            maps = layer(images)
        with OperationCounter() as backward:
            maps.sum().backward()
        with OperationCounter() as first_layer:  # the images need no gradient
            layer(images.detach()).sum().backward()
    pixels = (images if isinstance(layer, nn.ConvTranspose2d) else maps).shape[2:].numel()
    assert forward.counts.flops == 2 * multiply_adds(layer, 2, pixels)
    assert forward.counts.flops + backward.counts.flops == 3 * forward.counts.flops
    assert first_layer.counts.flops == 2 * forward.counts.flops


def test_memory_in_use_rises_and_falls() -> None:
    with FakeTensorMode(), OperationCounter() as tally:
        first = torch.zeros(1000)
        second = first + 1
        assert tally.allocated == 8000
        view = second[:10]
        assert tally.allocated == 8000
        del first, second
        assert tally.allocated == 4000
        del view
    assert tally.allocated == 0
    assert tally.peak == 8000


def forward(name: str, half: bool = False) -> OperationCounts:
    with OperationCounter(), torch.device("meta"):
        network = models.create(name, 1000).eval()
    mode = FakeTensorMode()
    convert_to_fake(network, mode)
    with mode:
        images = torch.zeros(2, 3, 224, 224)
        with OperationCounter() as tally, torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            network(images)
    return tally.counts


@pytest.mark.parametrize(("name", "gmacs"), [("resnet50", 4.11), ("mobilenetv1_100", 0.58), ("resnet34", 3.67)])
def test_published_operations_of_networks(name: str, gmacs: float) -> None:
    """Of timm's results/benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv."""
    assert forward(name).flops / 2 / 2e9 == pytest.approx(gmacs, rel=0.02)


def test_attention_is_counted_in_any_precision() -> None:
    for half in (False, True):
        assert forward("beitv2_large_patch16_224", half).flops / 2 / 2e9 == pytest.approx(61.6, rel=0.01)


@pytest.mark.parametrize(
    ("model", "first_layer"),
    [
        ("cifar_resnet8", 32 * 32 * 16 * 3 * 9),
        ("cifar_shufflenet_v1", 32 * 32 * 24 * 3),
        ("cifar_shufflenet_v2", 32 * 32 * 24 * 3),
        ("cifar_mobilenet_v2", 16 * 16 * 16 * 3 * 9),
    ],
)
def test_a_training_pass_is_three_forward_passes_but_for_the_first_layer(model: str, first_layer: int) -> None:
    student = count_trial("none", model=model).members[0]
    # the images, 16 of them, need no gradient
    assert student.step.flops == 3 * student.evaluation.flops - 2 * 16 * first_layer
    assert student.evaluation.flops > 2 * 16 * first_layer


@pytest.mark.parametrize("changes", [{}, {"precision": "bfloat16"}, {"optimizer": {"name": "adamw"}}, {"ema": 0.9}])
def test_memory_is_that_of_a_real_step(changes: dict) -> None:
    settings = trial("kd", **changes)
    counted = count_trial("kd", **changes).members[0]
    teacher = build_network(settings.teacher, IMAGES)[0].eval()
    member = build_student(settings, IMAGES, teacher, MemoryWriter())
    draws = torch.Generator().manual_seed(0)
    batch = Batch(torch.randn(16, 3, 32, 32, generator=draws), torch.arange(16) % 4, torch.arange(16), 0, 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"):
        taught = step_cost.CohortModule([member], teacher).teacher_outputs(batch)["running"]
    mine = {tensor.untyped_storage()._cdata for tensor in (*member.parameters(), *member.buffers(), batch.images)}
    mine.add(taught.logits.untyped_storage()._cdata)
    saved = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in mine:
            saved[storage._cdata] = storage
        return tensor

    kept, gradients = [], []

    def backward(loss: torch.Tensor) -> None:
        kept.append(sum(storage.nbytes() for storage in saved.values()))
        loss.backward()
        gradients.append(sum(parameter.grad.nbytes for parameter in member.parameters() if parameter.grad is not None))

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        member.train().step(taught, MicroBatch(batch), backward)
    assert counted.saved == pytest.approx(kept[0], rel=0.01)
    assert counted.peak >= counted.saved
    tensors = [value for state in member.optimizer.state.values() for value in state.values()]
    assert counted.optimizer == sum(value.nbytes for value in tensors if torch.is_tensor(value)) > 0
    assert counted.gradients == gradients[0] > 0
    assert all(parameter.grad is None for parameter in member.parameters())  # once they are used
    average = [] if member.average is None else [*member.average.parameters(), *member.average.buffers()]
    assert counted.average == sum(tensor.nbytes for tensor in average)
    state = sum(tensor.nbytes for tensor in (*member.parameters(), *member.buffers()))
    assert counted.parameters == state - counted.average


def test_an_average_is_made_without_writing_to_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's deep copy of a fake tensor writes to memory that belongs to others, which made processes crash."""
    copy = torch.Tensor.__deepcopy__

    def guarded(tensor: torch.Tensor, memo: dict) -> torch.Tensor:
        assert not isinstance(tensor, FakeTensor)
        return copy(tensor, memo)

    monkeypatch.setattr(torch.Tensor, "__deepcopy__", guarded)
    assert count_trial("kd", ema=0.9).members[0].average > 0


def test_half_precision_keeps_about_half_for_the_backward_pass() -> None:
    whole, half = (count_trial("none", precision=precision).members[0] for precision in ("float32", "bfloat16"))
    assert whole.step.flops == half.step.flops
    assert 0.4 < half.saved / whole.saved < 0.65


@pytest.mark.parametrize("method", ["dkd", "ikl_kd", "fitnet", "rkd", "crd", "ofd", "reviewkd", "dist", "dkl_kd"])
def test_every_method_is_counted_with_its_own_part(method: str) -> None:
    alone, cost = count_trial("kd"), count_trial(method)
    member = cost.members[0]
    assert not member.uncounted
    assert cost.teacher.flops >= alone.teacher.flops > 0
    assert member.step.total() > alone.members[0].step.total() - 20
    if method in ("fitnet", "crd", "ofd", "reviewkd"):  # these have layers of their own
        assert member.step.flops > alone.members[0].step.flops
        assert member.resident > alone.members[0].resident


def test_a_teacher_that_normalises_by_the_batch_has_a_pass_more() -> None:
    running, batch = (count_trial("ofd", hyperparameters={"teacher_batch_norm": kind}) for kind in ("running", "batch"))
    assert running.teacher.flops == batch.teacher.flops
    both = count_cohort([trial("ofd"), trial("kd")], IMAGES)
    assert both.teacher.flops == 2 * batch.teacher.flops


def test_a_teacher_that_makes_tensors_in_its_pass_is_counted() -> None:
    # Rotary embeddings are computed in the pass.
    name = "vit_tiny_patch16_dinov3_qkvb"
    teacher = trial("none", model=name, input={"size": 64}, pretrained="0" * 64, trainable="head")
    cost = count_cohort([trial("kd", taught=False, teacher=teacher.settings())], IMAGES)
    assert not cost.members[0].uncounted
    assert cost.teacher.flops > 16 * 2 * 5e6  # 16 images, and more operations than weights, 5 M


def test_a_frozen_network_has_no_backward_pass() -> None:
    settings = {"model": "test_resnet", "augment": {"crop": 0, "flip": False}}
    whole, head = (count_trial("none", trainable=part, **settings).members[0].step.flops for part in ("all", "head"))
    assert head < whole / 2


def test_a_cohort_shares_the_teacher_and_adds_up_its_students() -> None:
    kd, none = count_trial("kd"), count_trial("none")
    both = count_cohort([trial("kd"), trial("dkd")], IMAGES)
    assert both.teacher.flops == kd.teacher.flops
    assert both.memory > kd.memory > none.memory
    assert both.memory - kd.memory < kd.memory  # the activations of one student at a time
    assert kd.data == 112 * 3 * 32 * 32 + 16 * 3 * 32 * 32 * 4


def test_micro_batches_are_what_is_in_memory_at_once() -> None:
    whole, parts = count_trial("kd"), count_trial("kd", micro_batch=4)
    assert (whole.images, whole.micro_batches) == (16, 1)
    assert (parts.images, parts.micro_batches) == (4, 4)
    assert parts.members[0].step.flops * 4 == whole.members[0].step.flops
    assert parts.members[0].peak < whole.members[0].peak / 2


@pytest.mark.parametrize("model", ["cifar_vgg8", "cifar_resnet8"])
def test_accumulated_gradients_are_in_memory_beside_what_a_pass_has_saved(model: str) -> None:
    parts = count_trial("kd", model=model, micro_batch=2)
    (member,) = parts.members
    assert member.peak >= member.saved  # VGG8 has more gradients than activations of two images
    assert parts.memory >= parts.teacher_parameters + member.resident + member.gradients + member.saved + parts.data


ADVERSARIAL = {"eps": 0.03, "steps": 2}


def adversarial_flops(**settings) -> int:
    changes = {"taught": False, "epochs": 4, "input": {"size": 16}, "adversarial": {**ADVERSARIAL, **settings}}
    return count_trial("ikl_at", **changes).members[0].step.flops


def test_the_perturbations_are_those_of_most_epochs() -> None:
    plain, first, second, last = (
        adversarial_flops(weight_perturbation=settings)
        for settings in (None, *({"gamma": 0.01, "from_epoch": epoch} for epoch in (1, 2, 4)))
    )
    assert plain == last < first == second
    by_schedule = {
        name: adversarial_flops(schedule=name, steps=None) for name in ("released", "intended")
    }  # 5 steps; 2, 3, 4 and 5 steps
    assert by_schedule == {"released": adversarial_flops(steps=5), "intended": adversarial_flops(steps=4)}


def test_a_compiled_trial_is_counted_as_it_is_written() -> None:
    assert count_trial("kd", compile="on").members[0].step == count_trial("kd").members[0].step


PLUGIN = '''
from kd_bench.methods.base import Method


class Choosy(Method):
    """Learns from some images only, which takes their labels to know.

    ce_weight * CE.
    """

    def __init__(self, pair):
        super().__init__(pair)

    def forward(self, student, teacher, batch):
        """Term "ce"."""
        return {"ce": student.logits[batch.labels == 2].mean()}
'''


def test_a_method_that_asks_for_numbers_leaves_its_student_counted(tmp_path: Path) -> None:
    path = tmp_path / "choosy.py"
    path.write_text(PLUGIN)
    member = count_trial(f"{path}:Choosy").members[0]
    assert member.uncounted
    assert member.step.flops == count_trial("none").members[0].step.flops


def test_nothing_of_the_counting_stays_behind() -> None:
    settings = trial("kd")
    before = torch.get_rng_state()
    count_trial("kd")
    torch.set_rng_state(before)
    network = build_network(settings, IMAGES)[0]
    assert not any(parameter.is_meta for parameter in network.parameters())
    assert type(next(network.parameters())) is nn.Parameter
    assert replace(count_trial("kd"), data=0).memory == count_trial("kd").memory - count_trial("kd").data
