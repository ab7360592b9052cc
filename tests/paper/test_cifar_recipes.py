"""The recipes of the published pairs of CIFAR-100: what they plan, and that their settings are the published ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial
from kd_bench.models import cards
from kd_bench.plan import plan
from kd_bench.report import published_numbers
from kd_bench.report.results_frame import read_results
from kd_bench.report.summarise import summarise

TABLE6_PAIRS = [
    ("resnet32x4", "shufflenet_v1"),
    ("wrn_40_2", "shufflenet_v1"),
    ("vgg13", "mobilenet_v2"),
    ("resnet50", "mobilenet_v2"),
    ("resnet32x4", "shufflenet_v2"),
]
OTHER_PAIRS = [
    ("resnet56", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet110", "resnet20"),
    ("resnet32x4", "resnet8x4"),
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("vgg13", "vgg8"),
    ("resnet50", "vgg8"),
]
#: Cells without published weights.
UNPUBLISHED = {
    ("vgg13", "mobilenet_v2", "reviewkd"),
    ("resnet50", "mobilenet_v2", "reviewkd"),
    ("vgg13", "vgg8", "reviewkd"),
    *(("resnet110", "resnet20", method) for method in ("reviewkd", "dkd", "ikl_kd")),
    *(("resnet50", "vgg8", method) for method in ("reviewkd", "dkd", "ikl_kd")),
}
RECIPES = ["cifar100/table6", "cifar100/other_pairs", "cifar100/dist", "cifar100/ikl_variants"]
#: Of the pair, as in the authors' files: DKD's BETA; IKL's ALPHA, which is our beta, and its BETA; ReviewKD's weight.
FACTS = {
    ("resnet32x4", "shufflenet_v1"): (8, 1, 8, 5),
    ("wrn_40_2", "shufflenet_v1"): (8, 1, 4, 5),
    ("vgg13", "mobilenet_v2"): (6, 4, 12, None),
    ("resnet50", "mobilenet_v2"): (8, 1, 12, None),
    ("resnet32x4", "shufflenet_v2"): (8, 3, 12, 8),
    ("resnet32x4", "resnet8x4"): (8, 1, 8, 5),
    ("wrn_40_2", "wrn_16_2"): (6, 3, 12, 5),
    ("wrn_40_2", "wrn_40_1"): (6, 1, 8, 5),
    ("resnet110", "resnet32"): (2, 1, 12, 1),
    ("resnet56", "resnet20"): (2, 1, 4, 0.6),
    ("vgg13", "vgg8"): (6, 1, 12, None),
}


def planned(name: str) -> list[PlannedTrial]:
    return plan(read_recipe(name), name)


def pair_of(cell: PlannedTrial) -> tuple[str, str]:
    return cell.teacher.removeprefix("cifar_"), cell.student.removeprefix("cifar_")


def cells(*names: str) -> dict[tuple[str, str, str], PlannedTrial]:
    """Seed 0 of every cell."""
    return {(*pair_of(cell), cell.label): cell for name in names for cell in planned(name) if cell.seed == 0}


@pytest.mark.parametrize(
    ("name", "pairs", "labels", "shared"),
    [
        # A student's trials without a teacher stand under both of its pairs and are trained once.
        ("cifar100/table6", TABLE6_PAIRS, "none fitnet rkd crd ofd reviewkd dkd kd ikl_kd", 2),
        ("cifar100/other_pairs", OTHER_PAIRS, "none fitnet rkd crd ofd reviewkd dkd kd ikl_kd dist", 2),
        ("cifar100/dist", None, "none kd dist dist_as_written", 0),
        ("cifar100/ikl_variants", TABLE6_PAIRS, "none kl dkl ikl ikl_class_1 ikl_class_2 ikl_class_4", 2),
    ],
)
def test_what_is_planned(name: str, pairs: list[tuple[str, str]] | None, labels: str, shared: int) -> None:
    trials = planned(name)
    assert list(dict.fromkeys(cell.label for cell in trials)) == labels.split()
    if pairs is not None:
        assert list(dict.fromkeys(pair_of(cell) for cell in trials)) == pairs
    counts = Counter((pair_of(cell), cell.label) for cell in trials)
    assert set(counts.values()) == {3}
    assert len({cell.trial_id for cell in trials}) == len(trials) - 3 * shared


def test_the_number_of_trials_of_table_6() -> None:
    trials = planned("cifar100/table6")
    assert len(trials) == 5 * 9 * 3 == 135
    assert len({cell.trial_id for cell in trials}) == 5 * 8 * 3 + 3 * 3 == 129
    assert len({cell.teacher_id for cell in trials}) == 4


@pytest.mark.parametrize("name", RECIPES)
def test_every_pair_is_trained_by_the_protocol(name: str) -> None:
    for (_, student, _), cell in cells(name).items():
        trial = cell.trial
        slow = student in {"mobilenet_v2", "shufflenet_v1", "shufflenet_v2"}
        assert (trial.epochs, trial.batch_size, trial.optimizer.lr) == (240, 64, 0.01 if slow else 0.05)
        card = cards.load("students", "cifar100", student)
        assert card.learning_rate == trial.optimizer.lr
        assert trial.schedule.milestones == (150, 180, 210)  # type: ignore[union-attr]
        teacher = cell.taught_by
        assert teacher is not None and teacher.optimizer.lr == 0.05  # type: ignore[union-attr]


def test_settings_of_the_pairs_are_the_published_ones() -> None:
    cells_of_pairs = cells("cifar100/table6", "cifar100/other_pairs")
    for (teacher, student), (dkd, alpha, beta, review) in FACTS.items():
        ikl = cells_of_pairs[teacher, student, "ikl_kd"].trial.method.hyperparameters
        assert (ikl["beta"], ikl["alpha"], ikl["weights"], ikl["tau"]) == (alpha, beta, "sample", 100)
        dkd_settings = cells_of_pairs[teacher, student, "dkd"].trial.method.hyperparameters
        assert (dkd_settings["alpha"], dkd_settings["beta"], dkd_settings["temperature"]) == (1, dkd, 4)
        if review is not None:
            assert cells_of_pairs[teacher, student, "reviewkd"].trial.method.hyperparameters["review_weight"] == review


def test_variants_of_ikl_have_the_weights_of_table_6() -> None:
    table6, variants = cells("cifar100/table6"), cells("cifar100/ikl_variants")
    for pair in TABLE6_PAIRS:
        ikl_trial = table6[*pair, "ikl_kd"].trial
        assert variants[*pair, "ikl"].trial_id == ikl_trial.id
        for tau in (1, 2, 4):
            method = variants[*pair, f"ikl_class_{tau}"].trial.method
            assert method.hyperparameters == ikl_trial.method.hyperparameters | {"weights": "class", "tau": tau}


def test_recipes_share_trials() -> None:
    # The same training, and so the same folder's content, whichever recipe asks for it.
    table6, dist = cells("cifar100/table6"), cells("cifar100/dist")
    key = ("resnet32x4", "shufflenet_v1", "kd")
    assert table6[key].trial_id == dist[key].trial_id


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_recipes_train_is_what_was_published(name: str) -> None:
    """The protocol beside the numbers was written down apart from the recipes; they must agree."""
    numbers = published_numbers.read("cifar100_pairs", "test")
    trials = planned(name)
    table = published_numbers.compare(summarise(read_results(Path("nowhere"), trials), "kd"), trials, numbers)
    for pair in table.pairs:
        teacher, student = pair.teacher.removeprefix("cifar_"), pair.student.removeprefix("cifar_")
        for row in pair.rows:
            method = next((cell.method for cell in trials if cell.label == row.label), "teacher")
            cell = published_numbers.PublishedCell("cifar100", teacher, student, method)
            known = method in {"teacher", "none"} or cell in numbers.cells
            variant = row.label in {"kl", "dist_as_written", "ikl_class_1", "ikl_class_2", "ikl_class_4"}
            best = method in {"dkd", "ikl_kd"}
            assert (row.published is not None) == (known and not variant and not best), (teacher, student, row.label)
            assert (row.published_best is not None) == (known and not variant and best), (teacher, student, row.label)


def test_every_weight_is_published_or_said_not_to_be() -> None:
    numbers = published_numbers.read("cifar100_pairs", "test")
    for teacher, student in TABLE6_PAIRS + OTHER_PAIRS:
        published = numbers.file.pairs.get(f"{teacher} > {student}", {})
        for method in ("reviewkd", "dkd", "ikl_kd"):
            assert (method in published) == ((teacher, student, method) not in UNPUBLISHED)
