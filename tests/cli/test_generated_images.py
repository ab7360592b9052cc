"""Generated images are found in the folder that --data names, and results are read without them."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_bench import api
from kd_bench.cli.main import app
from kd_bench.config.load import read_recipe
from kd_bench.config.trial import Trial
from kd_bench.plan import plan
from kd_bench.trials.plan_without_weights import plan_from_results
from kd_bench.trials.recipe_file import write_recipe
from kd_bench.utils.errors import UserError
from tests.data.generated_images import write_images
from tests.report.trials import write_trial

RECIPE = {
    "name": "mixed",
    "dataset": {"name": "digits", "train_images": 32, "test_images": 20},
    "epochs": 1,
    "batch_size": 16,
    "input": {"size": 16},
    "adversarial": {"eps": 0.1, "steps": 1, "generated": {"path": "more.npz", "share": 0.5}},
    "pairs": [{"teacher": None, "student": "resnet8"}],
    "methods": ["trades"],
    "baseline": "trades",
    "trials": 1,
}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A recipe, and a folder with its generated images, which is not the default data folder."""
    recipe, data = tmp_path / "mixed.yaml", tmp_path / "sets"
    recipe.write_text(yaml.safe_dump(RECIPE))
    write_images(data / "more.npz")
    monkeypatch.setenv("KD_BENCH_DATA", str(tmp_path / "elsewhere"))
    return recipe, data


def kd_bench(*arguments: Any) -> None:
    app(list(map(str, arguments)), standalone_mode=False)


def checksum(cells: list[Any]) -> str:
    (cell,) = cells
    digest: str = cell.trial.adversarial.generated.sha256
    return digest


def test_they_are_found_by_data_and_results_are_read_without_them(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, data = folders
    with pytest.raises(UserError, match=r"there is no file .*elsewhere/more\.npz; .* KD_BENCH_DATA or --data; if the"):
        kd_bench("run", recipe, "--out", tmp_path / "runs")
    kd_bench("run", recipe, "--out", tmp_path / "runs", "--data", data)
    (trial,) = (tmp_path / "runs" / "mixed").glob("*/trial.json")
    expected = hashlib.sha256((data / "more.npz").read_bytes()).hexdigest()
    assert json.loads(trial.read_text())["adversarial"]["generated"]["sha256"] == expected
    capsys.readouterr()
    kd_bench("table", recipe, "--out", tmp_path / "runs", "--format", "csv")
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (row["label"], row["done"]) == ("trades", "1")
    attack = ("attack", recipe, "--out", tmp_path / "runs", "--data", data, "--screen", "pgd-20", "--images", 10)
    kd_bench(*attack)
    assert "trades" in capsys.readouterr().out


def test_images_that_do_not_fit_are_refused_before_a_run(folders: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, data = folders
    write_images(data / "more.npz", size=8)
    with pytest.raises(UserError, match=r"more\.npz: image should be \(N, 32, 32, 3\) of uint8, not \(20, 8, 8, 3\)"):
        kd_bench("run", recipe, "--out", tmp_path / "runs", "--data", data)


def test_an_estimate_needs_none(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, _ = folders
    kd_bench("estimate", recipe, "--out", tmp_path / "runs", "--steps", 1, "--cards", "none")
    assert "more.npz; the estimate does without them" in " ".join(capsys.readouterr().out.split())


def test_all_plans_take_the_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, data = folders
    expected = hashlib.sha256((data / "more.npz").read_bytes()).hexdigest()
    assert checksum(plan(read_recipe(str(recipe)), "mixed", data=data)) == expected
    assert checksum(api.plan(str(recipe), data=data).planned) == expected
    assert checksum(api.plan(str(recipe), data=data, results=tmp_path).planned) == expected
    overrides = [f"adversarial={json.dumps(RECIPE['adversarial'])}", "batch_size=16", "input.size=16"]
    settings = {"overrides": [*overrides, "baseline=trades"], "trials": 1}
    cells = api.plan_comparison("digits", None, "resnet8", ["trades"], data=data, **settings).planned
    assert checksum([cell for cell in cells if cell.label == "trades"]) == expected


def test_results_of_several_files_do_not_say_which_is_meant(folders: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, data = folders
    content = read_recipe(str(recipe))
    (cell,) = plan(content, "mixed", data=data)
    out = tmp_path / "runs"
    with pytest.raises(UserError, match="there is no file"):
        plan_from_results(content, "mixed", out)
    known = checksum([cell])
    for digest in ("1" * 64, "2" * 64):
        settings = cell.trial.settings()
        settings["adversarial"]["generated"]["sha256"] = digest
        trial = Trial.model_validate_json(json.dumps(settings))
        write_trial(out / "mixed" / trial.id, trial)
        if digest[0] == "1":
            assert checksum(plan_from_results(content, "mixed", out)) == digest
            assert checksum(plan_from_results(content, "mixed", out, data=data)) == known
    with pytest.raises(UserError, match="there is no file"):
        plan_from_results(content, "mixed", out)


def test_the_recipe_of_an_earlier_comparison_is_kept_if_its_images_are_in_the_folder_of_data(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    _, data = folders
    out = tmp_path / "runs"

    def write(*methods: str) -> tuple[str | None, list[str]]:
        recipe = read_recipe({**RECIPE, "methods": list(methods), "baseline": methods[0]})
        planned = plan(recipe, "mixed", data=data)
        return write_recipe(recipe, out, planned, data), [cell.trial_id for cell in planned]

    note, trials = write("trades")
    assert note is None
    (out / "mixed" / trials[0]).mkdir()
    note, _ = write("ikl_at")
    assert note is not None and "which has 1 trial that is not in this one" in note
    (earlier,) = (out / "mixed").glob("recipe-*.yaml")
    assert list(read_recipe(earlier).methods) == ["trades"]
