"""The page of a Table 6 of made-up trials, some failed, some missing, some of another protocol."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kd_bench.cli.main import app
from kd_bench.config.trial import identity
from kd_bench.plan import select
from kd_bench.utils.errors import UserError
from tests.report.browser import CHROMIUM, browser
from tests.report.table6 import HOSTILE, RECIPE, Table6, make, write_trial
from tests.report.test_protocol import cells
from tests.report.trials import put

_VOID = {"meta", "br", "link", "img", "input", "hr", "path", "line", "circle", "rect"}


@dataclass(frozen=True)
class Made:
    """The trials, the page, and where it lies."""

    table6: Table6
    file: Path
    text: str
    data: dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("report")
    table6 = make(folder / "out")
    attacked(table6)
    file = folder / "pages" / "report.html"
    run = CliRunner().invoke(app, ["report", "--out", str(table6.out), "--output", str(file)])
    assert run.exit_code == 0, run.output
    assert "report: 130 trials, " in run.output
    text = file.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return Made(table6, file, text, json.loads(found[1]))


def attacked(table6: Table6) -> None:
    """An evaluation of robustness in each trial of one pair and two methods, the one with the higher seed better."""
    for cell in table6.planned:
        if cell.label in ("kd", "dkd") and cell.teacher == "cifar_resnet32x4" and cell.student == "cifar_shufflenet_v1":
            folder = table6.out / "table6" / cell.trial_id / "attacks"
            folder.mkdir()
            robust = 30.0 + cell.seed + (2 if cell.label == "dkd" else 0)
            accuracy = {"clean": table6.done[cell.trial_id], "apgd-ce": robust + 3, "apgd-t": robust + 1}
            attack = {"schema_version": 1, "norm": "Linf", "eps": 8 / 255, "library": "0.2.0"}
            said = {
                "kind": "attack",
                "status": "done",
                "attack": attack,
                "images": 100,
                "of": 10000,
                "accuracy": accuracy | {"fab-t": robust + 1, "square": robust},
                "robust": robust,
                "skipped": [],
                "warnings": [HOSTILE],
                "subject": {"weights": "0" * 64},
            }
            (folder / "0000000000000000.json").write_text(json.dumps(said))


class Reader(HTMLParser):
    """Elements with their attributes, text by the innermost table cell, and whether tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[tuple[dict[str, str | None], list[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "br":
            self.handle_data(" ")
        if tag in ("td", "th"):
            self.cells.append((dict(attrs), []))
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag == "option" and self.stack[-1] != "option":
            return
        assert self.stack and self.stack[-1] == tag, (tag, self.stack[-3:], self.getpos())
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if self.cells and self.stack and {"td", "th"} & set(self.stack):
            self.cells[-1][1].append(data)


@pytest.fixture(scope="module")
def reader(made: Made) -> Reader:
    reader = Reader()
    reader.feed(made.text)
    assert reader.stack == []
    return reader


# --- the page by itself ---


def test_it_is_one_small_file_that_fetches_nothing(made: Made, reader: Reader) -> None:
    assert made.file.stat().st_size < 2_000_000
    for tag, attributes in reader.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), tag
        assert "style" not in attributes and not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "url(" not in made.text and "@import" not in made.text


def test_its_policy_allows_its_own_script_and_style_and_nothing_else(made: Made, reader: Reader) -> None:
    policy = next(a["content"] for tag, a in reader.elements if tag == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for tag in ("script", "style"):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", made.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_nothing_from_files_is_markup(made: Made, reader: Reader) -> None:
    assert HOSTILE not in made.text and "<img" not in made.text
    assert "&lt;/script&gt;&lt;script&gt;document.title=" in made.text, "the reasons of what failed are there as text"
    assert [tag for tag, _ in reader.elements].count("script") == 2
    commands = [trial["command"] for trial in made.data["trials"].values() if trial["command"]]
    assert commands and all(HOSTILE in command for command in commands), "as text in the data"


def test_hosts_are_not_given_away(made: Made) -> None:
    assert "secret-host" not in made.text and str(made.table6.out) not in made.text


def test_every_link_and_every_number_leads_somewhere(made: Made, reader: Reader) -> None:
    names = {attributes["id"] for _, attributes in reader.elements if "id" in attributes}
    links = {str(a["href"]).removeprefix("#") for tag, a in reader.elements if tag == "a"}
    assert links <= names and {"part-1", "grid-1", "curves-1", "costs-1", "forest-1", "robust-1", "notes-2"} <= links
    for _, attributes in reader.elements:
        if "data-cell" in attributes:
            cell = made.data["cells"][int(str(attributes["data-cell"]))]
            assert cell["trials"] and all(one in made.data["trials"] for one in cell["trials"])


def test_every_trial_is_behind_a_number_with_its_settings(made: Made) -> None:
    behind = {one for cell in made.data["cells"] for one in cell["trials"]}
    assert behind == set(made.data["trials"])
    for cell in made.table6.planned:
        trial = made.data["trials"][f"table6/{cell.trial_id}"]
        settings = cell.trial.settings() | {"teacher": None, "seed": 0}
        assert made.data["shared"][trial["settings"]] | {"teacher": None, "seed": 0} == settings
        assert trial["seed"] == cell.seed and trial["taught"] == (cell.teacher_id if cell.trial.teacher else None)
        if cell.trial_id in made.table6.done:
            assert trial["status"] == "done" and trial["result"]["top1_last"] == made.table6.done[cell.trial_id]
            assert len(trial["curves"]["top1"]) == 240
            assert trial["curves"]["top1"][-1] == pytest.approx(made.table6.done[cell.trial_id], abs=0.0051)
    assert {made.data["trials"][f"table6/{one}"]["status"] for one in made.table6.failed} == {"failed"}
    assert {made.data["trials"][f"table6/{one}"]["status"] for one in made.table6.missing} == {"missing"}


def test_the_command_beside_a_trial_trains_that_trial_and_no_other(made: Made) -> None:
    for cell in made.table6.planned[::17]:
        words = made.data["trials"][f"table6/{cell.trial_id}"]["again"].split()
        assert words[:3] == ["kd-bench", "run", RECIPE] and words[-2:] == ["--out", "again"]
        only = [value for option, value in itertools.pairwise(words) if option == "--only"]
        assert [one.trial_id for one in select(made.table6.planned, only)] == [cell.trial_id]


def test_measured_beside_published_and_what_is_lacking_is_marked(made: Made, reader: Reader) -> None:
    shown = [" ".join("".join(text).split()) for _, text in reader.cells]
    assert "70.62 ± 0.08 (a)" in " ".join(shown)
    assert any(re.search(r"2/3 64\.14 \(a\)$", one) for one in shown), "fitnet of vgg13, one failed"
    assert any(one.startswith("– 0/3 69.04 (a)") for one in shown), "ofd of resnet50, all missing"
    other = next(one for one in shown if "other protocol" in one)
    assert re.fullmatch(r"\d\d\.\d\d ± \d\.\d\d other protocol", other), "rkd of vgg13, nothing published beside it"
    assert any("left out: epochs 120 instead of 240" in one for one in shown)
    left_out = "Left out of every mean: 1 trial of another protocol than the line's others."
    assert left_out in html.unescape(made.text)


def test_numbers_are_those_of_the_trials(made: Made, reader: Reader) -> None:
    values = [float(str(a["data-value"])) for a, _ in reader.cells if a.get("data-value")]
    for label in ("kd", "ikl_kd"):
        own = [made.table6.done[c.trial_id] for c in made.table6.planned
               if c.label == label and c.teacher == "cifar_vgg13"]  # fmt: skip
        assert len(own) == 3 and any(abs(value - sum(own) / 3) < 1e-9 for value in values)


def test_robustness(made: Made, reader: Reader) -> None:
    shown = [" ".join("".join(text).split()) for _, text in reader.cells]
    assert "33.00 ± 1.00 (3)" in shown and "31.00 ± 1.00 (3)" in shown and "+2.00 [+2.00, +2.00]" in shown
    assert "Clean against robust" in made.text and "On 100 of 10000 test images" in made.text


def test_trials_that_the_recipe_does_not_plan_are_a_table_of_their_own(made: Made) -> None:
    assert "table6: trials that the recipe, as it is now, does not plan" in made.text
    foreign = made.data["trials"][f"table6/{made.table6.foreign}"]
    assert foreign["again"] is None and foreign["result"]["top1_last"] == 60.0
    assert made.data["shared"][foreign["settings"]]["augment"]["flip"] is False


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here")
def test_the_script_is_javascript(made: Made, tmp_path: Path) -> None:
    (code,) = re.findall(r"<script>(.*?)</script>", made.text, re.DOTALL)
    (tmp_path / "code.js").write_text(code)
    subprocess.run(["node", "--check", str(tmp_path / "code.js")], check=True)


# --- in a browser ---


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
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
            found = page.run(values)
            numbers = [float(one) for one in found if one is not None]
            assert len(numbers) == 7 and found[-1] is None and numbers == sorted(numbers, key=lambda one: sign * one)
        page.run(f"{head}.click()")
        assert page.run(methods) == order
        # filtering by family, method and pair
        page.choose("family", "logits")
        assert set(page.run(methods)) == {"kd", "dkd", "ikl_kd"}
        page.run("[...document.querySelectorAll('.chip')].find((one) => one.textContent === 'dkd').click()")
        assert set(page.run(methods)) == {"kd", "ikl_kd"}
        drawn = "document.querySelectorAll('#curves-1 figure:first-child .mark:not(.off)').length"
        assert page.run(drawn) == 2
        page.choose("pair", "1")
        assert (
            page.run("[...document.querySelectorAll('#curves-1 figure')].filter((one) => one.offsetParent).length") == 1
        )
        assert page.run("document.getElementById('shown').textContent") == "4 of 52 lines shown"
        page.run("document.querySelector('[type=reset]').click()")
        page.wait("document.getElementById('shown').textContent === '52 of 52 lines shown'")
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


# --- the command ---


def test_one_recipe_by_name(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "one.html"
    run = CliRunner().invoke(app, ["report", "--recipe", RECIPE, "--out", str(made.table6.out), "--output", str(file)])
    assert run.exit_code == 0 and "129 trials" in run.output
    assert "does not plan" not in file.read_text(encoding="utf-8")


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["--out", str(tmp_path / "nowhere")], "there is no folder"),
        (["--out", str(tmp_path / "empty")], "there are no trials in"),
        (["--out", str(tmp_path / "empty"), "--output", str(tmp_path)], "is a folder; name a file"),
        (["--out", str(tmp_path / "empty"), "--recipe", "cifar100/table7"], "did you mean"),
    ):
        with pytest.raises(UserError, match=message):
            CliRunner().invoke(app, ["report", *arguments], standalone_mode=False, catch_exceptions=False)


def test_damaged_files_are_told_and_no_error(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "out" / "mine"
    for cell in cells():
        write_trial(folder / cell.trial_id, cell.trial)
        put(folder / cell.trial_id, top1_last=60.0 + cell.seed)
    first, second, third, fourth = (cell.trial_id for cell in cells()[:4])
    (folder / first / "metrics.csv").write_bytes(b"epoch,top1\n1,\xff\n")
    (folder / first / "environment.json").write_text("[" * 100_000)
    (folder / second / "metrics.csv").write_text("epoch,top1\n1,NaN\n2,abc\n")
    deep = "[" * 50 + "]" * 50
    (folder / second / "environment.json").write_text(f'{{"device": NaN, "command": 7, "earlier": 3, "deep": {deep}}}')
    (folder / third / "result.json").write_text("{")
    (folder / fourth / "metrics.csv").write_text("epoch,top1\n1,inf\n2,50\n3,51\n")
    (folder / "0123456789abcdef").mkdir()
    (folder / "0123456789abcdef" / "trial.json").write_text('{"seed": 1}')
    settings = cells()[0].trial.settings() | {"seed": 99}
    moved = folder / ("f" * 16)
    put(moved, top1_last=50.0)
    (moved / "trial.json").write_text(json.dumps(settings))
    assert identity(settings) != moved.name
    file = tmp_path / "page.html"
    run = CliRunner().invoke(app, ["report", "--out", str(out), "--output", str(file)])
    assert run.exit_code == 0, run.output
    text = file.read_text(encoding="utf-8")
    trials = json.loads(re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)[0])["trials"]
    assert trials[f"mine/{first}"]["problems"] == ["environment.json is no JSON", "metrics.csv is damaged"]
    assert trials[f"mine/{second}"]["problems"] == ["metrics.csv is damaged"]
    assert trials[f"mine/{third}"]["status"] == "unreadable"
    assert trials[f"mine/{fourth}"]["curves"]["top1"] == [None, 50, 51]
    assert "2 folders whose trial.json is damaged (0123456789abcdef, ffffffffffffffff)" in text


def test_classes_and_memory_are_shown_where_results_have_them(tmp_path: Path) -> None:
    for cell in cells():
        write_trial(tmp_path / "out" / "mine" / cell.trial_id, cell.trial)
        more: dict[str, Any] = {"peak_memory_bytes": 3 * 2**20 if cell.label == "kd" else 5 * 2**20}
        if cell.label != "crd":
            better = {"kd": 0.0, "dkd": 2.0}[cell.label]
            more["class_top1_last"] = [50.0 + better + cell.seed, 60.0 - 3 * better] + [70.0] * 8
        put(tmp_path / "out" / "mine" / cell.trial_id, top1_last=60.0 + cell.seed, **more)
    file = tmp_path / "page.html"
    run = CliRunner().invoke(app, ["report", "--out", str(tmp_path / "out"), "--output", str(file)])
    assert run.exit_code == 0, run.output
    text = file.read_text(encoding="utf-8")
    classes = text[text.index('<section id="classes-1">') :].split("</section>")[0]
    bars = dict(re.findall(r"<title>class (\d+): (\S+) points</title>", classes))
    assert bars == {"0": "+2.00", "1": "-6.00"} | {str(at): "+0.00" for at in range(2, 10)}, "only dkd, in one picture"
    assert re.findall(r"class (\d+)", classes)[0] == "1", "the greatest loss first"
    assert '<section id="memory-1">' in text and re.search(r'data-value="5242880">5</td>', text)


def test_the_command_imports_no_torch(tmp_path: Path) -> None:
    for cell in cells():
        write_trial(tmp_path / "out" / "mine" / cell.trial_id, cell.trial)
        put(tmp_path / "out" / "mine" / cell.trial_id, top1_last=60.0 + cell.seed)
    code = f"""if True:
        import sys
        from typer.testing import CliRunner
        from kd_bench.cli.main import app
        arguments = ["report", "--out", {str(tmp_path / "out")!r}, "--output", {str(tmp_path / "page.html")!r}]
        assert CliRunner().invoke(app, arguments).exit_code == 0
        heavy = {{"torch", "timm", "pytorch_lightning", "matplotlib", "scipy.stats"}} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "No recipe plans these trials, so none of them is called missing." in (tmp_path / "page.html").read_text()
