"""A trained student's model card: metadata as the Hugging Face hub reads them, and a page with what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kd_bench.config.trial import Trial
from kd_bench.report.attack_table import CLEAN, Evaluation, read_evaluations
from kd_bench.report.results_frame import read_result
from kd_bench.report.statistics import MeanAndStd, estimate

#: The hub's names of data sets, and what it calls the part that is tested on.
_HUB = {
    "cifar10": ("uoft-cs/cifar10", "test"),
    "cifar100": ("uoft-cs/cifar100", "test"),
    "imagenet": ("ILSVRC/imagenet-1k", "validation"),
}


@dataclass(frozen=True)
class Subject:
    """What a card is of.

    Attributes:
        folder: The trial's.
        trial: Its settings.
        result: Its ``result.json``, of a trial that is done.
        environment: Its ``environment.json``; empty where there is none.
        method: A sentence on the method.
        dataset: The data set's title.
        sees: A sentence on the images as the network takes them.
        loading: Python that loads the network, with the card's folder as the working folder.
        again: The command that trains it once more; empty where that is not known.
    """

    folder: Path
    trial: Trial
    result: Mapping[str, Any]
    environment: Mapping[str, Any]
    method: str
    dataset: str
    sees: str
    loading: str
    again: str

    @property
    def title(self) -> str:
        """For people: ``cifar_resnet8 taught by cifar_resnet14 (kd, digits)``."""
        trial = self.trial
        taught = f" taught by {trial.teacher.model}" if trial.teacher else ""
        return _inline(f"{trial.model}{taught} ({trial.method.name}, {trial.dataset.title})")


def card(subject: Subject) -> str:
    """The text of ``README.md``. Nothing published stands in it, and no licence, which is its owner's to give."""
    evaluations = read_evaluations(subject.folder)
    blocks = [
        f"---\n{_metadata(subject, evaluations)}---",
        f"# {subject.title}",
        _inline(subject.method),
        "## Measured",
        _table(["", ""], [[name, value] for name, value in _measured(subject)]),
    ]
    if evaluations:
        blocks += [f"{_inline(one.about)}:\n\n{_attacked(one)}" for one in evaluations]
    blocks += ["## Use", _inline(subject.sees), f"```python\n{subject.loading}```", "## How it was trained"]
    blocks += list(_how(subject))
    return "\n\n".join(blocks) + "\n"


def _metadata(subject: Subject, evaluations: Sequence[Evaluation]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    trial, result = subject.trial, subject.result
    hub, split = _HUB.get(trial.dataset.name, ("", "test"))

    def measured(name: str, percent: float) -> EvalResult:
        return EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=hub or trial.dataset.name,
            dataset_name=trial.dataset.title,
            dataset_split=split,
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(percent / 100, 6),
        )

    found = [measured("Top-1 accuracy", result["top1_last"])]
    if result.get("top5_last") is not None:
        found.append(measured("Top-5 accuracy", result["top5_last"]))
    for one in evaluations:
        name = list(one.columns.values())[-1]
        found.append(measured(f"Top-1 accuracy under {name}, {one.about}", one.robust))
    tags = ["image-classification", "timm", "kd-bench"]
    data = ModelCardData(
        model_name=subject.title,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=[*tags, "knowledge-distillation"] if trial.teacher else tags,
        datasets=[hub] if hub else None,
        metrics=["accuracy"],
        eval_results=found,
        distillation_method=trial.method.name if trial.teacher else None,
        teacher=trial.teacher.model if trial.teacher else None,
    )
    return f"{data.to_yaml()}\n"


def _measured(subject: Subject) -> Iterator[tuple[str, str]]:
    trial, result = subject.trial, subject.result
    yield "top-1, last epoch", f"{result['top1_last']:.2f} %"
    siblings = _siblings(subject)
    if siblings is not None:
        spread = f" ± {siblings.std:.2f}" if siblings.std is not None else ""
        yield f"the same over {siblings.n} seeds", f"{siblings.mean:.2f}{spread} % (mean ± sample standard deviation)"
    if result.get("top5_last") is not None:
        yield "top-5, last epoch", f"{result['top5_last']:.2f} %"
    if "evaluated" in result:
        yield "weights", _inline(str(result["evaluated"]))
    if trial.teacher:
        top1 = result.get("teacher_top1")
        yield "teacher", f"{_inline(trial.teacher.model)}, {f'{top1:.2f} %' if top1 is not None else 'not measured'}"
    if result.get("parameters") is not None:
        yield "parameters", f"{result['parameters']:,}"
    yield "images", _inline(f"{trial.dataset.title}: {subject.dataset}")


def _siblings(subject: Subject) -> MeanAndStd | None:
    """The trials beside it that differ in nothing but the seed, its own among them; None where there is no other."""
    own = subject.trial.model_copy(update={"seed": 0})
    found = []
    for file in sorted(subject.folder.parent.glob("*/trial.json")):
        try:
            other = Trial.model_validate_json(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if other.model_copy(update={"seed": 0}) == own:
            result = read_result(file.parent)
            if result["status"] == "done":
                found.append(float(result["top1_last"]))
    return estimate(found) if len(found) > 1 else None


def _attacked(one: Evaluation) -> str:
    rows = [["none" if key == CLEAN else name, f"{one.accuracy[key]:.2f} %"] for key, name in one.columns.items()]
    notes = [] if one.complete else ["Not all of standard AutoAttack was run, so the last number is an upper bound."]
    notes += [_inline(f"Doubtful: {line}.") for line in one.warnings]
    return "\n\n".join([_table(["attack", "top-1"], rows), *notes])


def _how(subject: Subject) -> Iterator[str]:
    packages = subject.environment.get("packages")
    packages = packages if isinstance(packages, Mapping) else {}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    device = subject.environment.get("device_name")
    on = f" on {device}" if device else ""
    yield _inline(f"By kd-bench, as trial {subject.folder.name}{on}" + (f", with {versions}." if versions else "."))
    if subject.again:
        yield f"Train it once more:\n\n```sh\n{_inline(subject.again)}\n```"
    settings = yaml.safe_dump(subject.trial.settings(), sort_keys=False, allow_unicode=True, width=100)
    yield f"All settings that the result depends on:\n\n```yaml\n{settings}```"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _inline(text: str) -> str:
    """In one line, and no markup."""
    return " ".join(text.split()).replace("<", "&lt;").replace("`", "'")
