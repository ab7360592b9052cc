"""What an evaluation of robustness depends on, and how its numbers may be called. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from kd_bench.config.base import Positive, PositiveInt, Settings
from kd_bench.config.trial import Seed, identity
from kd_bench.utils.errors import UserError, unknown

#: Raised whenever the same settings begin to give other flags.
SCHEMA = 1

#: Standard AutoAttack (Croce and Hein, 2020), in its order.
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")

#: What attacks are called in tables. ``apgd-dlr`` and ``fab`` are AutoAttack's others.
TITLES = {
    "apgd-ce": "APGD-CE",
    "apgd-dlr": "APGD-DLR",
    "apgd-t": "APGD-T",
    "fab": "FAB",
    "fab-t": "FAB-T",
    "square": "Square",
}

#: Cheap attacks that can stand for the whole evaluation as an upper bound.
SCREENS = ("pgd-20", "apgd-ce")

_PGD = re.compile(r"pgd-([1-9]\d{0,3})")


class Attack(Settings):
    """An evaluation's settings, without the network: with the same ones the same images are attacked alike.

    Attributes:
        norm: ``Linf`` or ``L2``.
        eps: Radius, of pixels from 0 to 1.
        attacks: In their order.
        images: Only so many test images, evenly over the classes; None for all.
        batch_size: Images at once; batches have draws of their own, so it changes numbers a little.
        seed: What all draws follow from.
        library: Version of pyautoattack; None where none of its attacks is used.
    """

    schema_version: int = SCHEMA
    norm: Literal["Linf", "L2"] = "Linf"
    eps: Positive
    attacks: Annotated[tuple[str, ...], Field(min_length=1)] = STANDARD
    images: PositiveInt | None = None
    batch_size: PositiveInt = 200
    seed: Seed = 0
    library: str | None = None

    @field_validator("attacks")
    @classmethod
    def _known(cls, attacks: tuple[str, ...]) -> tuple[str, ...]:
        for name in attacks:
            if name not in TITLES and not is_pgd(name):
                raise ValueError(f"no attack is called {name!r}")
        if len(set(attacks)) != len(attacks):
            raise ValueError("the same attack is there twice")
        return attacks

    def settings(self) -> dict[str, Any]:
        """As plain JSON values."""
        return self.model_dump(mode="json")

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits that stand for these settings."""
        return identity(self.settings())

    @property
    def complete(self) -> bool:
        """Whether all of standard AutoAttack is there, so that what still stands may be called AA."""
        return set(STANDARD) <= set(self.attacks)

    @property
    def title(self) -> str:
        """For people: ``Linf 8/255``."""
        return f"{self.norm} {show_eps(self.eps)}"


def is_pgd(name: str) -> bool:
    """Whether an attack is plain PGD, whose results no other attack builds upon."""
    return _PGD.fullmatch(name) is not None


def pgd_steps(name: str) -> int:
    """The steps in the name of a PGD attack: 20 of ``pgd-20``."""
    found = _PGD.fullmatch(name)
    assert found is not None
    return int(found[1])


def title(name: str) -> str:
    """An attack as tables call it."""
    return TITLES.get(name, name.upper())


def chained(attacks: Iterable[str]) -> tuple[str, ...]:
    """The attacks that follow each other on what still stands: all but plain PGD; the last PGD where it is alone."""
    names = tuple(attacks)
    return tuple(name for name in names if not is_pgd(name)) or names[-1:]


def read_attacks(text: str, context: str) -> tuple[str, ...]:
    """Attacks from their names with commas between.

    Raises:
        UserError: For one that does not exist or is there twice.
    """
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    for name in names:
        if name not in TITLES and not is_pgd(name):
            raise unknown("attack", name, [*TITLES, "pgd-20"], context)
    if not names or len(set(names)) != len(names):
        raise UserError(f"{context}: should name attacks, each once, e.g. {','.join(STANDARD)} (it is {text!r})")
    return names


def read_eps(text: str, context: str) -> tuple[float, ...]:
    """Radii from text like ``2/255,4/255`` or ``0.5``, rising.

    Raises:
        UserError: For what is no number above 0, or the same one twice.
    """
    found = []
    for part in text.split(","):
        try:
            above, _, below = part.partition("/")
            value = float(Fraction(above.strip()) / Fraction(below.strip() or "1"))
        except (ValueError, ZeroDivisionError):
            raise UserError(f"{context}: {part.strip()!r} is no number; write 8/255 or 0.03") from None
        if value <= 0:
            raise UserError(f"{context}: {part.strip()} must be above 0; pixels go from 0 to 1, so 8/255 is usual")
        found.append(value)
    if len(set(found)) != len(found):
        raise UserError(f"{context}: the same radius is there twice (it is {text!r})")
    return tuple(sorted(found))


def show_eps(eps: float) -> str:
    """A radius for people: as a fraction of 255 where it is one and no short decimal."""
    levels = round(eps * 255, 4)
    short = abs(eps - round(eps, 3)) < 1e-12
    return f"{levels:g}/255" if not short and abs(levels / 255 - eps) < 1e-9 else f"{eps:g}"
