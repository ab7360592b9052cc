"""The file of an evaluation: which images still stand after which attack, written after every batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_bench.config.attack import Attack, chained, is_pgd
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import read_json, write_json

#: What comes before all attacks: the images as they are.
CLEAN = "clean"

#: A flag: the image is still classified correctly, it is not, or its batch's turn has not come.
STANDS, FELL, OPEN = "1", "0", "?"

#: What the number after all attacks is called where they are not all of standard AutoAttack.
UPPER_BOUND = "upper bound of the accuracy under AutoAttack"
AUTOATTACK = "accuracy under standard AutoAttack"


class Record:
    """An evaluation, finished or not.

    Attributes:
        path: Its file.
        attack: The settings.
        subject: What is attacked: the network, its weights, its images.
        flags: A character an image (``STANDS``, ``FELL`` or ``OPEN``), by attack; ``CLEAN`` is the first.
        seconds: What each attack took so far.
        warnings: What makes the numbers doubtful, a sentence each.
        skipped: Attacks that need more classes than there are.
        examples: Whether adversarial images are kept.
        done: Whether it is finished.
    """

    def __init__(self, path: Path, attack: Attack, subject: Mapping[str, Any], index: Sequence[int], of: int) -> None:
        self.path, self.attack, self.subject, self.of = path, attack, dict(subject), of
        self.index = list(index)
        self.flags: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []
        self.skipped: list[str] = []
        self.examples = False
        self.about: dict[str, Any] = {}
        self.done = False

    def resume(self) -> bool:
        """Takes up what the file holds of this very evaluation; whether there was any.

        Raises:
            UserError: Where the file is damaged.
        """
        found = read(self.path)
        same = {"attack": self.attack.settings(), "subject": self.subject, "index": self.index, "of": self.of}
        if found is None or any(found.get(key) != value for key, value in same.items()):
            return False
        try:
            self.flags = {str(name): str(flags) for name, flags in found["flags"].items()}
            self.seconds = {str(name): float(value) for name, value in found["seconds"].items()}
            self.warnings, self.skipped = list(found["warnings"]), list(found["skipped"])
            self.examples, self.done = bool(found["examples"]), found["status"] == "done"
            self.about = dict(found["about"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise damaged(self.path) from None
        if any(len(flags) != len(self.index) or set(flags) - {STANDS, FELL, OPEN} for flags in self.flags.values()):
            raise damaged(self.path)
        return True

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks that can be run, in their order."""
        return tuple(name for name in self.attack.attacks if name not in self.skipped)

    @property
    def complete(self) -> bool:
        """Whether what stands in the end stands after all of standard AutoAttack."""
        return self.attack.complete and not self.skipped

    def before(self, name: str) -> str:
        """The flags that an attack begins with: plain PGD with the clean images, the others one upon the other."""
        if name == CLEAN:
            return STANDS * len(self.index)
        earlier = [one for one in self.attacks[: self.attacks.index(name)] if not is_pgd(one)]
        return self.flags[CLEAN if is_pgd(name) or not earlier else earlier[-1]]

    def accuracy(self, name: str) -> float | None:
        """Percent of the images that stand after an attack; None where it is not finished."""
        flags = self.flags.get(name, OPEN)
        return None if OPEN in flags else 100 * flags.count(STANDS) / len(flags)

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        last = chained(self.attacks)[-1] if self.attacks else CLEAN
        content = {
            "kind": "attack",
            "status": "done" if self.done else "running",
            "attack": self.attack.settings(),
            "subject": self.subject,
            "images": len(self.index),
            "of": self.of,
            "accuracy": {name: self.accuracy(name) for name in self.flags},
            "robust": self.accuracy(last) if self.done else None,
            "robust_is": AUTOATTACK if self.complete else UPPER_BOUND,
            "skipped": self.skipped,
            "warnings": self.warnings,
            "examples": self.examples,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "about": self.about,
            "flags": self.flags,
            "index": self.index,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, content)


def read(path: Path) -> dict[str, Any] | None:
    """The content of an evaluation's file; None where there is none.

    Raises:
        UserError: Where it is damaged.
    """
    try:
        found = read_json(path)
    except ValueError:
        raise damaged(path) from None
    if found is not None and (not isinstance(found, dict) or found.get("kind") != "attack"):
        raise damaged(path)
    return found


def damaged(path: Path) -> UserError:
    """The error for a file that holds no evaluation."""
    return UserError(f"{path}: is damaged; remove it to evaluate anew")
