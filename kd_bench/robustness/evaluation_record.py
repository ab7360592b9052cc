"""The file of a robustness evaluation: which images each attack has broken, written after every batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_bench.config.attack import Attack, chained, is_pgd
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import read_json, write_json

#: Name of the evaluation without an attack, which comes first.
CLEAN = "clean"

#: Flags of an image: classified correctly, misclassified, or its batch has not been attacked yet.
CORRECT, WRONG, PENDING = "1", "0", "?"

#: Meaning of the accuracy after all attacks: without and with all attacks of standard AutoAttack.
UPPER_BOUND = "upper bound of the accuracy under AutoAttack"
AUTOATTACK = "accuracy under standard AutoAttack"


class EvaluationRecord:
    """An evaluation, finished or not.

    Args:
        path: Its file.
        attack: The settings.
        subject: The network, its weights and its images, as settings.
        index: Positions of the attacked images in the test set.
        test_images: Number of images of the test set.

    Attributes:
        flags: One character per image (``CORRECT``, ``WRONG`` or ``PENDING``) by attack; ``CLEAN`` is the first.
        seconds: Time of each attack so far.
        warnings: Sentences that say why the numbers may be wrong.
        skipped: Attacks that need more classes than the data set has.
        saves_images: Whether adversarial images are saved.
        provenance: File of the weights, environment and time.
        done: Whether the evaluation is finished.
    """

    def __init__(
        self, path: Path, attack: Attack, subject: Mapping[str, Any], index: Sequence[int], test_images: int
    ) -> None:
        self.path, self.attack, self.subject, self.test_images = path, attack, dict(subject), test_images
        self.index = list(index)
        self.flags: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []
        self.skipped: list[str] = []
        self.saves_images = False
        self.provenance: dict[str, Any] = {}
        self.done = False

    def resume(self) -> bool:
        """Reads the state of the same evaluation from the file. Returns whether there was one.

        Raises:
            UserError: If the file is damaged.
        """
        content = _read(self.path)
        attack, subject = self.attack.settings(), self.subject
        same = {"attack": attack, "subject": subject, "index": self.index, "of": self.test_images}
        if content is None or any(content.get(key) != value for key, value in same.items()):
            return False
        try:
            self.flags = {str(name): str(flags) for name, flags in content["flags"].items()}
            self.seconds = {str(name): float(value) for name, value in content["seconds"].items()}
            self.warnings, self.skipped = list(content["warnings"]), list(content["skipped"])
            self.saves_images, self.done = bool(content["examples"]), content["status"] == "done"
            self.provenance = dict(content["about"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise _damaged(self.path) from None
        states = {CORRECT, WRONG, PENDING}
        if any(len(flags) != len(self.index) or set(flags) - states for flags in self.flags.values()):
            raise _damaged(self.path)
        return True

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks that the data set allows, in order."""
        return tuple(name for name in self.attack.attacks if name not in self.skipped)

    @property
    def complete(self) -> bool:
        """Whether all attacks of standard AutoAttack are included."""
        return self.attack.complete and not self.skipped

    def flags_before(self, name: str) -> str:
        """Returns the flags before an attack. PGD starts from the clean images, other attacks from the one before."""
        if name == CLEAN:
            return CORRECT * len(self.index)
        earlier = [attack for attack in self.attacks[: self.attacks.index(name)] if not is_pgd(attack)]
        return self.flags[CLEAN if is_pgd(name) or not earlier else earlier[-1]]

    def accuracy(self, name: str) -> float | None:
        """Returns the accuracy after an attack in percent; None if the attack is not finished."""
        flags = self.flags.get(name, PENDING)
        return None if PENDING in flags else 100 * flags.count(CORRECT) / len(flags)

    def save(self) -> None:
        """Writes the file atomically."""
        last = chained(self.attacks)[-1] if self.attacks else CLEAN
        content = {
            "kind": "attack",
            "status": "done" if self.done else "running",
            "attack": self.attack.settings(),
            "subject": self.subject,
            "images": len(self.index),
            "of": self.test_images,
            "accuracy": {name: self.accuracy(name) for name in self.flags},
            "robust": self.accuracy(last) if self.done else None,
            "robust_is": AUTOATTACK if self.complete else UPPER_BOUND,
            "skipped": self.skipped,
            "warnings": self.warnings,
            "examples": self.saves_images,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "about": self.provenance,
            "flags": self.flags,
            "index": self.index,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, content)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path)
    except ValueError:
        raise _damaged(path) from None
    if content is not None and (not isinstance(content, dict) or content.get("kind") != "attack"):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: is damaged; remove it to evaluate anew")
