"""The settings of a robustness evaluation, and the names and titles of attacks. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, field_validator

from kd_bench.config.limits import Images, Positive
from kd_bench.config.trial import IdentifiedSettings, Seed
from kd_bench.utils.errors import UserError, unknown

#: Incremented whenever the same settings give other results.
SCHEMA = 1

#: Standard AutoAttack (Croce and Hein, 2020), in its order.
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")

#: Titles of attacks in tables. ``apgd-dlr`` and ``fab`` are AutoAttack's others.
TITLES = {
    "apgd-ce": "APGD-CE",
    "apgd-dlr": "APGD-DLR",
    "apgd-t": "APGD-T",
    "fab": "FAB",
    "fab-t": "FAB-T",
    "square": "Square",
}

#: Cheap attacks whose robust accuracy is an upper bound of the whole evaluation's.
SCREENS = ("pgd-20", "apgd-ce")

#: The largest radius; the longest distance between two images of 224 pixels is 388, in L2.
MAX_EPS = 10_000

#: A number in a radius.
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{0,30})?([eE][-+]?[0-9]{1,2})?|\.[0-9]{1,30}")

_PGD = re.compile(r"pgd-[1-9]\d{0,3}")


class Attack(IdentifiedSettings):
    """An evaluation's settings, without the network. Equal settings attack the same images in the same way.

    Attributes:
        norm: ``Linf`` or ``L2``.
        eps: Radius, for pixels from 0 to 1.
        attacks: Names of attacks, in order.
        images: Number of test images, evenly over the classes; None for all.
        batch_size: Images per batch. It changes results slightly, because each batch has random draws of its own.
        seed: Seed of all random draws.
        library: Version of pyautoattack; None if none of its attacks is used.
    """

    schema_version: int = SCHEMA
    norm: Literal["Linf", "L2"] = "Linf"
    eps: Positive
    attacks: Annotated[tuple[str, ...], Field(min_length=1)] = STANDARD
    images: Images | None = None
    batch_size: Images = 200
    seed: Seed = 0
    library: str | None = None

    @field_validator("attacks")
    @classmethod
    def _check_attacks(cls, attacks: tuple[str, ...]) -> tuple[str, ...]:
        for name in attacks:
            if name not in TITLES and not is_pgd(name):
                raise ValueError(f"no attack is called {name!r}")
        if len(set(attacks)) != len(attacks):
            raise ValueError("the same attack is there twice")
        return attacks

    @property
    def complete(self) -> bool:
        """Whether all attacks of standard AutoAttack are included, so that the robust accuracy may be called AA."""
        return set(STANDARD) <= set(self.attacks)

    @property
    def title(self) -> str:
        """Norm and radius for tables: ``Linf 8/255``."""
        return f"{self.norm} {show_eps(self.eps)}"


def is_pgd(name: str) -> bool:
    """Whether an attack is plain PGD, whose results no other attack builds upon."""
    return _PGD.fullmatch(name) is not None


def pgd_steps(name: str) -> int:
    """Returns the steps in the name of a PGD attack: 20 for ``pgd-20``."""
    return int(name.removeprefix("pgd-"))


def title(name: str) -> str:
    """Returns an attack's title in tables."""
    return TITLES.get(name, name.upper())


def chained(attacks: Iterable[str]) -> tuple[str, ...]:
    """Returns the attacks that run one after the other on the images that are still classified correctly.

    These are all but plain PGD, or the last attack if all are plain PGD.
    """
    names = tuple(attacks)
    return tuple(name for name in names if not is_pgd(name)) or names[-1:]


def read_attacks(text: str, context: str) -> tuple[str, ...]:
    """Reads names of attacks, separated by commas.

    Raises:
        UserError: If an attack does not exist or is named twice.
    """
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    for name in names:
        if name not in TITLES and not is_pgd(name):
            if name in ("autoattack", "aa", "standard"):
                raise UserError(f"{context}: {name!r} is {','.join(STANDARD)}, which run if {context} is left out")
            raise unknown("attack", name, [*TITLES, "pgd-20"], context)
    if not names or len(set(names)) != len(names):
        raise UserError(f"{context}: should name attacks, each once, e.g. {','.join(STANDARD)} (it is {text!r})")
    return names


def read_eps(text: str, context: str) -> tuple[float, ...]:
    """Reads radii like ``2/255,4/255`` or ``0.5`` and returns them sorted.

    Raises:
        UserError: If a radius is not a number above 0, or is there twice.
    """
    radii = []
    for part in text.split(","):
        try:
            numerator, slash, denominator = (text.strip() for text in part.partition("/"))
            denominator = denominator if slash else "1"
            if not all(map(_NUMBER.fullmatch, (numerator, denominator))):
                raise ValueError  # the fraction 1e999999999 would take hours
            radius = float(Fraction(numerator) / Fraction(denominator))
        except (ValueError, ZeroDivisionError):
            raise UserError(f"{context}: {part.strip()!r} is not a number; write 8/255 or 0.03") from None
        if not 0 < radius <= MAX_EPS:
            raise UserError(
                f"{context}: {part.strip()} must be above 0 and at most {MAX_EPS:,}; pixels go from 0 to 1, so 8/255 "
                "is usual"
            )
        radii.append(radius)
    if len(set(radii)) != len(radii):
        raise UserError(f"{context}: the same radius is there twice (it is {text!r})")
    return tuple(sorted(radii))


def show_eps(eps: float) -> str:
    """Formats a radius as a fraction of 255, or as a decimal if it has at most three digits or is no such fraction."""
    levels = round(eps * 255, 4)
    short = abs(eps - round(eps, 3)) < 1e-12
    return f"{levels:g}/255" if not short and abs(levels / 255 - eps) < 1e-9 else f"{eps:g}"
