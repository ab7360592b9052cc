"""Keeps the code of plug-ins from changing what other members of a cohort share.

A method or network of a user could write into the teacher's outputs or the labels, or change a setting of the process.
Then another method would have another number, under the same identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from kd_bench.types import Batch, Outputs
from kd_bench.utils.errors import UserError


@contextmanager
def copied_inputs(
    teacher: Outputs | None, batch: Batch, by_content: bool = False
) -> Iterator[tuple[Outputs | None, Batch]]:
    """Yields copies of what a member reads in a step. Checks afterwards that the copies have not been changed.

    Args:
        teacher: The teacher's outputs; None without a teacher.
        batch: The batch.
        by_content: Whether to compare all values, which also finds changes through ``Tensor.data``. Otherwise torch's
            counters of changes are compared, which costs nothing.

    Raises:
        UserError: If they have.
    """
    copies = None if teacher is None else teacher.map(torch.clone), batch.map(torch.clone)
    tensors = _name_tensors(*copies)
    versions = {name: tensor._version for name, tensor in tensors.items()}
    try:
        yield copies
    finally:  # what a step that was disturbed in this way raises would say less
        changed = [name for name, tensor in tensors.items() if tensor._version != versions[name]]
        if by_content:
            originals = _name_tensors(teacher, batch)
            changed += [name for name, tensor in tensors.items() if not torch.equal(tensor, originals[name])]
        if changed:
            raise UserError(
                f"it writes into {changed[0]}, which other methods read, too; write out of place, "
                "e.g. x = x * 2 in place of x.mul_(2)"
            )


def _name_tensors(teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
    tensors = {"batch.images": batch.images, "batch.labels": batch.labels, "batch.index": batch.index}
    if batch.second_images is not None:
        tensors["batch.second_images"] = batch.second_images
    named = {} if teacher is None else teacher.named_tensors()
    return tensors | {f"teacher.{name}": tensor for name, tensor in named.items()}


@contextmanager
def unchanged_process(subject: str | None) -> Iterator[None]:
    """Inside, code of a plug-in runs. Settings of the process that it changes are restored.

    Args:
        subject: The plug-in, for the error message; None if the code is ours, which changes none.

    Raises:
        UserError: If it has changed one.
    """
    if subject is None:
        yield
        return
    before = [setting.read() for setting in _SETTINGS]
    try:
        yield
    finally:
        changed = []
        for setting, value in zip(_SETTINGS, before, strict=True):
            if setting.read() != value:
                changed.append(setting.name)
                setting.write(value)
        if changed:
            raise UserError(f"{subject} changes {changed[0]}, a setting of the process on which other methods depend")


class _Setting(NamedTuple):
    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]


def _attribute(owner: Any, name: str, attribute: str) -> _Setting:
    return _Setting(name, lambda: getattr(owner, attribute), lambda value: setattr(owner, attribute, value))


#: Backends and operators with a precision of float32. A backend comes before its operators, which can take it over.
_FLOAT32 = (
    ("generic", "all"),
    *((backend, operator) for backend in ("cuda", "mkldnn") for operator in ("all", "matmul", "conv", "rnn")),
)


def _read_float32_precision() -> tuple[str | None, bool | None, tuple[str, ...]]:
    """Returns the precision by torch's older functions, for matrix products and cuDNN, and by its newer ones.

    The older ones refuse to read what the newer ones have set; they have None then.
    """
    older: list[Any] = []
    for read in (torch.get_float32_matmul_precision, torch._C._get_cudnn_allow_tf32):
        try:
            older.append(read())
        except RuntimeError:
            older.append(None)
    return older[0], older[1], tuple(torch._C._get_fp32_precision_getter(*key) for key in _FLOAT32)


def _write_float32_precision(value: tuple[str | None, bool | None, tuple[str, ...]]) -> None:
    products, convolutions, newer = value
    # The older functions change what the newer ones read, so they come first.
    if products is not None:
        torch.set_float32_matmul_precision(products)
    if convolutions is not None:
        torch._C._set_cudnn_allow_tf32(convolutions)
    for key, precision in zip(_FLOAT32, newer, strict=True):
        if torch._C._get_fp32_precision_getter(*key) != precision:
            torch._C._set_fp32_precision_setter(*key, precision)


def _hooks(attribute: str) -> _Setting:
    """Returns the setting of one kind of hooks that torch calls for all modules."""

    def write(value: dict[Any, Any]) -> None:
        hooks = getattr(torch_module, attribute)
        hooks.clear()
        hooks.update(value)

    return _Setting("the hooks of all modules", lambda: dict(getattr(torch_module, attribute)), write)


_SETTINGS = (
    _Setting("torch's default type of numbers", torch.get_default_dtype, torch.set_default_dtype),
    _Setting("torch's default device", torch.get_default_device, torch.set_default_device),
    _Setting("whether gradients are computed", torch.is_grad_enabled, torch._C._set_grad_enabled),
    _Setting("the number of torch's threads", torch.get_num_threads, torch.set_num_threads),
    _Setting("torch's precision of float32", _read_float32_precision, _write_float32_precision),
    _Setting(
        "whether torch's algorithms are deterministic",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    _Setting(
        "autocast on the CPU",
        lambda: torch.is_autocast_enabled("cpu"),
        lambda value: torch.set_autocast_enabled("cpu", value),
    ),
    _Setting(
        "autocast on GPUs",
        lambda: torch.is_autocast_enabled("cuda"),
        lambda value: torch.set_autocast_enabled("cuda", value),
    ),
    *(
        _attribute(torch.backends.cudnn, f"torch.backends.cudnn.{name}", name)
        for name in ("enabled", "benchmark", "deterministic")
    ),
    _Setting("torch.backends.mkldnn.enabled", torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    *(
        _Setting(f"whether attention may use {name}", getattr(sdp, f"{name}_enabled"), getattr(sdp, f"enable_{name}"))
        for sdp, name in ((torch.backends.cuda, f"{kind}_sdp") for kind in ("flash", "mem_efficient", "math", "cudnn"))
    ),
    *(
        _hooks(name)
        for name, value in vars(torch_module).items()
        if name.startswith("_global_") and isinstance(value, dict)
    ),
)
