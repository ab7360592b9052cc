"""The paper's tables, printed again."""

import csv
import io
import re

import pytest
from typer.testing import CliRunner

from kd_bench.cli.main import app
from kd_bench.paper.published_tables import TITLES, reprint, table
from kd_bench.report.render import FORMATS
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import package_path
from tests.report.test_latex import balanced


@pytest.mark.parametrize("format", FORMATS)
def test_every_published_number_is_there_as_printed(format: str) -> None:
    text = reprint(format)
    for number in TITLES:
        with package_path("results", "published", f"table{number}.csv").open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            for key in ("top1", "clean", "autoattack", "apgd_ce", "apgd_t", "teacher_top1"):
                assert row.get(key, "") in text, (number, key)
    if format != "csv":
        assert re.findall(r"Table (\d+)\.", text) == [str(number) for number in TITLES]
        assert "nothing here was measured" in text
    if format == "latex":
        assert balanced(text) and text.count(r"\begin{table}") == 7


def test_table_6_is_laid_out_as_in_the_paper() -> None:
    table6 = table(6)
    heads = [tuple(column.header[0] for column in table6.columns), *table6.head_rows]
    assert heads[0][1:] == ("teacher", "resnet32x4", "wrn_40_2", "vgg13", "resnet50", "resnet32x4")
    assert heads[1][2:] == ("79.42", "75.61", "74.64", "79.34", "79.42")
    assert heads[3][2:] == ("70.50", "70.50", "64.60", "64.60", "71.82")
    features, logits = table6.groups
    assert features[0].cells[:2] == ["features", "fitnet"] and len(features) == 5
    values = ["76.64 ± 0.02", "77.19 ± 0.01", "70.40 ± 0.03", "70.62 ± 0.08", "77.16 ± 0.04"]
    assert logits[-1].cells == ["", "ikl_kd", *values]
    # the best of the columns, as the paper has them in bold
    best = {column: row.cells[1] for row in table6.rows for column, rank in row.ranks.items() if rank == 1}
    assert best == {2: "reviewkd", 3: "ikl_kd", 4: "ikl_kd", 5: "ikl_kd", 6: "reviewkd"}
    second = {column: row.cells[1] for row in table6.rows for column, rank in row.ranks.items() if rank == 2}
    assert second == {2: "ikl_kd", 3: "reviewkd", 4: "reviewkd", 5: "dkd", 6: "ikl_kd"}


def test_csv_is_a_row_a_number() -> None:
    rows = list(csv.DictReader(io.StringIO(reprint("csv"))))
    assert {int(row["table"]) for row in rows} == set(TITLES)
    (row,) = [row for row in rows if row["table"] == "12" and "method=ikl_at; epsilon=8/255" in row["row"]]
    assert (row["column"], row["value"]) == ("autoattack", "31.67")
    assert [float(row["value"]) for row in rows if row["column"] == "computation_saving"] == [33.3, 33.3, 0]
    assert all(0 <= float(row["value"]) <= 100 for row in rows)


def test_the_command() -> None:
    run = CliRunner().invoke(app, ["table", "--published", "--format", "markdown"])
    assert run.exit_code == 0 and run.output == reprint("markdown")
    for arguments, message in (
        (["table", "--only", "method=kd"], "--only: name the recipe"),
        (["table", "demo", "--published"], "--published: must stand without a recipe"),
        (["table", "--published", "--columns", "ece"], "so --columns must be left out"),
        (["table", "--published", "--only", "method=kd"], "so --only must be left out"),
        (["table", "--published", "--epochs", "3"], "so --set .* must be left out"),
    ):
        with pytest.raises(UserError, match=message):
            CliRunner().invoke(app, arguments, standalone_mode=False, catch_exceptions=False)


def test_html_has_the_notes_in_elements() -> None:
    text = reprint("html")
    assert text.endswith("</li>\n</ul>\n") and text.count("<li>") == 2


def test_an_unknown_format() -> None:
    with pytest.raises(UserError, match="did you mean 'latex'"):
        reprint("latx")
