"""Runs attacks one after another, each on the images that are still classified correctly.

So one evaluation yields the accuracy after each attack. The images of an attack are split into batches in their order,
and the random draws of a batch are a function of (seed, attack, batch). Therefore an interrupted evaluation has the
same results as an uninterrupted one, and attacks no batch twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kd_bench.config.attack import TITLES, Attack, chained, pgd_steps, title
from kd_bench.robustness.adversarial_images import AdversarialImageFiles
from kd_bench.robustness.autoattack import MIN_CLASSES, AutoAttack, find_unreliable
from kd_bench.robustness.evaluation_record import CLEAN, CORRECT, PENDING, WRONG, EvaluationRecord
from kd_bench.robustness.norm_ball import Ball
from kd_bench.robustness.pgd import cross_entropy, pgd
from kd_bench.robustness.pixel_input import attack_mode
from kd_bench.utils import seeding
from kd_bench.utils.errors import RunFailed, UserError

#: Called after each batch with the attack, its batches done, all its batches, and the number of correct images.
ReportProgress = Callable[[str, int, int, int], None]

#: Percentage points by which Square, which sees no gradients, may lower the accuracy before this is suspicious.
_SQUARE_MARGIN = 0.2

#: Warning about a network that is hardly better than guessing.
_GUESSING = (
    "the clean accuracy could be that of guessing, and then the robust accuracy means nothing; of a file of weights, "
    "check --dataset, --normalise and --set input.size"
)


def evaluate_robustness(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    classes: int,
    record: EvaluationRecord,
    image_files: AdversarialImageFiles | None = None,
    report_progress: ReportProgress | None = None,
) -> None:
    """Finishes an evaluation. Afterwards the network has its former modes, buffers and gradients.

    Args:
        network: (B, C, H, W) images in [0, 1] to (B, K) logits.
        images, labels: (N, C, H, W) uint8 and (N,) int64, in the record's order.
        classes: K.
        record: The evaluation, which is saved after each batch.
        image_files: Saves adversarial images; None saves none.
        report_progress: Called after each batch.

    Raises:
        UserError: If all attacks need more classes than there are.
        RunFailed: If the logits are not finite.
    """
    settings = record.attack
    record.skipped = [name for name in settings.attacks if classes < MIN_CLASSES.get(name, 0)]
    if not record.attacks:
        name = record.skipped[0]
        raise UserError(f"{title(name)} needs {MIN_CLASSES[name]} classes, and the data set has {classes}; "
                        "choose others with --attacks, e.g. apgd-ce,fab-t,square")  # fmt: skip
    device = next(network.parameters()).device
    with attack_mode(network):
        for name in (CLEAN, *record.attacks):
            autoattack = AutoAttack(network, settings.eps, settings.norm, classes, device) if name in TITLES else None
            before = record.flags_before(name)
            positions = [position for position, flag in enumerate(before) if flag == CORRECT]
            flags = list(record.flags.get(name, before.replace(CORRECT, PENDING)))
            starts = range(0, len(positions), settings.batch_size)
            batches = [positions[start : start + settings.batch_size] for start in starts]
            for number, batch in enumerate(batches):
                if all(flags[position] != PENDING for position in batch):
                    continue
                started = time.monotonic()
                # Divided on the CPU: on a GPU the quotient has other last bits.
                x = (images[batch].float() / 255).to(device)
                y = labels[batch].to(device)
                if name == CLEAN and number == 0:
                    record.warnings = find_unreliable(network, x)
                adversarial = _perturb(network, autoattack, name, settings, x, y, number)
                with torch.no_grad():
                    logits = network(adversarial)
                if not torch.isfinite(logits).all():
                    raise RunFailed(f"{title(name)}: the network's logits are not finite numbers")
                wrong = (logits.argmax(1) != y).cpu()
                if image_files is not None and name != CLEAN:
                    image_files.write_batch(name, number, torch.tensor(batch)[wrong], adversarial.cpu()[wrong])
                for position, is_wrong in zip(batch, wrong.tolist(), strict=True):
                    flags[position] = WRONG if is_wrong else CORRECT
                record.flags[name] = "".join(flags)
                warnings = autoattack.warnings if autoattack else []
                record.warnings += [line for line in warnings if line not in record.warnings]
                record.seconds[name] = record.seconds.get(name, 0.0) + time.monotonic() - started
                record.save()
                if report_progress is not None:
                    report_progress(name, number + 1, len(batches), flags.count(CORRECT))
            record.flags[name] = "".join(flags)
            if name == CLEAN:
                _check_clean(record, classes)
    _check_square(record)
    record.done = True


def _perturb(
    network: nn.Module, autoattack: AutoAttack | None, name: str, settings: Attack, x: Tensor, y: Tensor, number: int
) -> Tensor:
    """Returns the attacked images of a batch, in the ball."""
    if name == CLEAN:
        return x
    stream = f"{seeding.ATTACK}/{name}"
    if autoattack is not None:
        adversarial = autoattack.perturb(name, x, y, seeding.derive(settings.seed, stream, step=number))
        # Attacks may leave the ball by the rounding of single precision.
        return Ball(x, settings.eps, settings.norm).project(adversarial)
    return pgd(
        network,
        x,
        cross_entropy(y),
        eps=settings.eps,
        steps=pgd_steps(name),
        step_size=settings.eps / 4,
        norm=settings.norm,
        generator=seeding.generator(settings.seed, stream, step=number),
    )


def _check_clean(record: EvaluationRecord, classes: int) -> None:
    """Warns if the accuracy without an attack could be that of guessing, by two standard errors."""
    chance, accuracy = 1 / classes, record.accuracy(CLEAN) or 0.0
    margin = 2 * math.sqrt(chance * (1 - chance) / max(1, len(record.index)))
    if accuracy <= 100 * (chance + margin) and _GUESSING not in record.warnings:
        record.warnings.append(_GUESSING)


def _check_square(record: EvaluationRecord) -> None:
    """Warns if Square, which sees no gradients, breaks images that the attacks before it did not."""
    chain = chained(record.attacks)
    if "square" not in chain[1:]:
        return
    before, after = record.accuracy(chain[chain.index("square") - 1]), record.accuracy("square")
    if before is not None and after is not None and after < before - _SQUARE_MARGIN:
        record.warnings.append(
            f"Square, which sees no gradients, lowered the accuracy by {before - after:.2f} points more: the network "
            "may hide its gradients, and attacks made for it may find more"
        )
