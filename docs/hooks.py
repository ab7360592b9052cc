"""Hooks of mkdocs, see mkdocs.yml."""

from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """Leaves formulas out of the search, whose results would show their LaTeX."""
    return html.replace(' class="arithmatex"', ' class="arithmatex" data-search-exclude')
