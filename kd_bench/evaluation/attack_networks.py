"""Attacks several networks, so that one that cannot be attacked does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kd_bench.config.attack import Attack, title
from kd_bench.evaluation.autoattack_checkpoint import AutoAttackEvaluator
from kd_bench.evaluation.target import EvaluationTarget
from kd_bench.robustness.evaluation import ReportProgress
from kd_bench.utils.errors import RunFailed, UserError
from kd_bench.utils.sigterm import raising_on_sigterm


def attack_networks(
    evaluator: AutoAttackEvaluator,
    networks: Sequence[EvaluationTarget],
    attacks: Sequence[Attack],
    *,
    describe: Callable[[EvaluationTarget], str],
    log: Callable[[str], None],
    save_images: bool = False,
    report_progress: ReportProgress | None = None,
) -> int:
    """Makes every evaluation of every network, and returns the number of networks that were left out.

    Args:
        evaluator: Makes an evaluation and writes its result. It continues one that was stopped.
        networks: The networks.
        attacks: The settings of each evaluation.
        describe: Returns a network's name for people.
        log: Receives a line for each evaluation, and the reason for each network that is left out.
        save_images: Whether to keep the adversarial images.
        report_progress: Called after each batch.

    Raises:
        UserError, RunFailed: If no network could be attacked, or an error is not about one network.
    """
    failures: list[str] = []
    for network in networks:
        if network.input_description:
            log(network.input_description)
        try:
            for attack in attacks:
                log(f"{describe(network)}: {attack.title}, {', '.join(map(title, attack.attacks))}")
                with raising_on_sigterm():
                    evaluator.evaluate(network, attack, save_images, report_progress)
        except (UserError, RunFailed) as error:
            # What is said of a second network, too, is not about one network.
            if len(networks) == 1 or str(error) in failures:
                raise
            failures.append(str(error))
            log(f"{error}; left out")
    if networks and len(failures) == len(networks):
        raise RunFailed(failures[0])
    return len(failures)
