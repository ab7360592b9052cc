"""Published robust accuracies: as printed, and only beside what was trained with the settings they were found with."""

import csv
import io
import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pandas
import pytest

from kd_bench.cli.main import app
from kd_bench.config.load import read_recipe
from kd_bench.launch.options import RunOptions
from kd_bench.paper.reproduce import Part, Reproduction, groups
from kd_bench.plan import plan
from kd_bench.report import published_robustness
from kd_bench.report.render import render
from kd_bench.utils.errors import UserError
from tests.data.generated_images import write_images
from tests.report.trials import put as put_result
from tests.report.trials import write_trial

PUBLISHED = Path(__file__).parents[2] / "results" / "published"


def robustness_parts() -> list[Part]:
    return Reproduction("robustness", RunOptions(out=Path("runs")), print).full()


def rows(table: str) -> list[dict[str, str]]:
    with (PUBLISHED / f"{table}.csv").open() as stream:
        return list(csv.DictReader(stream))


def published_number(recipe: str, label: str, eps: str, source: str) -> published_robustness.PublishedRobustness:
    numbers = published_robustness.read_numbers()[f"robustness/{recipe}", label, float(Fraction(eps))]
    (number,) = [number for number in numbers if number.source.startswith(source)]
    return number


def test_numbers_are_those_of_the_printed_tables() -> None:
    for table in ("table9", "table10", "table11"):
        for row in rows(table):
            value = row["alpha"] if row["varied"] == "alpha" else row["beta"]
            number = published_number(table, f"{row['varied']}_{value}", "8/255", f"Table {table[5:]}")
            assert number.values["clean"] == float(row["clean"])
            assert number.values["autoattack"] == float(row["autoattack"])
            for key in ("apgd_ce", "apgd_t"):
                assert number.values.get(key) == (float(row[key]) if key in row else None)
    for row in rows("table12"):
        number = published_number("table12", row["method"], row["epsilon"], "Table 12")
        assert number.values == {"autoattack": float(row["autoattack"])}
    for row, label, recipe in (
        (1, "ikl_at", "table7"),
        (3, "ikl_at_autoaugment", "table7"),
        (5, "ikl_at_generated", "table7_generated"),
    ):
        printed = rows("table7")[row]
        number = published_number(recipe, label, "8/255", "Table 7")
        assert number.values == {"clean": float(printed["clean"]), "autoattack": float(printed["autoattack"])}


def test_every_number_has_its_row(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KD_BENCH_DATA", str(tmp_path))
    write_images(tmp_path / "generated" / "cifar100_50m.npz")
    for name, label, eps in published_robustness.read_numbers():
        recipe = read_recipe(name)
        assert label in recipe.methods
        assert any(float(Fraction(radius)) == eps for radius in groups()["robustness"].recipes[name].radii)


def test_sources_that_disagree_stand_side_by_side() -> None:
    numbers = published_robustness.read_numbers()
    accuracies = {number.values["clean"] for number in numbers["robustness/table7", "ikl_at_autoaugment", 8 / 255]}
    assert accuracies == {64.63, 65.93}
    accuracies = {number.values["autoattack"] for number in numbers["robustness/cifar10", "ikl_at", 8 / 255]}
    assert accuracies == {57.13, 57.09}


def evaluation(eps: float, images: int = 100, complete: bool = True, robust: float = 30.0) -> dict:
    attacks = ["apgd-ce", "apgd-t", "fab-t", "square"] if complete else ["apgd-ce"]
    return {
        "kind": "attack",
        "status": "done",
        "attack": {"schema_version": 1, "norm": "Linf", "eps": eps, "attacks": attacks, "images": images},
        "images": images,
        "of": 100,
        "accuracy": {"clean": 60.0, **dict.fromkeys(attacks, robust)},
        "robust": robust,
        "skipped": [],
        "warnings": [],
        "subject": {"weights": "0" * 64},
    }


def put(folder: Path, name: str, content: dict) -> None:
    (folder / "attacks").mkdir(parents=True, exist_ok=True)
    (folder / "attacks" / f"{name}.json").write_text(json.dumps(content))


def test_published_numbers_stand_beside_what_was_trained_with_their_settings(tmp_path) -> None:
    (part,) = [part for part in robustness_parts() if part.name == "robustness/table12"]
    cell = next(cell for cell in part.planned if cell.label == "ikl_at")
    trial = cell.trial_id
    write_trial(tmp_path / trial, cell.trial)
    put_result(tmp_path / trial)
    put(tmp_path / trial, "a", evaluation(8 / 255))
    put(tmp_path / trial, "b", evaluation(8 / 255, images=50, robust=77.0))
    put(tmp_path / trial, "c", evaluation(2 / 255, complete=False, robust=50.0))
    lines = published_robustness.robustness_rows(part.name, part.planned, tmp_path, part.radii, part.as_published)
    assert len(lines) == 12
    by = {(line.label, line.eps): line for line in lines}
    line = by["ikl_at", "8/255"]
    assert {key: value.mean for key, value in line.measured.items()} == {
        "clean": 60.0,
        "apgd_ce": 30.0,
        "apgd_t": 30.0,
        "autoattack": 30.0,
    }
    assert (line.images, line.complete) == (100, True)
    assert [number.values["autoattack"] for number in line.published] == [31.67, 31.65]
    assert not by["ikl_at", "2/255"].complete
    assert by["improved_trades", "8/255"].measured == {}
    assert [number.values["autoattack"] for number in by["improved_trades", "8/255"].published] == [30.29]
    table = published_robustness.RobustnessTable("Table 12", tuple(lines))
    text = render(published_robustness.render_tables([table], "markdown"), "markdown")
    assert "published: Table 12" in text
    assert "not measured yet" in text
    assert "(AA: upper bound)" in text
    assert "Rows with other settings" not in text
    assert "Doubtful" not in text
    csv_text = render(published_robustness.render_tables([table, replace(table, title="Table 13")], "csv"), "csv")
    numbers = pandas.read_csv(io.StringIO(csv_text))
    assert len(numbers) == 2 * (7 + sum(len(number.values) for line in lines for number in line.published))
    numeric = ("eps", "mean", "std", "n", "images", "published")
    assert all(pandas.api.types.is_numeric_dtype(numbers[name]) for name in numeric)
    numbers = numbers[numbers["table"] == "Table 12"].set_index(["label", "column"]).sort_index()
    network = numbers.loc["ikl_at", "AA"]
    measured = network[network["mean"].notna()].set_index("eps")
    assert measured["mean"].to_dict() == {8 / 255: 30.0, 2 / 255: 50.0}
    assert measured["is_upper_bound"].to_dict() == {8 / 255: False, 2 / 255: True}
    assert measured["images"].to_dict() == {8 / 255: 100, 2 / 255: 100}
    assert measured["n"].eq(1).all() and measured["published"].isna().all()
    printed = network[network["source"].notna() & network["eps"].eq(8 / 255)]
    assert printed["published"].to_list() == [31.67, 31.65] and printed["mean"].isna().all()


def test_evaluations_with_other_attacks_are_not_averaged(tmp_path) -> None:
    """Three seeds: PGD-20 of all and another attack of two; then PGD-20 of one, and two other attacks of the others."""
    (part,) = [part for part in Reproduction("robustness", RunOptions(out=Path("runs")), print, trials=3).full()
               if part.name == "robustness/table12"]  # fmt: skip
    cells = [cell for cell in part.planned if cell.label == "ikl_at"]
    for cell in cells:
        write_trial(tmp_path / cell.trial_id, cell.trial)
        put_result(tmp_path / cell.trial_id)
        content = evaluation(8 / 255, complete=False, robust=40.0 + cell.seed)
        if cell.seed < 2:
            put(tmp_path / cell.trial_id, "b", content | {"warnings": ["it hides"]})
        weaker = content | {"attack": content["attack"] | {"attacks": ["pgd-20"]}, "robust": 90.0}
        put(tmp_path / cell.trial_id, "a", weaker | {"accuracy": {"clean": 60.0, "pgd-20": 90.0}})

    def row() -> published_robustness.RobustnessRow:
        rows = published_robustness.robustness_rows(part.name, part.planned, tmp_path, ("8/255",), part.as_published)
        (line,) = [line for line in rows if line.label == "ikl_at"]
        return line

    assert (row().measured["autoattack"].mean, row().measured["autoattack"].n) == (90, 3)  # of the most seeds
    for cell in cells[:2]:
        (tmp_path / cell.trial_id / "attacks" / "a.json").unlink()
        content = json.loads((tmp_path / cell.trial_id / "attacks" / "b.json").read_text())
        content["attack"]["attacks"], content["accuracy"]["square"] = ["apgd-ce", "square"], content["robust"]
        put(tmp_path / cell.trial_id, "b", content)
    assert (row().measured["autoattack"].mean, row().measured["autoattack"].n) == (40.5, 2)
    table = published_robustness.RobustnessTable("x", (row(),))
    assert "Doubtful: ikl_at, 8/255: it hides." in render(published_robustness.render_tables([table], "plain"), "plain")


def test_other_settings_have_nothing_published_beside_them(tmp_path) -> None:
    name = "robustness/table12"
    recipe = read_recipe(name, ["epochs=100"])
    (part,) = [part for part in robustness_parts() if part.name == name]
    planned = plan(recipe, name)
    lines = published_robustness.robustness_rows(name, planned, tmp_path, part.radii, part.as_published)
    assert not any(line.published for line in lines)
    tables = published_robustness.render_tables([published_robustness.RobustnessTable("x ± –", tuple(lines))], "plain")
    assert "Rows with other settings" in render(tables, "terminal")
    render(tables, "terminal", ascii_only=True).encode("ascii")


@pytest.mark.parametrize(
    "content", ["recipe,label\n", "recipe,label,eps,clean,apgd_ce,apgd_t,autoattack,source\na,b,x,,,,,\n"]
)
def test_a_damaged_file_is_said_to_be(tmp_path, monkeypatch, content: str) -> None:
    file = tmp_path / "robustness.csv"
    file.write_text(content)
    monkeypatch.setattr(published_robustness, "package_path", lambda *parts: file)
    with pytest.raises(UserError, match=r"robustness\.csv: "):
        published_robustness.read_numbers()


def test_the_page_has_published_beside_measured(tmp_path) -> None:
    cell = next(cell for cell in plan(read_recipe("robustness/table9"), "x") if cell.label == "alpha_12")
    folder = tmp_path / "out" / "robustness" / cell.trial_id
    write_trial(folder, cell.trial)
    put_result(folder, top1_last=60.5, top1_best=60.5)
    put(folder, "whole", evaluation(8 / 255))
    put(folder, "part", evaluation(2 / 255, complete=False))
    file = tmp_path / "page.html"
    app(["report", "--recipe", "robustness/table9", "--out", str(tmp_path / "out"), "--output", str(file)],
        standalone_mode=False)  # fmt: skip
    text = file.read_text()
    number = published_number("table9", "alpha_12", "8/255", "Table 9")
    for measured, key in (("60.00 (1)", "clean"), ("30.00 (1)", "apgd_ce"), ("30.00 (1)", "autoattack")):
        assert re.search(
            rf"{re.escape(measured)}<br><span class=\"published\"[^>]*>{number.values[key]:.2f} \(a\)", text
        )
    assert text.count(f"a: published, {number.source}; not measured here.") == 1
