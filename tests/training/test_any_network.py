"""timm's networks on either side, with an input size and a normalisation of their own."""

import pytest
import torch

from kd_bench.config.data import Input
from kd_bench.models import create
from kd_bench.models.input_transform import InputTransform
from kd_bench.models.registry import resolve
from kd_bench.training.build import build_network, build_student
from kd_bench.training.cohort import CohortModule
from kd_bench.training.evaluate import evaluate_accuracy
from kd_bench.training.fit import fit
from kd_bench.training.loaders import loaders
from kd_bench.types import Batch
from kd_bench.utils.errors import UserError
from tests.training.parts import CPU, MemoryWriter, same, splits, trial


@pytest.fixture(scope="module")
def data():
    return splits(train=32, test=16)


def test_a_vit_teaches_timms_cnn_in_its_own_size_and_normalisation(data):
    vit = {"size": 64, "normalise": "network"}
    student_trial = trial("kd", model="resnet10t", epochs=1, taught=False)
    taught_by = trial("none", model="vit_tiny_patch16_224", input=vit, seed=0)
    student_trial = student_trial.model_copy(update={"teacher": taught_by})
    teacher, view = build_network(taught_by, data)
    writer, alone = MemoryWriter(), MemoryWriter()
    for keep in (writer, alone):
        member = build_student(student_trial, data, teacher.eval(), keep)
        fit(CohortModule([member], teacher, view), *loaders(student_trial, data, CPU), CPU)
    assert len(writer.states) == 1
    assert same(writer.states, alone.states)

    batch = next(iter(loaders(student_trial, data, CPU)[1]))
    seen = CohortModule([member], teacher, view).teacher_outputs(batch)["running"]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    images = (batch.images * std + mean - 0.5) / 0.5
    images = torch.nn.functional.interpolate(images, (64, 64), mode="bicubic", antialias=True)
    torch.testing.assert_close(seen.logits, teacher(images), atol=1e-4, rtol=1e-4)


def test_a_student_may_see_larger_images_than_its_teacher(data):
    student_trial = trial("kd", model="mobilenetv3_small_050", epochs=1, input={"size": 48})
    teacher, view = build_network(student_trial.teacher, data)
    sizes = []
    member = build_student(student_trial, data, teacher.eval(), MemoryWriter())
    member.network.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
    teacher.register_forward_pre_hook(lambda _, inputs: sizes.append(-inputs[0].shape[-1]))
    fit(CohortModule([member], teacher, view), *loaders(student_trial, data, CPU), CPU)
    assert set(sizes) == {48, -32}


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", "vit_tiny_patch16_224"]
)
def test_networks_of_every_kind_take_small_images(name):
    with torch.device("meta"):
        network = create(resolve(name), num_classes=7, image_size=32)
    assert network(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 7)


def test_a_size_that_a_network_cannot_have_is_a_sentence(data):
    student_trial = trial("none", model="vit_tiny_patch16_224", input={"size": 8})
    with pytest.raises(UserError, match=r"^model vit_tiny_patch16_224: cannot take images of 3x8x8 \("):
        build_student(student_trial, data, None, MemoryWriter())


def test_accuracy_by_class(data):
    # A network that always says "2".
    network = torch.nn.Module()
    network.forward = lambda images: torch.eye(4)[2].expand(len(images), 4)
    steps = []
    accuracy = evaluate_accuracy(
        network, InputTransform(network, Input(), 32, data.mean, data.std), data, CPU, lambda *step: steps.append(step)
    )
    assert (accuracy.top1, accuracy.top5, accuracy.classes) == (25.0, 100.0, (0.0, 0.0, 100.0, 0.0))
    assert steps == [(1, 1)]
    assert isinstance(next(iter(loaders(trial("none"), data, CPU)[1])), Batch)
