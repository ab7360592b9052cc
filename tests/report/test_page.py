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
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kd_bench.cli.main import app
from kd_bench.config.selection import select
from kd_bench.utils.errors import UserError
from tests.report.page_made import Made, Reader
from tests.report.table6 import HOSTILE, RECIPE
from tests.report.test_protocol import cells
from tests.report.trials import put, write_trial


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


def test_what_assistive_technology_needs(made: Made, reader: Reader) -> None:
    """Three rules of axe-core that need no browser, once broken here."""
    controls = {"a", "button", "input", "select"}
    for (tag, attributes), ancestors in zip(reader.elements, reader.ancestors, strict=True):
        if tag in controls:
            assert not {"summary", "button", "a"} & set(ancestors), (tag, attributes)
    regions = [attributes["aria-label"] for _, attributes in reader.elements if attributes.get("role") == "region"]
    assert len(regions) > 10 and len(set(regions)) == len(regions)
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert all(a.get("aria-label") or a.get("aria-hidden") == "true" for tag, a in reader.elements if tag == "svg")


def test_classes_have_their_names(made: Made, reader: Reader) -> None:
    assert '<section id="by-class-1">' in made.text
    classes = made.text[made.text.index('<section id="by-class-1">') :].split("</section>")[0]
    assert html.escape(HOSTILE)[:12] in classes and "class 98</th><td>98</td><td>100</td>" in classes
    matrices = re.findall(r"<summary>(Confusion matrix of .*?)</summary>", classes)
    assert matrices == ["Confusion matrix of dkd (2 trials)", "Confusion matrix of kd (3 trials)"]
    kd = made.table6.planned
    trials = [c.trial_id for c in kd if c.label == "kd" and c.teacher == "cifar_wrn_40_2"]
    results = [json.loads((made.table6.out / "table6" / name / "result.json").read_text()) for name in trials]
    mean = sum(result["class_top1_last"][0] for result in results) / 3
    assert re.search(rf"class 0</th><td>0</td><td>100</td><td>[\d.]+</td><td>{mean:.1f}</td>", classes), "dkd, kd"


def test_hosts_are_not_given_away(made: Made) -> None:
    assert "secret-host" not in made.text and str(made.table6.out) not in made.text


def test_every_link_and_every_number_leads_somewhere(made: Made, reader: Reader) -> None:
    names = {attributes["id"] for _, attributes in reader.elements if "id" in attributes}
    links = {str(a["href"]).removeprefix("#") for tag, a in reader.elements if tag == "a"}
    assert links <= names and {"part-1", "grid-1", "curves-1", "costs-1", "forest-1", "robust-1", "notes-2"} <= links
    for _, attributes in reader.elements:
        if "data-cell" in attributes:
            cell = made.data["cells"][int(str(attributes["data-cell"]))]
            assert cell["trials"] and all(trial in made.data["trials"] for trial in cell["trials"])


def test_every_trial_is_behind_a_number_with_its_settings(made: Made) -> None:
    names = {name for cell in made.data["cells"] for name in cell["trials"]}
    assert names == set(made.data["trials"])
    for cell in made.table6.planned:
        trial = made.data["trials"][f"table6/{cell.trial_id}"]
        settings = cell.trial.settings() | {"teacher": None, "seed": 0}
        assert made.data["shared"][trial["settings"]] | {"teacher": None, "seed": 0} == settings
        assert trial["seed"] == cell.seed and trial["taught"] == (cell.teacher_id if cell.trial.teacher else None)
        if cell.trial_id in made.table6.done:
            assert trial["status"] == "done" and trial["result"]["top1_last"] == made.table6.done[cell.trial_id]
            assert len(trial["curves"]["top1"]) == 240
            assert trial["curves"]["top1"][-1] == pytest.approx(made.table6.done[cell.trial_id], abs=0.0051)
    assert {made.data["trials"][f"table6/{name}"]["status"] for name in made.table6.failed} == {"failed"}
    assert {made.data["trials"][f"table6/{name}"]["status"] for name in made.table6.missing} == {"missing"}


def test_the_command_beside_a_trial_trains_that_trial_and_no_other(made: Made) -> None:
    for cell in made.table6.planned[::17]:
        words = made.data["trials"][f"table6/{cell.trial_id}"]["again"].split()
        assert words[:3] == ["kd-bench", "run", RECIPE] and words[-2:] == ["--out", "again"]
        only = [value for option, value in itertools.pairwise(words) if option == "--only"]
        assert [planned.trial_id for planned in select(made.table6.planned, only)] == [cell.trial_id]


def test_measured_beside_published_and_what_is_lacking_is_marked(made: Made, reader: Reader) -> None:
    shown = [" ".join("".join(text).split()) for _, text in reader.cells]
    # (a), (b) and (c) are Table 6 with its rows of the last epoch, of one that is not stated, and of the best
    assert shown.count("70.62 ± 0.08 (c)") == 1, "ikl_kd of resnet50, in a column beside the best epoch"
    assert any(re.search(r"2/3 64\.14 \(a\)$", text) for text in shown), "fitnet of vgg13, one failed"
    assert any(text.startswith("– 0/3 69.04 (b)") for text in shown), "ofd of resnet50, all missing"
    assert any(text.startswith("– 0/3, 3 damaged") for text in shown), "rkd of vgg13"
    assert any("2/3, 1 damaged" in text for text in shown), "reviewkd of resnet32x4 to shufflenet_v2"
    text = html.unescape(made.text)
    assert "result.json is damaged: it says 120 epochs, but trial.json says 240" in text
    assert "Incomplete: 119 of 129 planned trials done (2 failed, 4 damaged, 4 missing)." in text
    for name in made.table6.damaged:
        trial = made.data["trials"][f"table6/{name}"]
        assert trial["status"] == "damaged" and "top1_last" not in trial["result"] and trial["curves"] == {}


def test_numbers_are_those_of_the_trials(made: Made, reader: Reader) -> None:
    values = [float(str(a["data-value"])) for a, _ in reader.cells if a.get("data-value")]
    for label in ("kd", "ikl_kd"):
        accuracies = [made.table6.done[c.trial_id] for c in made.table6.planned
                      if c.label == label and c.teacher == "cifar_vgg13"]  # fmt: skip
        assert len(accuracies) == 3 and any(abs(value - sum(accuracies) / 3) < 1e-9 for value in values)


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
