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
        method: The method's name.
        hyperparameters: Hyper-parameters that differ from the method's defaults.
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
        methods: Hyper-parameters that differ for this pair, by label of the row; and the keys of ``RowOfPair``.
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
        name: Name of the folder of its results.
        description: For people.
        dataset: The images.
        pairs: Teachers and students.
        methods: The rows by label, in the table's order.
        trials: Number of seeds, from 0.
        seeds: The seeds, instead of ``trials``.
        baseline: Label of the row that the others are compared with.
        teacher_training: Settings of the recipe that differ for the training of its teachers (and ``seed``, by default
            0, or ``seeds``, their number or a list: each student's seed is then trained with each teacher).
        teachers: The same for one teacher, by the network's name. With ``weights`` the teacher is not trained but read
            from that file, or, if ``weights`` is ``published``, from the file that its card names. With ``pretrained``
            training starts from a file, and ``trainable`` may be a part of the network, see ``config/teacher_start``.
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
