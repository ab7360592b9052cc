"""Exports a trained student as a folder that timm and the Hugging Face hub can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_bench.config.trial import Trial
from kd_bench.data import registry as datasets
from kd_bench.models import registry as models
from kd_bench.models import weights
from kd_bench.models.student_with_head import StudentWithHead
from kd_bench.training.build import keeps_layers
from kd_bench.trials.exported_student import (
    SETTINGS,
    WEIGHTS,
    KeptLayer,
    build_exported_student,
    kept_layers,
    write_settings,
)
from kd_bench.trials.folder import TrialFolder
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import write_atomic
from kd_bench.utils.plugins import is_file_name

CONFIG = "config.json"

_TIMM_CODE = """\
import timm
{register}
network = timm.create_model("local-dir:.", pretrained=True).eval()  # from the hub: "hf-hub:OWNER/NAME"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
"""
_REGISTER = """\
from kd_bench.models import register  # pip install kd-bench

register()  # adds the network to timm
"""
_KD_BENCH_CODE = """\
from safetensors.torch import load_file

from kd_bench.models import create  # pip install kd-bench; and the file that defines the network

network = create({model!r}, num_classes={classes}, image_size={size}).eval()
network.load_state_dict(load_file("{weights}"))
"""
_KEPT_LAYERS_CODE = """\
from kd_bench.trials.exported_student import load_exported_student  # pip install kd-bench{files}

network = load_exported_student(".")
"""


@dataclass(frozen=True)
class ExportedStudent:
    """What was written, and how to use it.

    Attributes:
        files: Names of the files.
        input_description: A sentence about the images that the network takes.
        loading_code: Python code that loads the network, if the folder is the working folder.
        kept_layers: Layers that the method keeps in the student.
    """

    files: tuple[str, ...]
    input_description: str
    loading_code: str
    kept_layers: tuple[KeptLayer, ...] = ()

    @property
    def loads_in_timm(self) -> bool:
        """Whether timm can build the network."""
        return CONFIG in self.files


def export_student(
    folder: TrialFolder, trial: Trial, result: dict[str, Any], target: Path, data: Path | None
) -> ExportedStudent:
    """Writes the weights and timm's configuration. Builds the network and loads the weights to check them.

    Args:
        folder, trial, result: Folder, settings and result of the finished trial.
        target: The existing folder to write into.
        data: Folder of the data sets; read only for the user's own images, to compute their normalisation.

    Raises:
        UserError: If the network cannot be built or the weights do not fit.
    """
    size, classes, mean, std = _input(trial, result, data)
    state = weights.read(folder.weights).state
    student: StudentWithHead | None = None
    if keeps_layers(trial, state):
        shape = (3, *[_training_size(trial, data)] * 2)
        student = build_exported_student(trial, shape, classes, folder.weights)
        network = student.network
    else:
        network = models.create(trial.model, classes, size)
        weights.load_into(network, state, folder.weights, trial.model)
    cfg = getattr(network, "pretrained_cfg", None)
    if trial.input.normalise == "network" and cfg:
        mean, std = cfg["mean"], cfg["std"]
    input_description = (
        f"The network takes images of {size} x {size} pixels, scaled to 0..1 and then normalised with mean "
        f"{_numbers(mean)} and standard deviation {_numbers(std)}."
    )
    write_atomic(target / WEIGHTS, folder.weights.read_bytes())
    if student is not None:
        write_settings(target, trial, shape, classes)
        layers = tuple(kept_layers(student.head))
        plugins = [name for name in (trial.method.name, trial.model) if is_file_name(name)]
        code = _KEPT_LAYERS_CODE.format(files=f"; needs {' and '.join(plugins)}" if plugins else "")
        return ExportedStudent((WEIGHTS, SETTINGS), input_description, code, layers)
    if cfg is None or is_file_name(trial.model) or trial.model_source is not None:
        code = _KD_BENCH_CODE.format(model=trial.model, classes=classes, size=size, weights=WEIGHTS)
        return ExportedStudent((WEIGHTS,), input_description, code)
    _write_config(network, cfg, trial, size, mean, std, target / CONFIG)
    register = _REGISTER if trial.model in models.own_models() else ""
    return ExportedStudent((WEIGHTS, CONFIG), input_description, _TIMM_CODE.format(register=register))


def _input(
    trial: Trial, result: dict[str, Any], data: Path | None
) -> tuple[int, int, Sequence[float], Sequence[float]]:
    """Returns image size of the network, number of classes, mean and standard deviation."""
    if trial.dataset.source is not None:
        images = datasets.open_dataset(trial.dataset, trial.pipeline, data)
        size, classes, mean, std = images.image_shape[-1], images.num_classes, images.mean, images.std
    else:
        spec = datasets.resolve_spec(trial.dataset)
        size, mean, std = spec.image_size, spec.mean, spec.std
        classes = spec.num_classes or len(result.get("class_top1_last") or ())
        if not classes:
            classes = datasets.open_dataset(trial.dataset, trial.pipeline, data).num_classes
    if trial.pipeline is not None:
        size = trial.pipeline.test_size or trial.pipeline.size
    return trial.input.size or size, classes, mean, std


def _training_size(trial: Trial, data: Path | None) -> int:
    """Returns height and width of the training images."""
    if trial.pipeline is not None:
        return trial.pipeline.size
    if trial.dataset.source is None:
        return datasets.resolve_spec(trial.dataset).image_size
    return datasets.open_dataset(trial.dataset, None, data).image_shape[-1]


def _write_config(
    network: Any, cfg: Any, trial: Trial, size: int, mean: Sequence[float], std: Sequence[float], file: Path
) -> None:
    from timm.models._hub import save_config_for_hf

    pipeline = trial.pipeline
    resized = size != cfg["input_size"][-1] and cfg.get("fixed_input_size")
    network.pretrained_cfg = {
        **cfg,
        "input_size": (3, size, size),
        "test_input_size": None,
        "crop_pct": pipeline.crop_pct if pipeline else 1.0,
        "test_crop_pct": None,
        "interpolation": pipeline.test_interpolation if pipeline else "bicubic",
        "mean": tuple(mean),
        "std": tuple(std),
        "label_names": None,
        "label_descriptions": None,
    }
    try:
        save_config_for_hf(network, str(file), model_args={"img_size": size} if resized else None)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
