"""LaTeX: the layout of the paper's Table 6, the long one, the paper's own tables; compiled where there is a TeX."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_bench.paper.published_tables import reprint
from kd_bench.report.paper_layout import best_two, paper_tables, short_names, split
from kd_bench.report.results_frame import read_results
from kd_bench.report.summarise import summarise
from kd_bench.report.summary import Summary
from tests.report.table6 import make
from tests.report.trials import fail, plan, put, render_summary

FAMILIES = {"kd": "logits", "dkd": "logits", "ikl_kd": "logits", "none": "baseline"}


def document(tables: str) -> str:
    """The tables as a whole document."""
    head = r"\documentclass{article}\usepackage[a4paper,margin=1.5cm]{geometry}\usepackage{booktabs}\begin{document}"
    return f"{head}\n{tables}\n\\end{{document}}\n"


def balanced(text: str) -> bool:
    """Whether LaTeX's braces and environments close in order."""
    bare = re.sub(r"\\[{}\\]", "", text)
    depth = 0
    for sign in re.findall("[{}]", bare):
        depth += 1 if sign == "{" else -1
        if depth < 0:
            return False
    stack = []
    for edge, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if edge == "begin":
            stack.append(name)
        elif not stack or stack.pop() != name:
            return False
    return depth == 0 and not stack


def lines_of(text: str) -> list[list[str]]:
    """The cells of all rows between the outer rules."""
    body = text[text.index(r"\toprule") : text.rindex(r"\bottomrule")]
    return [[cell.strip() for cell in line.removesuffix(r"\\").split(" & ")] for line in body.splitlines()
            if line.endswith(r"\\") and not line.startswith(r"\multicolumn")]  # fmt: skip


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    """Two pairs, one of them incomplete."""
    put(tmp_path / "teachers" / "t0", top1_last=97.22, top1_best=97.5, epochs=40)
    folder = tmp_path / "demo"
    cells = plan(
        folder, {"none": [60.0] * 3, "kd": [62.0, 63.0, 64.0], "dkd": [64.0] * 3, "fit_net": [64.0, 64.0, 67.0]}
    )
    cells += plan(folder, {"kd": [9.0, None], "dkd": [None, None]}, teacher="wrn_16_2", teacher_id="t1")
    fail(folder / "wrn_16_2dkd0", "the loss is not finite & 100 % wrong")
    return summarise(read_results(folder, cells)).with_families({**FAMILIES, "fit_net": "features"})


def test_the_layout_of_table_6(summary: Summary) -> None:
    text = render_summary(summary, "latex")
    assert balanced(text) and "±" not in text and "→" not in text
    assert r"\begin{tabular}{@{}llcc@{}}" in text
    std = r"\,{\scriptsize $\pm$\,%s}"
    assert lines_of(text) == [
        ["Distillation", "Teacher", "resnet20", r"wrn\_16\_2"],
        ["manner", "", "97.22", "97.00"],
        ["", "Student", "resnet8", "resnet8"],
        ["", "", f"60.00{std % '0.00'}", ""],
        ["Features", r"fit\_net", rf"\textbf{{65.00{std % '1.73'}}}", ""],
        ["Logits", "kd", f"63.00{std % '1.00'}", r"9.00\,{\scriptsize (1/2)}"],
        ["", "dkd", rf"\underline{{64.00{std % '0.00'}}}", r"--\,{\scriptsize (0/2)}"],
    ]
    assert "Difference:" not in text and "Incomplete:" in text, "only notes on what is shown"


def test_long_latex(summary: Summary) -> None:
    text = render_summary(summary, "latex-long")
    assert balanced(text) and "±" not in text and "→" not in text
    lines = lines_of(text)[1:]
    assert len(lines) == sum(len(pair.rows) for pair in summary.pairs)
    assert all(len(line) == 7 for line in lines)
    assert r"\begin{tabular}{@{}llllllr@{}}" in text
    row = next(line for line in lines if line[0] == r"fit\_net")
    assert row[1:3] == [r"65.00 $\pm$ 1.73 (3)", r"$+$2.00 {[}$-$0.48, $+$4.48]"]
    # differences 2, 1, 3: t = 2 sqrt(3), p = 1 - t / sqrt(t^2 + 2) = 0.0742, of which Holm makes 0.0742 as the larger
    assert row[3:] == ["0.074 (0.148)", "0.250 (0.500)", r"66.00 $\pm$ 1.73", "4.00"]
    assert r"\textbf{wrn\_16\_2 $\to$ resnet8 on digits}" in text
    assert r"dkd (wrn\_16\_2 $\to$ resnet8 on digits): 0 of 2 (1 failed, 1 missing)." in text


@settings(max_examples=30)
@given(st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), min_size=1, max_size=12))
def test_latex_escapes_whatever_a_name_holds(name: str) -> None:
    frame = read_results(Path("nowhere"), plan(Path("nowhere"), {name: [None]}, dataset=name, teacher=name))
    for format, ampersands in (("latex", 2), ("latex-long", 3)):
        text = render_summary(summarise(frame).with_families({name: name}), format)
        assert balanced(text)
        comment, body = text.split("\n", 1)
        assert comment.startswith("%")
        assert not re.search(r"(?<!\\)[%#_^~]", re.sub(r"\\\\", "", body))
        table = body[: body.index(r"\bottomrule")].rstrip("\n")
        row = table.splitlines()[-1]
        assert len(re.findall(r"(?<!\\)&", row)) == ampersands
        assert not row.startswith(("[", "*"))


def test_many_pairs_are_cut_into_several_tabulars(tmp_path: Path) -> None:
    cells = []
    for at in range(7):
        cells += plan(tmp_path, {"kd": [62.0 + at], "dkd": [63.0]}, teacher=f"teacher{at}")
    cells += plan(tmp_path, {"late": [50.0]}, teacher="teacher6")
    text = render_summary(summarise(read_results(tmp_path, cells)), "latex")
    assert text.count(r"\begin{tabular}") == 2 and balanced(text)
    first, second = (part for part in text.split(r"\end{tabular}")[:2])
    assert "{@{}llccccc@{}}" in first and "{@{}llcc@{}}" in second
    assert "late" not in first and "late" in second
    (table,) = paper_tables(summarise(read_results(tmp_path, cells)))
    assert [len(part.pairs) for part in split(table, 3)] == [3, 3, 1]


def test_several_students_alone_are_all_there(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"kd": [62.0, 63.0]}) + plan(tmp_path, {"kd": [64.0, 65.0]}, student="resnet14")
    alone = plan(tmp_path, {"none": [60.0, 61.0], "mixup": [65.0, 66.0]}, method="none")
    text = render_summary(summarise(read_results(tmp_path, [*cells, *alone])), "latex")
    assert r" & none & 60.50\,{\scriptsize $\pm$\,0.71} &  \\" in text
    assert r" & mixup & 65.50\,{\scriptsize $\pm$\,0.71} &  \\" in text
    single_text = render_summary(summarise(read_results(tmp_path, [*cells, *alone[:2]])), "latex")
    assert r" &  & 60.50\,{\scriptsize $\pm$\,0.71} &  \\" in single_text


def test_best_two() -> None:
    assert best_two([1.0, 3.0, 2.0, 3.001, None]) == [None, 1, 2, 1, None], "what prints alike is alike"
    assert best_two([None, 5.0]) == [None, 1] and best_two([]) == []


def test_short_names_never_make_two_networks_one() -> None:
    assert short_names(["cifar_resnet20", "wrn"]) == {"cifar_resnet20": "resnet20", "wrn": "wrn"}
    assert short_names(["cifar_resnet50", "resnet50"]) == {"cifar_resnet50": "cifar_resnet50", "resnet50": "resnet50"}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex here")
def test_it_compiles(tmp_path: Path) -> None:
    made = make(tmp_path / "out")
    summary = summarise(read_results(tmp_path / "out" / "table6", made.planned))
    summary = summary.with_families(FAMILIES | dict.fromkeys(("fitnet", "rkd", "crd", "ofd", "reviewkd"), "features"))
    odd = plan(tmp_path, {r"a\b_{c}^~$%#&[*<|>": [62.0, 63.0], "kd": [62.0, 62.5]}, dataset="~ 100 %")
    odds = summarise(read_results(tmp_path, odd))
    tables = [
        render_summary(table_summary, format) for table_summary in (summary, odds) for format in ("latex", "latex-long")
    ]
    (tmp_path / "tables.tex").write_text(document("\n\\clearpage\n".join([*tables, reprint("latex")])))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    run = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, timeout=120)
    log = run.stdout.decode(errors="replace")
    assert run.returncode == 0 and (tmp_path / "tables.pdf").stat().st_size > 10_000, log[-2000:]
    widest = max((float(width) for width in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log)), default=0)
    assert widest < 60, "the table of five pairs fits the page; the long one, with published numbers, nearly"
