"""Measures a teacher's accuracy again, and compares it with recorded and published values."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.models import cards, pretrained
from kd_bench.trials.folder import TEACHERS, TrialFolder
from kd_bench.trials.results_folder import out_option
from kd_bench.utils.errors import RunFailed, UserError

#: Percentage points within which two measurements of one network agree. The arithmetic of another machine, or a rounded
#: normalisation, changes a few images; a larger difference means another network.
TOLERANCE = 0.1

#: The same for published values, which were measured with another library and sometimes with another file.
PUBLISHED_TOLERANCE = 0.3


def verify_teacher(
    teacher: Trial | PretrainedTeacher,
    file: Path | None,
    out: Path,
    data: Path | None,
    device: str,
    workers: int = 0,
    overrides: Sequence[str] = (),
) -> str:
    """Returns lines with the teacher's test accuracy, recorded and published values, and its best and worst classes.

    Args:
        teacher: The teacher.
        file: The weights of a pretrained teacher; None for a teacher that was trained here.
        out: The results folder.
        data: Folder of data sets; None for the default.
        device: Device to evaluate on.
        workers: Processes that decode images, for data sets that are not held in memory.
        overrides: Settings that replace those of the data set, each ``key=value``; for the advice on how to train.

    Raises:
        UserError: If the teacher is not trained yet, or its weights are damaged.
        RunFailed: If the accuracy differs from the recorded or published one.
    """
    expected: list[tuple[float, str]] = []
    if isinstance(teacher, Trial):
        folder = TrialFolder(out / TEACHERS / teacher.id)
        folder.check_settings()
        result = folder.result()
        if result is None or folder.status() != "done":
            settings = "".join(f" --set {shlex.quote(text)}" for text in overrides)
            raise UserError(
                f"{folder.path}: {teacher.model} has not been trained with these settings; "
                f"train it with: kd-bench teacher train {teacher.model} --dataset {teacher.dataset.name}{settings}"
                f"{out_option(out)}"
            )
        file = folder.weights
        expected.append((result["top1_last"], "after training"))
    assert file is not None
    import torch

    from kd_bench.data import registry as datasets
    from kd_bench.models import weights
    from kd_bench.training.build import load_network
    from kd_bench.training.evaluate import evaluate_accuracy

    images = datasets.open_dataset(teacher.dataset, teacher.pipeline, datasets.resolve_data_dir(data))
    network, view = load_network(teacher, file, images)
    folded = isinstance(teacher, PretrainedTeacher)  # as it was measured when it was read
    accuracy = evaluate_accuracy(network, view, images, torch.device(device), folded=folded, workers=workers)
    card = cards.find("teachers", teacher.dataset.name, teacher.model)
    published = card.top1 if card else ()
    if isinstance(teacher, PretrainedTeacher):
        recorded = weights.read(file).facts.get("accuracy")
        if isinstance(recorded, int | float):
            expected.append((float(recorded), "recorded in the file"))
    name = f"{teacher.model} on {teacher.dataset.title}"
    report = "\n".join(
        [
            f"{name}: {accuracy.top1:.2f} % top-1, {accuracy.top5:.2f} % top-5",
            *(f"  {top1:.2f} % {source}" for top1, source in expected),
            *(f"  {value.value:.2f} % published ({value.source})" for value in published),
            *_class_lines(accuracy.classes, images.class_names),
        ]
    )
    if card and published and file == pretrained.weights_path(card):
        nearest = min((value.value for value in published), key=lambda value: abs(value - accuracy.top1))
        if abs(accuracy.top1 - nearest) > PUBLISHED_TOLERANCE:
            raise RunFailed(
                f"{name}: {accuracy.top1:.2f} % here, {nearest:.2f} % published "
                f"({card.path}); the two should agree: {file}"
            )
    for top1, source in expected:
        if abs(accuracy.top1 - top1) > TOLERANCE:
            raise RunFailed(f"{name}: {accuracy.top1:.2f} % now, {top1:.2f} % {source}; the two should agree: {file}")
    return report


def _class_lines(accuracies: tuple[float, ...], names: tuple[str, ...]) -> list[str]:
    """Returns lines with the classes of the lowest and highest accuracy."""
    ranked = sorted((value, name) for value, name in zip(accuracies, names, strict=True) if not math.isnan(value))
    if not ranked:
        return []
    shown = min(5, len(ranked))
    return [
        f"  classes: median {ranked[len(ranked) // 2][0]:.1f} %",
        "  worst: " + ", ".join(f"{name} {value:.1f}" for value, name in ranked[:shown]),
        "  best: " + ", ".join(f"{name} {value:.1f}" for value, name in ranked[: -shown - 1 : -1]),
    ]
