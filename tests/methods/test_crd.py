"""CRD's negatives, banks and normalisers."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kd_bench import losses
from kd_bench.methods import _registry as methods
from kd_bench.methods.crd import CRD
from tests.methods.cases import PAIR, batch, call, make, outputs, teacher_outputs


def build(labels: torch.Tensor, **hyperparameters: object) -> CRD:
    pair = replace(PAIR, train_size=len(labels), train_labels=labels, num_classes=int(labels.max()) + 1)
    method = methods.build("crd", pair, hyperparameters)
    assert isinstance(method, CRD)
    return method


BALANCED = torch.arange(60) % 4
SKEWED = torch.tensor([0] * 31 + [1] * 20 + [2] * 8 + [3])[torch.randperm(60, generator=torch.manual_seed(0))]


@pytest.mark.parametrize("labels", [BALANCED, SKEWED], ids=["balanced", "skewed"])
@pytest.mark.parametrize("negatives", [1, 20, 29])
def test_negatives_are_of_other_classes_and_distinct(labels: torch.Tensor, negatives: int) -> None:
    method, images = build(labels, negatives=negatives), torch.arange(60)
    torch.manual_seed(1)
    negative_indices = method._draw_negatives(images)
    assert negative_indices.shape == (60, negatives)
    assert (labels[negative_indices] != labels[:, None]).all()
    assert all(len(row.unique()) == negatives for row in negative_indices)
    torch.manual_seed(1)
    assert torch.equal(method._draw_negatives(images), negative_indices)
    assert not torch.equal(method._draw_negatives(images), negative_indices)


@pytest.mark.parametrize("negatives", [5, 40], ids=["without replacement", "with replacement"])
def test_negatives_are_uniform(negatives: int) -> None:
    method, images = build(SKEWED, negatives=negatives), torch.arange(60)
    torch.manual_seed(0)
    counts = torch.zeros(60, 60)
    rounds = 2000
    for _ in range(rounds):
        counts.scatter_add_(1, method._draw_negatives(images), torch.ones(60, negatives))
    others = SKEWED[:, None] != SKEWED
    expected = others * negatives / others.sum(1, keepdim=True)
    assert counts[~others].sum() == 0
    spread = (expected / rounds).sqrt() + 1e-9
    assert ((counts / rounds - expected).abs()[others] / spread[others]).max() < 5.5


def test_more_negatives_than_there_are() -> None:
    method = build(BALANCED, negatives=100)
    negative_indices = method._draw_negatives(torch.arange(8))
    assert negative_indices.shape == (8, 100)
    assert (BALANCED[negative_indices] != BALANCED[:8, None]).all()


def test_terms_and_what_is_remembered() -> None:
    method, student, teacher, samples = make("crd", crd_weight=0.3), outputs(1), teacher_outputs(2), batch(size=32)
    assert isinstance(method, CRD)
    student_embeddings = F.normalize(method.embed_student(student.pooled))
    teacher_embeddings = F.normalize(method.embed_teacher(teacher.pooled))
    banks = method.student_bank.clone(), method.teacher_bank.clone()
    assert method.log_z.isnan().all()

    terms = call(method, student, teacher, samples)
    torch.manual_seed(7)
    index = torch.cat([samples.index[:, None], method._draw_negatives(samples.index)], 1)
    z = [
        losses.log_normaliser(student_embeddings, banks[1], index, 0.07),
        losses.log_normaliser(teacher_embeddings, banks[0], index, 0.07),
    ]
    torch.testing.assert_close(method.log_z, torch.stack(z))
    expected = losses.contrast(student_embeddings, banks[1], index, z[0], 0.07) + losses.contrast(
        teacher_embeddings, banks[0], index, z[1], 0.07
    )
    torch.testing.assert_close(terms["crd"], 0.3 * expected)

    torch.testing.assert_close(method.student_bank, F.normalize(0.5 * banks[0] + 0.5 * student_embeddings))
    torch.testing.assert_close(method.teacher_bank, F.normalize(0.5 * banks[1] + 0.5 * teacher_embeddings))
    first = method.log_z.clone()
    call(method, outputs(3), teacher_outputs(4), samples)
    assert torch.equal(method.log_z, first)


def test_a_normaliser_of_every_batch() -> None:
    method, samples = make("crd", normaliser="batch"), batch()
    assert isinstance(method, CRD)
    call(method, outputs(1), teacher_outputs(2), samples)
    first = method.log_z.clone()
    call(method, outputs(3), teacher_outputs(4), samples)
    assert not torch.equal(method.log_z, first)


def test_only_the_images_of_the_batch_are_remembered_and_none_in_evaluation() -> None:
    method, samples = make("crd"), batch(size=4)
    assert isinstance(method, CRD)
    before = method.student_bank.clone()
    call(method.eval(), outputs(1, 4), teacher_outputs(2, 4), samples)
    assert torch.equal(method.student_bank, before)
    call(method.train(), outputs(1, 4), teacher_outputs(2, 4), samples)
    assert torch.equal(method.student_bank[4:], before[4:])
    assert not torch.equal(method.student_bank[:4], before[:4])


@pytest.mark.parametrize("rows", [32, 8], ids=["one micro-batch", "four micro-batches"])
def test_a_step_that_begins_again_leaves_nothing_of_its_first_try(rows: int) -> None:
    """As when a step cannot be recorded: the tensors that are left have never been computed."""
    samples = batch(size=32)
    parts = [samples.rows(slice(start, start + rows)) for start in range(0, 32, rows)]

    def step(method: CRD, seed: int, until: int | None = None) -> None:
        for number, part in enumerate(parts[:until]):
            torch.manual_seed(7)
            method(outputs(seed + number, rows), teacher_outputs(seed + number, rows), part)

    banks = []
    for tries in ([], [1], [1, len(parts) - 1], [len(parts)]):
        method = make("crd", normaliser="batch")
        assert isinstance(method, CRD)
        for number, until in enumerate(tries):
            step(method, 100 * (1 + number), until)
        step(method, 1)
        method.on_step_end()
        banks.append((method.student_bank, method.teacher_bank))
    for student_bank, teacher_bank in banks[1:]:
        assert torch.equal(student_bank, banks[0][0])
        assert torch.equal(teacher_bank, banks[0][1])


class Reversed(TorchDispatchMode):
    """Writes rows in the reverse order, because a device may write them in any order."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index_put_.default:
            target, index, values = args
            args = (target, [rows.flip(0) for rows in index], values.flip(0))
        return func(*args, **(kwargs or {}))


def test_the_last_view_of_an_image_is_remembered_in_whatever_order_rows_are_written() -> None:
    banks = []
    for mode in (nullcontext(), Reversed()):
        method, samples = make("crd"), batch(size=32)
        assert isinstance(method, CRD)
        before, embeddings = method.student_bank.clone(), F.normalize(method.embed_student(outputs(1).pooled))
        method(outputs(1), teacher_outputs(2), replace(samples, index=samples.index % 16))
        with mode:
            method.on_step_end()
        torch.testing.assert_close(method.student_bank[:16], F.normalize(0.5 * before[:16] + 0.5 * embeddings[16:]))
        banks.append((method.student_bank, method.teacher_bank))
    assert all(torch.equal(*both) for both in zip(*banks, strict=True))


def test_both_embeddings_are_trained() -> None:
    method = make("crd")
    assert isinstance(method, CRD)
    call(method, outputs(1), teacher_outputs(2), batch())["crd"].backward()
    for layer in (method.embed_student, method.embed_teacher):
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().sum() > 0


def test_the_classes_of_all_images_must_be_known() -> None:
    with pytest.raises(ValueError, match="the class of every training image"):
        methods.build("crd", replace(PAIR, train_labels=None), {})
