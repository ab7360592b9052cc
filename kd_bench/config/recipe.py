"""A recipe: the pairs, methods and seeds that are compared, and how they are trained.

``kd_bench.plan`` expands a recipe to trials.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from kd_bench.config.base import NonEmpty, Settings, added_field
from kd_bench.config.data import Dataset
from kd_bench.config.limits import Label, RecipeName, Trials
from kd_bench.config.trial import Seeds, Training

#: A mark of hyper-parameters that nobody published for a pair: true, or what was used instead, in words.
Untuned = bool | NonEmpty


class MethodEntry(Settings):
    """A row of the table: a method, by default the one its label names.

    Attributes:
        method: The method's name; needed only if the label is no method's name.
        hyperparameters: Hyper-parameters that differ from the method's defaults. A recipe may write them beside the
            other keys of the row, as in ``kd: {temperature: 2}``.
        training: Settings of the recipe and the pair that differ for this row.
        untuned: Whether no hyper-parameters of the row are published for the pairs; text says what was used instead,
            e.g. "the settings of VGG13 to VGG8". The tables mark such rows. It is no part of a trial.
    """

    method: str
    hyperparameters: dict[str, Any] = {}
    training: dict[str, Any] = added_field({})
    untuned: Untuned = added_field(False)


class RowOfPair(Settings):
    """What a pair changes in a row besides hyper-parameters.

    Attributes:
        training: Settings of the row's training that differ for this pair.
        untuned: The row's mark for this pair; None for that of the row.
    """

    training: dict[str, Any] = {}
    untuned: Untuned | None = None


class PairEntry(Settings):
    """A teacher and a student, with the settings that differ for them.

    Attributes:
        teacher: Name of the teacher's network; None to compare methods that need no teacher.
        student: Name of the student's network.
        training: Settings of the recipe that differ for this pair, e.g. ``{optimizer: {lr: 0.01}}``.
        methods: What differs for this pair, by label of the row: hyper-parameters, ``training`` and ``untuned``.
        leave_out: Labels of the rows that this pair does not have, such as a method that its networks do not allow.
    """

    teacher: str | None
    student: str
    training: dict[str, Any] = {}
    methods: dict[str, dict[str, Any]] = {}
    leave_out: tuple[str, ...] = added_field(())


class Recipe(Training):
    """A comparison of methods. See ``recipes/`` for examples.

    Attributes:
        name: Name of the recipe and of the folder of its results; by default that of its file.
        description: A sentence about the recipe, for people.
        dataset: The images. ``dataset: cifar100`` is short for ``dataset: {name: cifar100}``.
        pairs: Teachers and students. Each row is trained for each pair.
        methods: The rows by label, in the table's order. A list of methods is short for rows without settings.
        trials: Number of trials of each row and pair. Their seeds are 0, 1 and so on.
        seeds: The seeds as a list, instead of ``trials``.
        baseline: Label of the row that the others are compared with: the table shows their differences to it, paired by
            seed. If the recipe has no such row, there are no differences.
        teacher_training: Settings of the training that differ for all teachers, and the keys of ``teachers``.
        teachers: Settings of the training that differ for one teacher, by the name of its network; and where its
            weights come from, and its seeds.
        published: Published numbers that the table shows beside results measured by the same protocol: the name of a
            file in ``results/published/``, or the path of such a file, or a list of them; None for none.
        notes: Sentences that stand below the table.
    """

    name: RecipeName
    description: str = ""
    dataset: Dataset
    pairs: Annotated[tuple[PairEntry, ...], Field(min_length=1)]
    methods: Annotated[dict[Label, MethodEntry], Field(min_length=1)]
    trials: Trials = 3
    seeds: Seeds | None = None
    baseline: str = "kd"
    teacher_training: dict[str, Any] = {}
    teachers: dict[str, dict[str, Any]] = {}
    published: NonEmpty | tuple[NonEmpty, ...] | None = None
    notes: tuple[NonEmpty, ...] = added_field(())

    @model_validator(mode="after")
    def _check_name(self) -> Recipe:
        if self.name.casefold() == "teachers" and any(row.method != "none" for row in self.methods.values()):
            raise ValueError(
                f"name: {self.name!r} is the folder of the trained teachers, where students do not belong; choose "
                "another name (it is the name of the recipe's file unless the recipe has a name)"
            )
        return self

    def shared_training(self) -> dict[str, Any]:
        """Returns the settings that pairs and teachers may override, as plain JSON values."""
        return self.model_dump(mode="json", include=set(Training.model_fields))

    def rows_of(self, pair: PairEntry) -> dict[str, MethodEntry]:
        """Returns the rows of a pair by label."""
        return {label: row for label, row in self.methods.items() if label not in pair.leave_out}

    def published_names(self) -> tuple[str, ...]:
        """Returns the names of the files of published numbers."""
        return (self.published,) if isinstance(self.published, str) else self.published or ()

    def all_seeds(self) -> tuple[int, ...]:
        """Returns the seeds, one per trial."""
        return self.seeds or tuple(range(self.trials))
