"""Writes the generated pages.

These are docs/methods.md from the sources of the methods and from docs/methods/, see method_page.py; docs/settings.md
from the models of the settings, see settings_page.py; and the part of docs/reproduce.md that is made from
results/measured/, see reproduction.py.

``make docs`` runs it. With ``--costs`` it counts the costs of all methods again, which takes a minute; without, it
counts those of new methods. With ``--hours`` it computes again what the paper's recipes take on cards, see
card_hours.py, and with ``--notebook`` it runs docs/notebook.ipynb again and stores the outputs; both take some minutes.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import card_hours
import method_costs
import method_page
import reproduction
import settings_page

PAGE = Path(__file__).parent / "methods.md"
NOTEBOOK = Path(__file__).parent / "notebook.ipynb"


def page() -> str:
    """Returns the page of the methods with the stored costs."""
    benchmarks = method_costs.BENCHMARKS.read_text(encoding="utf-8")
    return method_page.page(method_costs.read(), method_costs.measured_times(benchmarks))


def count_costs(counted_before: method_costs.Costs) -> method_costs.Costs:
    """Returns the costs of all methods; those that are known are not counted again."""
    pairs = defaultdict(list)
    for name in method_page.built_in():
        entry = method_page.entry(name)
        if name not in counted_before and not entry.cost:
            pairs[entry.pair].append(name)
    counted = [method_costs.count(names, pair) for pair, names in pairs.items()]
    costs = {name: cost for part in (counted_before, *counted) for name, cost in part.items()}
    return {name: costs[name] for name in method_page.built_in() if name in costs}


def run_notebook(folder: Path) -> Any:
    """Runs the notebook in a folder and returns it with its outputs, without what differs from run to run."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    return notebook


def write_notebook() -> None:
    """Runs the notebook and stores its outputs."""
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(run_notebook(Path(folder)), NOTEBOOK)
    print(f"docs: wrote {NOTEBOOK}")


def main() -> None:
    """Writes the pages and the costs if they have changed."""
    if "--notebook" in sys.argv[1:]:
        write_notebook()
    if "--hours" in sys.argv[1:]:
        card_hours.count()
    counted_before = {} if "--costs" in sys.argv[1:] else method_costs.read()
    method_costs.write(count_costs(counted_before))
    _write_changed(PAGE, page())
    _write_changed(settings_page.PAGE, settings_page.page())
    _write_changed(reproduction.PAGE, reproduction.page(reproduction.PAGE.read_text(encoding="utf-8")))


def _write_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        print(f"docs: wrote {path}")


if __name__ == "__main__":
    main()
