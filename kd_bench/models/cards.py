"""Reads the cards of ``teachers/`` and ``students/``: published facts about a network on a data set, with their source.

A card is a file, ``teachers/<data set>/<name>.yaml`` or ``students/<data set>/<name>.yaml``. A card in the working
folder replaces the packaged card of the same path. Reading cards builds no network.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kd_bench.config.base import Settings, Sha256
from kd_bench.config.data import Input
from kd_bench.config.network_names import short_name
from kd_bench.config.numbers import Positive, PositiveCount
from kd_bench.config.validate import parse
from kd_bench.config.yaml_reader import read_mapping
from kd_bench.models.registry import PUBLISHED_NAMES
from kd_bench.utils.errors import unknown
from kd_bench.utils.paths import package_path

Role = Literal["teachers", "students"]

Percent = Annotated[float, Field(ge=0, le=100)]
Url = Annotated[str, Field(pattern=r"^https?://\S+$")]
Text = Annotated[str, Field(min_length=1)]


class Accuracy(Settings):
    """A published top-1 accuracy in percent, and its publication."""

    value: Percent
    source: Text


class Robustness(Settings):
    """A published robust accuracy under l-infinity attacks of at most 8/255.

    Attributes:
        setting: Name of the training's setting, e.g. its augmentation.
        clean: Top-1 accuracy without an attack, in percent.
        autoattack: Top-1 accuracy under AutoAttack (Croce and Hein, 2020), in percent.
        source: Publication of the values.
        page: Web page from which the authors' weights can be downloaded.
    """

    setting: Text
    clean: Percent
    autoattack: Percent
    source: Text
    page: Url | None = None


class Weights(Settings):
    """A source of published weights.

    Attributes:
        url: Address of the file, or of the archive that contains it.
        member: Path of the file in the archive; None if ``url`` is the file itself.
        key: Dotted key of the state dict in the file; None if the file is the state dict.
        sha256: Checksum of the file, not of the archive; None if none is published.
    """

    url: Url
    member: Text | None = None
    key: Text | None = None
    sha256: Sha256 | None = None


class TrainedBy(Settings):
    """The recipe that trains the network, e.g. ``cifar100/teachers``."""

    recipe: Text


class Pairing(Settings):
    """A teacher with which published results of a student exist.

    Attributes:
        teacher: Name of the teacher's card for the same data set.
        kd: Top-1 accuracy by classical distillation (Hinton et al., 2015), in percent; the baseline of other methods.
        source: Publication of ``kd``.
    """

    teacher: Text
    kd: Percent | None = None
    source: Text | None = None

    @model_validator(mode="after")
    def _number_has_a_source(self) -> Pairing:
        if self.kd is not None and self.source is None:
            raise ValueError("kd needs a source")
        return self


class TeacherFile(Settings):
    """Content of a teacher's card.

    Attributes:
        model: timm's name of the network, as returned by ``registry.resolve``.
        published_name: Name of the network in the literature.
        description: One line of text.
        parameters: Number of its parameters with a classifier for this data set.
        top1: Published accuracies without distillation.
        robust: Published accuracies after adversarial training.
        weights: Sources of its weights, the preferred one first.
        timm: Whether timm has its weights, under the tag in ``model``.
        input: Size and normalisation of the network's images.
        train: The recipe that trains it.
        notes: Further text, one or more sentences each.
    """

    model: Text
    published_name: Text
    description: str = ""
    parameters: PositiveCount | None = None
    top1: tuple[Accuracy, ...] = ()
    robust: tuple[Robustness, ...] = ()
    weights: tuple[Weights, ...] = ()
    timm: bool = False
    input: Input = Input()
    train: TrainedBy | None = None
    notes: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _timm_needs_a_tag(self) -> TeacherFile:
        if self.timm and "." not in self.model:
            raise ValueError("timm: true needs a model with its tag, e.g. resnet50.tv_in1k")
        if self.timm and self.weights:
            raise ValueError("timm: true and weights exclude each other")
        return self


class StudentFile(TeacherFile):
    """Content of a student's card.

    Attributes:
        learning_rate: Learning rate of the published recipe for this student.
        teachers: Teachers with which published results exist.
    """

    learning_rate: Positive | None = None
    teachers: tuple[Pairing, ...] = ()


class Card(StudentFile):
    """A card with the facts that its path encodes.

    Attributes:
        role: Whether the network is a teacher or a student.
        dataset: Name of the data set.
        name: Name of the file without suffix.
        path: The file.
    """

    role: Role
    dataset: str
    name: str
    path: Path


_CONTENTS: dict[Role, type[TeacherFile]] = {"teachers": TeacherFile, "students": StudentFile}


def load_all(role: Role, dataset: str | None = None) -> list[Card]:
    """Returns the cards, sorted by data set and name; of all data sets if ``dataset`` is None.

    Raises:
        UserError: If a card is not valid YAML, or has an invalid key or value.
    """
    paths = {(path.parent.name, path.stem): path for path in _paths(role, dataset)}
    return [_read(path, role) for _, path in sorted(paths.items())]


def load(role: Role, dataset: str, name: str, context: str = "") -> Card:
    """Returns one card.

    Args:
        role, dataset: The card's folder.
        name: Name of the card, or of the network as for ``registry.resolve``: "resnet32x4", "cifar_resnet32x4" and
            "ResNet32x4" are the same.
        context: Where the name was written, for the error.

    Raises:
        UserError: If there is no such card; also as ``load_all``.
    """
    cards = load_all(role, dataset)
    if card := _best_match(cards, name):
        return card
    if not cards:
        raise unknown(f"dataset with {role}' cards", dataset, {card.dataset for card in load_all(role)}, context)
    raise unknown(f"{role.removesuffix('s')} of {dataset}", name, [card.name for card in cards], context)


def find(role: Role, dataset: str, model: str) -> Card | None:
    """Returns the card of a network by any name that ``load`` accepts; None if there is none.

    Raises:
        UserError: As ``load_all``.
    """
    return _best_match(load_all(role, dataset), model)


def published_pairs(dataset: str) -> list[tuple[Card, Card]]:
    """Returns the published pairs (teacher, student) of a data set, by student and in the order of the student's card.

    Raises:
        UserError: If a teacher has no card; also as ``load_all``.
    """
    return [
        (load("teachers", dataset, pairing.teacher, f"{student.path}: teachers"), student)
        for student in load_all("students", dataset)
        for pairing in student.teachers
    ]


def summary(card: Card) -> str:
    """Returns one line for a list, without the card's name."""
    parts = [f"{card.published_name} on {card.dataset}"]
    parts += [f"{card.parameters / 1e6:.2f} M parameters"] if card.parameters else []
    parts += [_percent(card.top1[0].value)] if card.top1 else []
    parts += [_robust(card.robust[0])] if card.robust and not card.top1 else []
    parts += ["weights published"] if card.weights or card.timm else []
    return ", ".join(parts)


def describe(card: Card) -> str:
    """Returns the content of a card and the networks that it is published with, as text.

    Raises:
        UserError: As ``published_pairs``.
    """
    lines = [f"{card.name}: {card.published_name}, a {card.role.removesuffix('s')} on {card.dataset}"]
    lines += ["", card.description] if card.description else []
    lines += ["", f"model: {card.model}"]
    lines += [f"parameters: {card.parameters:,}"] if card.parameters else []
    without = " without distillation" if card.role == "students" else ""
    lines += [f"top-1{without}: {_percent(accuracy.value)} ({accuracy.source})" for accuracy in card.top1]
    for robust in card.robust:
        lines.append(f"robust, {robust.setting}: {_robust(robust)} ({robust.source})")
        lines += [f"  weights on {robust.page}"] if robust.page else []
    lines += [f"learning rate: {card.learning_rate:g}"] if card.learning_rate else []
    lines += [f"image size: {card.input.size}"] if card.input.size else []
    lines += ["normalisation: the network's own"] if card.input.normalise == "network" else []
    for source in card.weights:
        details = {"file in it": source.member, "key in the file": source.key, "SHA-256 of the file": source.sha256}
        lines.append(f"weights: {source.url}")
        lines += [f"  {title}: {detail}" for title, detail in details.items() if detail]
    lines += ["weights: timm's"] if card.timm else []
    lines += [f"trained here by: kd-bench run {card.train.recipe}"] if card.train else []
    lines += _published_with(card)
    lines += [line for note in card.notes for line in ("", " ".join(note.split()))]
    return "\n".join([*lines, "", f"card: {card.path}"])


def _percent(value: float) -> str:
    return f"{value:.2f} %"


def _robust(robust: Robustness) -> str:
    return f"{_percent(robust.clean)} clean, {_percent(robust.autoattack)} under AutoAttack"


def _published_with(card: Card) -> list[str]:
    """Returns lines about the students of a teacher, or the teachers of a student."""
    if card.role == "teachers":
        students = [student.name for teacher, student in published_pairs(card.dataset) if teacher.name == card.name]
        return [f"published with the students: {', '.join(students)}"] if students else []
    lines = []
    for pairing in card.teachers:
        teacher = load("teachers", card.dataset, pairing.teacher, f"{card.path}: teachers")
        top1 = f" ({_percent(teacher.top1[0].value)})" if teacher.top1 else ""
        kd = "" if pairing.kd is None else f": {_percent(pairing.kd)} by classical distillation ({pairing.source})"
        lines.append(f"published with the teacher {teacher.name}{top1}{kd}")
    return lines


def _best_match(cards: list[Card], name: str) -> Card | None:
    """Returns the card with this name, else a card whose network has it; None if there is none."""
    matches = [card for card in cards if name in _names(card)]
    return min(matches, key=lambda card: card.name not in {name, short_name(name)}, default=None)


def _names(card: Card) -> set[str]:
    untagged = card.model.partition(".")[0]
    published = {name for name, model in PUBLISHED_NAMES.items() if model == card.model}
    return {card.name, card.published_name, card.model, untagged, short_name(card.model)} | published


def _paths(role: Role, dataset: str | None) -> Iterator[Path]:
    """Yields the paths of the cards, packaged ones first."""
    for root in (package_path(role), Path(role)):
        for folder in root.iterdir() if root.is_dir() else ():
            if dataset in {None, folder.name}:
                yield from folder.glob("*.yaml")


def _read(path: Path, role: Role) -> Card:
    content = parse(_CONTENTS[role], read_mapping(path, "card"), str(path))
    fields = {key: getattr(content, key) for key in type(content).model_fields}
    return Card(**fields, role=role, dataset=path.parent.name, name=path.stem, path=path)
