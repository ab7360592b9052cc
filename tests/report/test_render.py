import io
import re
from pathlib import Path

import pandas as pd
import pytest

from kd_bench.report.render import FORMATS, Column, Table, TableRow, render, simple_table, write
from kd_bench.report.results_frame import read_results
from kd_bench.report.summarise import summarise
from kd_bench.report.summary import Summary
from kd_bench.report.summary_text import write_summary
from kd_bench.utils.errors import UserError
from tests.report.trials import fail, plan, put, render_summary, trial_id

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def demo(folder: Path) -> Summary:
    """Two pairs, one of them incomplete."""
    put(folder / "teachers" / "t0", top1_last=97.22, top1_best=97.5, epochs=40, seconds_per_epoch=2.25)
    cells = plan(folder / "demo", {"none": [60.0] * 3, "kd": [62.0, 63.0, 64.0], "ikl_tau_1": [64.0, 64.0, 67.0]})
    cells += plan(folder / "demo", {"kd": [9.0, None], "dkd": [None, None]}, teacher="wrn_16_2", teacher_id="t1")
    fail(folder / "demo" / "wrn_16_2dkd0", "the loss is not finite & 100 % wrong")
    return summarise(read_results(folder / "demo", cells))


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    return demo(tmp_path)


def test_terminal_fits_eighty_columns(summary: Summary) -> None:
    text = render_summary(summary, "terminal")
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text and "…" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    lines = text.splitlines()
    assert lines[0] == "resnet20 → resnet8 on digits"
    (line,) = [line for line in lines if line.startswith(" ikl_tau_1")]
    assert line.split() == "ikl_tau_1 65.00 ± 1.73 (3) +2.00 [-0.48, +4.48] 66.00 ± 1.73 4.00".split()  # noqa: SIM905
    (alone,) = [line for line in lines if line.startswith(" student alone")]
    assert alone.split()[2:7] == ["60.00", "±", "0.00", "(3)", "-3.00"]
    assert " ".join(text.split()).count("best epoch, top-1 % difference to kd selected on seconds") == 2
    assert "  kd: 1 of 2 (1 missing)" in lines and "  dkd: 0 of 2 (1 failed, 1 missing)" in lines
    (short,) = [line for line in lines if "(1/2)" in line]
    assert short.split() == ["kd", "9.00", "(1/2)", "–", "10.00", "4.00"]


def test_the_order_of_lines(summary: Summary) -> None:
    text = render_summary(summary, "plain")
    places = [text.index(f"\n{name} ") for name in ("teacher", "student alone", "kd", "ikl_tau_1")]
    assert places == sorted(places)


@pytest.mark.parametrize("width", [20, 60, 76, 80, 100, 200])
def test_no_width_cuts_a_number(summary: Summary, width: int) -> None:
    for ascii_only in (False, True):
        text = render_summary(summary, "terminal", width=width, ascii_only=ascii_only)
        spread = "65.00 +- 1.73 (3)" if ascii_only else "65.00 ± 1.73 (3)"
        (line,) = [line for line in text.splitlines() if spread in line]
        assert "+2.00 [-0.48, +4.48]" in line and line.endswith("4.00")


def test_long_names_are_folded_and_nothing_is_lost(tmp_path: Path) -> None:
    label = "ikl_with_a_very_long_name_of_its_own"
    cells = plan(tmp_path, {"kd": [62.0, 63.0, 64.0], label: [64.0, 64.0, 67.0]})
    text = render_summary(summarise(read_results(tmp_path, cells)), "terminal")
    assert max(map(len, text.splitlines())) <= 80
    table = text[: text.index("\n\n")].splitlines()
    names = next(line for line in table if line.startswith(" method")).index("mean ± std")
    assert label in "".join(line[:names].strip() for line in table)
    assert label in render_summary(summarise(read_results(tmp_path, cells)), "terminal", width=120)


def test_colour_changes_nothing_but_colour(summary: Summary) -> None:
    coloured = render_summary(summary, "terminal", colour=True)
    assert "\x1b[33m" in coloured
    plain = "".join(f"{line.rstrip()}\n" for line in ANSI.sub("", coloured).splitlines())
    assert plain == render_summary(summary, "terminal")


@pytest.mark.parametrize("format", FORMATS)
def test_ascii(summary: Summary, format: str) -> None:
    text = render_summary(summary, format, ascii_only=True)
    assert text.isascii() and "?" not in text and not re.search(r"\\[ux][0-9a-f]", text)
    assert ("+-" in text) == (format in ("terminal", "markdown", "plain", "html"))


@pytest.mark.parametrize("format", FORMATS)
def test_a_stream_that_is_no_terminal(summary: Summary, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "90")
    for encoding in ("utf-8", "ascii", "latin-1", "cp1252"):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
        write_summary(summary, format, stream)
        stream.flush()
        assert raw.getvalue().decode(encoding) == render_summary(
            summary, format, width=90, ascii_only=encoding != "utf-8"
        )


def test_a_name_that_the_stream_cannot_show(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"kd": [62.0]}, dataset="ziffern größer 数字")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write_summary(summarise(read_results(tmp_path, cells)), "plain", stream)
    stream.seek(0)
    assert r"gr\xf6\xdfer" in stream.read()


@pytest.mark.parametrize("format", ["terminal", "markdown", "plain", "latex-long"])
def test_footnotes_are_in_every_format_for_people(summary: Summary, format: str) -> None:
    text = re.sub(
        r"\s+", " ", render_summary(summary, format).replace(r"\_", "_").replace(r"\%", "%").replace(r"$\pm$", "±")
    )
    for note in summary.footnotes:
        assert note in text
    words = (
        "Incomplete: 10 of 13",
        "ddof = 1",
        "95 % interval of the paired t",
        "after the last epoch",
        "Dataset: digits",
    )
    assert all(word in text for word in words)


def test_the_best_epochs_column_says_who_selected_it(summary: Summary) -> None:
    for format in ("markdown", "plain"):
        assert render_summary(summary, format).count("best epoch, selected on the test set") == 2
    assert r"best epoch, \\ \strut selected on \\ \strut the test set" in render_summary(summary, "latex-long")
    header = render_summary(summary, "terminal").splitlines()[2:5]
    at = header[0].index("best epoch,")
    assert [line[at : at + 12].strip() for line in header] == ["best epoch,", "selected on", "the test set"]


def test_markdown_is_one_table_a_pair(summary: Summary) -> None:
    text = render_summary(summary, "markdown")
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 2 and text.count("### ") == 2
    for table, pair in zip(tables, summary.pairs, strict=True):
        lines = table.splitlines()
        assert len(lines) == 2 + len(pair.rows)
        assert {len(line.split("|")) for line in lines} == {8 + 2}  # eight columns, and an edge on either side
        assert re.fullmatch(r"[|:-]+", lines[1])
    cells = [cell.strip() for cell in tables[1].splitlines()[-1].split("|")]
    assert cells == ["", "dkd", "– (0/2)", "–", "–", "–", "–", "–", "0 of 2 (1 failed, 1 missing)", ""]
    assert f"({trial_id('wrn_16_2dkd0')}) failed: the loss is not finite & 100 % wrong" in text


def test_markdown_of_names_with_its_own_signs(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"a|b": [62.0], "*c*": [62.0]})
    table = render_summary(summarise(read_results(tmp_path, cells)), "markdown")
    assert r"| a\|b " in table and r"| \*c\* " in table
    names = {"_init_": r"\_init\_", "ikl_kd": "ikl_kd", "[x](y)": r"[x\](y)", "$x$ ~y~": r"\$x\$ \~y\~",
             "a&amp;b & c": r"a\&amp;b & c", "[1, 2]": "[1, 2]"}  # fmt: skip
    table = render_summary(
        summarise(read_results(tmp_path, plan(tmp_path, {name: [62.0] for name in names}))), "markdown"
    )
    assert all(f"| {escaped} " in table for escaped in names.values())


@pytest.mark.parametrize(("value", "coloured"), [(None, True), ("", True), ("1", False)])
def test_no_color_counts_unless_it_is_empty(value: str | None, coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if value is not None:
        monkeypatch.setenv("NO_COLOR", value)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    write([simple_table("title", ["a"], [["b"]])], "terminal", stream, fit=True)
    assert ("\x1b[" in stream.getvalue()) == coloured


def test_complete_tables_have_no_column_for_notes(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"kd": [62.0], "dkd": [63.0]}, teacher_id=None)
    complete = summarise(read_results(tmp_path, cells))
    assert (
        "note" not in render_summary(complete, "markdown")
        and "/" not in render_summary(complete, "markdown").split("- Top-1")[0]
    )


def test_without_a_baseline_there_is_no_column_of_differences(tmp_path: Path) -> None:
    summary = summarise(read_results(tmp_path, plan(tmp_path, {"dkd": [62.0, 63.0]})))
    for format in ("terminal", "markdown", "plain", "latex-long"):
        text = render_summary(summary, format)
        assert "difference to" not in text and "No differences: there is no row 'kd'" in text
    assert "difference_mean" in render_summary(summary, "csv")


def test_csv_reads_back_in_full_precision(summary: Summary) -> None:
    back = pd.read_csv(io.StringIO(render_summary(summary, "csv")), engine="python")
    flat = [(pair, row) for pair in summary.pairs for row in pair.rows]
    assert len(back) == len(flat)
    for (pair, row), record in zip(flat, back.to_dict("records"), strict=True):
        assert (record["teacher"], record["student"], record["label"]) == (pair.teacher, pair.student, row.label)
        assert (record["planned"], record["done"], record["failed"]) == (row.planned, row.done, row.failed)
        for column, value in {
            "top1_last_mean": row.top1.mean if row.top1 else None,
            "top1_last_std": row.top1.std if row.top1 else None,
            "top1_best_mean": row.best.mean if row.best else None,
            "difference_mean": row.difference.mean if row.difference else None,
            "difference_low": row.difference.low if row.difference else None,
            "difference_high": row.difference.high if row.difference else None,
            "difference_n": row.difference.n if row.difference else None,
            "seconds_per_epoch": row.seconds,
        }.items():
            assert record[column] == value if value is not None else pd.isna(record[column]), column
    assert set(back["baseline"]) == {"kd"}
    numeric = back.select_dtypes("number").columns
    assert {"planned", "top1_last_mean", "top1_last_std", "difference_low", "epochs"} <= set(numeric)


def test_small_things_are_spelt_well(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"kd": [62.0, 62.0], "same": [62.001, 61.999], "slow": [63.0, 63.0], "mid": [63.0, 64.0]})
    for seed in (0, 1):
        put(tmp_path / f"slow{seed}", top1_last=63.0, seconds_per_epoch=1234.56)
        put(tmp_path / f"mid{seed}", top1_last=63.0, seconds_per_epoch=12.345)
    text = render_summary(summarise(read_results(tmp_path, cells)), "plain")
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert " 0.00 [-0.01, +0.01]" in lines["same"] and "-0.00" not in text
    assert lines["slow"].endswith(" 1235") and lines["mid"].endswith(" 12.3")
    assert "+1.00 [+1.00, +1.00]" in lines["slow"]


def test_an_unknown_format_names_the_nearest(summary: Summary) -> None:
    with pytest.raises(UserError, match="no format is called 'markdwon'; did you mean 'markdown'"):
        render_summary(summary, "markdwon")


def test_a_long_note_of_a_row_is_indented() -> None:
    row = TableRow(["dkd"], "trained otherwise: epochs 3 instead of 30, ema 0.9 instead of none")
    text = render([Table("", (Column(("method",)),), ((row,),))], "terminal", width=40)
    assert text.splitlines()[-4:-1] == [
        "  dkd: trained otherwise: epochs 3",
        "    instead of 30, ema 0.9 instead of",
        "    none",
    ]


def test_rows_with_the_same_note_share_a_line() -> None:
    rows = [TableRow(["kd"]), *(TableRow([name], "0 of 3 (3 missing)") for name in ("dkd", "dist"))]
    rows.append(TableRow(["crd"], "2 of 3 (1 failed)"))
    table = Table("", (Column(("method",)),), (tuple(rows),))
    assert render([table], "terminal", width=60).splitlines()[-3:-1] == [
        "  dkd, dist: 0 of 3 (3 missing)",
        "  crd: 2 of 3 (1 failed)",
    ]
    assert r"dkd, dist: 0 of 3 (3 missing).\par" in render([table], "latex", floating=True)
