"""Estimates that are kept, and compared with the time of the trainings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kd_bench.config.trial import PlannedTrial
from kd_bench.estimate import history
from kd_bench.estimate.recipe_cost import RecipeCost, cost_key, group_missing_trials
from kd_bench.estimate.timing_job import EpochTime, Timing
from kd_bench.launch.options import RunOptions
from tests.estimate.few import planned


def test_the_time_of_a_run_is_compared_and_kept(recipe: Path, tmp_path: Path) -> None:
    cells = planned(recipe)
    out = tmp_path / "out"
    assert history.compare_with_estimate(cells, [cell.trial_id for cell in cells], out, "few") == ""
    keys = [cost_key(cell.trial) for cell in cells if cell.label in ("kd", "dkd")]
    content = {
        "made": "then",
        "groups": [
            {"cost_keys": [keys[0], keys[-1]], "here": {"shared_seconds": 8.0, "own_seconds": [3.0, 5.0]}},
            {"cost_keys": [cost_key(cells[0].trial)], "here": None},
        ],
    }
    (out / "few").mkdir(parents=True)
    (out / "few" / "estimate.json").write_text(json.dumps(content))
    ids = {}
    for label, seconds in (("kd", 4.0), ("dkd", 6.0), ("none", 1.0)):
        ids[label] = next(cell.trial_id for cell in cells if cell.label == label)
        metrics(out / "few" / ids[label], [(seconds, seconds + 10.0, 2), (seconds, seconds + 10.0, 2)])
    comparison = history.compare_with_estimate(cells, list(ids.values()), out, "few")
    assert comparison == "few: 2 trainings: estimated 32 s, took 40 s (+25 %)"
    outcome = json.loads((out / "few" / "estimate.json").read_text())["outcomes"]
    assert len(outcome) == 1
    assert outcome[0]["trainings"] == [ids["kd"], ids["dkd"]]
    assert (outcome[0]["estimated_seconds"], outcome[0]["took_seconds"]) == (32.0, 40.0)
    assert outcome[0]["error_percent"] == pytest.approx(25.0)
    history.compare_with_estimate(cells, [ids["kd"]], out, "few")
    assert len(json.loads((out / "few" / "estimate.json").read_text())["outcomes"]) == 2


def test_an_estimate_is_compared_as_it_was_kept(recipe: Path, tmp_path: Path) -> None:
    cells, options = planned(recipe), RunOptions(out=tmp_path)
    *_, taught = group_missing_trials(cells, options, "few")[0]
    taught.timing = Timing(EpochTime(shared=8, students=(3, 5), evaluation=4, checkpoint=2, startup=6), 1, 1)
    cost = RecipeCost("few", [taught], ["cpu"], "a machine", 0, 0, [], cohort_size=8)
    assert history.save_estimate(cost, options) == tmp_path / "few" / "estimate.json"
    kd = next(cell.trial_id for cell in cells if cell.label == "kd")
    metrics(tmp_path / "few" / kd, [(3.5, 11.5, 2)])
    comparison = history.compare_with_estimate(cells, [kd], tmp_path, "few")
    assert comparison == "few: 1 training: estimated 7.0 s, took 7.5 s (+7 %)"


def test_a_network_that_runs_once_was_estimated_once(recipe: Path, tmp_path: Path) -> None:
    cell = planned(recipe, "epochs=2", "augment.crop=0", "augment.flip=false")[0]
    teacher = cell.trial.model_copy(update={"pretrained": "0" * 64, "trainable": "head"})
    group = {"cost_keys": [cost_key(teacher)], "here": {"shared_seconds": 8.0, "own_seconds": [2.0]}}
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "estimate.json").write_text(json.dumps({"groups": [group]}))
    metrics(tmp_path / "few" / teacher.id, [(8.0, 12.0, 1), (0.1, 0.5, 1)])
    cells = [PlannedTrial(teacher, "teacher", None)]
    comparison = history.compare_with_estimate(cells, [teacher.id], tmp_path, "few")
    assert comparison == "few: 1 training: estimated 10 s, took 12 s (+25 %)"


DAMAGED = {
    "{": "is damaged: it is no JSON (EOF while parsing an object at line 1 column 1)",
    "[]": "is damaged: it holds no mapping",
    "{}": "is damaged: it has: groups: this key is missing",
    '{"groups": [{"rows": []}]}': "is damaged: it has: groups.0.cost_keys: this key is missing",
    '{"groups": [{"cost_keys": ["a"], "here": {"shared_seconds": 1, "own_seconds": []}}]}': (
        "is damaged: it has: groups.0: own_seconds and cost_keys differ in length"
    ),
    '{"groups": [], "outcomes": 3}': "is damaged: it has: outcomes: should be a list (it is 3)",
}


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_estimate_is_named_and_not_compared(content: str, recipe: Path, tmp_path: Path) -> None:
    cells = planned(recipe)
    (tmp_path / "few").mkdir()
    file = tmp_path / "few" / "estimate.json"
    file.write_text(content)
    message = history.compare_with_estimate(cells, [cells[0].trial_id], tmp_path, "few")
    assert message == f"{file} {DAMAGED[content]}; the trainings' time is not compared with it"
    assert file.read_text() == content


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.26, "0.3 s"), (45, "45 s"), (300, "5.0 min"), (36_000, "10 h"), (4.8e6, "1,333 h"), (1.42e10, "450 years")],
)
def test_durations_have_a_few_digits(seconds: float, text: str) -> None:
    assert history.format_duration(seconds) == text


def metrics(folder: Path, rows: list[tuple[float, float, int]]) -> None:
    folder.mkdir(parents=True)
    lines = ["own_seconds,seconds,members", *(",".join(map(str, row)) for row in rows)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
