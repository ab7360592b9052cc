"""Measures a teacher's network again, whether it was trained here or its weights come in a file."""

from __future__ import annotations

import math
from pathlib import Path

from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.models import cards, pretrained
from kd_bench.trials.folder import TEACHERS, TrialFolder
from kd_bench.utils.errors import RunFailed, UserError

#: Percentage points within which two measurements of one network agree: a few images more or less are arithmetic of
#: another machine or a normalisation rounded otherwise; more is another network.
TOLERANCE = 0.1

#: The same for a figure that somebody else measured, with another library's arithmetic and sometimes of a sister file.
PUBLISHED_TOLERANCE = 0.3


def verify(taught: Trial | PretrainedTeacher, file: Path | None, out: Path, data: Path | None, device: str) -> str:
    """Says how a teacher does on the test set, class by class, and what was said of it before.

    Args:
        taught: The teacher.
        file: The weights of a given one; None for one that was trained here.
        out: The results folder.
        data: Where data sets are; None for the default.
        device: Where to evaluate.

    Raises:
        UserError: Where it was not trained yet, or its weights are damaged.
        RunFailed: Where the accuracy is another than was recorded or published.
    """
    expected: list[tuple[float, str]] = []
    if isinstance(taught, Trial):
        folder = TrialFolder(out / TEACHERS / taught.id)
        folder.check()
        result = folder.result()
        if result is None or folder.status() != "done":
            raise UserError(
                f"{folder.path}: {taught.model} has not been trained with these settings; "
                f"train it with: kd-bench teacher train {taught.model} --dataset {taught.dataset.name}"
            )
        file = folder.weights
        expected.append((result["top1_last"], "after training"))
    assert file is not None
    import torch

    from kd_bench.data import registry as datasets
    from kd_bench.models import weights
    from kd_bench.training.fit import accuracy, load_network

    splits = datasets.images(taught.dataset, taught.pipeline, datasets.data_dir(data))
    network, view = load_network(taught, file, splits)
    found = accuracy(network, view, splits, torch.device(device))
    card = cards.find("teachers", taught.dataset.name, taught.model)
    if isinstance(taught, PretrainedTeacher):
        recorded = weights.read(file).facts.get("accuracy")
        if isinstance(recorded, int | float):
            expected.append((float(recorded), "recorded in the file"))
    lines = [
        f"{taught.model} on {taught.dataset.title}: {found.top1:.2f} % top-1, {found.top5:.2f} % top-5",
        *(f"  {top1:.2f} % {context}" for top1, context in expected),
        *(f"  {one.value:.2f} % published ({one.source})" for one in (card.top1 if card else ())),
        *_classes(found.classes, splits.class_names),
    ]
    report = "\n".join(lines)
    if card and card.top1 and file == pretrained.place(card):
        nearest = min((one.value for one in card.top1), key=lambda value: abs(value - found.top1))
        if abs(found.top1 - nearest) > PUBLISHED_TOLERANCE:
            raise RunFailed(
                f"{taught.model} on {taught.dataset.title}: {found.top1:.2f} % here, {nearest:.2f} % published "
                f"({card.path}); the two should agree: {file}"
            )
    for top1, context in expected:
        if abs(found.top1 - top1) > TOLERANCE:
            raise RunFailed(
                f"{taught.model} on {taught.dataset.title}: {found.top1:.2f} % now, {top1:.2f} % {context}; "
                f"the two should agree: {file}"
            )
    return report


def _classes(accuracies: tuple[float, ...], names: tuple[str, ...]) -> list[str]:
    """The classes it knows best and worst."""
    known = sorted((value, name) for value, name in zip(accuracies, names, strict=True) if not math.isnan(value))
    if not known:
        return []
    middle = known[len(known) // 2][0]
    few = min(5, len(known))
    return [
        f"  classes: median {middle:.1f} %",
        "  worst: " + ", ".join(f"{name} {value:.1f}" for value, name in known[:few]),
        "  best: " + ", ".join(f"{name} {value:.1f}" for value, name in known[: -few - 1 : -1]),
    ]
