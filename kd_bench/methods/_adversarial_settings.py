"""The settings of adversarial training for one method: checked, with the checksum of the generated images."""

from __future__ import annotations

from pathlib import Path

from kd_bench.config.adversarial import Adversarial, Generated
from kd_bench.config.trial import Training
from kd_bench.config.validate import question
from kd_bench.data import registry as datasets
from kd_bench.methods._registry import MethodInfo
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import is_file


def adversarial_settings(
    training: Training, info: MethodInfo, image_size: int, context: str, data: Path | None = None
) -> Adversarial:
    """Returns the settings with which a method of adversarial training perturbs images.

    Args:
        training: The training of the method's row.
        info: The method.
        image_size: Height and width of the data set's images in pixels.
        context: Where the row is written, for error messages.
        data: Folder of the data sets, which has the generated images; None for the default.

    Raises:
        UserError: If the settings are missing or are not the method's, or if the generated images are missing or
            do not fit the data set's.
    """
    adversarial, subject = training.adversarial, f"{context}: {info.name}"
    if adversarial is None:
        raise UserError(f"{subject} trains on perturbed images, so adversarial is missing, at least its eps")
    for key in info.required_settings:
        if key not in Adversarial.model_fields:
            raise UserError(
                f"{subject}: required_settings of {info.class_name} has {key!r}, which is no setting of adversarial"
                f"{question(key, Adversarial.model_fields)} ({info.path})"
            )
        if not getattr(adversarial, key):
            raise UserError(f"{subject} is another method without adversarial.{key}, which is not switched on")
    if adversarial.generated is None:
        return adversarial
    generated = _with_checksum(adversarial.generated, image_size, context, data)
    return adversarial.model_copy(update={"generated": generated})


def _with_checksum(generated: Generated, image_size: int, context: str, data: Path | None) -> Generated:
    """Checks the file if it is there, and returns the settings with its checksum."""
    from kd_bench.data.generated_file import check_arrays, checksum  # it imports numpy, which few recipes need

    file = datasets.resolve_data_dir(data) / generated.path
    if is_file(file):
        check_arrays(file, image_size)
    elif generated.sha256 is None:
        raise UserError(
            f"{context}: adversarial.generated: there is no file {file}; write an absolute path, or name the data "
            "folder with KD_BENCH_DATA or --data; if the file is on another machine, set adversarial.generated.sha256 "
            "to its checksum"
        )
    return generated if generated.sha256 else generated.model_copy(update={"sha256": checksum(file)})
