"""The notes and marks of tables with ``--columns``: nothing about what they do not show, and why cells are empty."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.report.test_columns import cells_of, evaluation, line, notes, summary_of, write
from tests.report.trials import render_summary
from tests.trials.test_evaluation_file import MACHINE


def test_a_table_without_top1_says_nothing_about_it(folder: Path) -> None:
    cells = cells_of(folder)
    write(folder, "kd0", evaluation(2.0))
    with_top1 = render_summary(summary_of(folder, cells, "top1", "ece"), "plain")
    without = render_summary(summary_of(folder, cells, "ece"), "plain")
    for words in ("What this shows", "Top-1: accuracy"):
        assert words in with_top1 and words not in without
    cells_note = "Cells: mean ± sample standard deviation (ddof = 1) over the line's trials."
    assert cells_note in without and cells_note not in with_top1
    best = render_summary(summary_of(folder, cells, "top1_best"), "plain")
    assert "Best epoch selected on the test set is the accuracy of the epoch with the highest one" in best


def test_published_numbers_are_not_explained_where_none_are_shown(folder: Path) -> None:
    cells = cells_of(folder)
    published = ("Published, and not measured here: (a) me.", "Epoch not stated: me (a).", "No comparison with x.")
    summary = summary_of(folder, cells, "top1")
    noted = replace(summary, footnotes=(*summary.footnotes, *published))
    assert not any(note in render_summary(noted, "plain") for note in published)
    usual = render_summary(replace(noted, columns=()), "plain")
    assert all(note in usual for note in published)


def test_empty_cells_of_teachers_and_of_held_out_images_say_why(folder: Path) -> None:
    cells = cells_of(folder)
    for name in ("none0", "none1", "kd0", "kd1", "dkd0", "dkd1"):
        write(folder, name, evaluation(2.0))
    text = notes(summary_of(folder, cells, "ece", "kl_to_teacher", "val_top1"))
    assert "Empty cells of a teacher: to fill them, evaluate its folder" in text
    assert "not evaluated yet" not in text  # all that `evaluate RECIPE` measures is there
    assert "Empty held-out columns: no training images were held out; see dataset.holdout." in text
    assert "Empty cells of a teacher" not in notes(summary_of(folder, cells, "kl_to_teacher"))  # it has no teacher


def test_marks_of_plain_text_have_one_meaning_each(folder: Path) -> None:
    cells = cells_of(folder)
    for name in ("kd0", "kd1"):
        write(folder, name, evaluation(2.0))
    for name in ("dkd0", "dkd1"):
        of = evaluation(1.0)
        of["efficiency"]["timings"][0]["machine"] = MACHINE | {"device_name": "Another"}
        write(folder, name, of)
    text = render_summary(summary_of(folder, cells, "top1", "latency"), "plain")
    assert line(text, "dkd")[1:] == ["65.00 ± 1.41 *", "1.000 ± 0.000 #"]
    assert line(text, "kd")[1:] == ["62.50 ± 0.71 +", "2.000 ± 0.000 *"]
    assert "*: the best value of its column; +: the second best." in text
    assert "*: the best" not in render_summary(summary_of(folder, cells, "top1"), "markdown")
