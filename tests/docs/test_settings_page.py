"""docs/settings.md: it is what the models of the settings say, and has every setting."""

from __future__ import annotations

import importlib
import re
import sys

import pytest

from kd_bench.config import settings_reference
from kd_bench.config.settings_reference import Section, Setting
from tests.docs.commands import ROOT

if str(ROOT / "docs") not in sys.path:
    sys.path.insert(0, str(ROOT / "docs"))
settings_page = importlib.import_module("settings_page")
generate = importlib.import_module("generate")

TEXT = settings_page.PAGE.read_text(encoding="utf-8")


def test_the_page_is_what_its_sources_say() -> None:
    assert settings_page.page() == TEXT, "write it anew with: make docs"


def test_generating_the_pages_writes_it(tmp_path, monkeypatch, capsys) -> None:
    for module, name in (
        (settings_page, "settings.md"),
        (generate, "methods.md"),
        (generate.reproduction, "reproduce.md"),
    ):
        monkeypatch.setattr(module, "PAGE", tmp_path / name)
    monkeypatch.setattr(generate.method_costs, "FILE", tmp_path / "costs.json")
    monkeypatch.setattr(generate, "count_costs", lambda known: known)
    monkeypatch.setattr(generate.reproduction, "page", lambda text: text)
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    (tmp_path / "reproduce.md").write_text("", encoding="utf-8")
    generate.main()
    assert (tmp_path / "settings.md").read_text(encoding="utf-8") == TEXT
    assert "settings.md" in capsys.readouterr().out


def test_every_setting_has_a_row_with_values_default_and_meaning() -> None:
    rows = re.findall(r"^\| \[?`([^`]+)`(?:\]\(#[\w-]+\))? \| (.+?) \| (.+?) \| (.+?) \|$", TEXT, re.M)
    assert sorted(row[0] for row in rows) == sorted(setting.key for setting in settings_reference.all_settings())
    assert all(len(cell.strip("` ")) > 0 for row in rows for cell in row)


def test_links_lead_to_sections() -> None:
    anchors = {settings_page._anchor(heading.replace("\\", "")) for heading in re.findall(r"^#+ (.+)$", TEXT, re.M)}
    links = set(re.findall(r"\]\(#([\w-]+)\)", TEXT))
    assert {"optimizer", "augmentrandaugment", "adversarialweight_perturbation"} <= links <= anchors


def test_every_note_is_of_a_section() -> None:
    titles = [settings_page.title(section) for section in settings_reference.sections()]
    assert len(titles) == len(set(titles))
    assert set(settings_page._NOTES) <= set(titles)


def test_a_new_block_has_a_section_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Setting("gate", "", "a mapping", "``{}``", "A gate; ``a | b``.")
    width = Setting("gate.width", "wide", "``1``, or text", "required", "Its width_in_m.")
    sections = (
        Section("", "", "Top.", (block,), True),
        Section("gate", "wide", "A gate.\n\nIt\nopens.", (width,), True, ("door",)),
    )
    monkeypatch.setattr(settings_reference, "sections", lambda: sections)
    page = settings_page.page()
    assert "| [`gate`](#gate-wide) | a mapping | `{}` | A gate; `a | b`. |" in page.replace("\\|", "|")
    assert "\n### gate: wide\n\nA gate.\n\nIt opens.\n\n`door` has the same keys.\n" in page
    assert "| `gate.width` | `1`, or text | required | Its width\\_in\\_m. |" in page
