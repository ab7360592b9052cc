"""A member of a cohort: one student, its method and its optimiser, which nothing else can touch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench import seeding
from kd_bench.methods.base import Method
from kd_bench.models.outputs import observe
from kd_bench.models.view import View
from kd_bench.recipe import Trial
from kd_bench.training.optimisers import build_optimizer, learning_rate
from kd_bench.training.stopwatch import Stopwatch
from kd_bench.types import Batch, Outputs

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where a member's results go; the runner writes them to the trial's folder."""

    def epoch(self, member: Member) -> None:
        """An epoch is over; the member's state and history include it."""

    def diverged(self, member: Member, reason: str) -> None:
        """The loss is no longer finite, which would be so in every repetition."""

    def crashed(self, member: Member, reason: str) -> None:
        """The method raised an error."""


class Member(nn.Module):
    """One trial in training.

    Attributes:
        trial: Its settings.
        network: The student.
        view: How it sees the images.
        method: What it is trained with; trained, checkpointed and resumed with it.
        history: A row of metrics for each finished epoch.
    """

    def __init__(self, trial: Trial, network: nn.Module, view: View, method: Method, sink: Sink) -> None:
        super().__init__()
        self.trial, self.network, self.view, self.method, self.sink = trial, network, view, method, sink
        self.history: list[dict[str, Any]] = []
        self.stopped = False
        self.watch = Stopwatch()
        self.optimizer = build_optimizer(trial.optimizer, self.parameters())
        self._train = _Sums()
        self._test = _Sums()
        self._first_bad: Tensor | None = None

    @property
    def epochs_done(self) -> int:
        """Finished epochs."""
        return len(self.history)

    def takes_part(self, epoch: int) -> bool:
        """Whether this epoch (from 0) is the next it needs: after a kill, members of a cohort can differ by one."""
        return not self.stopped and epoch == self.epochs_done < self.trial.epochs

    def begin_epoch(self, epoch: int) -> None:
        """Sets the learning rate."""
        rate = learning_rate(self.trial.optimizer.lr, self.trial.schedule, epoch, self.trial.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def step(self, teacher: Outputs | None, batch: Batch, backward: Callable[[Tensor], None]) -> None:
        """One step of optimisation. An error of the method stops this member and no other."""
        try:
            with self.watch.running(batch.images.device):
                self._step(teacher, batch, backward)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            log.exception("%s of trial %s failed", self.trial.method.name, self.trial.id)
            self.stopped = True
            self.sink.crashed(self, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")

    def _step(self, teacher: Outputs | None, batch: Batch, backward: Callable[[Tensor], None]) -> None:
        seeding.seed_global(self.trial.seed, seeding.STUDENT, batch.epoch, batch.step)
        student = observe(self.network, self.view(batch.images), self.method.needs.student)
        seeding.seed_global(self.trial.seed, seeding.METHOD, batch.epoch, batch.step)
        terms = self.method(student, teacher, batch)
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        backward(loss)
        if self.trial.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters(), self.trial.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            self._note_divergence(loss, batch.step)
            self._train.add({**terms, "loss": loss}, student.logits, batch.labels)

    def _note_divergence(self, loss: Tensor, step: int) -> None:
        # Kept on the device and read once an epoch: asking a GPU at every step would make it wait.
        here = torch.where(torch.isfinite(loss), -1, step)
        before = self._first_bad
        self._first_bad = here if before is None else torch.where(before >= 0, before, here)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> None:
        """Counts the student's hits on a test batch; the network is in evaluation mode."""
        logits = self.network(self.view(batch.images))
        self._test.add({"loss": F.cross_entropy(logits.float(), batch.labels)}, logits, batch.labels)

    def end_epoch(self, epoch: int, own_seconds: float, shared_seconds: float, members: int) -> None:
        """Closes an epoch it took part in: metrics, the method's bookkeeping, and the checkpoint by way of the sink.

        Args:
            epoch: From 0.
            own_seconds: Its own forward and backward passes and steps.
            shared_seconds: Data and teacher, which it would need as much if it were alone.
            members: How many shared them.
        """
        train, test = self._train.read(), self._test.read()
        bad = -1 if self._first_bad is None else int(self._first_bad)
        self._first_bad = None
        if bad >= 0:
            self.stopped = True
            self.sink.diverged(self, f"the loss was no longer finite in epoch {epoch + 1}, step {bad + 1}")
            return
        self.method.on_epoch_end()
        row = {
            "epoch": epoch + 1,
            "lr": self.optimizer.param_groups[0]["lr"],
            "top1": test.pop("top1"),
            "top5": test.pop("top5"),
            "test_loss": test.pop("loss"),
            "train_top1": train.pop("top1"),
            "train_loss": train.pop("loss"),
            **{f"train_{name}": value for name, value in train.items() if name != "top5"},
            "seconds": own_seconds + shared_seconds,
            "own_seconds": own_seconds,
            "members": members,
        }
        self.history.append(row)
        self.sink.epoch(self)

    def state(self) -> dict[str, Any]:
        """Everything that training on from here depends on."""
        return {
            "network": self.network.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a ``state()``."""
        self.network.load_state_dict(state["network"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = list(state["history"])


class _Sums:
    """Sums over an epoch, kept on the device and read once."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._images = 0

    def add(self, means: dict[str, Tensor], logits: Tensor, labels: Tensor) -> None:
        images = len(logits)
        target = labels if labels.ndim == 1 else labels.argmax(-1)
        hits = logits.topk(min(5, logits.shape[-1])).indices == target[:, None]
        values = {name: value.detach() * images for name, value in means.items()}
        values |= {"top1": hits[:, 0].sum(), "top5": hits.sum()}
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._images += images

    def read(self) -> dict[str, float]:
        means = {name: value.item() / self._images for name, value in self._sums.items()}
        means |= {name: 100 * means[name] for name in ("top1", "top5")}
        self._sums, self._images = {}, 0
        return means
