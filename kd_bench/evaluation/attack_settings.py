"""Settings of evaluations from attacks and radii that are given as text."""

from __future__ import annotations

from typing import Any

from kd_bench.config.attack import STANDARD, Attack, is_pgd, read_attacks, read_eps, show_eps
from kd_bench.utils.errors import UserError

#: Radius in Linf, if the user gives none: that of published robust accuracies.
DEFAULT_EPS = "8/255"


def parse_radii(eps: str | None, norm: str) -> tuple[float, ...]:
    """Reads radii, with commas between them, e.g. ``2/255,4/255``, and returns them sorted.

    Args:
        eps: The text; None for 8/255 in Linf.
        norm: ``Linf`` or ``L2``.

    Raises:
        UserError: If a radius is invalid, is missing in L2, or reaches all images in Linf.
    """
    if eps is None:
        if norm != "Linf":
            raise UserError(f"--norm {norm} needs --eps, because {DEFAULT_EPS} is a radius in Linf; RobustBench has "
                            "0.5 in L2 for CIFAR-10")  # fmt: skip
        eps = DEFAULT_EPS
    radii = read_eps(eps, "--eps")
    if norm == "Linf" and radii[-1] >= 1:
        levels = round(radii[-1])
        hint = f"did you mean {levels}/255?" if 1 < levels == radii[-1] < 255 else f"{DEFAULT_EPS} is usual"
        largest = show_eps(radii[-1])
        raise UserError(f"--eps: {largest} in Linf reaches all images, because pixels go from 0 to 1; {hint}")
    return radii


def parse_attacks(eps: str | None, names: str | None, *, norm: str = "Linf", **settings: Any) -> list[Attack]:
    """Returns the settings of one evaluation per radius, radii rising.

    Args:
        eps: Radii, with commas between them, e.g. ``2/255,4/255``; None for 8/255 in Linf.
        names: Attacks in their order, with commas between them; None for standard AutoAttack.
        norm: ``Linf`` or ``L2``.
        settings: Other fields of ``Attack``.

    Raises:
        UserError: If a radius or an attack is invalid, or the package of the attacks is not installed.
    """
    radii = parse_radii(eps, norm)
    attacks = STANDARD if names is None else read_attacks(names, "--attacks")
    library = None
    if not all(map(is_pgd, attacks)):
        from kd_bench.robustness.autoattack import autoattack_version as installed_version

        library = installed_version()
    fields = {"attacks": attacks, "library": library, "norm": norm, **settings}
    return [Attack.model_validate({"eps": radius, **fields}) for radius in radii]
