"""Each metric equals an independent computation on random logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error
from torchmetrics.functional.regression import kl_divergence

from kd_bench.evaluation import calibration, efficiency
from kd_bench.evaluation.fidelity import compare_predictions
from kd_bench.models import create
from kd_bench.models.fast_convs import PointwiseConv2d, use_fast_convs, use_library_convs


def draw(seed: int, images: int, classes: int, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits, (N, K) float32, and labels that the logits know somewhat."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = scale * rng.standard_normal((images, classes))
    logits[np.arange(images), labels] += 1
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)


SIZES = st.tuples(st.integers(0, 10_000), st.integers(2, 300), st.integers(2, 20))


@settings(max_examples=40)
@given(SIZES)
def test_errors_of_probabilities(sizes):
    logits, labels = draw(*sizes)
    errors = calibration.probability_errors(logits, labels)
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    targets = np.eye(p.shape[1])[labels]
    assert errors.brier == pytest.approx(np.mean(np.sum((p - targets) ** 2, 1)), rel=1e-9)
    assert errors.nll == pytest.approx(log_loss(labels, p, labels=range(p.shape[1])), rel=1e-9)
    assert errors.ece == pytest.approx(100 * naive_ece(p, labels.numpy()), rel=1e-9, abs=1e-9)
    library = multiclass_calibration_error(torch.tensor(p), labels, p.shape[1], n_bins=15)
    assert errors.ece == pytest.approx(100 * float(library), rel=1e-4, abs=1e-4)


def test_probabilities_of_one_are_in_the_last_bin():
    """Their errors balance those of the bin's other images: 90 % of 50 and 100 % of 50 images are right."""
    labels = torch.zeros(100, dtype=torch.int64)
    labels[:5] = 1
    logits = torch.zeros(100, 10)
    logits[:50, 0], logits[50:, 0] = 100, math.log(9 * 0.95 / 0.05)
    errors = calibration.probability_errors(logits, labels)
    assert errors.ece == pytest.approx(100 * abs(0.95 - (1 + 0.95) / 2))  # accuracy 95 %, mean probability 97.5 %


def test_calibration_error_of_many_images_is_not_rounded():
    rng = np.random.default_rng(0)
    confidence = rng.beta(20, 0.3, 50_000)
    p = torch.tensor(np.stack([confidence, 1 - confidence], 1))
    labels = torch.tensor((rng.random(50_000) > confidence - 0.01).astype(np.int64))
    error = calibration.expected_calibration_error(p, labels)
    assert error == pytest.approx(naive_ece(p.numpy(), labels.numpy()), rel=1e-9)


def test_one_class_and_one_image():
    errors = calibration.probability_errors(torch.randn(3, 1), torch.zeros(3, dtype=torch.int64))
    assert (errors.ece, errors.nll, errors.brier) == (0, 0, 0)
    errors = calibration.probability_errors(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    assert (errors.ece, errors.brier) == (50, 0.5)


def naive_ece(p: np.ndarray, labels: np.ndarray) -> float:
    """The definition with a loop over 15 bins."""
    confidence, right = p.max(1), p.argmax(1) == labels
    total = 0.0
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if inside.any():
            total += inside.sum() * abs(right[inside].mean() - confidence[inside].mean())
    return total / len(labels)


def test_perfect_and_uniform_predictions():
    labels = torch.arange(10)
    perfect = calibration.probability_errors(1000 * torch.eye(10), labels)
    assert (perfect.ece, perfect.nll, perfect.brier) == (0, 0, 0)
    uniform = calibration.probability_errors(torch.zeros(10, 10), labels)
    assert uniform.nll == pytest.approx(math.log(10)) and uniform.brier == pytest.approx(0.9)
    assert uniform.ece == pytest.approx(0, abs=1e-5)  # one of ten is right, with a probability of a tenth
    wrong = calibration.probability_errors(1000 * torch.eye(10).roll(1, 1), labels)
    assert (wrong.ece, wrong.brier) == (100, 2)


@pytest.mark.parametrize("seed", range(5))
def test_the_temperature_minimises_the_nll(seed):
    logits, labels = draw(seed, 400, 10, scale=3.0)
    temperature = calibration.fit_temperature(logits, labels)
    grid = np.exp(np.linspace(-3, 3, 4001))
    losses = [float(nn.functional.cross_entropy(logits.double() / value, labels)) for value in grid]
    assert temperature == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)
    assert float(nn.functional.cross_entropy(logits.double() / temperature, labels)) <= min(losses) + 1e-12


def test_a_known_temperature_is_found():
    """Labels that are drawn from softmax(logits) make the best temperature of 3 * logits about 3."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert calibration.fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.03)


def test_networks_without_errors_have_the_smallest_temperature():
    temperature = calibration.fit_temperature(0.1 * torch.eye(10), torch.arange(10))
    assert temperature == pytest.approx(1 / calibration.LARGEST_TEMPERATURE, rel=1e-2)


def test_cross_fitting_measures_each_half_with_the_temperature_of_the_other():
    logits, labels = draw(3, 101, 4)
    before = logits.clone()
    scaled = calibration.scale_by_halves(logits, labels)
    assert scaled is not None and scaled.fitted_on == "cross-fitted"
    first, second = calibration.halves_of(101)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(101)) and len(first) == 50
    expected = [calibration.fit_temperature(logits[half], labels[half]) for half in (first, second)]
    assert scaled.temperatures == expected
    assert torch.equal(scaled.logits[first], logits[first].double() / expected[1])
    assert torch.equal(scaled.logits[second], logits[second].double() / expected[0])
    assert torch.equal(logits, before)
    double = logits.double()
    calibration.scale_by_halves(double, labels)
    assert torch.equal(double, before.double())
    assert calibration.scale_by_halves(logits[:1], labels[:1]) is None


def test_halves_are_always_the_same():
    assert calibration.halves_of(10)[0].tolist() == calibration.halves_of(10)[0].tolist()
    assert calibration.halves_of(10)[0].tolist() != [0, 1, 2, 3, 4]


def test_held_out_images_give_one_temperature():
    logits, _ = draw(1, 50, 4)
    held_out, held_out_labels = draw(2, 80, 4, scale=5.0)
    scaled = calibration.scale_by_holdout(logits, held_out, held_out_labels)
    expected = calibration.fit_temperature(held_out, held_out_labels)
    assert (scaled.temperatures, scaled.fitted_on) == ([expected], "held-out images")
    assert torch.equal(scaled.logits, logits.double() / expected)


@settings(max_examples=40)
@given(SIZES)
def test_fidelity(sizes):
    seed, images, classes = sizes
    student, labels = draw(seed, images, classes)
    teacher, _ = draw(seed + 1, images, classes)
    fidelity = compare_predictions(student, teacher, labels)
    p, q = teacher.double().softmax(1), student.double().softmax(1)
    assert fidelity.kl == pytest.approx(float(kl_divergence(p, q)), rel=1e-9)
    taught = teacher.argmax(1)
    agreement = multiclass_accuracy(student, taught, classes, average="micro")
    assert fidelity.agreement == pytest.approx(100 * float(agreement), rel=1e-5)
    pairs = zip(student.argmax(1).tolist(), taught.tolist(), labels.tolist(), strict=True)
    errors = [(student_class, teacher_class) for student_class, teacher_class, label in pairs if teacher_class != label]
    assert fidelity.teacher_errors == len(errors)
    if errors:
        same = sum(student_class == teacher_class for student_class, teacher_class in errors)
        assert fidelity.agreement_on_errors == pytest.approx(100 * same / len(errors))
    else:
        assert fidelity.agreement_on_errors is None


def test_fidelity_of_a_network_to_itself():
    logits, labels = draw(0, 40, 6)
    fidelity = compare_predictions(logits, logits, labels)
    assert (fidelity.agreement, fidelity.kl, fidelity.agreement_on_errors) == (100, 0, 100)
    assert compare_predictions(logits, 100 * torch.eye(6)[labels], labels).agreement_on_errors is None


def test_macs_of_a_network_counted_by_hand():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 32 * 32 pixels * 8 * 27
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),  # 16 * 16 pixels * 8 * 9
        nn.Flatten(),
        nn.Linear(8 * 16 * 16, 10),
    )
    expected = 1024 * 8 * 27 + 256 * 8 * 9 + 2048 * 10
    assert efficiency.count_macs(network, (3, 32, 32)) == expected
    assert efficiency.count_parameters(network) == 8 * 27 + 8 + 8 * 9 + 8 + 2048 * 10 + 10


@pytest.mark.parametrize(("name", "parameters"), [("cifar_resnet20", 278_324), ("cifar_shufflenet_v1", 949_258)])
def test_sizes_do_not_depend_on_how_convolutions_are_computed(name, parameters):
    network = create(name, 100).eval()
    assert efficiency.count_parameters(network) == parameters
    plain = efficiency.count_macs(network, (3, 32, 32))
    macs = sum(_convolution_macs(network))
    assert plain == macs
    use_fast_convs(network)
    assert efficiency.count_macs(network, (3, 32, 32)) == plain
    fast = any(isinstance(module, PointwiseConv2d) for module in network.modules())
    assert fast == (name == "cifar_shufflenet_v1")
    use_library_convs(network)
    assert {type(module) for module in network.modules() if isinstance(module, nn.Conv2d)} == {nn.Conv2d}


def _convolution_macs(network: nn.Module) -> list[int]:
    """Multiplications of each convolution and linear layer, from the shapes of its output."""
    macs = []

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear)
        weights = module.weight[0].numel()
        macs.append(output.numel() * weights)

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return macs


def test_speed_is_the_median_after_a_warm_up(monkeypatch):
    """With a clock that each pass moves: the warm-up, the first passes, is slow and does not count."""
    times = iter([0.6, *[0.3, 0.1, 0.2, 0.5, 0.4] * 100])
    clock = [0.0]

    class Slow(nn.Module):
        def forward(self, x):
            assert not self.training and not torch.is_grad_enabled()
            clock[0] += next(times)
            return x

    monkeypatch.setattr(efficiency.time, "perf_counter", lambda: clock[0])
    speed = efficiency.measure_speed(Slow(), torch.zeros(1))
    assert speed.seconds == pytest.approx(0.3) and speed.runs == 10  # 10 passes are 3 seconds


def test_one_thread_is_used_and_given_back():
    before = torch.get_num_threads()
    with efficiency.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
