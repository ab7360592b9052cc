"""The teacher's pass over a batch, as cheap as it can be without other numbers than the network's own."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from kd_bench.config.trial import Trial
from kd_bench.methods.base import TeacherBatchNorm
from kd_bench.models.batch_norm_folding import fold
from kd_bench.models.outputs import observe
from kd_bench.training.logit_cache import LogitCache
from kd_bench.training.observing import Observer
from kd_bench.training.student import precision_context
from kd_bench.types import LOGITS, Batch, Output, Outputs
from kd_bench.utils.errors import first_line

log = logging.getLogger(__name__)

#: Opens a store, given whether the teacher is compiled.
OpenLogitCache = Callable[[bool], LogitCache | None]

#: Operations of all its passes from which a teacher is compiled if the setting is "auto": some hours of a CPU's core,
#: half a minute of a large GPU, where compiling takes some ten seconds and a minute.
COMPILE_FROM = 1e15


class Teacher(nn.Module):
    """A frozen network and what a cohort wants of it.

    Where the batch norms go by their running statistics they are folded into the convolutions, images and maps lie with
    the channels last, and the pass is compiled where that pays: all of it changes the last bits and no more (1e-5 of
    the largest logit). Which is done follows from the trial's settings and the network alone, not from the company, and
    what is put out depends neither on what else is asked for nor on the other images of the batch, so a student's
    weights are the same bytes alone and in company, with a store of logits and without.

    Args:
        network: The trained network; never changed.
        view: How it sees the images.
        needs: What the methods read, by what the teacher's batch norms are to go by.
        settings: Any of the cohort's trials.
        images: All images that will pass, over all epochs; what "auto" goes by.
        remember: Opens the store of logits of views that were seen before, where those can be counted; told whether
            the teacher is compiled, on which their bits depend.
    """

    def __init__(
        self,
        network: nn.Module,
        view: nn.Module,
        needs: Mapping[TeacherBatchNorm, frozenset[Output]],
        settings: Trial,
        images: int,
        remember: OpenLogitCache | None = None,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.view = view
        self._needs, self._settings, self._images = needs, settings, images
        self._remember = remember
        self._store: LogitCache | None = None
        self._precision = settings.teacher_precision or settings.precision
        self._frozen: nn.Module = network
        self._observers: dict[TeacherBatchNorm, Observer] = {}
        self._norms = [
            module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
        ]

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode."""
        return super().train(False)

    def _prepare(self, images: Tensor) -> None:
        """Makes what the passes need, on the images' device, if it is not there yet."""
        if self._observers:
            return
        image = tuple(self.view(images[:1]).shape[1:])
        if "running" in self._needs:
            self._frozen = fold(self.network, image)
            if self._frozen is not self.network:  # it is one of convolutions, for which that is worth it
                self._frozen = self._frozen.to(memory_format=torch.channels_last)
        mode: str = self._settings.compile
        if mode == "auto":
            mode = "on" if self._pays(image) and self._compiles(images) else "off"
        for kind in self._needs:
            self._observers[kind] = Observer(self._frozen if kind == "running" else self.network, mode)
        if self._remember is not None and "running" in self._needs:
            self._store = self._remember(mode != "off")

    def forward(self, batch: Batch) -> dict[TeacherBatchNorm, Outputs]:
        """One pass over the batch for all that some method reads; a second where the norms go by the batch.

        Args:
            batch: The samples.

        Returns:
            Without gradient, by what the batch norms go by; in float32 unless students compute in another precision.
        """
        found: dict[TeacherBatchNorm, Outputs] = {}
        self._prepare(batch.images)
        if dict(self._needs) == {"running": LOGITS} and self._store is not None and batch.views is not None:
            found["running"] = Outputs(self._store.of(batch.views, batch.images, self._logits))
            return found
        for kind in self._needs:
            found[kind] = self._pass(kind, batch.images)
        if "running" in found and self._store is not None and batch.views is not None:
            self._store.learn(batch.views, batch.images, found["running"].logits, self._logits)
        return found

    def cached_seconds(self) -> float | None:
        """Seconds that passes which were not made would have taken, since this was last asked; None without a store."""
        return None if self._store is None else self._store.cached_seconds()

    def close(self) -> None:
        """Closes the store of logits."""
        if self._store is not None:
            self._store.close()

    def _logits(self, images: Tensor) -> Tensor:
        return self._pass("running", images).logits

    def _compiles(self, images: Tensor) -> bool:
        """Whether there is a compiler for the device, and it can make something of this network."""
        if not can_compile(images.device):
            return False
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA where nothing needs it
        observer = Observer(self._frozen, "on")
        try:
            with torch.no_grad(), precision_context(self._precision, images.device):
                observer(self._seen(images), LOGITS)
        except Exception as error:  # of the many stages of a compiler, each has errors of its own
            log.warning("the teacher is not compiled: %s: %s", type(error).__name__, first_line(error))
            return False
        return True

    def _seen(self, images: Tensor) -> Tensor:
        """The images as the frozen network takes them."""
        seen: Tensor = self.view(images)
        if self._frozen is not self.network or self._settings.channels_last:
            seen = seen.contiguous(memory_format=torch.channels_last)
        return seen

    @torch.no_grad()
    def _pass(self, kind: TeacherBatchNorm, images: Tensor) -> Outputs:
        with precision_context(self._precision, images.device):
            if kind == "running":
                found = self._observers[kind](self._seen(images), self._needs[kind])
            else:
                with _batch_statistics(self._norms):
                    found = self._observers[kind](self.view(images), self._needs[kind])
        return self._handed(found)

    def _handed(self, found: Outputs) -> Outputs:
        """In the students' precision and layout of memory."""
        layout = torch.channels_last if self._settings.channels_last else torch.contiguous_format

        def handed(tensor: Tensor) -> Tensor:
            if self._settings.precision == "float32":
                tensor = tensor.float()
            return tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor

        return Outputs(
            handed(found.logits),
            tuple(map(handed, found.stages)),
            tuple(map(handed, found.preacts)),
            None if found.pooled is None else handed(found.pooled),
        )

    def _pays(self, image: Sequence[int]) -> bool:
        like = next(self._frozen.parameters())
        if isinstance(like, FakeTensor):
            return False
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            observe(self._frozen, torch.zeros(1, *image, device=like.device), LOGITS)
        return counter.get_total_flops() * self._images >= COMPILE_FROM


def can_compile(device: torch.device) -> bool:
    """Whether torch finds the compiler that it would use for this device."""
    if device.type == "cpu":
        return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "c++", "clang++") if name)
    from torch.utils._triton import has_triton

    return bool(has_triton())


@contextmanager
def _batch_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Inside, these batch norms normalise by the batch and neither read nor change what they remember."""
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm in norms:
            norm.training, norm.track_running_stats = False, True
