"""Adversarial images kept in files, and their examination by arithmetic that the attacks had no part in."""

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
from kd_bench.robustness.evaluation_record import FELL, STANDS, Record
from kd_bench.robustness.norm_ball import distance
from kd_bench.robustness.pgd import evaluating
from kd_bench.utils.errors import UserError, first_line

#: By how much the label's logit may exceed all others in float64 for an image that is misclassified in single
#: precision, relative to the largest logit: a tie, broken by rounding.
TIE = 1e-4

_AT_ONCE = 100


class Examples:
    """The adversarial images of an evaluation: a file a batch while it runs, one file afterwards.

    Args:
        record: The evaluation.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.file = record.path.with_suffix(".safetensors")
        self.parts = record.path.with_suffix(".parts")

    def keep(self, attack: str, number: int, places: Tensor, images: Tensor) -> None:
        """Writes what a batch gave.

        Args:
            attack: By which.
            number: The batch's.
            places: (B,) int64, of the images in the evaluation.
            images: (B, C, H, W) adversarial ones.
        """
        self.parts.mkdir(parents=True, exist_ok=True)
        state = {"places": places, "images": images}
        weights.write(self.parts / f"{attack}-{number:05d}.safetensors", state, {"attack": attack})

    def gather(self) -> None:
        """Puts the batches' files into one, with ``places`` and ``images`` of each attack."""
        state = {}
        for attack in self.record.attacks:
            found = [_load(path) for path in sorted(self.parts.glob(f"{attack}-[0-9]*.safetensors"))]
            for key in ("places", "images") if found else ():
                state[f"{attack}.{key}"] = torch.cat([part[key] for part in found])
        weights.write(self.file, state, {"attack": self.record.attack.settings(), "subject": self.record.subject})

    def forget(self) -> None:
        """Removes the batches' files, once the evaluation is written down as finished."""
        shutil.rmtree(self.parts, ignore_errors=True)


@dataclass(frozen=True)
class Examined:
    """What was found of an attack's images, everything in float64.

    Attributes:
        attack: By which they were made.
        images: How many.
        lacking: Images that fell by the attack and are not there.
        farthest: Largest distance from the original image.
        outside: How many are outside the ball, or have pixels outside [0, 1].
        misclassified: How many the network gets wrong.
        ties: How many more it gets wrong in single precision only, where two logits are as good as equal.
    """

    attack: str
    images: int
    lacking: int
    farthest: float
    outside: int
    misclassified: int
    ties: int

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong with them."""
        return not self.lacking and not self.outside and self.misclassified + self.ties == self.images


def examine(network: nn.Module, images: Tensor, labels: Tensor, record: Record) -> list[Examined]:
    """Examines all adversarial images of an evaluation.

    The original images are those of the data set, not of the file. A pixel of theirs is the single-precision number
    that the network saw.

    Args:
        network: As it was attacked.
        images: (N, C, H, W) uint8, in the record's order.
        labels: (N,) int64.
        record: The evaluation.

    Raises:
        UserError: Where the images were not kept, or the file is another evaluation's or damaged.
    """
    file = Examples(record).file
    if not file.is_file():
        raise UserError(f"{file}: there are no adversarial images; run the same command with --save-examples first")
    about = weights.about(file) or {}
    if about.get("attack") != record.attack.settings() or about.get("subject") != record.subject:
        raise UserError(f"{file}: holds the adversarial images of another evaluation")
    state = _load(file)
    device = next(network.parameters()).device
    exact = deepcopy(network).double()
    found = []
    for attack in record.attacks:
        shown, places = _of(state, attack, images, file)
        pairs = zip(record.before(attack), record.flags[attack], strict=True)
        fell = {place for place, (was, now) in enumerate(pairs) if was == STANDS and now == FELL}
        outside = misclassified = ties = 0
        farthest = 0.0
        with torch.no_grad(), evaluating(network), evaluating(exact):
            for some in torch.arange(len(places)).split(_AT_ONCE) if len(places) else ():
                adversarial = shown[some]
                original = images[places[some]].float() / 255
                y = labels[places[some]].to(device)
                far = distance(adversarial, original, record.attack.norm)
                pixels = adversarial.flatten(1)
                bad = (far > record.attack.eps) | (pixels.amin(1) < 0) | (pixels.amax(1) > 1) | far.isnan()
                outside += int(bad.sum())
                farthest = max(farthest, float(far.max()))
                logits = exact(adversarial.double().to(device))
                wrong = logits.argmax(1) != y
                lead = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1)
                tie = lead <= TIE * logits.abs().amax(1)
                single = network(adversarial.to(device)).argmax(1) != y
                misclassified += int(wrong.sum())
                ties += int((~wrong & tie & single).sum())
        lacking = len(fell - set(places.tolist()))
        found.append(Examined(attack, len(places), lacking, farthest, outside, misclassified, ties))
    return found


def _of(state: Mapping[str, Tensor], attack: str, images: Tensor, file: Path) -> tuple[Tensor, Tensor]:
    places = state.get(f"{attack}.places", torch.empty(0, dtype=torch.int64))
    shown = state.get(f"{attack}.images", torch.empty(0, *images.shape[1:]))
    fitting = places.ndim == 1 and not places.is_floating_point() and shown.shape == (len(places), *images.shape[1:])
    if not fitting or (len(places) and not 0 <= int(places.min()) <= int(places.max()) < len(images)):
        raise UserError(f"{file}: is damaged: {attack}'s images do not fit the data set")
    return shown, places.long()


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from None
