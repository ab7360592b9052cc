"""The look of each method in plots: one of ten colours and one of four strokes, fixed by the method's name.

The colours were searched on a grid for the largest smallest distance in OKLab, of the colours as they are and as
simulated for red and green blindness, with a contrast of at least 4.5 to the background, because names are written in
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

#: Colours on a light and on a dark background.
COLOURS = (
    ("#0f78c3", "#1c90d0"),
    ("#e10000", "#ff3820"),
    ("#2d781e", "#00c387"),
    ("#d20fb4", "#f52fc0"),
    ("#2d4b69", "#69c3ff"),
    ("#780f00", "#f0a500"),
    ("#874bff", "#a569ff"),
    ("#965a78", "#ff96c3"),
    ("#0000e1", "#96f032"),
    ("#6900a5", "#b08070"),
)

#: Number of strokes: solid, dashed, dotted, and dashes with dots.
STROKES = 4

#: Methods whose look is fixed, in the order of the looks. Names may be added at the end only, so that no look ever
#: changes. Methods that are not named here have looks that follow from their names.
_METHODS = (
    "kd", "dkd", "ikl_kd", "reviewkd", "crd", "fitnet", "rkd", "ofd", "dist", "at",
    "nkd", "rld", "ttm", "wttm", "abkd", "dkl_kd", "gkl_kd", "itrd", "sp", "vid",
    "pkt", "cc", "nst", "kdsvd", "trades", "improved_trades", "ikl_at",
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How a method is drawn.

    Attributes:
        colour: Index of the colour in ``COLOURS``; None for the colour of text, which is that of no method.
        stroke: Index of the stroke.
    """

    colour: int | None
    stroke: int

    @property
    def classes(self) -> str:
        """Classes of the style sheet."""
        return f"{'plain' if self.colour is None else f's{self.colour}'} t{self.stroke}"


#: Looks of the student alone and of the teacher.
STUDENT, TEACHER = Look(None, 1), Look(None, 2)

_LOOKS = tuple(Look(colour, stroke) for stroke in range(STROKES) for colour in range(len(COLOURS)))


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """Returns a look for each label, never two alike for up to 40 labels.

    A method that ``_METHODS`` names always has the same look. Any other label has one that follows from its name, among
    those whose colour no label of the same page has, if there are any.
    """
    labels = set(labels)
    taken = {label: _METHODS.index(label) for label in labels if label in _METHODS}
    for label in sorted(labels - taken.keys()):
        start = hashlib.sha256(label.encode("utf-8", "replace")).digest()[0]
        order = [*_rotated(range(len(_METHODS), len(_LOOKS)), start), *_rotated(range(len(_METHODS)), start)]
        free = [index for index in order if index not in taken.values()]
        colours = {index % len(COLOURS) for index in taken.values()}
        fresh = [index for index in free if index % len(COLOURS) not in colours]
        taken[label] = (fresh or free or order)[0]
    return {label: _LOOKS[index] for label, index in taken.items()}


def _rotated(indices: range, start: int) -> list[int]:
    start %= len(indices)
    return [*indices[start:], *indices[:start]]


def style() -> str:
    """Returns the colours as variables of a style sheet, for both backgrounds, and a class for each."""
    light, dark = (
        " ".join(f"--c{index}: {pair[background]};" for index, pair in enumerate(COLOURS)) for background in (0, 1)
    )
    classes = " ".join(f".s{index} {{ --c: var(--c{index}); }}" for index in range(len(COLOURS)))
    return (
        f":root {{ {light} }}\n"
        f'@media (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {{ {dark} }} }}\n'
        f':root[data-theme="dark"] {{ {dark} }}\n'
        f"{classes} .plain {{ --c: var(--fore); }}\n"
    )
