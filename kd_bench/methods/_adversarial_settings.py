"""The settings of adversarial training for one method: checked, with the checksum of the generated images."""

from __future__ import annotations

from pathlib import Path

from kd_bench.config.adversarial import Adversarial, Generated
from kd_bench.config.trial import Training
from kd_bench.data import registry as datasets
from kd_bench.methods._registry import MethodInfo
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import sha256
from kd_bench.utils.paths import is_file


def adversarial_settings(training: Training, info: MethodInfo, context: str, data: Path | None = None) -> Adversarial:
    """Returns the settings with which a method of adversarial training perturbs images.

    Args:
        training: The training of the method's row.
        info: The method.
        context: Where the row is written, for error messages.
        data: Folder of the data sets, which has the generated images; None for the default.

    Raises:
        UserError: If the settings are missing or are not the method's, or if the generated images are missing.
    """
    adversarial, subject = training.adversarial, f"{context}: {info.name}"
    if adversarial is None:
        raise UserError(f"{subject} trains on perturbed images, so adversarial is missing, at least its eps")
    for key in info.required_settings:
        if not getattr(adversarial, key):
            raise UserError(f"{subject} is another method without adversarial.{key}, which is not switched on")
    if adversarial.generated is None:
        return adversarial
    return adversarial.model_copy(update={"generated": _with_checksum(adversarial.generated, context, data)})


def _with_checksum(generated: Generated, context: str, data: Path | None) -> Generated:
    if generated.sha256 is not None:
        return generated
    file = datasets.resolve_data_dir(data) / generated.path
    if not is_file(file):
        raise UserError(
            f"{context}: adversarial.generated: there is no file {file}; write an absolute path, or name the data "
            "folder with KD_BENCH_DATA or --data; if the file is on another machine, set adversarial.generated.sha256 "
            "to its checksum"
        )
    return generated.model_copy(update={"sha256": sha256(file)})
