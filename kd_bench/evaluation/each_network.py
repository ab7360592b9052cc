"""Evaluates several networks, so that one that cannot be evaluated does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kd_bench.evaluation.target import EvaluationTarget
from kd_bench.utils.errors import RunFailed, UserError


def evaluate_each(
    networks: Sequence[EvaluationTarget], evaluate: Callable[[EvaluationTarget], None], log: Callable[[str], None]
) -> int:
    """Calls a function for each network, and returns the number of networks that were left out.

    Args:
        networks: The networks.
        evaluate: Evaluates a network. A UserError or RunFailed leaves the network out.
        log: Receives the reason for each network that is left out.

    Raises:
        UserError, RunFailed: If there is one network and it fails, or a second network fails for the same reason.
        RunFailed: If all networks fail, with the first reason.
    """
    failures: list[str] = []
    for network in networks:
        try:
            evaluate(network)
        except (UserError, RunFailed) as error:
            # What is said of a second network, too, is not about one network.
            if len(networks) == 1 or str(error) in failures:
                raise
            failures.append(str(error))
            log(f"{error}; left out")
    if failures and len(failures) == len(networks):
        raise RunFailed(failures[0])
    return len(failures)
