"""The page in a browser, and under axe-core and the Nu validator. Each test skips where its tool is absent."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from kd_bench.config.load import read_recipe
from kd_bench.plan import plan
from kd_bench.report.page import page as made_page
from kd_bench.report.results_frame import read_results
from kd_bench.report.summarise import summarise
from kd_bench.report.summary import FolderResults
from tests.report.browser import AXE, CHROMIUM, VNU, Page, browser
from tests.report.page_made import Made
from tests.report.table6 import HOSTILE
from tests.report.test_protocol import RECIPE
from tests.report.trials import put, write_trial

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

#: The rules of the accessibility guidelines up to WCAG 2.2 AA, and axe's own.
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

#: Opens everything that can be opened, and shows the training losses.
_OPEN = """
document.querySelectorAll('details').forEach((one) => { one.open = true; });
document.querySelectorAll('.switch input').forEach((one) => one.click());
"""

_DIALOG = "document.querySelector('#grid-1 tbody .number').click()"


@needs_browser
def test_in_a_browser(made: Made, tmp_path: Path) -> None:
    with browser(tmp_path) as page:
        page.open(made.file)
        rows = "[...document.querySelectorAll('#grid-1 tbody tr')].filter((one) => one.offsetParent)"
        methods = f"{rows}.map((one) => one.querySelector('th').textContent)"
        order = page.run(methods)
        assert order[0] == "fitnet" and len(order) == 8
        # sorting: up, down, back; what has no number stays last
        head = "document.querySelectorAll('#grid-1 thead tr:last-child button')[5]"  # resnet50 to mobilenet_v2
        values = f"{rows}.map((one) => one.cells[5].dataset.value ?? null)"
        for direction, sign in (("ascending", 1), ("descending", -1)):
            page.run(f"{head}.click()")
            assert page.run(f"{head}.closest('th').getAttribute('aria-sort')") == direction
            cell_values = page.run(values)
            numbers = [float(value) for value in cell_values if value is not None]
            assert (
                len(numbers) == 7
                and cell_values[-1] is None
                and numbers == sorted(numbers, key=lambda number: sign * number)
            )
        page.run(f"{head}.click()")
        assert page.run(methods) == order
        # filtering by family, method and pair
        page.choose("family", "logits")
        assert set(page.run(methods)) == {"kd", "dkd", "ikl_kd"}
        page.run("[...document.querySelectorAll('.chip')].find((one) => one.textContent === 'dkd').click()")
        assert set(page.run(methods)) == {"kd", "ikl_kd"}
        drawn = "document.querySelectorAll('#curves-1 figure:first-child .mark:not(.off)').length"
        assert page.run(drawn) == 4, "kd and ikl_kd, and always the student alone and the teacher"
        page.choose("pair", "1")
        assert (
            page.run("[...document.querySelectorAll('#curves-1 figure')].filter((one) => one.offsetParent).length") == 1
        )
        assert page.run("document.getElementById('shown').textContent") == "4 of 52 rows shown"
        page.run("document.querySelector('[type=reset]').click()")
        page.wait("document.getElementById('shown').textContent === '52 of 52 rows shown'")
        # a number, by the keyboard alone: its trials, their settings, curve and command
        number = "document.querySelector('#grid-1 tbody .number')"
        page.run(f"{number}.focus()")
        page.press("Enter", 13, "\r")
        page.wait("document.getElementById('behind').open")
        body = page.run("document.getElementById('behind').textContent")
        assert (
            "fitnet: resnet32x4 → shufflenet_v1" in body and "kd-bench run cifar100/table6 --only method=fitnet" in body
        )
        assert "optimizer.lr" in body and "torch" in body and HOSTILE in body
        assert page.run("document.querySelectorAll('#behind svg .line').length") == 12  # four curves of three trials
        page.press("Escape", 27)
        page.wait("!document.getElementById('behind').open")
        assert page.run(f"document.activeElement === {number}"), "back where one was"
        # dark, by the system and by the button
        light = page.run("getComputedStyle(document.body).backgroundColor")
        page.open(made.file, dark=True)
        dark = page.run("getComputedStyle(document.body).backgroundColor")
        assert (light, dark) == ("rgb(255, 255, 255)", "rgb(17, 21, 26)")
        page.run("document.getElementById('theme').click()")
        assert page.run("getComputedStyle(document.body).backgroundColor") == light
        # a phone: tables scroll by themselves, the page does not
        page.open(made.file, width=390, height=844)
        assert page.run("document.documentElement.scrollWidth") == 390
        assert page.run("document.querySelector('#lines-1 .scroll').scrollWidth") > 390
        assert page.run("document.title") == "kd-bench report"
        assert page.messages == []
        assert set(page.requests) == {made.file.as_uri()}


@needs_browser
def test_no_table_is_clipped_on_a_desktop(made: Made, tmp_path: Path) -> None:
    with browser(tmp_path) as page:
        page.open(made.file, width=1280)
        page.run(_OPEN)
        clipped = """[...document.querySelectorAll('section .scroll')]
            .filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.getAttribute('aria-label'))"""
        assert page.run("document.querySelectorAll('#lines-1 tbody tr').length") > 40
        assert page.run(clipped) == []


@needs_browser
def test_plots_can_be_read_on_a_phone(made: Made, tmp_path: Path) -> None:
    small = """[...document.querySelectorAll('figure svg text, .forest thead text')]
        .filter((one) => one.checkVisibility()).map((one) => [getComputedStyle(one).fontSize, one.getScreenCTM()])
        .map(([size, to]) => parseFloat(size) * Math.hypot(to.a, to.b)).filter((size) => size < 9.9)"""
    with browser(tmp_path) as page:
        page.open(made.file, width=390, height=844)
        page.run(_OPEN)
        assert page.run("document.querySelectorAll('figure svg text').length") > 100
        assert page.run(small) == []
        assert page.run("document.documentElement.scrollWidth") == 390
        plot = "document.querySelector('#curves-1 .plot')"
        assert page.run(f"{plot}.scrollWidth > {plot}.clientWidth && {plot}.tabIndex === 0")
        # the first column stays in sight while a table scrolls
        table = "document.querySelector('#lines-1 .scroll')"
        page.run(f"{table}.scrollLeft = 1000")
        edge = page.run(f"{table}.querySelector('tbody th').getBoundingClientRect().x")
        assert edge == page.run(f"{table}.getBoundingClientRect().x")


@needs_browser
def test_training_losses_are_shown_on_demand(made: Made, tmp_path: Path) -> None:
    shown = "[...document.querySelectorAll('#curves-1 figure.more')].filter((one) => one.offsetParent).length"
    with browser(tmp_path) as page:
        page.open(made.file)
        assert page.run(shown) == 0
        switch = "document.querySelector('#curves-1 .switch')"
        page.run(f"{switch}.scrollIntoView({{block: 'center'}})")
        box = page.run(f"(({{x, y}}) => [x + 5, y + 5])({switch}.getBoundingClientRect())")
        page.send("Emulation.setScriptExecutionDisabled", value=True)  # the style sheet does it
        page.click(*box)
        page.send("Emulation.setScriptExecutionDisabled", value=False)
        assert page.run(shown) == page.run("document.querySelectorAll('#curves-1 figure:not(.more)').length") == 5


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_targets_are_large_enough(made: Made, tmp_path: Path, width: int) -> None:
    small = """[...document.querySelectorAll('a, button, select, summary, input')]
        .filter((one) => one.offsetParent && !one.matches('.skip'))
        .map((one) => [one.outerHTML.slice(0, 120), one.getBoundingClientRect()])
        .filter(([_, box]) => box.width < 24 || box.height < 24).map(([text, box]) => [text, box.width, box.height])"""
    with browser(tmp_path) as page:
        page.open(made.file, width=width)
        page.run(_OPEN)
        assert page.run("document.querySelectorAll('.number').length") > 100
        assert page.run(small) == []
        page.run(_DIALOG)
        assert page.run(small) == []


@needs_browser
@pytest.mark.skipif(not AXE.exists(), reason="there is no axe-core here")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (1280, True)])
def test_axe_finds_nothing(made: Made, tmp_path: Path, width: int, dark: bool) -> None:
    with browser(tmp_path) as page:
        page.open(made.file, width=width, dark=dark)
        page.run(f"{AXE.read_text()};0")
        assert _violations(page) == []
        page.run(_OPEN)
        assert _violations(page) == []
        page.run(_DIALOG)
        assert page.run("document.getElementById('behind').open")
        page.run("document.querySelectorAll('#behind details').forEach((one) => { one.open = true; })")
        assert _violations(page) == []


def _violations(page: Page) -> list[list[str]]:
    text = page.run(f"""axe.run(document, {{runOnly: {json.dumps(_RULES)}}}).then((results) => JSON.stringify(
        results.violations.map((one) => [one.id, ...one.nodes.slice(0, 3).map((node) => node.html.slice(0, 200))])))""")
    violations: list[list[str]] = json.loads(text)
    return violations


@pytest.mark.skipif(not VNU.exists() or shutil.which("java") is None, reason="there is no Nu validator here")
def test_nu_finds_nothing(made: Made) -> None:
    command = ["java", "-jar", str(VNU), "--stdout", "--exit-zero-always", str(made.file)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert run.stdout + run.stderr == ""


@needs_browser
def test_long_labels_fit_a_phone(tmp_path: Path) -> None:
    """They stand in the conclusions, and above the plots of classes, without a space to break the line at."""
    planned = plan(read_recipe(RECIPE | {"methods": {"kd": {}, "L" * 100: {"method": "dkd"}}}), "r")
    for cell in planned:
        write_trial(tmp_path / "r" / cell.trial_id, cell.trial)
        top1 = 60.0 + cell.seed * (cell.label != "kd")
        put(tmp_path / "r" / cell.trial_id, top1_last=top1, class_top1_last=[top1] * 10)
    frame = read_results(tmp_path / "r", planned)
    file = tmp_path / "page.html"
    file.write_text(
        made_page([FolderResults("r", "", summarise(frame), frame, planned, tmp_path / "r")]), encoding="utf-8"
    )
    with browser(tmp_path) as page:
        page.open(file, width=390, height=844)
        assert page.run("document.querySelectorAll('#classes-1 figcaption').length") == 1
        assert page.run("document.documentElement.scrollWidth") == 390
