"""Tables and page of students that are crossed with several teachers."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from kd_bench import plan as planning
from kd_bench.config.load import read_recipe
from kd_bench.python_api.results import Results
from kd_bench.report import csv_export
from kd_bench.report.crossed import crossing
from kd_bench.report.page import page
from kd_bench.report.results_frame import read_results
from kd_bench.report.significance import holm
from kd_bench.report.summarise import summarise
from kd_bench.report.summary import FolderResults, Summary, SummaryRow
from kd_bench.report.unplanned_trials import summarise_unplanned
from tests.report.trials import Cell, plan_crossed, put, render_summary, trial_id, write_trial

CELLS = [(teacher, seed) for teacher in range(3) for seed in range(2)]

KD: dict[tuple[int, int], float | None] = dict(zip(CELLS, (60.0, 61.0, 62.0, 64.0, 66.0, 66.5), strict=True))
DKD: dict[tuple[int, int], float | None] = dict(zip(CELLS, (61.0, 62.5, 62.5, 65.5, 68.0, 67.0), strict=True))


def rows(summary: Summary) -> dict[str, SummaryRow]:
    return {row.label: row for row in summary.pairs[0].rows}


def made(folder: Path, **values: dict[tuple[int, int], float | None]) -> tuple[list[Cell], Summary]:
    for teacher in range(3):
        put(folder / "teachers" / f"t{teacher}", top1_last=90.0 + teacher)
    cells = plan_crossed(folder / "demo", values, {0: 55.0, 1: 56.0})
    return cells, summarise(read_results(folder / "demo", cells))


def test_numbers_of_a_complete_table(tmp_path: Path) -> None:
    _, summary = made(tmp_path, kd=KD, dkd=DKD)
    assert summary.pairs[0].crossed
    kd, dkd, alone = rows(summary)["kd"], rows(summary)["dkd"], rows(summary)["none"]
    expected = crossing({cell: value for cell, value in KD.items() if value is not None})
    assert kd.top1 is not None and (kd.top1.mean, kd.top1.std, kd.top1.n) == (expected.mean, expected.std, 6)
    assert kd.counts == "3 x 2" and alone.counts == "– x 2" and summary.pairs[0].rows[0].counts == "3 x –"
    assert kd.best is not None and kd.best.crossing is not None and kd.gap is not None and kd.gap.mean == 1.0
    # each cell of dkd with the cell of kd that has the same teacher and seed
    expected = crossing({cell: (DKD[cell] or 0) - (KD[cell] or 0) for cell in CELLS})
    assert dkd.difference is not None
    assert (dkd.difference.low, dkd.difference.high) == expected.interval(0.95)
    assert dkd.difference.over == "3 teachers x 2 seeds" and dkd.differences == (1.0, 1.5, 0.5, 1.5, 2.0, 0.5)
    # the student alone has no teacher: with each teacher's kd of its seed
    expected = crossing({(a, b): (55.0, 56.0)[b] - (KD[a, b] or 0) for a, b in CELLS})
    assert alone.difference is not None and alone.difference.crossing == expected
    assert alone.top1 is not None and (alone.top1.mean, alone.top1.n, alone.top1.crossing) == (55.5, 2, None)
    assert not any(row.note for row in summary.pairs[0].rows)


def test_cells_are_no_independent_replications(tmp_path: Path) -> None:
    _, summary = made(tmp_path, kd=KD, dkd=DKD, dist={cell: (value or 0) + 0.5 for cell, value in DKD.items()})
    tests = summary.pairs[0].significance
    dkd = rows(summary)["dkd"].difference
    assert dkd is not None and dkd.crossing is not None
    assert tests["dkd"].p_t == dkd.crossing.p and tests["dkd"].p_flip is None and tests["dkd"].bootstrap is None
    assert [tests[label].p_t_holm for label in ("dkd", "dist")] == holm([tests["dkd"].p_t, tests["dist"].p_t])
    assert 0 < (dkd.crossing.p or 0) < 1
    assert summary.rankings == ()  # one pair is one block, however many teachers it has
    (conclusion,) = summary.conclusions
    assert "(test of the interval over 3 teachers x 2 seeds, p after Holm's correction for 2 methods" in conclusion
    assert "teachers that are trained like these" in conclusion


def test_a_missing_trial_leaves_out_its_teacher_or_seed(tmp_path: Path) -> None:
    _, summary = made(tmp_path, kd=KD, dkd={**DKD, (1, 1): None})
    dkd, kd = rows(summary)["dkd"], rows(summary)["kd"]
    # a teacher of two seeds lacks a half, a seed of three teachers a third
    assert dkd.note == "5 of 6 (1 missing); mean over 2 teachers x 2 seeds" and dkd.counts == "5/6" and not dkd.ranked
    assert dkd.top1 is not None and dkd.top1.mean == pytest.approx((61.0 + 62.5 + 68.0 + 67.0) / 4)
    assert list(dkd.cells) == [(0, 0), (0, 1), (2, 0), (2, 1)] and dkd.teacher_seeds == (0, 2)
    assert dkd.trials == tuple(trial_id(f"dkd-{teacher}-{seed}") for teacher, seed in dkd.cells)
    assert dkd.difference is not None and dkd.differences == (1.0, 1.5, 2.0, 0.5) and dkd.difference.low is not None
    # the row that lacks nothing is over all cells, and is compared where both are
    assert kd.top1 is not None and kd.top1.n == 6 and kd.note == ""
    assert "(5/6)" in render_summary(summary, "plain")


def test_the_baselines_gap_is_named_in_the_rows_that_it_shortens(tmp_path: Path) -> None:
    _, summary = made(tmp_path, kd={**KD, (2, 0): None, (2, 1): None}, dkd=DKD)
    dkd = rows(summary)["dkd"]
    assert dkd.note == "difference over 2 teachers x 2 seeds" and dkd.top1 is not None and dkd.top1.n == 6
    assert rows(summary)["none"].note == ""  # its two seeds are all compared, with the teachers that kd has
    assert rows(summary)["kd"].note == "4 of 6 (2 missing)"


def test_nothing_can_be_split_before_two_teachers_are_done(tmp_path: Path) -> None:
    begun = [{cell: value if cell[0] == 0 else None for cell, value in values.items()} for values in (KD, DKD)]
    _, summary = made(tmp_path, kd=begun[0], dkd=begun[1])
    assert (
        "Spread: it cannot be split yet, because no row has two teachers with the same two seeds." in summary.footnotes
    )
    (conclusion,) = summary.conclusions
    assert "(test of the interval over 1 teacher x 2 seeds, " in conclusion
    assert "It holds for this pair and its settings, and where there is one teacher only, for that one." in conclusion


def test_text_of_the_table(tmp_path: Path) -> None:
    _, summary = made(tmp_path, kd=KD, dkd=DKD)
    for format in ("terminal", "plain", "markdown", "html"):
        text = " ".join(render_summary(summary, format, width=200).split())
        assert "(teachers x seeds)" in text and "(3 x 2)" in text and "(– x 2)" in text and "(3 x –)" in text
        assert "sign-flip test" not in text
        assert "Several teachers: 3 x 3 stands for 3 teachers x 3 seeds" in text
        assert "for other teachers and other seeds (quasi-F, Satterthwaite" in text
    stds = crossing({cell: value for cell, value in KD.items() if value is not None}).stds
    assert stds is not None
    kd = " / ".join(f"{value:.2f}" for value in stds)
    for format in ("latex", "latex-long"):
        text = render_summary(summary, format)
        assert "Several teachers: 3 x 3 stands for 3 teachers x 3 seeds" in text
        assert "63.25" in text and "2, 1 and 2 degrees of freedom" in text
    (note,) = (note for note in summary.footnotes if note.startswith("Spread"))
    assert f"due to the teacher's seed / the student's seed / the residual (their interaction): kd {kd}; dkd " in note
    assert "They rest on 2, 1 and 2 degrees of freedom" in note


def test_csv_has_the_parts_and_the_teachers(tmp_path: Path) -> None:
    cells, summary = made(tmp_path, kd=KD, dkd=DKD)
    records = {row["label"]: row for row in csv.DictReader(io.StringIO(render_summary(summary, "csv")))}
    dkd = records["dkd"]
    assert (dkd["teacher_seeds"], dkd["top1_last_teachers"], dkd["top1_last_seeds"]) == ("0 1 2", "3", "2")
    split = rows(summary)["dkd"].difference
    assert split is not None and split.crossing is not None and split.crossing.stds is not None
    parts = [float(dkd[f"difference_std_{name}"]) for name in ("teacher", "seed", "residual")]
    assert parts == list(split.crossing.stds) and dkd["difference_test"] == "quasi-F"
    assert records["none"]["teacher_seeds"] == "" and records["kd"]["difference_test"] == ""
    frame = Results(
        [FolderResults("demo", "", summary, read_results(tmp_path / "demo", cells), tuple(cells), tmp_path / "demo")]
    )  # type: ignore[arg-type]
    taught = frame.frame().dropna(subset=["teacher_seed"])
    assert len(taught) == 12 and sorted(taught["teacher_seed"].unique()) == [0, 1, 2]
    differences = frame.differences().set_index("label")
    assert differences.loc["dkd", ["n", "teachers", "seeds"]].tolist() == [6, 3, 2]


@pytest.mark.parametrize("seeds", [3, 1])
def test_page_and_export(tmp_path: Path, seeds: int) -> None:
    content = {
        "name": "mine",
        "dataset": "digits",
        "epochs": 2,
        "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
        "methods": ["none", "kd", "dkd"],
        "trials": 2,
        "teachers": {"resnet14": {"seeds": seeds}},
    }
    cells = planning.plan(read_recipe(content), "mine")
    for cell in cells:
        write_trial(tmp_path / "mine" / cell.trial_id, cell.trial)
        top1 = (60 if cell.label == "kd" else 61) + (cell.teacher_seed or 0) + cell.seed + len(cell.trial_id) % 3
        put(tmp_path / "mine" / cell.trial_id, top1_last=top1, teacher_top1=90.0 + (cell.teacher_seed or 0))
    frame = read_results(tmp_path / "mine", cells)
    part = FolderResults("mine", "", summarise(frame), frame, tuple(cells), tmp_path / "mine", "mine.yaml")
    text = " ".join(page([part]).split())
    crossed = seeds > 1
    assert ("<h3>Teachers and seeds</h3>" in text) == ("<td>3 x 2</td>" in text) == crossed
    assert ("paired by teacher and seed, with the 95 % interval for other teachers" in text) == crossed
    assert ("points over 3 teachers x 2 seeds" in text) == crossed != ("p, sign flips (Holm)" in text)
    assert ("--only teacher_seed=2 --out again" in text) == crossed and ("teacher_seed" in text) == crossed
    exported = list(csv.DictReader(io.StringIO(csv_export.trials([("mine", tmp_path / "mine", cells)]).text)))
    assert len(exported) == 2 + 2 * 2 * seeds
    expected = {cell.trial_id: (cell.teacher_id, str(cell.teacher_seed)) for cell in cells if cell.trial.teacher}
    assert {row["trial_id"]: (row["teacher_id"], row["teacher_seed"]) for row in exported if row["teacher"]} == expected
    assert {(row["teacher_id"], row["teacher_seed"]) for row in exported if not row["teacher"]} == {("", "")}


def test_a_folder_without_its_recipe(tmp_path: Path) -> None:
    content = {"name": "mine", "dataset": "digits", "epochs": 2, "methods": ["none", "kd"], "trials": 2,
               "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
               "teacher_training": {"seeds": [4, 7]}}  # fmt: skip
    cells = planning.plan(read_recipe(content), "mine")
    for cell in cells:
        write_trial(tmp_path / cell.trial_id, cell.trial)
        put(tmp_path / cell.trial_id, top1_last=60.0 + cell.seed)
    results = summarise_unplanned(tmp_path, {cell.trial_id for cell in cells})
    (pair,) = results.summary.pairs
    assert pair.crossed and {row.label: row.counts for row in pair.rows[1:]} == {"none": "– x 2", "kd": "2 x 2"}
