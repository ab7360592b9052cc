"""Every built-in method trains, and each one's terms are those of its losses."""

from dataclasses import replace

import pytest
import torch

from kd_bench import losses
from kd_bench.methods import _registry as methods
from kd_bench.methods.base import hard_labels, require_teacher, warmup_factor
from tests.methods.cases import (
    batch,
    call,
    make,
    mapped,
    network,
    outputs,
    seen,
    teacher_outputs,
    tensors,
)
from tests.training.parts import splits, train, trial

#: Those that distil, and the baseline; tests/methods/test_adversarial.py has the methods of adversarial training.
DISTIL = [name for name in methods.names() if methods.describe(name).family != "adversarial"]
EVERY = [*DISTIL, "ikl_kd class", "gkl_kd sample"]

#: Those that never read the labels.
WITHOUT_LABELS = {"simkd"}

#: Terms that have no gradient to the student, and are meant to have none.
UNTRAINED = {("dkl_kd", "pairwise")}


def descend(name: str, mixed: bool, terms: set[str]) -> tuple[float, float]:
    """The sum of these terms before and after twenty steps that reduce it, warm-up being over."""
    method, student, samples = make(name), network(0), batch(mixed=mixed, epoch=20)
    teacher = teacher_outputs(1)
    optimizer = torch.optim.SGD([*student.parameters(), *method.parameters()], lr=0.01)
    history = []
    for _ in range(21):
        values = call(method, seen(student, samples.images), teacher, samples)
        loss = torch.stack([values[key] for key in sorted(terms)]).sum()
        assert loss.dtype == torch.float32
        history.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*student.parameters(), *method.parameters()], 5.0)
        optimizer.step()
    return history[0], history[-1]


@pytest.mark.parametrize("mixed", [False, True], ids=["labels", "mixed"])
@pytest.mark.parametrize("name", EVERY)
def test_the_loss_and_each_of_its_terms_fall_in_twenty_steps(name: str, mixed: bool) -> None:
    terms = set(call(make(name), outputs(0), teacher_outputs(1), batch()))
    assert ("ce" in terms) == (name not in WITHOUT_LABELS)
    for chosen in [terms, *({term} for term in terms if (name, term) not in UNTRAINED)]:
        before, after = descend(name, mixed, chosen)
        assert after < before


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_outputs(name: str) -> None:
    method, samples = make(name), batch()
    student = mapped(outputs(1), lambda values: values.bfloat16().requires_grad_())
    teacher = mapped(teacher_outputs(2), lambda values: values.bfloat16())
    # A buffer of the method is float32, and what is added to it may be bfloat16: convert it by .float().
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.stack(list(call(method, student, teacher, samples).values())).sum()
    loss.backward()
    assert loss.dtype == torch.float32
    reached = [values.grad for values in tensors(student) if values.grad is not None]
    assert reached
    assert all(torch.isfinite(gradient).all() for gradient in reached)
    assert all(torch.isfinite(parameter.grad).all() for parameter in method.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("name", EVERY)
def test_huge_outputs_give_finite_losses_and_gradients(name: str) -> None:
    method, samples = make(name), batch()
    student = mapped(outputs(1), lambda values: (1e4 * values).requires_grad_())
    teacher = mapped(teacher_outputs(2), lambda values: 1e4 * values)
    loss = torch.stack(list(call(method, student, teacher, samples).values())).sum()
    loss.backward()
    assert torch.isfinite(loss)
    for values in [*tensors(student), *method.parameters()]:
        assert values.grad is None or torch.isfinite(values.grad).all()


@pytest.mark.parametrize("name", EVERY)
def test_nothing_given_is_changed_and_no_gradient_reaches_the_teacher(name: str) -> None:
    method, samples = make(name), batch()
    student = mapped(outputs(1), lambda values: values.requires_grad_())
    teacher = mapped(teacher_outputs(2), lambda values: values.requires_grad_())
    given = [*tensors(student), *tensors(teacher), samples.labels, samples.index]
    before = [values.detach().clone() for values in given]
    torch.stack(list(call(method, student, teacher, samples).values())).sum().backward()
    detached = all(values.grad is None for values in tensors(teacher))
    assert detached, "a gradient reaches the teacher's outputs; the method should .detach() them"
    assert (student.features if name in WITHOUT_LABELS else student.logits).grad is not None
    for now, then in zip(given, before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("name", EVERY)
def test_a_method_goes_on_from_its_state(name: str) -> None:
    first, again, samples = make(name), make(name), batch()
    for step in range(2):
        call(first, outputs(1 + step), teacher_outputs(2 + step), samples)
    first.on_epoch_end()
    torch.manual_seed(99)
    other = make(name)
    for values in [*again.parameters(), *again.buffers()]:
        if values.is_floating_point() and values.requires_grad:
            torch.nn.init.uniform_(values)
    again.load_state_dict(first.state_dict())
    expected = call(first, outputs(8), teacher_outputs(9), samples)
    assert call(again, outputs(8), teacher_outputs(9), samples) == expected
    if first.state_dict():
        assert first.state_dict().keys() == other.state_dict().keys()


def test_none_is_the_cross_entropy() -> None:
    method, student, samples = make("none"), outputs(1), batch()
    terms = method(student, None, samples)
    assert terms == {"ce": losses.cross_entropy(student.logits, samples.labels)}
    assert not method.needs.teacher


def test_kd_terms() -> None:
    method, student, teacher, samples = make("kd", temperature=3), outputs(1), teacher_outputs(2), batch()
    assert method(student, teacher, samples) == {
        "ce": 0.1 * losses.cross_entropy(student.logits, samples.labels),
        "kd": 0.9 * losses.kd(student.logits, teacher.logits, 3.0),
    }


@pytest.mark.parametrize(("epoch", "factor"), [(0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)])
def test_dkd_terms_warm_up_and_the_cross_entropy_does_not(epoch: int, factor: float) -> None:
    method, student, teacher, samples = make("dkd", warmup_epochs=4), outputs(1), teacher_outputs(2), batch(epoch=epoch)
    tckd, nckd = losses.dkd_terms(student.logits, teacher.logits, samples.labels, 4.0)
    terms = method(student, teacher, samples)
    assert terms["ce"] == losses.cross_entropy(student.logits, samples.labels)
    torch.testing.assert_close(terms["tckd"], factor * tckd)
    torch.testing.assert_close(terms["nckd"], factor * 8.0 * nckd)


@pytest.mark.parametrize(("epoch", "factor"), [(0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)])
def test_ikl_terms_warm_up_and_the_cross_entropy_does_not(epoch: int, factor: float) -> None:
    method = make("ikl_kd", warmup_epochs=4, alpha=12, beta=3, tau=50)
    student, teacher, samples = outputs(1), teacher_outputs(2), batch(epoch=epoch)
    weights = (teacher.logits / 50).softmax(-1)
    terms = method(student, teacher, samples)
    assert terms["ce"] == losses.cross_entropy(student.logits, samples.labels)
    expected = factor * losses.ikl(student.logits, teacher.logits, weights, 12.0, 3.0, 4.0)
    torch.testing.assert_close(terms["pairwise"] + terms["soft_ce"], expected)
    torch.testing.assert_close(
        terms["soft_ce"], factor * 3.0 * losses.soft_cross_entropy(student.logits, teacher.logits, 4.0)
    )


@pytest.mark.parametrize("name", EVERY)
def test_a_mixed_label_counts_as_its_largest_share_everywhere_but_in_the_cross_entropy(name: str) -> None:
    mixed, plain = batch(mixed=True), batch()
    assert torch.equal(hard_labels(mixed), plain.labels)
    assert hard_labels(plain) is plain.labels
    student, teacher = outputs(1), teacher_outputs(2)
    method, same = make(name), make(name)
    first, expected = call(method, student, teacher, plain), call(same, student, teacher, mixed)
    if name in WITHOUT_LABELS:
        assert expected == first
        return
    assert {**expected, "ce": first["ce"]} == first
    other = call(method, student, teacher, replace(plain, labels=plain.labels.roll(1)))
    torch.testing.assert_close(expected["ce"], 0.6 * first["ce"] + 0.4 * other["ce"])


def test_mixed_images_train_with_every_method() -> None:
    trials = [
        trial(name, epochs=1, augment={"crop": 2, "flip": True, "mixup": 0.8, "cutmix": 1.0})
        for name in DISTIL
        if name != "none"
    ]
    for writers in (train(trials, splits()), train([trial("none", augment={"mixup": 1.0})], splits())):
        for writer in writers:
            assert writer.crash is writer.divergence is None
            for row in writer.states[-1]["history"]:
                assert 0 < row["train_loss"] < 1000
                assert 0 <= row["train_top1"] <= 100


@pytest.mark.parametrize(
    ("epoch", "warmup_epochs", "factor"), [(0, 20, 0.05), (9, 20, 0.5), (19, 20, 1), (239, 20, 1), (0, 0, 1), (0, 1, 1)]
)
def test_warm_up(epoch: int, warmup_epochs: int, factor: float) -> None:
    assert warmup_factor(epoch, warmup_epochs) == pytest.approx(factor)


def test_a_method_that_is_taught_refuses_to_go_without() -> None:
    with pytest.raises(ValueError, match="needs a teacher"):
        make("kd")(outputs(1), None, batch())
    teacher = outputs(2)
    assert require_teacher(teacher) is teacher
