"""Writes the model card of a trained student: metadata for the Hugging Face hub, and a page of measured results."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kd_bench.config.trial import Trial
from kd_bench.report.attack_table import CLEAN, Evaluation, read_evaluations
from kd_bench.report.statistics import estimate
from kd_bench.trials.reader import read_trial


@dataclass(frozen=True)
class CardSubject:
    """The student that a card describes.

    Attributes:
        folder: Folder of the trial.
        trial: Settings of the trial.
        result: Its ``result.json``, with the status "done".
        environment: Its ``environment.json``; empty if there is none.
        method: A sentence about the method.
        dataset: Title of the dataset.
        hub: Id of the dataset on the Hugging Face hub and name of its test split; None if it is not there.
        input_description: A sentence about the images that the network takes.
        loading_code: Python code that loads the network, if the card's folder is the working folder.
        training_command: The command that trains it again; empty if it is not known.
        kept_layers: Layers that the method keeps in the student: names, what they are, and their numbers of parameters.
        loads_in_timm: Whether timm can build the network.
    """

    folder: Path
    trial: Trial
    result: Mapping[str, Any]
    environment: Mapping[str, Any]
    method: str
    dataset: str
    hub: tuple[str, str] | None
    input_description: str
    loading_code: str
    training_command: str
    kept_layers: Sequence[tuple[str, str, int]] = ()
    loads_in_timm: bool = True

    @property
    def title(self) -> str:
        """Networks, method and dataset, as in ``cifar_resnet8 taught by cifar_resnet14 (kd, digits)``."""
        trial = self.trial
        teacher = f" taught by {trial.teacher.model}" if trial.teacher else ""
        return _inline(f"{trial.model}{teacher} ({trial.method.title}, {trial.dataset.title})")


def model_card(subject: CardSubject) -> str:
    """Returns the text of ``README.md``. It has no published numbers and no licence, which the owner must choose."""
    evaluations = read_evaluations(subject.folder)
    blocks = [
        f"---\n{_metadata(subject, evaluations)}---",
        f"# {subject.title}",
        _inline(subject.method),
        "## Measured",
        _table(["", ""], list(_measured(subject))),
        *(f"{_inline(evaluation.description)}:\n\n{_attacked(evaluation)}" for evaluation in evaluations),
        *_kept_layers(subject),
        "## Use",
        _inline(subject.input_description),
        f"```python\n{subject.loading_code}```",
        "## How it was trained",
        *_training(subject),
    ]
    return "\n\n".join(blocks) + "\n"


def _metadata(subject: CardSubject, evaluations: Sequence[Evaluation]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    trial, result = subject.trial, subject.result
    hub, split = subject.hub or ("", "test")
    accuracies = {"Top-1 accuracy": result["top1_last"], "Top-5 accuracy": result.get("top5_last")}
    for evaluation in evaluations:
        name = list(evaluation.columns.values())[-1]
        accuracies[f"Top-1 accuracy under {name}, {evaluation.description}"] = evaluation.robust
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=hub or trial.dataset.name,
            dataset_name=trial.dataset.title,
            dataset_split=split,
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(percent / 100, 6),
        )
        for name, percent in accuracies.items()
        if percent is not None
    ]
    tags = ["image-classification", *(["timm"] if subject.loads_in_timm else []), "kd-bench"]
    data = ModelCardData(
        model_name=subject.title,
        library_name="timm" if subject.loads_in_timm else None,
        pipeline_tag="image-classification",
        tags=[*tags, "knowledge-distillation"] if trial.teacher else tags,
        datasets=[hub] if hub else None,
        metrics=["accuracy"],
        eval_results=results,
        distillation_method=trial.method.title if trial.teacher else None,
        teacher=trial.teacher.model if trial.teacher else None,
    )
    return f"{data.to_yaml()}\n"


def _measured(subject: CardSubject) -> Iterator[tuple[str, str]]:
    trial, result = subject.trial, subject.result
    yield "top-1, last epoch", f"{result['top1_last']:.2f} %"
    by_seed = _top1_by_seed(subject)
    if len(by_seed) > 1 and (seeds := estimate(list(by_seed.values()))):
        yield f"the same over {seeds.n} seeds", f"{seeds} % (mean ± sample standard deviation)"
    if result.get("top5_last") is not None:
        yield "top-5, last epoch", f"{result['top5_last']:.2f} %"
    if "evaluated" in result:
        yield "weights", _inline(str(result["evaluated"]))
    if trial.teacher:
        top1 = result.get("teacher_top1")
        yield "teacher", f"{_inline(trial.teacher.model)}, {f'{top1:.2f} %' if top1 is not None else 'not measured'}"
    if result.get("parameters") is not None:
        of_layers = result.get("kept_parameters")
        of_method = f", of which {of_layers:,} in layers of {_inline(trial.method.name)}" if of_layers else ""
        yield "parameters", f"{result['parameters']:,}{of_method}"
    yield "images", _inline(f"{trial.dataset.title}: {subject.dataset}")


def _kept_layers(subject: CardSubject) -> Iterator[str]:
    """Yields the part of the card about the layers that the method keeps; nothing if it keeps none."""
    if not subject.kept_layers:
        return
    yield "## Layers of the method"
    yield _inline(
        f"{subject.trial.method.name} keeps these layers in the student, in place of the network's own pooling and "
        "classifier. All numbers of this page include them."
    )
    rows = [(name, _inline(layer), f"{parameters:,}") for name, layer, parameters in subject.kept_layers]
    yield _table(["name", "layer", "parameters"], rows)


def _top1_by_seed(subject: CardSubject) -> dict[int, float]:
    """Returns the accuracies of all finished trials of the folder with the same settings except the seed, by seed."""
    settings = subject.trial.settings() | {"seed": 0}
    top1 = {}
    for file in sorted(subject.folder.parent.glob("*/trial.json")):
        record = read_trial(file.parent)
        if record.verdict != "done" or record.settings is None or record.result is None:
            continue
        if record.settings | {"seed": 0} == settings:
            top1[int(record.settings["seed"])] = float(record.result["top1_last"])
    return top1


def _command(subject: CardSubject) -> str:
    """Returns the command that trains the student again, with as many trials as the card has seeds.

    The command of a trial may have asked for fewer, if a later command trained the other seeds.
    """
    trials = max(_top1_by_seed(subject), default=0) + 1
    return re.sub(
        r"(--trials[ =]|\btrials=)(\d+)",
        lambda option: f"{option[1]}{max(int(option[2]), trials)}",
        subject.training_command,
    )


def _attacked(evaluation: Evaluation) -> str:
    accuracy, columns = evaluation.accuracy, evaluation.columns
    rows = [("none" if key == CLEAN else name, f"{accuracy[key]:.2f} %") for key, name in columns.items()]
    notes = [_inline(f"Doubtful: {warning}.") for warning in evaluation.warnings]
    if not evaluation.complete:
        notes.insert(0, "Not all of standard AutoAttack was run, so the last number is an upper bound.")
    return "\n\n".join([_table(["attack", "top-1"], rows), *notes])


def _training(subject: CardSubject) -> Iterator[str]:
    packages = subject.environment.get("packages")
    packages = packages if isinstance(packages, Mapping) else {}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    device = subject.environment.get("device_name")
    on = f" on {device}" if device else ""
    versions = f", with {versions}" if versions else ""
    yield _inline(f"By kd-bench, as trial {subject.folder.name}{on}{versions}.")
    if subject.training_command:
        yield f"Train it once more:\n\n```sh\n{_inline(_command(subject))}\n```"
    settings = yaml.safe_dump(subject.trial.settings(), sort_keys=False, allow_unicode=True, width=100)
    yield f"All settings that the result depends on:\n\n```yaml\n{settings}```"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _inline(text: str) -> str:
    """Returns text in one line, without markup."""
    return " ".join(text.split()).replace("<", "&lt;").replace("`", "'")
