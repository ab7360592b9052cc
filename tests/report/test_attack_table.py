"""Tables of robust accuracy say what their differences are over."""

from kd_bench.config.attack import Attack
from kd_bench.report.attack_table import Evaluation, summarise_attacks
from kd_bench.report.statistics import MeanAndStd
from tests.report.trials import Cell


def evaluated(label: str, seed: int, robust: float) -> tuple[Cell, Evaluation]:
    attack = Attack(eps=0.1, attacks=("pgd-20",))
    accuracy = {"clean": 90.0, "pgd-20": robust}
    evaluation = Evaluation(attack, 100, 100, accuracy, robust, False, (), (), "0" * 64)
    return Cell(label, seed, f"{label}{seed}", None, "-"), evaluation


def test_differences_are_paired_and_their_seeds_are_named() -> None:
    values = {"trades": (40.0, 42.0, None), "ikl_at": (43.0, 46.0, 47.0), "plain": (0.0, 1.0, None)}
    results = [
        evaluated(label, seed, value)
        for label, row in values.items()
        for seed, value in enumerate(row)
        if value is not None
    ]
    (table,) = summarise_attacks(results, "trades")  # type: ignore[arg-type]
    baseline, ours, plain = table.rows
    assert baseline.difference is None and ours.values["pgd-20"] == MeanAndStd(136 / 3, ours.values["pgd-20"].std, 3)
    assert ours.difference is not None and (ours.difference.mean, ours.difference.n) == (3.5, 2)
    assert plain.difference is not None and plain.difference.n == 2
    (meaning,) = (note for note in table.notes if note.startswith("Difference: "))
    assert meaning.endswith("of the paired t distribution, not corrected for the number of methods.")
    assert [note for note in table.notes if note.startswith("Difference of ")] == [
        "Difference of ikl_at: over 2 seeds only."
    ]


def test_a_baseline_alone_is_compared_with_nothing() -> None:
    (table,) = summarise_attacks([evaluated("trades", seed, 40.0 + seed) for seed in range(3)], "trades")  # type: ignore[misc]
    assert table.baseline is None and not any(note.startswith("Difference") for note in table.notes)
    assert "PGD-20: 20 steps of a quarter of the radius, from one random start." in table.notes
