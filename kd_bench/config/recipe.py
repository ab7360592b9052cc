"""A recipe: which pairs, methods and seeds are compared, and how they are trained.

``kd_bench.plan`` expands it to trials.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from kd_bench.config.base import PositiveInt, Settings, added_field
from kd_bench.config.data import Dataset
from kd_bench.config.trial import Seed, Training


class MethodEntry(Settings):
    """A row of the table: a method, by default the one its label names.

    Attributes:
        method: The method's name.
        hyperparameters: Those that differ from its defaults.
        training: Settings of the recipe, and of the pair, that differ for this row.
    """

    method: str
    hyperparameters: dict[str, Any] = {}
    training: dict[str, Any] = added_field({})


class PairEntry(Settings):
    """A teacher and a student, with what is particular to them.

    Attributes:
        teacher: Network that teaches; None compares methods that need no teacher.
        student: Network that learns.
        training: Settings of the recipe that differ for this pair, e.g. ``{optimizer: {lr: 0.01}}``.
        methods: Hyper-parameters that differ for this pair, by the label of the row.
    """

    teacher: str | None
    student: str
    training: dict[str, Any] = {}
    methods: dict[str, dict[str, Any]] = {}


class Recipe(Training):
    """What is compared. See ``recipes/`` for examples.

    Attributes:
        name: Folder of its results.
        description: For people.
        dataset: Which images.
        pairs: Teachers and students.
        methods: The rows, by label, in the table's order.
        trials: How many seeds, from 0; ``seeds`` names them instead.
        baseline: Label of the row that the others are compared with.
        teacher_training: Settings of the recipe that differ for training its teachers (and ``seed``, by default 0).
        teachers: The same for one teacher, by the network's name; with ``weights`` it is not trained, but read from
            that file, or from the file that its card names where ``weights`` is ``published``.
        published: Published numbers that the table shows beside those that were measured by their protocol: the name
            of a file in ``results/published/``, or a file of that kind; None for none.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    dataset: Dataset
    pairs: Annotated[tuple[PairEntry, ...], Field(min_length=1)]
    methods: Annotated[dict[str, MethodEntry], Field(min_length=1)]
    trials: PositiveInt = 3
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    baseline: str = "kd"
    teacher_training: dict[str, Any] = {}
    teachers: dict[str, dict[str, Any]] = {}
    published: Annotated[str, Field(min_length=1)] | None = None

    def shared_training(self) -> dict[str, Any]:
        """The part of the recipe that pairs and teachers may override, as plain values."""
        return self.model_dump(mode="json", include=set(Training.model_fields))

    def all_seeds(self) -> tuple[int, ...]:
        """The seeds, one a trial."""
        return tuple(dict.fromkeys(self.seeds)) if self.seeds else tuple(range(self.trials))
