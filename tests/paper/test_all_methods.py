"""The recipes with all methods: what they plan, what they leave out, and whose settings they have."""

from __future__ import annotations

import pytest

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial
from kd_bench.methods import _registry as methods
from kd_bench.plan import plan
from tests.paper.test_cifar_recipes import OTHER_PAIRS, TABLE6_PAIRS, UNPUBLISHED, pair_of

PAIRS = OTHER_PAIRS + TABLE6_PAIRS
LIGHT = {"mobilenet_v2", "shufflenet_v1", "shufflenet_v2"}

#: Pairs of which RepDistiller's README has an FSP: the channels of all stages agree.
FSP = {
    ("resnet56", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet110", "resnet20"),
    ("resnet32x4", "resnet8x4"),
    ("wrn_40_2", "wrn_16_2"),
    ("vgg13", "vgg8"),
}

#: Settings that depend on the pair, typed from the publications. GKL: alpha, beta, gamma by our letters, and weights.
GKL = {
    ("resnet32x4", "resnet8x4"): (16, 1, 0.05, "class"),
    ("wrn_40_2", "wrn_16_2"): (20, 3, 0.3, "sample"),
    ("resnet110", "resnet32"): (4, 1, 0.1, "sample"),
    ("resnet32x4", "shufflenet_v1"): (8, 1, 0, "class"),
    ("vgg13", "mobilenet_v2"): (12, 4, 0.1, "class"),
}
#: CAT-KD: weight, resolution and normalisation.
CAT = {
    ("resnet56", "resnet20"): (0.7, 2, False),
    ("resnet32x4", "shufflenet_v1"): (600, 4, True),
    ("wrn_40_2", "shufflenet_v1"): (80, 4, True),
    ("resnet50", "mobilenet_v2"): (40, 2, True),
}
#: LS: temperature and weight with KD; temperature, weight and beta with DKD.
LS = {
    ("resnet32x4", "resnet8x4"): ((2, 9), (2, 9, 8)),
    ("vgg13", "vgg8"): ((3, 9), (2, 15, 2)),
    ("resnet110", "resnet20"): ((4, 12), (2, 15, 2)),
    ("resnet50", "mobilenet_v2"): ((3, 1), (2, 15, 2)),
    ("resnet32x4", "shufflenet_v2"): ((2, 9), (2, 9, 8)),
}
#: Rows that are untuned for every pair, and the pairs for which others are.
ALWAYS_UNTUNED = {"kdsvd", "wttm", "nkd", "rld", "dkl_kd", "kd_ea"}
LIKE_OTHERS = frozenset({("resnet110", "resnet20"), ("resnet50", "vgg8")})
NOT_OF_LS = frozenset({("resnet32x4", "shufflenet_v1"), ("wrn_40_2", "shufflenet_v1"), ("resnet50", "vgg8")})
PARTLY_UNTUNED = {
    "ttm": set(PAIRS) - {("vgg13", "vgg8"), ("wrn_40_2", "wrn_40_1")},
    "abkd": set(PAIRS) - {("resnet56", "resnet20")},
    "itrd": {*TABLE6_PAIRS, ("resnet50", "vgg8")},
    "gkl_kd": LIKE_OTHERS,
    "cat_kd": LIKE_OTHERS,
    "sdd_dkd": LIKE_OTHERS,
    "kd_ls": NOT_OF_LS,
    "dkd_ls": NOT_OF_LS,
    **{method: {pair[:2] for pair in UNPUBLISHED if pair[2] == method} for method in ("reviewkd", "dkd", "ikl_kd")},
}


@pytest.fixture(scope="module")
def cells() -> dict[tuple[tuple[str, str], str], PlannedTrial]:
    recipe = read_recipe("cifar100/all_methods", trials=1)
    return {(pair_of(cell), cell.label): cell for cell in plan(recipe, "r")}


def distillers() -> set[str]:
    """The built-in methods that distil a teacher without perturbed images, and the student alone."""
    return {name for name in methods.names() if methods.describe(name).family != "adversarial"}


def test_all_pairs_have_all_methods(cells: dict[tuple[tuple[str, str], str], PlannedTrial]) -> None:
    assert {pair for pair, _ in cells} == set(PAIRS) and len(PAIRS) == 13
    for pair in PAIRS:
        method_names = {cell.method for (of, _), cell in cells.items() if of == pair}
        assert method_names == distillers() - ({"fsp"} if pair not in FSP else set()), pair
    small = plan(read_recipe("cifar100/small_all"), "r")
    assert {cell.method for cell in small} == distillers()
    assert {cell.trial_id for cell in plan(read_recipe("cifar100/small"), "r")} < {cell.trial_id for cell in small}
    whole = plan(read_recipe("cifar100/two_cores"), "r")
    fsp = {("fsp", seed) for seed in range(3)}  # needs stages with equal channels, which this teacher does not have
    assert {(cell.label, cell.seed) for cell in whole} == {(cell.label, cell.seed) for cell in small} - fsp
    assert all(cell.dataset == "cifar100 (fine labels)" for cell in whole)
    rates = {(cell.trial.model, cell.trial.optimizer.lr) for cell in whole}
    assert rates == {("cifar_resnet8", 0.05), ("cifar_mobilenet_v2", 0.01)}


@pytest.mark.parametrize("name", ["cifar100/table6", "cifar100/other_pairs"])
def test_rows_of_other_recipes_are_the_same_trials(
    name: str, cells: dict[tuple[tuple[str, str], str], PlannedTrial]
) -> None:
    for cell in plan(read_recipe(name, trials=1), "r"):
        all_methods_cell = cells[pair_of(cell), cell.label]
        assert (all_methods_cell.trial_id, all_methods_cell.untuned) == (cell.trial_id, cell.untuned)


def test_settings_of_the_pairs_are_the_published_ones(cells: dict[tuple[tuple[str, str], str], PlannedTrial]) -> None:
    def values(pair: tuple[str, str], label: str, *names: str) -> tuple[object, ...]:
        return tuple(cells[pair, label].trial.method.hyperparameters[name] for name in names)

    for pair, gkl in GKL.items():
        assert values(pair, "gkl_kd", "alpha", "beta", "gamma", "weights") == gkl
    for pair, cat in CAT.items():
        assert values(pair, "cat_kd", "cat_weight", "resolution", "normalise") == cat
    for pair, (kd, (temperature, weight, beta)) in LS.items():
        assert values(pair, "kd_ls", "temperature", "kd_weight", "ce_weight") == (*kd, 0.1)
        expected = (temperature, weight, weight * beta)
        assert values(pair, "dkd_ls", "temperature", "alpha", "beta") == expected
        assert cells[pair, "kd_ls"].trial.method.standardise and cells[pair, "dkd_ls"].trial.method.standardise
    assert values(("wrn_40_2", "wrn_40_1"), "ttm", "gamma", "beta") == (0.1, 76)
    for teacher, student in PAIRS:
        same = (teacher, student) in FSP | {("wrn_40_2", "wrn_40_1")}
        assert values((teacher, student), "sdd", "regions") == (5 if same else 21,)
        assert values((teacher, student), "ft", "preparation_lr") == (0.05 if student == "vgg8" else 0.01,)


def test_all_rows_but_mlkd_are_trained_by_the_protocol(
    cells: dict[tuple[tuple[str, str], str], PlannedTrial],
) -> None:
    for ((teacher, student), label), cell in cells.items():
        trial, light = cell.trial, student in LIGHT
        epochs, rate = 240, 0.01 if light else 0.05
        if label == "mlkd":
            long = teacher == "resnet32x4" and student.startswith("shufflenet")
            epochs, rate = 960 if long else 480, 0.01 if light else 0.025
        assert (trial.epochs, trial.batch_size, trial.optimizer.lr) == (epochs, 64, rate), (teacher, student, label)
        assert trial.schedule.milestones == (150, 180, 210)  # type: ignore[union-attr]
        assert (trial.second_view is not None) == (label == "mlkd")
        assert (trial.optimizer.name == "dot") == (label == "kd_dot")


def test_what_is_untuned_is_marked_and_nothing_else(
    cells: dict[tuple[tuple[str, str], str], PlannedTrial],
) -> None:
    for (pair, label), cell in cells.items():
        untuned = label in ALWAYS_UNTUNED or pair in PARTLY_UNTUNED.get(label, ())
        assert bool(cell.untuned) == untuned, (pair, label)
        assert cell.untuned is False or isinstance(cell.untuned, str), "the mark says what was used instead"
