"""The cards of ``teachers/`` and ``students/``: what is published of a network on a data set, with its source.

A card is a file, ``teachers/<data set>/<name>.yaml`` or ``students/<data set>/<name>.yaml``. Those in the working
folder outrank the packaged ones of the same place. Reading them costs next to nothing: no network is built for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kd_bench.config.base import Positive, PositiveInt, Settings
from kd_bench.config.data import Input
from kd_bench.config.load import parse, read_mapping
from kd_bench.models.registry import PREFIX, PUBLISHED_NAMES
from kd_bench.utils.errors import unknown
from kd_bench.utils.paths import package_path

Role = Literal["teachers", "students"]

Percent = Annotated[float, Field(ge=0, le=100)]
Url = Annotated[str, Field(pattern=r"^https?://\S+$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1)]


class Accuracy(Settings):
    """A published top-1 accuracy.

    Attributes:
        value: In percent.
        source: Who says so.
    """

    value: Percent
    source: Text


class Robustness(Settings):
    """A published robust accuracy: l-infinity attacks of at most 8/255.

    Attributes:
        setting: What sets this training apart from the others, e.g. its augmentation.
        clean: Top-1 accuracy without an attack, in percent.
        autoattack: Top-1 accuracy under AutoAttack (Croce and Hein, 2020), in percent.
        source: Who says so.
        page: Web page where the authors offer the weights.
    """

    setting: Text
    clean: Percent
    autoattack: Percent
    source: Text
    page: Url | None = None


class Weights(Settings):
    """A place that published weights can be had from.

    Attributes:
        url: The file, or the archive that it is in.
        member: The file's path in the archive; None where ``url`` is the file itself.
        key: Where in the file the state dict is, with dots; None where the file is nothing else.
        sha256: Of the file, not of the archive; None where nobody has published it.
    """

    url: Url
    member: Text | None = None
    key: Text | None = None
    sha256: Sha256 | None = None


class TrainedBy(Settings):
    """How to train the network here.

    Attributes:
        recipe: Name of a recipe, e.g. ``cifar100/teachers``.
    """

    recipe: Text


class Pairing(Settings):
    """A teacher that a student is published with.

    Attributes:
        teacher: Name of the teacher's card for the same data set.
        kd: Top-1 accuracy by classical distillation (Hinton et al., 2015) in percent, what other methods are compared
            with.
        source: Who says so.
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
    """What may stand in a teacher's card.

    Attributes:
        model: The network by timm's name, as ``registry.resolve`` gives it.
        published_name: What the literature calls it.
        description: For people, a line.
        parameters: Number of its parameters with a classifier for this data set.
        top1: Published accuracies without distillation.
        robust: Published accuracies after adversarial training.
        weights: Places to get its weights from, the preferred one first.
        timm: Whether timm has its weights, under the tag that ``model`` names.
        input: How the network sees images.
        train: How to train it here.
        notes: What else one should know, a sentence or more each.
    """

    model: Text
    published_name: Text
    description: str = ""
    parameters: PositiveInt | None = None
    top1: tuple[Accuracy, ...] = ()
    robust: tuple[Robustness, ...] = ()
    weights: tuple[Weights, ...] = ()
    timm: bool = False
    input: Input = Input()
    train: TrainedBy | None = None
    notes: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _timm_knows_which_weights(self) -> TeacherFile:
        if self.timm and "." not in self.model:
            raise ValueError("timm: true needs a model with its tag, e.g. resnet50.tv_in1k")
        if self.timm and self.weights:
            raise ValueError("timm: true and weights exclude each other")
        return self


class StudentFile(TeacherFile):
    """What may stand in a student's card.

    Attributes:
        learning_rate: The published recipe's for this student.
        teachers: Whom it is published with.
    """

    learning_rate: Positive | None = None
    teachers: tuple[Pairing, ...] = ()


class Card(StudentFile):
    """A card, and what its place says.

    Attributes:
        role: Whether it teaches or learns.
        dataset: The images it is for.
        name: What it is called here: the file's name.
        path: The file.
    """

    role: Role
    dataset: str
    name: str
    path: Path


_KINDS: dict[Role, type[TeacherFile]] = {"teachers": TeacherFile, "students": StudentFile}


def cards(role: Role, dataset: str | None = None) -> list[Card]:
    """The cards there are, sorted by data set and name.

    Args:
        role: Whose.
        dataset: Only those for this data set; None for all.

    Raises:
        UserError: For a card that is no YAML, or has a key or value that is not a card's.
    """
    found = {(path.parent.name, path.stem): path for path in _paths(role, dataset)}
    return [_read(path, role) for _, path in sorted(found.items())]


def card(role: Role, dataset: str, name: str, context: str = "") -> Card:
    """One card.

    Args:
        role: Whose.
        dataset: For which images.
        name: The card's own name, or the network's as ``registry.resolve`` takes it: "resnet32x4", "cifar_resnet32x4"
            and "ResNet32x4" are the same.
        context: Where the name was written, for the error.

    Raises:
        UserError: Where there is no such card; and as ``cards``.
    """
    there = cards(role, dataset)
    found = _lookup(there, name)
    if found is not None:
        return found
    if not there:
        raise unknown(f"dataset with {role}' cards", dataset, {one.dataset for one in cards(role)}, context)
    raise unknown(f"{role.removesuffix('s')} of {dataset}", name, [one.name for one in there], context)


def find(role: Role, dataset: str, model: str) -> Card | None:
    """The card of a network, by any name that ``card`` takes; None where it has none.

    Raises:
        UserError: As ``cards``.
    """
    return _lookup(cards(role, dataset), model)


def pairs(dataset: str) -> list[tuple[Card, Card]]:
    """The published teachers and students of a data set, sorted by student and then as its card lists its teachers.

    Raises:
        UserError: For a teacher that has no card; and as ``cards``.
    """
    return [
        (card("teachers", dataset, pairing.teacher, f"{student.path}: teachers"), student)
        for student in cards("students", dataset)
        for pairing in student.teachers
    ]


def summary(one: Card) -> str:
    """A line for a list, without the card's name."""
    parts = [f"{one.published_name} on {one.dataset}"]
    parts += [f"{one.parameters / 1e6:.2f} M parameters"] if one.parameters else []
    parts += [_percent(one.top1[0].value)] if one.top1 else []
    parts += [_robust(one.robust[0])] if one.robust and not one.top1 else []
    parts += ["weights published"] if one.weights or one.timm else []
    return ", ".join(parts)


def describe(one: Card) -> str:
    """The text for people: everything that the card says, and whom the network is published with.

    Raises:
        UserError: As ``pairs``.
    """
    lines = [f"{one.name}: {one.published_name}, a {one.role.removesuffix('s')} on {one.dataset}"]
    lines += ["", one.description] if one.description else []
    lines += ["", f"model: {one.model}"]
    lines += [f"parameters: {one.parameters:,}"] if one.parameters else []
    without = " without distillation" if one.role == "students" else ""
    lines += [f"top-1{without}: {_percent(each.value)} ({each.source})" for each in one.top1]
    for each in one.robust:
        lines.append(f"robust, {each.setting}: {_robust(each)} ({each.source})")
        lines += [f"  weights on {each.page}"] if each.page else []
    lines += [f"learning rate: {one.learning_rate:g}"] if one.learning_rate else []
    lines += [f"image size: {one.input.size}"] if one.input.size else []
    lines += ["normalisation: the network's own"] if one.input.normalise == "network" else []
    lines += [line for place in one.weights for line in _place(place)]
    lines += ["weights: timm's"] if one.timm else []
    lines += [f"trained here by: kd-bench run {one.train.recipe}"] if one.train else []
    lines += _company(one)
    lines += [line for note in one.notes for line in ("", " ".join(note.split()))]
    return "\n".join([*lines, "", f"card: {one.path}"])


def _percent(value: float) -> str:
    return f"{value:.2f} %"


def _robust(each: Robustness) -> str:
    return f"{_percent(each.clean)} clean, {_percent(each.autoattack)} under AutoAttack"


def _place(place: Weights) -> list[str]:
    details = {"file in it": place.member, "key in the file": place.key, "SHA-256 of the file": place.sha256}
    return [f"weights: {place.url}", *(f"  {title}: {detail}" for title, detail in details.items() if detail)]


def _company(one: Card) -> list[str]:
    """Lines about whom a network is published with."""
    if one.role == "teachers":
        students = [student.name for teacher, student in pairs(one.dataset) if teacher.name == one.name]
        return [f"published with the students: {', '.join(students)}"] if students else []
    lines = []
    for pairing in one.teachers:
        teacher = card("teachers", one.dataset, pairing.teacher, f"{one.path}: teachers")
        top1 = f" ({_percent(teacher.top1[0].value)})" if teacher.top1 else ""
        gain = "" if pairing.kd is None else f": {_percent(pairing.kd)} by classical distillation ({pairing.source})"
        lines.append(f"published with the teacher {teacher.name}{top1}{gain}")
    return lines


def _lookup(there: list[Card], name: str) -> Card | None:
    """The card that ``name`` fits best: one that is called so goes before one whose network is."""
    fitting = [one for one in there if name in _names(one)]
    return min(fitting, key=lambda one: one.name not in {name, name.removeprefix(PREFIX)}, default=None)


def _names(one: Card) -> set[str]:
    untagged = one.model.partition(".")[0]
    published = {name for name, model in PUBLISHED_NAMES.items() if model == one.model}
    return {one.name, one.published_name, one.model, untagged, one.model.removeprefix(PREFIX)} | published


def _paths(role: Role, dataset: str | None) -> Iterator[Path]:
    """The files, packaged ones first."""
    for root in (package_path(role), Path(role)):
        for folder in root.iterdir() if root.is_dir() else ():
            if dataset in {None, folder.name}:
                yield from folder.glob("*.yaml")


def _read(path: Path, role: Role) -> Card:
    content = parse(_KINDS[role], read_mapping(path, "card"), str(path))
    written = {key: getattr(content, key) for key in type(content).model_fields}
    return Card(**written, role=role, dataset=path.parent.name, name=path.stem, path=path)
