"""Saves adversarial images, and checks saved ones in float64, independently of the attacks that made them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from kd_bench.models import weights
from kd_bench.models.timm_interface import evaluation_mode
from kd_bench.robustness.evaluation_record import CORRECT, WRONG, EvaluationRecord
from kd_bench.robustness.norm_ball import distance
from kd_bench.utils.errors import UserError, first_line

#: An image that is misclassified in single precision only is a tie if in float64 the label's logit exceeds all others
#: by at most this share of the largest logit. Rounding decides a tie.
TIE = 1e-4

_BATCH_SIZE = 100


class AdversarialImageFiles:
    """The adversarial images of an evaluation: one file per batch while it runs, one file afterwards."""

    def __init__(self, record: EvaluationRecord) -> None:
        self.record = record
        self.file = record.path.with_suffix(".safetensors")
        self.parts = record.path.with_suffix(".parts")

    def write_batch(self, attack: str, number: int, positions: Tensor, images: Tensor) -> None:
        """Writes the adversarial images of a batch.

        Args:
            attack: Name of the attack.
            number: Number of the batch.
            positions: (B,) int64, of the images in the evaluation.
            images: (B, C, H, W).
        """
        self.parts.mkdir(parents=True, exist_ok=True)
        state = {"places": positions, "images": images}
        weights.write(self.parts / f"{attack}-{number:05d}.safetensors", state, {"attack": attack})

    def merge(self) -> None:
        """Merges the batches' files into one, with the keys ``<attack>.places`` and ``<attack>.images``."""
        state = {}
        for attack in self.record.attacks:
            parts = [_load(path) for path in sorted(self.parts.glob(f"{attack}-[0-9]*.safetensors"))]
            for key in ("places", "images") if parts else ():
                state[f"{attack}.{key}"] = torch.cat([part[key] for part in parts])
        weights.write(self.file, state, {"attack": self.record.attack.settings(), "subject": self.record.subject})

    def remove_batches(self) -> None:
        """Removes the batches' files."""
        shutil.rmtree(self.parts, ignore_errors=True)


@dataclass(frozen=True)
class ImageCheck:
    """The result of checking an attack's images in float64.

    Attributes:
        attack: Name of the attack.
        images: Number of images.
        missing: Number of images that the attack broke and that are not in the file.
        max_distance: Largest distance from the original image.
        outside: Number of images outside the ball, or with pixels outside [0, 1].
        misclassified: Number of images that the network misclassifies.
        ties: Number of images that it misclassifies in single precision only, because two logits are almost equal.
    """

    attack: str
    images: int
    missing: int
    max_distance: float
    outside: int
    misclassified: int
    ties: int

    @property
    def passed(self) -> bool:
        """Whether the images are what the evaluation says."""
        return not self.missing and not self.outside and self.misclassified + self.ties == self.images


def check_adversarial_images(
    network: nn.Module, images: Tensor, labels: Tensor, record: EvaluationRecord
) -> list[ImageCheck]:
    """Checks all adversarial images of an evaluation.

    The original images are those of the data set, not of the file, in the single precision that the network saw.

    Args:
        network: The attacked network.
        images, labels: (N, C, H, W) uint8 and (N,) int64, in the record's order.
        record: The evaluation.

    Raises:
        UserError: If the images were not saved, or the file is damaged or belongs to another evaluation.
    """
    file = AdversarialImageFiles(record).file
    if not file.is_file():
        raise UserError(f"{file}: there are no adversarial images; run the same command with --save-examples first")
    header = weights.read_metadata(file) or {}
    if header.get("attack") != record.attack.settings() or header.get("subject") != record.subject:
        raise UserError(f"{file}: holds the adversarial images of another evaluation")
    state = _load(file)
    device = next(network.parameters()).device
    exact_network = deepcopy(network).double()
    checks = []
    for attack in record.attacks:
        adversarial_images, positions = _images_of(state, attack, images, file)
        flags = zip(record.flags_before(attack), record.flags[attack], strict=True)
        broken = {i for i, (before, after) in enumerate(flags) if before == CORRECT and after == WRONG}
        outside = misclassified = ties = 0
        max_distance = 0.0
        with torch.no_grad(), evaluation_mode(network), evaluation_mode(exact_network):
            for rows in torch.arange(len(positions)).split(_BATCH_SIZE) if len(positions) else ():
                adversarial = adversarial_images[rows]
                original = images[positions[rows]].float() / 255
                y = labels[positions[rows]].to(device)
                distances = distance(adversarial, original, record.attack.norm)
                pixels = adversarial.flatten(1)
                invalid = (distances > record.attack.eps) | (pixels.amin(1) < 0) | (pixels.amax(1) > 1)
                outside += int((invalid | distances.isnan()).sum())
                max_distance = max(max_distance, float(distances.max()))
                logits = exact_network(adversarial.double().to(device))
                wrong = logits.argmax(1) != y
                lead = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1)
                tie = lead <= TIE * logits.abs().amax(1)
                wrong_in_single = network(adversarial.to(device)).argmax(1) != y
                misclassified += int(wrong.sum())
                ties += int((~wrong & tie & wrong_in_single).sum())
        missing = len(broken - set(positions.tolist()))
        checks.append(ImageCheck(attack, len(positions), missing, max_distance, outside, misclassified, ties))
    return checks


def _images_of(state: Mapping[str, Tensor], attack: str, originals: Tensor, file: Path) -> tuple[Tensor, Tensor]:
    """Returns an attack's adversarial images and their positions."""
    positions = state.get(f"{attack}.places", torch.empty(0, dtype=torch.int64))
    images = state.get(f"{attack}.images", torch.empty(0, *originals.shape[1:]))
    fits = positions.ndim == 1 and not positions.is_floating_point()
    fits = fits and images.shape == (len(positions), *originals.shape[1:])
    if not fits or (len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < len(originals)):
        raise UserError(f"{file}: is damaged: {attack}'s images do not fit the data set")
    return images, positions.long()


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from None
