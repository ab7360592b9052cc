import math
from pathlib import Path

import pytest

from kd_bench.report.results_frame import read_results
from kd_bench.report.statistics import Difference, MeanAndStd
from kd_bench.report.summarise import summarise
from kd_bench.report.summary import Summary, SummaryRow
from kd_bench.utils.errors import UserError
from tests.report.trials import Cell, begin, fail, plan, put, trial_id

T_2 = 4.302652729911275  # 0.975-quantile of Student's t with 2 degrees of freedom, from a printed table: 4.303


def rows(summary: Summary, pair: int = 0) -> dict[str, SummaryRow]:
    return {row.label: row for row in summary.pairs[pair].rows}


def test_numbers_worked_out_by_hand(tmp_path: Path) -> None:
    put(tmp_path / "teachers" / "t0", top1_last=97.2, top1_best=97.5, epochs=40, seconds_per_epoch=2.0)
    cells = plan(tmp_path / "demo", {"kd": [62.0, 63.0, 64.0], "dkd": [64.0, 64.0, 67.0], "none": [60.0, 60.0, 60.0]})
    for seed, seconds in enumerate((3.0, 4.0, 8.0)):
        put(tmp_path / "demo" / f"dkd{seed}", top1_last=[64, 64, 67][seed], top1_best=68, seconds_per_epoch=seconds)
    summary = summarise(read_results(tmp_path / "demo", cells))
    (pair,) = summary.pairs
    assert (pair.dataset, pair.teacher, pair.student) == ("digits", "resnet20", "resnet8")
    assert [(row.kind, row.label) for row in pair.rows] == [
        ("teacher", "resnet20"),
        ("student", "none"),
        ("method", "kd"),
        ("method", "dkd"),
    ]
    teacher, alone, kd, dkd = pair.rows
    assert (teacher.top1, teacher.best, teacher.difference) == (
        MeanAndStd(97.2, None, 1),
        MeanAndStd(97.5, None, 1),
        None,
    )
    assert (teacher.seconds, teacher.epochs, teacher.note) == (2.0, (40,), "")
    assert kd.top1 == MeanAndStd(63.0, 1.0, 3) and kd.best == MeanAndStd(64.0, 1.0, 3) and kd.difference is None
    assert alone.top1 == MeanAndStd(60.0, 0.0, 3)
    assert dkd.top1 == MeanAndStd(65.0, math.sqrt(3), 3) and dkd.best == MeanAndStd(68.0, 0.0, 3)
    assert dkd.seconds == 5.0
    # differences 2, 1, 3: mean 2, std 1
    assert dkd.difference is not None and (dkd.difference.mean, dkd.difference.n) == (2.0, 3)
    assert dkd.difference.low == pytest.approx(2 - T_2 / math.sqrt(3), abs=1e-9)
    assert dkd.difference.high == pytest.approx(2 + T_2 / math.sqrt(3), abs=1e-9)
    # -2, -3, -4
    assert alone.difference is not None and alone.difference.mean == -3.0
    assert all(row.complete and row.note == "" for row in pair.rows)
    assert summary.problems == () and not any(note.startswith("Incomplete") for note in summary.footnotes)
    assert "over the 3 seeds that both have" in " ".join(summary.footnotes)
    assert "Dataset: digits, 30 epochs a trial, teachers: 40 epochs." in summary.footnotes


def test_incomplete_cells_are_marked_and_never_averaged_as_complete(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    cells = plan(
        folder, {"kd": [62.0, 63.0, None], "dkd": [64.0, None, 70.0], "ikl_kd": [None] * 3, "at": [None, 63, 64]}
    )
    fail(folder / "dkd1", "diverged in epoch 2")
    fail(folder / "ikl_kd0")
    (begin(folder / "ikl_kd1") / "result.json").write_text("{")
    put(folder / "at0", top1_last=60.0)
    summary = summarise(read_results(folder, cells))
    by_label = rows(summary)
    assert by_label["kd"].top1 == MeanAndStd(62.5, math.sqrt(0.5), 2) and by_label["kd"].note == "2 of 3 (1 missing)"
    assert by_label["dkd"].top1 == MeanAndStd(67.0, math.sqrt(18), 2)
    # the one seed that kd has too
    assert by_label["dkd"].difference == Difference(2.0, None, None, 1)
    assert by_label["dkd"].note == "2 of 3 (1 failed); difference over 1 seed"
    nothing = by_label["ikl_kd"]
    assert (nothing.top1, nothing.best, nothing.difference, nothing.seconds) == (None, None, None, None)
    assert (nothing.planned, nothing.done, nothing.failed, nothing.damaged, nothing.missing) == (3, 0, 1, 1, 1)
    assert nothing.note == "0 of 3 (1 failed, 1 damaged, 1 missing)"
    # complete, though the baseline is not
    assert by_label["at"].complete and by_label["at"].note == "difference over 2 seeds"
    assert summary.footnotes[0] == "Incomplete: 7 of 12 planned trials done (2 failed, 1 damaged, 2 missing)."
    assert len(summary.problems) == 3
    assert summary.problems[0] == f"dkd, student resnet8, seed 1 ({trial_id('dkd1')}) failed: diverged in epoch 2"
    (damaged,) = (problem for problem in summary.problems if " damaged: " in problem)
    trial = f"ikl_kd, student resnet8, seed 1 ({trial_id('ikl_kd1')})"
    assert damaged.startswith(f"{trial} damaged: result.json is damaged: it is no JSON")


def test_no_common_seed(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"kd": [62.0, None], "dkd": [None, 64.0]})
    dkd = rows(summarise(read_results(tmp_path, cells)))["dkd"]
    assert dkd.difference is None
    assert dkd.note == "1 of 2 (1 missing); no seed in common with kd"


def test_a_baseline_without_a_result(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"kd": [None, None], "dkd": [None, 64.0]})
    by_label = rows(summarise(read_results(tmp_path, cells)))
    assert by_label["dkd"].difference is None
    assert by_label["dkd"].note == "1 of 2 (1 missing); kd has no result yet"
    assert by_label["kd"].note == "0 of 2 (2 missing)"


def test_one_trial_has_neither_spread_nor_interval(tmp_path: Path) -> None:
    by_label = rows(summarise(read_results(tmp_path, plan(tmp_path, {"kd": [62.0], "dkd": [64.5]}))))
    assert by_label["dkd"].top1 == MeanAndStd(64.5, None, 1)
    assert by_label["dkd"].difference == Difference(2.5, None, None, 1)


def test_pairs_share_the_student_alone(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    put(tmp_path / "teachers" / "t0", top1_last=97.0)
    put(tmp_path / "teachers" / "t1", top1_last=98.0)
    first = plan(folder, {"none": [60.0, 62.0], "kd": [64.0, 66.0]})
    alone = [Cell("none", seed, f"none{seed}", "t1", "wrn_16_2") for seed in (0, 1)]
    fail(folder / "none1")
    second = plan(folder, {"kd": [65.0, 66.0]}, teacher="wrn_16_2", teacher_id="t1")
    summary = summarise(read_results(folder, [*first, *alone, *second]))
    assert [pair.teacher for pair in summary.pairs] == ["resnet20", "wrn_16_2"]
    for at, top1 in enumerate((97.0, 98.0)):
        assert [row.kind for row in summary.pairs[at].rows] == ["teacher", "student", "method"]
        assert rows(summary, at)["none"].top1 == MeanAndStd(60.0, None, 1)
        assert summary.pairs[at].rows[0].top1 == MeanAndStd(top1, None, 1)
    assert rows(summary, 0)["none"].difference == Difference(-4.0, None, None, 1)
    assert rows(summary, 1)["none"].difference == Difference(-5.0, None, None, 1)
    # the shared trial is one trial, with one failure
    assert summary.footnotes[0] == "Incomplete: 5 of 6 planned trials done (1 failed)."
    assert len(summary.problems) == 1


def test_a_teacher_a_seed(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    cells = []
    for seed, top1 in enumerate((97.0, 98.0, None)):
        put(folder / f"kd{seed}", top1_last=60.0 + seed, teacher_top1=None)
        if top1:
            put(tmp_path / "teachers" / f"t{seed}", top1_last=top1)
        cells.append(Cell("kd", seed, f"kd{seed}", f"t{seed}"))
    fail(tmp_path / "teachers" / "t2", "no memory")
    summary = summarise(read_results(folder, cells))
    teacher = summary.pairs[0].rows[0]
    assert teacher.top1 == MeanAndStd(97.5, math.sqrt(0.5), 2)
    assert teacher.note == "2 of 3 (1 failed)"
    assert summary.problems == (f"teacher resnet20 ({trial_id('t2')}) failed: no memory",)


def test_a_teacher_without_a_trial_of_its_own(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"none": [60.0], "kd": [62.0, 63.0]}, teacher_id=None)
    put(tmp_path / "none0", top1_last=60.0, teacher_top1=None)
    teacher = summarise(read_results(tmp_path, cells)).pairs[0].rows[0]
    assert (teacher.top1, teacher.best, teacher.planned, teacher.note) == (MeanAndStd(97.0, None, 1), None, 1, "")


def test_a_pair_without_a_teacher(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"none": [60.0, 61.0]}, teacher="-", teacher_id=None)
    (pair,) = summarise(read_results(tmp_path, cells), "none").pairs
    assert pair.teacher == "" and [row.kind for row in pair.rows] == ["student"]


def test_baselines(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"none": [60.0, 61.0], "dkd": [62.0, 63.0]})
    frame = read_results(tmp_path, cells)
    unplanned = summarise(frame)
    assert unplanned.baseline is None and all(row.difference is None for row in unplanned.pairs[0].rows)
    assert "No differences: there is no row 'kd' to compare with; the rows are 'none', 'dkd'." in unplanned.footnotes
    many = summarise(read_results(tmp_path, plan(tmp_path, {f"row{number}": [60.0] for number in range(8)})))
    assert any(
        note.endswith("the rows are 'row0', 'row1', 'row2', 'row3', 'row4', 'row5', ....") for note in many.footnotes
    )
    alone = summarise(frame, baseline="none")
    assert alone.baseline == "none" and alone.baseline_name == "the student alone"
    assert any(note.startswith("Difference: method minus the student alone") for note in alone.footnotes)
    assert not any("none" in note.split() for note in alone.conclusions) and alone.conclusions
    assert rows(alone)["none"].difference is None
    assert rows(alone)["dkd"].difference == Difference(2.0, 2.0, 2.0, 2)


def test_a_baseline_in_one_pair_only(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"kd": [60.0], "dkd": [62.0]}) + plan(tmp_path, {"dkd": [62.0]}, teacher="wrn")
    summary = summarise(read_results(tmp_path, cells))
    assert summary.baseline == "kd"
    assert rows(summary, 0)["dkd"].difference == Difference(2.0, None, None, 1)
    assert rows(summary, 1)["dkd"].difference is None


def test_trials_of_another_length_are_marked(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"kd": [60.0, 61.0], "dkd": [62.0, 63.0], "long": [70.0, 70.0]}, epochs={"long": 60})
    summary = summarise(read_results(tmp_path, cells))
    assert {label: row.note for label, row in rows(summary).items() if row.kind == "method"} == {
        "kd": "",
        "dkd": "",
        "long": "another protocol, compared with nothing: epochs 60 instead of 30",
    }
    assert rows(summary)["long"].difference is None and rows(summary)["long"].top1 == MeanAndStd(70.0, 0.0, 2)
    assert any(note.startswith("Dataset: digits, 30 epochs a trial") for note in summary.footnotes)


def test_a_row_that_is_compared_with_nothing_takes_no_rank_from_others(tmp_path: Path) -> None:
    cells = []
    for teacher in ("t", "u"):
        rows_ = {"kd": [60.0, 61.0], "dkd": [62.0, 63.0], "dist": [61.0, 64.5], "long": [70.0, 70.0]}
        cells += plan(tmp_path, rows_, epochs={"long": 60}, teacher=teacher)
    ((dataset, ranks),) = summarise(read_results(tmp_path, cells)).rankings
    assert (dataset, ranks.pairs, ranks.average) == ("digits", 2, {"dist": 1.0, "dkd": 2.0, "kd": 3.0})
    assert ranks.p == pytest.approx(1 / 6) and ranks.critical is None


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        (3, "of the exact test that flips the signs of the differences (for n = 3 never below 0.25);"),
        (
            21,
            "of the test that flips the signs of the differences in 20,000 random ways (for n = 21 never below 5e-05)",
        ),
    ],
)
def test_the_smallest_p_of_the_sign_flips_is_named(tmp_path: Path, seeds: int, expected: str) -> None:
    cells = plan(tmp_path, {"kd": [60.0] * seeds, "dkd": [61.0 + seed for seed in range(seeds)]})
    assert expected in " ".join(summarise(read_results(tmp_path, cells)).footnotes)


def test_two_trials_of_one_label_and_seed_are_refused(tmp_path: Path) -> None:
    cells = [Cell("kd", 0, "a"), Cell("kd", 0, "b")]
    with pytest.raises(UserError, match="'kd' with student 'resnet8' stands for two different trials of seed 0"):
        summarise(read_results(tmp_path, cells))
    same = summarise(read_results(tmp_path, [Cell("kd", 0, "a"), Cell("kd", 0, "a")]))
    assert rows(same)["kd"].planned == 1


def test_data_sets_stay_apart(tmp_path: Path) -> None:
    cells = [*plan(tmp_path / "demo", {"kd": [60.0]}), Cell("kd", 0, "other", dataset="cifar100")]
    summary = summarise(read_results(tmp_path / "demo", cells))
    assert [pair.dataset for pair in summary.pairs] == ["digits", "cifar100"]
    assert summary.footnotes[-1] == "Dataset: cifar100."


def test_nothing_is_planned(tmp_path: Path) -> None:
    assert summarise(read_results(tmp_path, [])) == Summary((), None, ("No trials are planned.",), ())


def test_a_sentence_says_which_weights_were_tested(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"none": [50.0], "kd": [51.0]})
    for label, evaluated in (("trades", "average over epochs"), ("ikl_at", "average over epochs"), ("awp", "last")):
        cells.append(Cell(label, 0, f"{label}0"))
        put(tmp_path / f"{label}0", top1_last=52.0, evaluated=evaluated)
    (note,) = (note for note in summarise(read_results(tmp_path, cells)).footnotes if note.startswith("Evaluated"))  # type: ignore[arg-type]
    assert note == ("Evaluated weights: the last ones (none, kd, awp); their average over epochs (trades, ikl_at).")
    notes = summarise(read_results(tmp_path, cells[:2])).footnotes  # type: ignore[arg-type]
    assert not any(note.startswith("Evaluated") for note in notes)
