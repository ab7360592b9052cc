"""docs/methods.md: it is what its sources say, each method has an entry, and formulas and search work in a browser."""

from __future__ import annotations

import functools
import http.server
import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from kd_bench.methods import _registry as methods
from tests.docs.commands import ROOT
from tests.report.browser import CHROMIUM, Page, browser

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


def _import(name: str) -> ModuleType:
    """Returns a module of docs/."""
    if str(ROOT / "docs") not in sys.path:
        sys.path.insert(0, str(ROOT / "docs"))
    return importlib.import_module(name)


generate, method_page, method_costs = map(_import, ("generate", "method_page", "method_costs"))

NAMES = method_page.built_in()


def test_the_page_is_what_its_sources_say():
    assert generate.page() == generate.PAGE.read_text(encoding="utf-8"), "write it anew with: make docs"


@pytest.mark.slow
def test_costs_are_what_is_counted():
    assert method_costs.read() == generate.count_costs({}), "count anew: python docs/generate.py --costs"


def test_every_method_has_an_entry_and_costs():
    entries = {path.stem for path in method_page.ENTRIES.iterdir()}
    assert entries == set(NAMES), "docs/methods/ should have one file for each method"
    without = {name for name in NAMES if method_page.entry(name).cost}
    assert set(method_costs.read()) == set(NAMES) - without, "count what is missing with: make docs"


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_complete_and_its_symbols_are_of_its_formula(name):
    entry, info = method_page.entry(name), methods.describe(name)
    written = entry.matched and entry.settings and entry.differs and entry.formula
    assert written, f"docs/methods/{name}.yaml needs matched, settings, differs and formula"
    assert (entry.paper and entry.link.startswith("https://")) or name == "none"
    assert not entry.group or entry.group in method_page.FAMILIES
    assert set(entry.symbols) <= {parameter.name for parameter in info.parameters}
    assert all(symbol in entry.formula for symbol in entry.symbols.values())
    symbols = method_page.symbols_of(info, entry)
    assert len(set(symbols.values())) == len(symbols), "two settings have the same symbol"
    weights = {parameter.name for parameter in info.parameters if parameter.name.endswith("weight")}
    assert weights <= set(symbols), "a weight is not in the formula"


def test_a_method_without_an_entry_has_a_row_and_its_plain_formula(tmp_path, monkeypatch):
    monkeypatch.setattr(method_page, "ENTRIES", tmp_path)
    page = method_page.page({}, {})
    assert "| [`kd`](#kd) |  | not counted | not counted | not measured |  |  |" in page
    assert "```text\nce_weight * CE + kd_weight * T^2 * KL(softmax(t / T) || softmax(s / T))\n```" in page
    assert page.index("## Feature maps") < page.index("[`crd`](#crd)") < page.index("## Adversarial training")


def test_an_entry_with_an_unknown_key_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(method_page, "ENTRIES", tmp_path)
    (tmp_path / "kd.yaml").write_text("matched: x\nsettings: x\ndiffers: x\nformula: x\nyear: 2015\n")
    with pytest.raises(ValueError, match=r"kd\.yaml has the unknown keys year"):
        method_page.entry("kd")


def test_times_are_those_of_the_benchmark_of_the_methods():
    table = """
| pair                        |   method |   n |   step |
|:----------------------------|---------:|----:|-------:|
| ResNet32x4 -> ShuffleNet-V1 |      crd |   2 |    200 |

| pair                        |   method |   n |   forward |                        extra |
|:----------------------------|---------:|----:|----------:|-----------------------------:|
| ResNet32x4 -> ShuffleNet-V1 |     none |   2 |       100 |             0.0 (0.0 to 0.0) |
| ResNet32x4 -> ShuffleNet-V1 |   fitnet |   2 |     1,000 | 1,035.5 (1,030.0 to 1,041.0) |
| VGG13 -> MobileNet-V2       |       kd |   2 |       100 |             1.0 (0.0 to 2.0) |

| pair                        | ms |
| ResNet32x4 -> ShuffleNet-V1 |  1 |
"""
    assert method_costs.measured_times(table) == {"none": 0.0, "fitnet": 10.355}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The address of a server of the pages, because the search needs one."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path) as opened:
        yield opened


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_formulas_are_set_and_fit(page, address, width):
    page.open(address + "methods/", width=width)
    formulas = "[...document.querySelectorAll('.arithmatex')]"
    page.wait(f"{formulas}.every((one) => one.querySelector('.katex'))")
    blocks = page.run("document.querySelectorAll('div.arithmatex').length")
    assert blocks >= len(NAMES)
    assert page.run("document.querySelectorAll('.katex-error').length") == 0
    assert page.run("[...document.fonts].some((font) => font.family.startsWith('KaTeX') && font.status === 'loaded')")
    wide = f"{formulas}.filter((one) => one.scrollWidth > one.clientWidth && one.tagName === 'DIV')"
    assert page.run(f"{wide}.map((one) => one.textContent.slice(0, 40))") == [], "formulas that are wider than the page"
    assert page.run("document.documentElement.scrollWidth <= innerWidth"), "tables should scroll by themselves"
    assert {url for url in page.requests if not url.startswith((address, "data:"))} == set()
    assert not page.messages


@needs_browser
def test_the_search_finds_pages_without_a_network(page, address):
    page.open(address)
    query = "document.querySelector('[data-md-component=search-query]')"
    page.wait("typeof __md_get === 'function'")
    page.run(f"{query}.focus()")
    page.run(f"{query}.value = 'similarity preserving'; {query}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    page.run(f"{query}.dispatchEvent(new KeyboardEvent('keyup', {{bubbles: true}}))")
    results = "[...document.querySelectorAll('.md-search-result__link')].map((one) => one.getAttribute('href'))"
    page.wait(f"{results}.length > 0")
    assert any("methods/" in link for link in page.run(results))
    shown = page.run("document.querySelector('.md-search-result__list').textContent")
    assert "similarity" in shown.lower() and "\\" not in shown, "results should show no LaTeX"
    assert {url for url in page.requests if not url.startswith((address, "data:", "blob:"))} == set()
