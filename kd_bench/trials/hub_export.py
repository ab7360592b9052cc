"""A trained student as a folder in the layout that timm and the Hugging Face hub read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_bench.config.trial import Trial
from kd_bench.data import registry as datasets
from kd_bench.models import registry as models
from kd_bench.models import weights
from kd_bench.trials.folder import TrialFolder
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import write_atomic
from kd_bench.utils.plugins import is_file

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class Exported:
    """What was written, and how it is used.

    Attributes:
        files: Names of the files.
        sees: A sentence on the images as the network takes them.
        loading: Python that loads the network, with the folder as the working folder.
    """

    files: tuple[str, ...]
    sees: str
    loading: str


def export(folder: TrialFolder, trial: Trial, result: dict[str, Any], target: Path, data: Path | None) -> Exported:
    """Writes the weights, and what timm builds the network by; the network is built and loaded to see that it is right.

    Args:
        folder: The trial's, which is done.
        trial: Its settings.
        result: Its result.
        target: The folder to write into, which is there.
        data: Where data sets are; read only for a set of the user's own, of which nothing else says the normalisation.

    Raises:
        UserError: Where the network cannot be built or the weights are not its own.
    """
    size, classes, mean, std = _images(trial, result, data)
    network = models.create(trial.model, classes, size)
    weights.load_into(network, weights.read(folder.weights).state, folder.weights, trial.model)
    cfg = getattr(network, "pretrained_cfg", None)
    if trial.input.normalise == "network" and cfg:
        mean, std = cfg["mean"], cfg["std"]
    sees = (
        f"The network takes images of {size} x {size} pixels, scaled to 0..1 and then normalised with mean "
        f"{_numbers(mean)} and standard deviation {_numbers(std)}."
    )
    write_atomic(target / WEIGHTS, folder.weights.read_bytes())
    if cfg is None or is_file(trial.model) or trial.model_source is not None:
        return Exported((WEIGHTS,), sees, _own(trial.model, classes, size))
    _write_config(network, cfg, trial, size, mean, std, target / CONFIG)
    return Exported((WEIGHTS, CONFIG), sees, _timms(trial.model))


def _images(
    trial: Trial, result: dict[str, Any], data: Path | None
) -> tuple[int, int, Sequence[float], Sequence[float]]:
    """Size as the network takes it, number of classes, mean and standard deviation."""
    if trial.dataset.source is not None:
        images = datasets.images(trial.dataset, trial.pipeline, data)
        size, classes, mean, std = images.image_shape[-1], images.num_classes, images.mean, images.std
    else:
        spec = datasets.chosen(trial.dataset)
        size, mean, std = spec.image_size, spec.mean, spec.std
        classes = spec.num_classes or len(result.get("class_top1_last") or ())
        if not classes:
            classes = datasets.images(trial.dataset, trial.pipeline, data).num_classes
    if trial.pipeline is not None:
        size = trial.pipeline.test_size or trial.pipeline.size
    return trial.input.size or size, classes, mean, std


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


def _timms(name: str) -> str:
    lines = ["import timm"]
    if name in models.own_models():
        lines += [
            "from kd_bench.models import register  # pip install kd-bench",
            "",
            "register()  # timm knows it then",
        ]
    lines += [
        "",
        'network = timm.create_model("local-dir:.", pretrained=True).eval()  # from the hub: "hf-hub:OWNER/NAME"',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))",
    ]
    return "\n".join(lines) + "\n"


def _own(name: str, classes: int, size: int) -> str:
    lines = [
        "from safetensors.torch import load_file",
        "",
        "from kd_bench.models import create  # pip install kd-bench; and the file that defines the network",
        "",
        f"network = create({name!r}, num_classes={classes}, image_size={size}).eval()",
        f'network.load_state_dict(load_file("{WEIGHTS}"))',
    ]
    return "\n".join(lines) + "\n"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
