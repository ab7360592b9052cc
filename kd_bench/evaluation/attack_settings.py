"""Settings of evaluations from attacks and radii that are given as text."""

from __future__ import annotations

from typing import Any

from kd_bench.config.attack import STANDARD, Attack, is_pgd, read_attacks, read_eps


def parse_attacks(eps: str, names: str | None, **settings: Any) -> list[Attack]:
    """Returns the settings of one evaluation per radius, radii rising.

    Args:
        eps: Radii, with commas between them, e.g. ``2/255,4/255``.
        names: Attacks in their order, with commas between them; None for standard AutoAttack.
        settings: Other fields of ``Attack``.

    Raises:
        UserError: If a radius or an attack is invalid, or the package of the attacks is not installed.
    """
    attacks = STANDARD if names is None else read_attacks(names, "--attacks")
    library = None
    if not all(map(is_pgd, attacks)):
        from kd_bench.robustness.autoattack import autoattack_version as installed_version

        library = installed_version()
    return [Attack(eps=radius, attacks=attacks, library=library, **settings) for radius in read_eps(eps, "--eps")]
