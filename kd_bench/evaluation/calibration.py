"""Calibration: whether a network's probabilities are as high as the share of images that it classifies correctly.

Temperature scaling divides all logits by one number T that minimises the NLL of images that the network was not trained
on (Guo et al., "On Calibration of Modern Neural Networks", 2017). It changes no prediction.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_bench.trials.evaluation_file import Errors, FittedOn
from kd_bench.utils import seeding

#: Bins of the expected calibration error.
BINS = 15

#: Largest temperature, and one over the smallest one. A network without errors on the images has none that is best.
LARGEST_TEMPERATURE = 100.0


class Scaled(NamedTuple):
    """Logits that were divided by temperatures.

    Attributes:
        logits: (N, K).
        temperatures: The temperatures.
        fitted_on: What they were fitted on.
    """

    logits: Tensor
    temperatures: list[float]
    fitted_on: FittedOn


def probability_errors(logits: Tensor, labels: Tensor) -> Errors:
    """Returns the errors of softmax(logits), in float64.

    * ECE, in percentage points; see ``expected_calibration_error``.
    * NLL, in nats: the mean over the images of -log of the label's probability.
    * Brier score: the mean over the images of the sum over all classes of (probability - indicator)^2, where the
      indicator is 1 for the label and 0 otherwise; from 0 to 2 (Brier, 1950).

    Args:
        logits: (N, K).
        labels: (N,) int64.
    """
    logits = logits.double()
    probabilities = logits.softmax(1)
    brier = (probabilities - F.one_hot(labels, logits.shape[1])).square().sum(1).mean()
    return Errors(
        ece=min(100 * expected_calibration_error(probabilities, labels), 100.0),
        nll=float(F.cross_entropy(logits, labels)),
        brier=min(float(brier), 2.0),
    )


def expected_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Returns the expected calibration error, from 0 to 1 (Guo et al., 2017, eq. 3).

    Images are put into 15 bins of equal width, ((m - 1) / 15, m / 15], by the probability of their predicted class. The
    result is the mean over the images of the distance between accuracy and mean probability of an image's bin.

    torchmetrics has a 16th bin for probabilities of exactly 1, which many images have in float32, and adds up in
    float32, where the error of 50,000 images exceeds 0.005 percentage points.

    Args:
        probabilities: (N, K) float64.
        labels: (N,) int64.
    """
    confidences, predicted = probabilities.max(1)
    edges = torch.arange(1, BINS, dtype=torch.float64) / BINS
    gaps = torch.zeros(BINS, dtype=torch.float64)
    gaps.index_add_(0, torch.bucketize(confidences, edges), (predicted == labels).double() - confidences)
    return float(gaps.abs().sum()) / len(labels)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Returns the temperature from 1/100 to 100 whose NLL is the smallest.

    The NLL is convex in 1 / T, so that a bounded search finds its only minimum.

    Args:
        logits: (N, K).
        labels: (N,) int64.
    """
    from scipy.optimize import minimize_scalar

    logits = logits.double()

    def nll(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / math.exp(log_temperature), labels))

    end = math.log(LARGEST_TEMPERATURE)
    result = minimize_scalar(nll, bounds=(-end, end), method="bounded", options={"xatol": 1e-7})
    return math.exp(float(result.x))


def scale_by_holdout(logits: Tensor, held_out: Tensor, held_out_labels: Tensor) -> Scaled:
    """Returns the logits divided by the temperature of images that were held out.

    Args:
        logits: (N, K), of the test images.
        held_out: (M, K), of the held-out images.
        held_out_labels: (M,) int64.
    """
    temperature = fit_temperature(held_out, held_out_labels)
    return Scaled(logits.double() / temperature, [temperature], "held-out images")


def scale_by_halves(logits: Tensor, labels: Tensor) -> Scaled | None:
    """Returns the logits of each half of the test images, divided by the temperature of the other half.

    The halves are drawn by name, so that all networks have the same. Returns None for fewer than two images.

    Args:
        logits: (N, K).
        labels: (N,) int64.
    """
    if len(labels) < 2:
        return None
    halves = halves_of(len(labels))
    first, second = (fit_temperature(logits[half], labels[half]) for half in halves)
    scaled = logits.double().clone()
    scaled[halves[0]] /= second
    scaled[halves[1]] /= first
    return Scaled(scaled, [first, second], "cross-fitted")


def halves_of(images: int) -> tuple[Tensor, Tensor]:
    """Returns the indices of the two halves of this number of images; the second has one more if it is odd."""
    order = torch.randperm(images, generator=seeding.generator(0, seeding.CALIBRATION))
    return order[: images // 2], order[images // 2 :]
