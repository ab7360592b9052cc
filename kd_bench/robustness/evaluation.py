"""Attack after attack on what still stands, so that one evaluation gives the accuracy after each of them.

The images that stand when an attack begins are cut into batches in their order, and a batch's draws are a function of
(seed, attack, batch): whatever is interrupted and resumed, a batch is attacked in the same way and once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kd_bench.config.attack import TITLES, chained, pgd_steps, title
from kd_bench.robustness.adversarial_images import Examples
from kd_bench.robustness.autoattack import FEWEST, AutoAttack, suspicions
from kd_bench.robustness.evaluation_record import CLEAN, FELL, OPEN, STANDS, Record
from kd_bench.robustness.norm_ball import Ball
from kd_bench.robustness.pgd import cross_entropy, pgd
from kd_bench.robustness.pixel_input import attacked
from kd_bench.utils import seeding
from kd_bench.utils.errors import RunFailed, UserError

#: Told after each batch: the attack, its batches that are done and all of them, and how many images stand.
Progress = Callable[[str, int, int, int], None]

#: Percentage points that Square, which sees no gradients, may take off what the others left before it is suspicious.
_SQUARE = 0.2


def evaluate(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    classes: int,
    record: Record,
    examples: Examples | None = None,
    progress: Progress | None = None,
) -> None:
    """Finishes an evaluation. The network is afterwards as it was: its modes, buffers and gradients.

    Args:
        network: (B, C, H, W) images in [0, 1] to (B, K) logits.
        images: (N, C, H, W) uint8, in the record's order.
        labels: (N,) int64.
        classes: K.
        record: The evaluation; written after each batch.
        examples: Keeps adversarial images; None keeps none.
        progress: Told after each batch.

    Raises:
        UserError: Where all attacks need more classes than there are.
        RunFailed: Where the logits are not finite.
    """
    attack = record.attack
    _leave_out(record, classes)
    device = next(network.parameters()).device
    with attacked(network):
        for name in (CLEAN, *record.attacks):
            run = _Run(network, name, record, classes, device)
            before = record.before(name)
            members = [place for place, flag in enumerate(before) if flag == STANDS]
            flags = list(record.flags.get(name, before.replace(STANDS, OPEN)))
            batches = [members[at : at + attack.batch_size] for at in range(0, len(members), attack.batch_size)]
            for number, batch in enumerate(batches):
                if all(flags[place] != OPEN for place in batch):
                    continue
                started = time.monotonic()
                # Divided on the CPU: a GPU divides by a constant with other last bits.
                x = (images[batch].float() / 255).to(device)
                y = labels[batch].to(device)
                if name == CLEAN and number == 0:
                    record.warnings = suspicions(network, x)
                shown, fell = run(x, y, number)
                if examples is not None and name != CLEAN:
                    examples.keep(name, number, torch.tensor(batch)[fell], shown[fell])
                for place, down in zip(batch, fell.tolist(), strict=True):
                    flags[place] = FELL if down else STANDS
                record.flags[name] = "".join(flags)
                record.warnings += [line for line in run.warnings if line not in record.warnings]
                record.seconds[name] = record.seconds.get(name, 0.0) + time.monotonic() - started
                record.save()
                if progress is not None:
                    progress(name, number + 1, len(batches), flags.count(STANDS))
            record.flags[name] = "".join(flags)
    _judge_square(record)
    record.done = True


class _Run:
    """One attack on a network."""

    def __init__(self, network: nn.Module, name: str, record: Record, classes: int, device: torch.device) -> None:
        self.network, self.name, self.attack = network, name, record.attack
        self.library = None
        if name in TITLES:
            self.library = AutoAttack(network, self.attack.eps, self.attack.norm, classes, device)

    @property
    def warnings(self) -> list[str]:
        return self.library.warnings if self.library else []

    def __call__(self, images: Tensor, labels: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """The images after the attack, in the ball, and (B,) bool on the CPU: which are misclassified."""
        shown = images
        if self.name != CLEAN:
            stream = f"{seeding.ATTACK}/{self.name}"
            # Attacks may leave the ball by the rounding of single precision.
            ball = Ball(images, self.attack.eps, self.attack.norm)
            if self.library is not None:
                seed = seeding.derive(self.attack.seed, stream, step=number)
                shown = ball.project(self.library.perturb(self.name, images, labels, seed))
            else:
                shown = pgd(
                    self.network,
                    images,
                    cross_entropy(labels),
                    eps=self.attack.eps,
                    steps=pgd_steps(self.name),
                    step_size=self.attack.eps / 4,
                    norm=self.attack.norm,
                    start="uniform",
                    generator=seeding.generator(self.attack.seed, stream, step=number),
                )
        with torch.no_grad():
            logits = self.network(shown)
        if not torch.isfinite(logits).all():
            raise RunFailed(f"{title(self.name)}: the network's logits are not finite numbers")
        return shown.cpu(), (logits.argmax(1) != labels).cpu()


def _leave_out(record: Record, classes: int) -> None:
    record.skipped = [name for name in record.attack.attacks if classes < FEWEST.get(name, 0)]
    if not record.attacks:
        lost = record.skipped[0]
        raise UserError(f"{title(lost)} needs {FEWEST[lost]} classes, and the data set has {classes}; "
                        "choose others with --attacks, e.g. apgd-ce,fab-t,square")  # fmt: skip


def _judge_square(record: Record) -> None:
    chain = chained(record.attacks)
    if "square" not in chain[1:]:
        return
    earlier, after = record.accuracy(chain[chain.index("square") - 1]), record.accuracy("square")
    if earlier is not None and after is not None and after < earlier - _SQUARE:
        record.warnings.append(
            f"Square, which sees no gradients, took {earlier - after:.2f} points off what the others left: the network "
            "may hide its gradients, and attacks made for it may find more"
        )
