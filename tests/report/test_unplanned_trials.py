"""Tables of trials that no recipe plans, from what the trials say of themselves."""

import json
from pathlib import Path
from typing import Any

from kd_bench.config.trial import PlannedTrial, Trial
from kd_bench.report.summary import FolderResults
from kd_bench.report.unplanned_trials import summarise_unplanned, trial_ids
from tests.report.test_protocol import cells, otherwise
from tests.report.trials import put, write_trial


def written(folder: Path, planned: list[PlannedTrial], top1: float = 60.0) -> FolderResults:
    for cell in planned:
        write_trial(folder / cell.trial_id, cell.trial)
        put(folder / cell.trial_id, top1_last=top1 + cell.seed, top1_best=99.0)
    return summarise_unplanned(folder, trial_ids(folder))


def method(cell: PlannedTrial, **hyperparameters: Any) -> PlannedTrial:
    settings = cell.trial.settings()["method"]
    return otherwise(cell, method=settings | {"hyperparameters": settings["hyperparameters"] | hyperparameters})


def taught_by(cell: PlannedTrial, **changes: int) -> PlannedTrial:
    teacher = cell.trial.settings()["teacher"] | changes
    settings = cell.trial.settings() | {"teacher": teacher}
    trial = Trial.model_validate_json(json.dumps(settings))
    return PlannedTrial(trial, cell.label, trial.teacher)


def test_a_folder_is_read_like_a_recipe(tmp_path: Path) -> None:
    result = written(tmp_path, cells())
    (pair,) = result.summary.pairs
    assert (pair.dataset, pair.teacher, pair.student) == ("digits", "cifar_resnet14", "cifar_resnet8")
    rows = {row.label: row for row in pair.rows}
    assert list(rows) == ["cifar_resnet14", "crd", "dkd", "kd"]
    assert all(row.done == row.planned == 3 for label, row in rows.items() if row.kind == "method")
    assert rows["dkd"].difference is not None and rows["dkd"].difference.n == 3
    assert {cell.trial_id for cell in result.cells} == {cell.trial_id for cell in cells()}


def test_variants_of_a_method_are_told_apart(tmp_path: Path) -> None:
    planned = cells()
    planned += [method(cell, temperature=2.0) for cell in planned if cell.label == "kd"]
    (pair,) = written(tmp_path, planned).summary.pairs
    assert [row.label for row in pair.rows][3:] == ["kd (temperature 2)", "kd (temperature 4)"]
    assert all(row.done == 3 for row in pair.rows[1:])


def test_variants_that_differ_in_a_late_digit_are_told_apart(tmp_path: Path) -> None:
    kd = [cell for cell in cells() if cell.label == "kd"]
    planned = [method(cell, temperature=value) for cell in kd for value in (4.0000001, 4.0000002)]
    (pair,) = written(tmp_path, planned).summary.pairs
    assert [row.label for row in pair.rows][1:] == ["kd (temperature 4.0000001)", "kd (temperature 4.0000002)"]
    assert all(row.done == 3 for row in pair.rows[1:])


def test_logit_settings_are_in_the_label(tmp_path: Path) -> None:
    kd = [cell for cell in cells() if cell.label == "kd"]
    standardised = [otherwise(cell, method=cell.trial.settings()["method"] | {"standardise": True}) for cell in kd]
    planned = standardised + [method(cell, temperature=2.0) for cell in standardised]
    (pair,) = written(tmp_path, planned).summary.pairs
    assert [row.label for row in pair.rows][1:] == [
        "kd + standardise (temperature 2)",
        "kd + standardise (temperature 4)",
    ]
    assert all(row.done == 3 for row in pair.rows[1:])


def test_other_protocols_have_a_heading_of_their_own(tmp_path: Path) -> None:
    planned = cells()
    planned += [otherwise(cell, epochs=2) for cell in planned if cell.label == "kd"]
    first, second = written(tmp_path, planned).summary.pairs
    assert (first.dataset, len(first.rows)) == ("digits", 4)
    assert (second.dataset, len(second.rows)) == ("digits: epochs 2 instead of 30", 2)


def test_every_pair_has_a_usual_protocol_of_its_own(tmp_path: Path) -> None:
    planned = [cell for cell in cells() if cell.label == "kd"]
    rate = {"name": "sgd", "lr": 0.5}
    planned += [otherwise(cell, model="cifar_resnet14", optimizer=rate) for cell in planned]
    pairs = written(tmp_path, planned).summary.pairs
    assert [(pair.dataset, pair.student) for pair in pairs] == [
        ("digits", "cifar_resnet14"),
        ("digits", "cifar_resnet8"),
    ]


def test_protocols_whose_differences_read_alike_are_told_apart_all_the_same(tmp_path: Path) -> None:
    planned = [cell for cell in cells() if cell.label == "kd"]
    many = {"epochs": 3, "ema": 0.9, "batch_size": 8, "clip_norm": 1.0}
    changed = [
        otherwise(cell, **many, precision=precision) for precision in ("bfloat16", "float32") for cell in planned[:1]
    ]
    changed += [otherwise(planned[0], **many, drop_path=0.1)]
    headings = [pair.dataset for pair in written(tmp_path, [*planned, *changed]).summary.pairs]
    assert len(headings) == len(set(headings)) == 4
    assert sum(heading.endswith("and 2 more (another)") for heading in headings) == 1


def test_teachers_of_one_name_are_told_apart_where_they_must_be(tmp_path: Path) -> None:
    planned = cells()
    planned += [taught_by(cell, epochs=7) for cell in planned if cell.label == "kd"]
    result = written(tmp_path, planned)
    assert len(result.summary.pairs) == 2
    teachers = {cell.teacher_id for cell in planned}
    assert {pair.dataset for pair in result.summary.pairs} == {f"digits: teacher {name}" for name in teachers}
    assert sum(row.done for pair in result.summary.pairs for row in pair.rows if row.kind == "method") == 12


def test_teachers_that_differ_in_their_seed_stay_together(tmp_path: Path) -> None:
    planned = cells()
    others = [taught_by(cell, seed=seed, **changes) for cell in planned if cell.label == "kd"
              for seed, changes in ((7, {}), (0, {"epochs": 7}), (7, {"epochs": 7}))]  # fmt: skip
    (pair,) = written(tmp_path / "one", [*planned, *others[::3]]).summary.pairs
    assert pair.crossed and {row.label: row.counts for row in pair.rows}["kd"] == "2 x 3"
    pairs = written(tmp_path / "two", [*planned, *others]).summary.pairs
    assert [pair.crossed for pair in pairs] == [True, True] and len({pair.dataset for pair in pairs}) == 2
    assert all(pair.dataset.startswith("digits: teachers ") for pair in pairs)


def test_the_student_alone_stands_under_every_pair_it_serves(tmp_path: Path) -> None:
    planned = [cell for cell in cells() if cell.label == "kd"]
    alone = {"name": "none", "hyperparameters": {}, "source": None}
    planned += [otherwise(cell, method=alone, teacher=None) for cell in planned]
    other = [otherwise(cell, teacher=planned[0].trial.settings()["teacher"] | {"model": "cifar_resnet20"})
             for cell in cells() if cell.label == "kd"]  # fmt: skip
    result = written(tmp_path, [*planned, *other])
    assert [pair.teacher for pair in result.summary.pairs] == ["cifar_resnet14", "cifar_resnet20"]
    for pair in result.summary.pairs:
        assert [(row.kind, row.done) for row in pair.rows[1:]] == [("student", 3), ("method", 3)]
    by_itself = written(tmp_path / "alone", [cell for cell in planned if cell.label == "kd" and not cell.trial.teacher])
    (pair,) = by_itself.summary.pairs
    assert pair.teacher == "" and [row.kind for row in pair.rows] == ["student"]


def test_what_is_no_trial_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "0123456789abcdef").mkdir()
    assert trial_ids(tmp_path) == set() and trial_ids(tmp_path / "nowhere") == set()
    (tmp_path / "0123456789abcdef" / "trial.json").write_text("{}")
    result = summarise_unplanned(tmp_path, trial_ids(tmp_path))
    assert result.cells == () and "Left out: 1 folder whose trial.json is damaged (0123456789abcdef)." in result.about
