"""Tables of robust accuracy say what their differences are over."""

import dataclasses
import math

import pytest

from kd_bench.config.attack import STANDARD, Attack
from kd_bench.report.attack_table import Evaluation, network_table, render_tables, summarise_attacks
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
    baseline, ikl_at, plain = table.rows
    assert baseline.difference is None and ikl_at.values["pgd-20"] == MeanAndStd(
        136 / 3, ikl_at.values["pgd-20"].std, 3
    )
    assert ikl_at.difference is not None and (ikl_at.difference.mean, ikl_at.difference.n) == (3.5, 2)
    assert plain.difference is not None and plain.difference.n == 2
    (meaning,) = (note for note in table.notes if note.startswith("Difference: "))
    assert meaning.endswith("of the paired t distribution, not corrected for the number of methods.")
    assert ikl_at.tests is not None and plain.tests is not None
    # Differences of ikl_at: 3 and 4, t = 7; of plain: -40 and -41, t = -81. With one degree p = 2 atan(1/t) / pi.
    assert (
        ikl_at.tests.p_t == pytest.approx(2 * math.atan(1 / 7) / math.pi) and ikl_at.tests.p_t_holm == ikl_at.tests.p_t
    )
    assert plain.tests.p_t_holm == pytest.approx(2 * 2 * math.atan(1 / 81) / math.pi)
    assert ikl_at.tests.p_flip == 0.5 and ikl_at.tests.p_flip_holm == 1
    assert [note for note in table.notes if note.startswith("Difference of ")] == [
        "Difference of ikl_at: over 2 seeds only."
    ]


def test_p_values_are_in_all_formats_but_the_terminals() -> None:
    results = [evaluated(label, seed, value) for label, row in {"trades": (40, 42), "ikl_at": (43, 46)}.items()
               for seed, value in enumerate(row)]  # fmt: skip
    tables = summarise_attacks(results, "trades")  # type: ignore[arg-type]
    (markdown,), (terminal,), (csv,) = (render_tables(tables, name) for name in ("markdown", "terminal", "csv"))
    titles = [" ".join(column.header) for column in markdown.columns]
    assert titles[-2:] == ["p of the t test (Holm)", "p of the sign-flip test (Holm)"]
    baseline, ikl_at = (row.cells[-2:] for group in markdown.groups for row in group)
    assert list(baseline) == ["–", "–"] and list(ikl_at) == ["0.090 (0.090)", "0.500 (0.500)"]
    assert not any("p of" in " ".join(column.header) for column in terminal.columns)
    assert [" ".join(column.header) for column in csv.columns][-4:-2] == ["p_paired_t", "p_paired_t_holm"]


def test_a_row_of_another_protocol_is_compared_with_nothing() -> None:
    values = {"trades": (40.0, 42.0), "ikl_at": (43.0, 46.0), "plain": (0.0, 1.0)}
    results = [evaluated(label, seed, value) for label, row in values.items() for seed, value in enumerate(row)]
    (usual,) = summarise_attacks(results, "trades")  # type: ignore[arg-type]
    pair = usual.title.partition(", Linf")[0]
    (table,) = summarise_attacks(results, "trades", {(pair, "plain")})  # type: ignore[arg-type]
    _, ikl_at, plain = table.rows
    assert plain.difference is None and plain.tests is None and plain.values["pgd-20"].mean == 0.5
    assert ikl_at.tests is not None and ikl_at.tests.p_t_holm == ikl_at.tests.p_t  # corrected for one method
    assert "plain has another protocol, and is compared with nothing." in table.notes
    (table,) = summarise_attacks(results, "trades", {(pair, "trades")})  # type: ignore[arg-type]
    assert table.baseline is None and not any(row.difference for row in table.rows)


def test_a_baseline_alone_is_compared_with_nothing() -> None:
    (table,) = summarise_attacks([evaluated("trades", seed, 40.0 + seed) for seed in range(3)], "trades")  # type: ignore[misc]
    assert table.baseline is None and not any(note.startswith("Difference") for note in table.notes)
    assert "PGD-20: 20 steps of a quarter of the radius, from one random start." in table.notes


def test_the_student_alone_has_the_name_that_it_has_in_other_tables() -> None:
    values = {"none": (40.0, 42.0), "kd": (43.0, 46.0)}
    results = [evaluated(label, seed, value) for label, row in values.items() for seed, value in enumerate(row)]
    (table,) = summarise_attacks(results, "none")  # type: ignore[arg-type]
    (text,) = render_tables([table], "plain")
    assert [row.cells[0] for row in text.rows] == ["student alone", "kd"]
    assert "difference to the student alone" in [" ".join(column.header) for column in text.columns]
    assert any(
        note.startswith("Difference: PGD-20 (upper bound) minus that of the student alone ") for note in table.notes
    )
    (csv,) = render_tables([table], "csv")
    assert {row.cells[1] for row in csv.rows} == {"none", "kd"}  # for programs, the labels of the recipe
    pair = table.title.partition(", Linf")[0]
    plain = [(dataclasses.replace(cell, label="plain", method="none"), item) for cell, item in results[:2]]
    (table,) = summarise_attacks([*plain, *results[2:]], "kd", {(pair, "plain")})  # type: ignore[list-item]
    assert "student alone (plain) has another protocol, and is compared with nothing." in table.notes


def test_attacks_that_standard_autoattack_does_not_have_are_named_beside_it() -> None:
    attack = Attack(eps=0.1, attacks=("pgd-20", *STANDARD, "apgd-dlr"))
    accuracy = {"clean": 90.0, "pgd-20": 50.0, **dict.fromkeys(STANDARD, 40.0), "apgd-dlr": 39.0}
    evaluation = Evaluation(attack, 100, 100, accuracy, 39.0, True, (), (), "0" * 64)
    titles = list(evaluation.columns.values())
    assert titles == ["clean", "PGD-20", "APGD-CE", "APGD-T", "AA", "AA + APGD-DLR"]
    notes = "\n".join(network_table("trades", "", evaluation).notes)
    assert "AA + APGD-DLR: accuracy under standard AutoAttack and the attacks named after it" in notes
