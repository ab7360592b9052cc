"""Where the suite's own recipes, cards and published results lie: in the wheel, or beside the package in a checkout."""

from pathlib import Path


def share(*parts: str) -> Path:
    """The path of a packaged file or folder, e.g. ``share("recipes", "demo.yaml")``; it need not exist."""
    package = Path(__file__).parent
    root = package / "_share"
    return (root if root.is_dir() else package.parent).joinpath(*parts)
