"""Checks of the losses' arguments, in one sentence each.

They read shapes, types and Python numbers, and never the values of a tensor: on a GPU that would wait for the device,
and a step that does so cannot be recorded.
"""

import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real

import torch
from torch import Tensor

#: A number, or a tensor in its place, whose value is not checked.
Number = float | Tensor


def check_positive(**numbers: Number) -> None:
    """Raises ValueError if one of the arguments is not a finite number above 0."""
    _check_numbers(numbers, lambda value: 0 < value < math.inf, "a finite number above 0")


def check_non_negative(**numbers: Number) -> None:
    """Raises ValueError if one of the arguments is not a finite number of at least 0."""
    _check_numbers(numbers, lambda value: 0 <= value < math.inf, "a finite number, at least 0")


def check_finite(**numbers: Number) -> None:
    """Raises ValueError if one of the arguments is not a finite number."""
    _check_numbers(numbers, math.isfinite, "a finite number")


def _check_numbers(numbers: dict[str, Number], is_allowed: Callable[[float], bool], allowed: str) -> None:
    for name, value in numbers.items():
        if not (isinstance(value, (float, Real)) and is_allowed(value)) and not isinstance(value, Tensor):
            raise ValueError(f"{name} should be {allowed} (it is {value!r})")


def check_whole(least: int, **numbers: int) -> None:
    """Raises ValueError if one of the arguments is not a whole number of at least ``least``."""
    for name, value in numbers.items():
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} should be a whole number, at least {least} (it is {value!r})")


def check_choice(choices: Iterable[str], **texts: str) -> None:
    """Raises ValueError if one of the arguments is none of the choices."""
    for name, value in texts.items():
        if value not in choices:
            raise ValueError(f"{name} should be {' or '.join(map(repr, choices))} (it is {value!r})")


def check_shapes(**arguments: tuple[Tensor, str]) -> None:
    """Raises ValueError if the shapes of tensors do not fit.

    Args:
        **arguments: A tensor and the letters of its dimensions, by name. A letter stands for one size in all of them;
            dimensions after "..." are not checked.

    >>> check_shapes(logits=(torch.zeros(2, 3), "B C"), labels=(torch.zeros(4), "B"))
    Traceback (most recent call last):
    ValueError: labels should have the shape (B) with B = 2, not (4)
    """
    sizes: dict[str, int] = {}
    for name, (tensor, dimensions) in arguments.items():
        letters, dots, _ = dimensions.partition(" ...")
        names, shape = letters.split(), tensor.shape
        fits = len(shape) >= len(names) if dots else len(shape) == len(names)
        letter_sizes = dict(zip(names, shape, strict=False))
        if not fits or any(sizes.get(letter, size) != size for letter, size in letter_sizes.items()):
            equations = [f"{letter} = {sizes[letter]}" for letter in names if letter in sizes]
            with_sizes = f" with {' and '.join(equations)}" if equations else ""
            expected, actual = ", ".join(dimensions.split()), ", ".join(map(str, shape))
            raise ValueError(f"{name} should have the shape ({expected}){with_sizes}, not ({actual})")
        sizes |= letter_sizes


def check_logits(student_logits: Tensor, teacher_logits: Tensor, least: int = 1) -> None:
    """Raises ValueError unless both are (B, C) of one shape, with at least ``least`` classes."""
    shape = student_logits.shape
    if len(shape) == 2 and shape == teacher_logits.shape and shape[1] >= least:
        return
    check_shapes(student_logits=(student_logits, "B C"), teacher_logits=(teacher_logits, "B C"))
    raise ValueError(f"student_logits should have at least {least} classes, not {shape[1]}")


def check_classes(logits: Tensor, labels: Tensor) -> None:
    """Raises ValueError unless ``labels`` are one class for each row of ``logits``, (B, C): (B,) int64."""
    shape = logits.shape
    if len(shape) != 2 or labels.shape != shape[:1]:
        check_shapes(logits=(logits, "B C"), labels=(labels, "B"))
    if labels.dtype != torch.int64:
        raise ValueError(f"labels should be int64, the classes of the images, not {labels.dtype}")


def check_labels(logits: Tensor, labels: Tensor) -> None:
    """Raises ValueError unless ``labels`` are classes, (B,) int64, or the shares of mixed images, (B, C)."""
    if labels.ndim != 2:
        check_classes(logits, labels)
    elif labels.shape != logits.shape:
        check_shapes(logits=(logits, "B C"), labels=(labels, "B C"))


def check_sample_weights(logits: Tensor, weights: Tensor | None) -> None:
    """Raises ValueError unless ``weights`` are None or (B,) for logits (B, C)."""
    if weights is not None:
        check_shapes(logits=(logits, "B C"), sample_weights=(weights, "B"))


def check_class_weights(logits: Tensor, weights: Tensor) -> None:
    """Raises ValueError unless ``weights`` are (B, C) or (C,) for logits (B, C)."""
    if weights.shape != logits.shape and weights.shape != logits.shape[1:]:
        check_shapes(logits=(logits, "B C"), weights=(weights, "B C" if weights.ndim == 2 else "C"))
