"""Attacks several networks, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kd_bench.config.attack import Attack, title
from kd_bench.evaluation.autoattack_checkpoint import AutoAttackEvaluator
from kd_bench.evaluation.each_network import evaluate_each
from kd_bench.evaluation.target import EvaluationTarget
from kd_bench.robustness.evaluation import ReportProgress
from kd_bench.utils.signals import raising_on_termination


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
        UserError, RunFailed: As evaluate_each.
    """

    def attack_network(network: EvaluationTarget) -> None:
        if network.input_description:
            log(network.input_description)
        for attack in attacks:
            log(f"{describe(network)}: {attack.title}, {', '.join(map(title, attack.attacks))}")
            with raising_on_termination():
                evaluator.evaluate(network, attack, save_images, report_progress)

    return evaluate_each(networks, attack_network, log)
