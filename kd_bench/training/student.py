"""A member of a cohort: one student, its method and its optimiser, which nothing else can touch."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kd_bench.config.trial import Trial
from kd_bench.methods.base import Method
from kd_bench.training.observing import Observer
from kd_bench.training.optimizers import build_optimizer, learning_rate
from kd_bench.training.stopwatch import Stopwatch
from kd_bench.types import Batch, Outputs
from kd_bench.utils import seeding
from kd_bench.utils.distributed import (
    all_gather,
    all_reduce_sum,
    average_buffers,
    average_gradients,
    is_distributed,
    rank,
)

log = logging.getLogger(__name__)


class ResultWriter(Protocol):
    """Where a member's results go; the runner writes them to the trial's folder."""

    def epoch(self, member: StudentModule) -> None:
        """An epoch is over; the member's state and history include it."""

    def save_mid_epoch(self, member: StudentModule, step: int, states: list[bytes]) -> None:
        """So many steps of an epoch are over; ``states`` are each process's ``member.mid_epoch_state(step)``."""

    def diverged(self, member: StudentModule, reason: str) -> None:
        """The loss is no longer finite, which would be so in every repetition."""

    def crashed(self, member: StudentModule, reason: str) -> None:
        """The method raised an error."""


class NullWriter:
    """The writer of processes that help the first: their members' results are its too."""

    def epoch(self, member: StudentModule) -> None:
        """The first process writes it."""

    def save_mid_epoch(self, member: StudentModule, step: int, states: list[bytes]) -> None:
        """The first process writes it."""

    def diverged(self, member: StudentModule, reason: str) -> None:
        """The first process writes it."""

    def crashed(self, member: StudentModule, reason: str) -> None:
        """The first process says it."""


@dataclass(frozen=True)
class MicroBatch:
    """What a process computes at once of a step: the whole batch, or a micro-batch of it."""

    batch: Batch
    index: int = 0
    """Its place among all micro-batches of the step, over all processes."""
    share: float = 1.0
    """Of the process's part of the batch."""
    first: bool = True
    """Whether it is the process's first of the step."""
    last: bool = True


def split_micro_batches(batch: Batch, micro_batch: int | None) -> Iterator[MicroBatch]:
    """A process's batch in micro-batches.

    Args:
        batch: The process's part of the step's batch.
        micro_batch: Images at once; None for all.
    """
    size = len(batch.images)
    at_once = min(size, micro_batch or size)
    count = -(-size // at_once)
    for place in range(count):
        rows = slice(place * at_once, (place + 1) * at_once)
        part = batch.rows(rows) if count > 1 else batch
        yield MicroBatch(part, rank() * count + place, len(part.images) / size, place == 0, place == count - 1)


def precision_context(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Where networks compute in a trial's precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def micro_batch_stream(stream: str, place: int) -> str:
    """A stream's name for the micro-batch at this place."""
    return f"{stream}/{place}" if place else stream


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """An average of a network's weights, statistics included, that keeps a share ``decay`` of its former value."""
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return average.requires_grad_(False)


class StudentModule(nn.Module):
    """One trial in training.

    Attributes:
        trial: Its settings.
        network: The student.
        view: How it sees the images.
        method: What it is trained with; trained, checkpointed and resumed with it.
        average: The moving average of its weights, batch norms' statistics included; None where none is kept.
        history: A row of metrics for each finished epoch.
        corrupt: Files that could not be decoded so far, and why.
        class_top1: Test accuracy on the images of each class after the last finished epoch, in percent; None for a
            class without test images. Empty before the first.
        begin_step: Steps of the epoch in hand that were done before it was resumed within it.
    """

    def __init__(self, trial: Trial, network: nn.Module, view: nn.Module, method: Method, writer: ResultWriter) -> None:
        super().__init__()
        self.trial, self.network, self.view, self.method, self.writer = trial, network, view, method, writer
        self.history: list[dict[str, Any]] = []
        self.corrupt: dict[str, str] = {}
        self.begin_step = 0
        self.stopped = False
        self.watch = Stopwatch()
        self._trained = [*network.parameters(), *method.parameters()]
        self.optimizer = build_optimizer(trial.optimizer, self._trained)
        self.average = None if trial.ema is None else moving_average(network, trial.ema)
        self._observe = Observer(network, trial.compile)
        self._observe_average = None if self.average is None else Observer(self.average.module, trial.compile)
        self._train, self._test, self._test_average = MetricSums(), MetricSums(by_class=True), MetricSums()
        self.class_top1: list[float | None] = []
        self._first_bad: Tensor | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The network whose accuracy is the trial's and whose weights are kept."""
        return self.network

    @property
    def evaluated_as(self) -> str | None:
        """What ``evaluated`` is, for the result of trials where that is a question."""
        return None

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

    def step(self, teacher: Outputs | None, part: MicroBatch, backward: Callable[[Tensor], None]) -> None:
        """A part of a step of optimisation, and with its last part the step.

        An error of the method stops this member and no other; of several processes that train together, all.
        """
        try:
            with self.watch.running(part.batch.images.device):
                self._accumulate(teacher, part, backward)
                if part.last:
                    self._update()
        except Exception as error:
            # Of several processes the others wait for this one's gradients; and fewer members may fit into memory.
            if is_distributed() or is_out_of_memory(error):
                raise
            log.exception("%s of trial %s failed", self.trial.method.name, self.trial.id)
            self.stopped = True
            self.writer.crashed(self, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")

    def _accumulate(self, teacher: Outputs | None, part: MicroBatch, backward: Callable[[Tensor], None]) -> None:
        batch, place = part.batch, part.index
        seeding.seed_global(self.trial.seed, micro_batch_stream(seeding.STUDENT, place), batch.epoch, batch.step)
        with precision_context(self.trial.precision, batch.images.device):
            student = self._observe(self.view(batch.images), self.method.needs.student)
            seeding.seed_global(self.trial.seed, micro_batch_stream(seeding.METHOD, place), batch.epoch, batch.step)
            terms = self.method(student, teacher, batch)
            loss = torch.stack(list(terms.values())).sum()
        if part.first:
            self.optimizer.zero_grad(set_to_none=True)
        backward(loss if part.share == 1 else loss * part.share)
        with torch.no_grad():
            self._note_divergence(loss, batch.step)
            self._train.add({**terms, "loss": loss}, student.logits, batch.labels)

    def _update(self) -> None:
        average_gradients(self._trained)
        if self.trial.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trained, self.trial.clip_norm)
        self.optimizer.step()
        # Not only before the next step: until then the others' activations would be in memory beside them.
        self.optimizer.zero_grad(set_to_none=True)
        self.method.on_step_end()
        if self.average is not None:
            self.average.update_parameters(self.network)

    def _note_divergence(self, loss: Tensor, step: int) -> None:
        # Kept on the device and read once an epoch: asking a GPU at every step would make it wait.
        here = torch.where(torch.isfinite(loss), -1, step)
        before = self._first_bad
        self._first_bad = (
            here if before is None else torch.where(before.to(here.device) >= 0, before.to(here.device), here)
        )

    def before_evaluation(self) -> None:
        """Gives all processes the same running statistics."""
        for module in (self.network, self.method):
            average_buffers(module)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> None:
        """Counts the student's hits on a test batch; the network is in evaluation mode."""
        images = self.view(batch.images)
        for observe, sums in ((self._observe, self._test), (self._observe_average, self._test_average)):
            if observe is not None:
                with precision_context(self.trial.precision, images.device):
                    logits = observe(images).logits
                sums.add({"loss": F.cross_entropy(logits.float(), batch.labels)}, logits, batch.labels)

    def end_epoch(
        self, epoch: int, own_seconds: float, shared_seconds: float, members: int, spared_seconds: float | None = None
    ) -> None:
        """Closes an epoch it took part in: metrics, the method's bookkeeping, and the checkpoint by way of the writer.

        Args:
            epoch: From 0.
            own_seconds: Its own forward and backward passes and steps.
            shared_seconds: Data and teacher, which it would need as much if it were alone and nothing were known.
            members: How many shared them.
            spared_seconds: Of these, what was not spent because the teacher's logits were known; None where they are
                not remembered.
        """
        self.class_top1 = self._test.classes()
        train, test = self._train.read(), self._test.read()
        bad = -1 if self._first_bad is None else int(all_gather(self._first_bad[None]).max())
        self._first_bad = None
        if bad >= 0:
            self.stopped = True
            self.writer.diverged(self, f"the loss was no longer finite in epoch {epoch + 1}, step {bad + 1}")
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
            **self.extra_metrics(),
            "seconds": own_seconds + shared_seconds,
            "own_seconds": own_seconds,
            "members": members,
            **({} if spared_seconds is None else {"spared_seconds": spared_seconds}),
        }
        self.history.append(row)
        self.writer.epoch(self)

    def extra_metrics(self) -> dict[str, float]:
        """The test accuracies of another state of the network, as columns of the epoch's row."""
        if self.average is None:
            return {}
        return {f"average_{name}": value for name, value in self._test_average.read().items() if name != "loss"}

    def state(self) -> dict[str, Any]:
        """Everything that training on from here depends on."""
        state = {
            "network": self.network.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return state | {"corrupt": self.corrupt} if self.corrupt else state

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a ``state()``."""
        self.network.load_state_dict(state["network"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.history = list(state["history"])
        self.corrupt = dict(state.get("corrupt", {}))

    def mid_epoch_state(self, step: int) -> bytes:
        """The state after so many steps of an epoch, of this process."""
        seconds = self.watch.read()
        self.watch.add(seconds)
        bad = -1 if self._first_bad is None else int(self._first_bad)
        return serialize_state(self.state() | {"within": (step, seconds, bad), "sums": self._train.state()})

    def restore_mid_epoch(self, state: dict[str, Any]) -> None:
        """Goes back to a ``mid_epoch_state()``, once read."""
        self.restore(state)
        self.begin_step, seconds, bad = state["within"]
        self.watch.add(seconds)
        self._train.restore(state["sums"])
        self._first_bad = torch.tensor(bad)


def serialize_state(state: Any) -> bytes:
    """As a file of torch's."""
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: a GPU's, or the machine's."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error)


class MetricSums:
    """Sums over an epoch, kept on the device and read once.

    Args:
        by_class: Whether to count the hits of each class, too.
    """

    def __init__(self, by_class: bool = False) -> None:
        self._by_class = by_class
        self._classes: Tensor | None = None
        self._sums: dict[str, Tensor] = {}
        self._images = 0

    def add(self, means: dict[str, Tensor], logits: Tensor, labels: Tensor) -> None:
        """Adds a batch's means, and its hits."""
        images = len(logits)
        target = labels if labels.ndim == 1 else labels.argmax(-1)
        hits = logits.topk(min(5, logits.shape[-1])).indices == target[:, None]
        values = {name: value.detach() * images for name, value in means.items()}
        values |= {"top1": hits[:, 0].sum(), "top5": hits.sum()}
        if self._by_class:
            if self._classes is None:
                self._classes = torch.zeros(2, logits.shape[-1], dtype=torch.int64, device=logits.device)
            self._classes.index_add_(1, target, torch.stack([hits[:, 0].long(), torch.ones_like(target)]))
        for name, value in values.items():
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value
        self._images += images

    def state(self) -> dict[str, Any]:
        """What was added up so far."""
        return {"images": self._images, "sums": {name: value.cpu() for name, value in self._sums.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a ``state()``."""
        self._images = state["images"]
        self._sums = dict(state["sums"])

    def classes(self) -> list[float | None]:
        """The share of hits among the images of each class, in percent, over all batches and processes."""
        if self._classes is None:
            return []
        hits, images = all_reduce_sum(self._classes).tolist()
        self._classes = None
        return [100 * hit / of if of else None for hit, of in zip(hits, images, strict=True)]

    def read(self) -> dict[str, float]:
        """The means over all batches and processes; what comes next begins at nothing."""
        # One number a value, in one place: a GPU is asked once, and the processes add theirs up once.
        values = [torch.as_tensor(float(self._images)), *self._sums.values()]
        device = values[-1].device
        total = all_reduce_sum(torch.stack([value.to(device, torch.float64) for value in values])).tolist()
        means = {name: value / total[0] for name, value in zip(self._sums, total[1:], strict=True)}
        means |= {name: 100 * means[name] for name in ("top1", "top5")}
        self._sums, self._images = {}, 0
        return means
