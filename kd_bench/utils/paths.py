"""Where the suite's own recipes, cards and published results lie: in the wheel, or beside the package in a checkout."""

import os
from pathlib import Path


def package_path(*parts: str) -> Path:
    """The path of a packaged file or folder, e.g. ``share("recipes", "demo.yaml")``; it need not exist."""
    package = Path(__file__).parents[1]
    root = package / "_share"
    return (root if root.is_dir() else package.parent).joinpath(*parts)


def cache_folder() -> Path:
    """What can be made or fetched again: ``KD_BENCH_CACHE``, else ``kd-bench`` in the user's cache folder."""
    if given := os.environ.get("KD_BENCH_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kd-bench"
