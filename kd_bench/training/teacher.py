"""The teacher's pass over a batch, folded, compiled and cached, without changing more than the last bits."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from kd_bench.config.trial import Trial
from kd_bench.methods.base import TeacherBatchNorm
from kd_bench.models.batch_norm_folding import fold
from kd_bench.models.fast_convs import cuda_memory_format
from kd_bench.models.outputs import observe
from kd_bench.training.forward_pass import ForwardPass, build_forward_pass, precision_context
from kd_bench.training.logit_cache import LogitCache
from kd_bench.types import LOGITS, Batch, Output, Outputs
from kd_bench.utils.errors import first_line

log = logging.getLogger(__name__)

#: Opens the logit cache. The argument says whether the teacher is compiled, because a compiled teacher has different
#: last bits.
OpenLogitCache = Callable[[bool], LogitCache | None]

#: Least number of operations, in all passes of a teacher, at which it is compiled if the setting is "auto", by type of
#: device. They take some hours of a CPU's core, or some ten minutes of a large GPU. Compiling takes about a minute.
COMPILE_FROM = {"cpu": 1e15, "cuda": 1e17}


class Teacher(nn.Module):
    """A frozen network that computes the outputs that a cohort's methods need.

    With running statistics, batch norms are folded into the convolutions, images and maps have the channels last, and
    the pass is compiled if that saves time. All of it changes the last bits and no more (1e-5 of the largest logit).
    The choice depends on the trial's settings and the network, not on the other members. The outputs depend neither on
    which other outputs are needed nor on the other images of the batch. Therefore a student's weights are the same
    bytes alone and in company, and with and without a logit cache.

    Args:
        network: The trained network, which is never changed.
        view: Transforms images into the network's input.
        needs: Outputs that the methods read in the students' epochs, by batch-norm mode: "running" for the running
            statistics, "batch" for those of the batch.
        preparation_needs: The same for the epochs before.
        settings: Any of the cohort's trials.
        images: Number of images in all passes of the training, from which "auto" decides whether to compile.
        open_logit_cache: Opens the logit cache; None for no cache.
    """

    def __init__(
        self,
        network: nn.Module,
        view: nn.Module,
        needs: Mapping[TeacherBatchNorm, frozenset[Output]],
        preparation_needs: Mapping[TeacherBatchNorm, frozenset[Output]],
        settings: Trial,
        images: int,
        open_logit_cache: OpenLogitCache | None = None,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.view = view
        self._needs, self._preparation_needs = needs, preparation_needs
        self._settings, self._images = settings, images
        self._open_logit_cache = open_logit_cache
        self._logit_cache: LogitCache | None = None
        self._precision = settings.teacher_precision or settings.precision
        self._folded: nn.Module = network
        self._layout = self._folded_layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        self._forward_passes: dict[TeacherBatchNorm, ForwardPass] = {}
        self._batch_norms = tracking_batch_norms(network)

    def train(self, mode: bool = True) -> Teacher:
        """Keeps evaluation mode."""
        return super().train(False)

    def _prepare(self, images: Tensor) -> None:
        """Folds, compiles and opens the logit cache at the first batch, when the images' device is known."""
        if self._forward_passes:
            return
        image_shape = tuple(self.view(images[:1]).shape[1:])
        on_gpu = images.device.type == "cuda"
        if on_gpu and not self._settings.channels_last:
            self._layout = self._folded_layout = cuda_memory_format(self.network)
            self.network.to(memory_format=self._layout)
        norm_modes = [*self._needs, *(mode for mode in self._preparation_needs if mode not in self._needs)]
        if "running" in norm_modes:
            self._folded = fold(self.network, image_shape)
            if self._folded is not self.network:  # a network of convolutions
                if not on_gpu:
                    self._folded_layout = torch.channels_last
                self._folded = self._folded.to(memory_format=self._folded_layout)
        compile_mode: str = self._settings.compile
        if compile_mode == "auto":
            compile_mode = "on" if self._is_worth_compiling(image_shape) and self._compiles(images) else "off"
        for norm_mode in norm_modes:
            network = self._folded if norm_mode == "running" else self.network
            self._forward_passes[norm_mode] = build_forward_pass(network, compile_mode)
        if self._open_logit_cache is not None and "running" in norm_modes:
            self._logit_cache = self._open_logit_cache(compile_mode != "off")

    def needs_in(self, epoch: int) -> Mapping[TeacherBatchNorm, frozenset[Output]]:
        """Returns the outputs that the methods read in an epoch (negative in preparations), by batch-norm mode."""
        return self._needs if epoch >= 0 else self._preparation_needs

    def forward(self, batch: Batch, norm_mode: TeacherBatchNorm = "running") -> Outputs:
        """Runs the network on a batch, for all outputs that the methods with this batch-norm mode need.

        Args:
            batch: The samples.
            norm_mode: One of those in ``needs_in(batch.epoch)``.

        Returns:
            Outputs without gradient, in float32 unless students compute in another precision.
        """
        self._prepare(batch.images)
        needs = self.needs_in(batch.epoch)
        cache, views = self._logit_cache if norm_mode == "running" else None, batch.views
        if dict(needs) == {"running": LOGITS} and cache is not None and views is not None:
            return Outputs(cache.get(views, batch.images, self._logits))
        outputs = self._pass(norm_mode, batch.images, needs[norm_mode])
        if cache is not None and views is not None:
            cache.add(views, batch.images, outputs.logits, self._logits)
        if batch.second_images is None:
            return outputs
        return replace(outputs, second_view=self._pass(norm_mode, batch.second_images, needs[norm_mode]))

    def cached_seconds(self) -> float | None:
        """Returns the seconds that cached logits saved since the last call; None without a logit cache."""
        return None if self._logit_cache is None else self._logit_cache.cached_seconds()

    def close(self) -> None:
        """Closes the logit cache."""
        if self._logit_cache is not None:
            self._logit_cache.close()

    def _logits(self, images: Tensor) -> Tensor:
        return self._pass("running", images, LOGITS).logits

    def _compiles(self, images: Tensor) -> bool:
        """Whether the device has a compiler and the network compiles. Compiles it."""
        if not can_compile(images.device):
            return False
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of missing CUDA on a CPU
        forward_pass = build_forward_pass(self._folded, "on")
        try:
            with torch.no_grad(), precision_context(self._precision, images.device):
                forward_pass(self._input(images), LOGITS)
        except Exception as error:  # each stage of the compiler has errors of its own
            log.warning("the teacher is not compiled: %s: %s", type(error).__name__, first_line(error))
            return False
        return True

    def _input(self, images: Tensor) -> Tensor:
        """Returns the folded network's input."""
        network_input: Tensor = self.view(images)
        return network_input.contiguous(memory_format=self._folded_layout)

    @torch.no_grad()
    def _pass(self, norm_mode: TeacherBatchNorm, images: Tensor, needs: frozenset[Output]) -> Outputs:
        forward_pass = self._forward_passes[norm_mode]
        with precision_context(self._precision, images.device):
            if norm_mode == "running":
                outputs = forward_pass(self._input(images), needs)
            else:
                with batch_statistics(self._batch_norms):
                    outputs = forward_pass(self.view(images).contiguous(memory_format=self._layout), needs)
        return self._convert(outputs)

    def _convert(self, outputs: Outputs) -> Outputs:
        """Converts outputs to the students' precision and memory format."""
        students_layout = torch.channels_last if self._settings.channels_last else torch.contiguous_format

        def convert(tensor: Tensor) -> Tensor:
            if self._settings.precision == "float32":
                tensor = tensor.float()
            return tensor.contiguous(memory_format=students_layout) if tensor.ndim == 4 else tensor

        return outputs.map(convert)

    def _is_worth_compiling(self, image_shape: Sequence[int]) -> bool:
        parameter = next(self._folded.parameters())
        if isinstance(parameter, FakeTensor):
            return False
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            observe(self._folded, torch.zeros(1, *image_shape, device=parameter.device), LOGITS)
        return counter.get_total_flops() * self._images >= COMPILE_FROM.get(parameter.device.type, COMPILE_FROM["cpu"])


def can_compile(device: torch.device) -> bool:
    """Whether torch finds the compiler that it needs for this device."""
    if device.type == "cpu":
        return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "c++", "clang++") if name)
    from torch.utils._triton import has_triton

    return bool(has_triton())


def tracking_batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """Returns the batch norms that have running statistics."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@contextmanager
def batch_statistics(batch_norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Inside, these batch norms normalise by the batch and neither read nor change their running statistics."""
    for norm in batch_norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm in batch_norms:
            norm.training, norm.track_running_stats = False, True
