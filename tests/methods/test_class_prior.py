"""IKL's class weights: what they are, when they change, and that a resumed run has the same."""

import io

import pytest
import torch

from kd_bench import losses
from kd_bench.methods import _registry as methods
from kd_bench.methods._class_prior import sums_by_product
from kd_bench.methods.base import Method
from kd_bench.types import Batch, Outputs
from tests.methods.cases import CLASSES, PAIR, batch, outputs


def make(**hyperparameters: object) -> Method:
    return methods.build("ikl_kd", PAIR, {"weights": "class", "tau": 2.0, **hyperparameters})


def pairwise(method: Method, student: Outputs, teacher: Outputs, samples: Batch) -> torch.Tensor:
    return method(student, teacher, samples)["pairwise"]


def test_starts_uniform() -> None:
    method, student, teacher = make(warmup_epochs=0, alpha=1), outputs(1), outputs(2)
    expected = 0.5 * (teacher.logits - student.logits).var(-1, correction=0).mean()
    torch.testing.assert_close(pairwise(method, student, teacher, batch()), expected)


def test_is_rebuilt_from_the_epoch_that_ends_and_from_no_other() -> None:
    method, student = make(warmup_epochs=0, alpha=1), outputs(1)
    for epoch in range(2):
        taught = [(outputs(10 * epoch + step), batch(seed=10 * epoch + step, step=step)) for step in range(3)]
        for teacher, samples in taught:
            method(student, teacher, samples)
        method.on_epoch_end()
        probabilities = torch.cat([(teacher.logits / 2.0).softmax(-1) for teacher, _ in taught])
        labels = torch.cat([samples.labels for _, samples in taught])
        prior = torch.stack([probabilities[labels == y].mean(0) for y in range(CLASSES)])
        samples, teacher = batch(seed=99), outputs(98)
        torch.testing.assert_close(
            pairwise(method.eval(), student, teacher, samples),
            losses.pairwise_mse(student.logits, teacher.logits, prior[samples.labels]),
        )
        method.train()


def test_a_class_that_was_not_seen_keeps_its_row() -> None:
    method = make()
    missing = Batch(batch().images, batch().labels % (CLASSES - 1), torch.arange(32), 0, 0)
    method(outputs(1), outputs(2), batch())
    method.on_epoch_end()
    first = method.state_dict()["prior"].clone()
    method(outputs(1), outputs(3), missing)
    method.on_epoch_end()
    second = method.state_dict()["prior"]
    assert torch.equal(first[-1], second[-1])
    assert (first[:-1] != second[:-1]).any(-1).all()


def test_evaluation_leaves_no_trace() -> None:
    method = make().eval()
    method(outputs(1), outputs(2), batch())
    method.on_epoch_end()
    assert torch.equal(method.state_dict()["prior"], torch.full((CLASSES, CLASSES), 1 / CLASSES))


def test_mixed_labels_count_as_their_largest_share() -> None:
    mixed, plain = make(), make()
    mixed(outputs(1), outputs(2), batch(mixed=True))
    plain(outputs(1), outputs(2), batch())
    assert all(torch.equal(a, b) for a, b in zip(mixed.buffers(), plain.buffers(), strict=True))
    assert int(plain.state_dict()["counts"].sum()) == 32


def test_a_run_resumed_in_the_middle_of_an_epoch_goes_on_exactly() -> None:
    def run(interrupted: bool) -> tuple[torch.Tensor, torch.Tensor]:
        method = make()
        for epoch in range(2):
            for step in range(4):
                if interrupted and (epoch, step) == (1, 2):
                    file = io.BytesIO()
                    torch.save(method.state_dict(), file)
                    file.seek(0)
                    method = make()
                    method.load_state_dict(torch.load(file, weights_only=True))
                method(outputs(1), outputs(10 * epoch + step), batch(seed=step, epoch=epoch, step=step))
            method.on_epoch_end()
        return method.state_dict()["prior"], pairwise(method, outputs(1), outputs(2), batch(epoch=2))

    for mine, other in zip(run(interrupted=True), run(interrupted=False), strict=True):
        assert torch.equal(mine, other)


def test_sample_weights_remember_nothing() -> None:
    assert methods.build("ikl_kd", PAIR, {}).state_dict() == {}


def test_sums_by_a_product_are_those_of_index_add() -> None:
    rows, values = torch.tensor([3, 0, 3, 3, 1, 0]), outputs(1, 6).logits.softmax(-1)
    expected = torch.zeros(5, CLASSES).index_add_(0, rows, values)
    torch.testing.assert_close(sums_by_product(rows, values, 5), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(sums_by_product(rows, values, 5), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_sums_are_the_same_every_time_on_a_gpu() -> None:
    def sums() -> torch.Tensor:
        method = make().cuda()
        samples = batch(size=4096)
        gpu_samples = Batch(samples.images, samples.labels.cuda(), samples.index, 0, 0)
        student, teacher = outputs(1, size=4096).logits.cuda(), outputs(2, size=4096).logits.cuda()
        method(Outputs(student), Outputs(teacher), gpu_samples)
        return method.state_dict()["sums"]

    first = sums()
    assert all(torch.equal(first, sums()) for _ in range(20))
