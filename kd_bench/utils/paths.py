"""Folders: the package's recipes, cards and published results, and the cache."""

import os
from pathlib import Path


def package_path(*parts: str) -> Path:
    """Returns the path of a packaged file or folder, e.g. ``package_path("recipes", "demo.yaml")``, existing or not."""
    package = Path(__file__).parents[1]
    root = package / "_share"  # in a wheel; in a checkout the folders are beside the package
    return (root if root.is_dir() else package.parent).joinpath(*parts)


def cache_folder() -> Path:
    """Returns the cache folder: ``KD_BENCH_CACHE``, else ``kd-bench`` in the user's cache folder."""
    if folder := os.environ.get("KD_BENCH_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kd-bench"
