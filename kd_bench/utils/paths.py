"""Folders: the package's recipes, cards and published results, and the cache."""

import os
import tempfile
from pathlib import Path

from kd_bench.utils.errors import UserError


def package_path(*parts: str) -> Path:
    """Returns the path of a packaged file or folder, e.g. ``package_path("recipes", "demo.yaml")``, existing or not."""
    package = Path(__file__).parents[1]
    root = package / "_share"  # in a wheel; in a checkout the folders are beside the package
    return (root if root.is_dir() else package.parent).joinpath(*parts)


def cache_folder() -> Path:
    """Returns the cache folder: ``KD_BENCH_CACHE``, else ``kd-bench`` in the user's cache folder.

    A user without a home folder, as in some containers, has one in the folder of temporary files.
    """
    if folder := os.environ.get("KD_BENCH_CACHE"):
        return expand_user(folder)
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    expanded = expand_user(folder)
    if folder.startswith("~") and expanded == Path(folder):
        return Path(tempfile.gettempdir()) / f"kd-bench-{os.getuid()}"
    return expanded / "kd-bench"


def logit_cache_limit() -> int | None:
    """Returns the bytes that all cached logits may take: ``KD_BENCH_LOGITS_GB``; None if it is not set.

    Raises:
        UserError: If it is no number of gigabytes.
    """
    text = os.environ.get("KD_BENCH_LOGITS_GB", "")
    if not text:
        return None
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes <= 1e6:
        raise UserError(f"KD_BENCH_LOGITS_GB: should be a number of gigabytes from 0 to 1,000,000 (it is {text!r})")
    return int(gigabytes * 10**9)


def expand_user(path: str | Path) -> Path:
    """Returns a path with a ``~`` at its beginning replaced by the home folder, if there is such a user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_file(path: Path) -> bool:
    """Whether there is a file; False also if the name is too long or the folder may not be read."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder; as ``is_file``."""
    try:
        return path.is_dir()
    except OSError:
        return False
