"""Recipes with values that nobody means, for hypothesis: a valid recipe in which some keys are replaced or added."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

#: Short, valid, and with most keys, so that there is something to spoil at every level.
VALID: dict[str, Any] = {
    "name": "valid",
    "description": "A recipe.",
    "dataset": {"name": "digits"},
    "epochs": 3,
    "batch_size": 32,
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False},
    "schedule": {"name": "step", "milestones": [0.5, 2], "gamma": 0.1, "warmup_epochs": 0},
    "augment": {"crop": 1},
    "pairs": [{"teacher": "resnet14", "student": "resnet8", "training": {"epochs": 2}}],
    "methods": {"none": {"method": "none"}, "kd": {"method": "kd", "hyperparameters": {"temperature": 4}}},
    "trials": 2,
    "baseline": "kd",
    "teacher_training": {"epochs": 4},
}

#: Paths of keys: those of the valid recipe, and others.
PATHS = [
    *("name", "description", "dataset", "epochs", "batch_size", "optimizer", "schedule", "augment", "pairs", "methods"),
    *("trials", "seeds", "baseline", "teacher_training", "teachers", "published", "clip_norm", "label_loss"),
    *("precision", "micro_batch", "drop_path", "ema", "sync_batch_norm", "channels_last", "compile", "pipeline"),
    *("teacher_precision", "input", "adversarial", "extends", "epoch", "Epochs", "__class__", "model_config", ""),
    *("dataset.name", "dataset.labels", "dataset.classes", "dataset.path", "dataset.size", "dataset.train_images"),
    *("dataset.test_images", "dataset.source", "optimizer.name", "optimizer.lr", "optimizer.momentum"),
    *("optimizer.weight_decay", "optimizer.nesterov", "optimizer.beta1", "schedule.name", "schedule.milestones"),
    *("schedule.milestones.0", "schedule.gamma", "schedule.warmup_epochs", "augment.crop", "augment.flip"),
    *("augment.autoaugment", "augment.randaugment", "augment.cutout", "augment.erase", "augment.mixup"),
    *("augment.own", "augment.own_source", "pairs.0", "pairs.0.teacher", "pairs.0.student", "pairs.0.training"),
    *("pairs.0.training.epochs", "pairs.0.training.optimizer", "pairs.0.methods", "pairs.0.methods.kd"),
    *("methods.kd", "methods.kd.method", "methods.kd.hyperparameters", "methods.kd.hyperparameters.temperature"),
    *("methods.kd.hyperparameters.kd_weight", "methods.kd.hyperparameters.nonsense", "methods.kd.training"),
    *("methods.kd.hyperparameters.standardise", "methods.kd.hyperparameters.entropy_weights"),
    *("methods.none.hyperparameters.standardise", "pairs.0.methods.kd.entropy_weights"),
    *("methods.kd.training.batch_size", "methods.kd.training.schedule", "methods.other", "methods.a b", "input.size"),
    *("teacher_training.epochs", "teacher_training.seed", "teacher_training.weights", "teachers.resnet14"),
    *("teachers.resnet14.weights", "teachers.resnet14.seed", "teachers.nobody", "pipeline.size", "pipeline.scale"),
    *("adversarial.eps", "adversarial.steps", "adversarial.generated"),
]

_TEXTS = [
    *("", " ", "kd", "none", "digits", "cifar100", "sgd", "cosine", "on", "off", "auto", "published", "resnet14"),
    *("resnett14", "1:30", "2020-99-99", "010", "1_000", "1e3", "0x10", "true", "null", "~", "8/255", "1/0", "nan"),
    *(
        "../x",
        "/dev/null",
        "~nobody/x",
        "x.py",
        "x.py:Y",
        "a\0b",
        "a\nb",
        "a\tb",
        "\x1b[31m",
        "é",
        "\u202e",
        "{}",
        "[]",
    ),
    *("teachers", "smoke", "logs", "con", "NUL.txt", "a.", "x" * 300, "é" * 300, "%s %d {0}", "${HOME}", "$(id)", "*"),
]
_NUMBERS = [
    *(0, 1, 2, 3, -1, 7, 64, 199, 200, 201, 1000, 2**31 - 1, 2**31, 2**63, 2**64, 10**23, -(2**63), 10**29),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 1e-300, 1e300, 1e23, 1e-9, 3.0, float("nan"), float("inf"), float("-inf")),
]
SCALARS = st.one_of(
    st.sampled_from([None, True, False, *_TEXTS, *_NUMBERS]),
    st.integers(-(10**6), 10**6),
    st.floats(width=32),
    st.text(max_size=8).filter(lambda text: not any("\ud800" <= character <= "\udfff" for character in text)),
)
_KEYS = st.sampled_from(["name", "method", "epochs", "lr", "teacher", "student", "weights", "x", "size", "path", "eps"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3), max_leaves=5
)


@dataclass(frozen=True)
class Spoiled:
    """A recipe, and the paths and values in which it differs from the valid one."""

    content: dict[str, Any]
    changes: dict[str, Any]


@st.composite
def spoiled_recipes(draw: st.DrawFn) -> Spoiled:
    """Replaces or adds one or two keys of the valid recipe."""
    content = copy.deepcopy(VALID)
    changes: dict[str, Any] = {}
    for path in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=2, unique=True)):
        if any(path.startswith(f"{other}.") or other.startswith(f"{path}.") for other in changes):
            continue
        changes[path] = draw(st.one_of(SCALARS, VALUES))
        _put(content, path.split("."), copy.deepcopy(changes[path]))
    return Spoiled(content, changes)


def _put(node: Any, path: list[str], value: Any) -> None:
    for key in path[:-1]:
        node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
    if isinstance(node, list):
        node[int(path[-1])] = value
    else:
        node[path[-1]] = value


def value_at(content: Any, path: str) -> Any:
    """Returns the value at a path; None if there is none."""
    for key in path.split("."):
        if isinstance(content, (list, tuple)):
            content = content[int(key)] if int(key) < len(content) else None
        else:
            content = content.get(key) if isinstance(content, dict) else None
    return content
