"""Total time of a recipe by how its trials are packed: cohorts one by one, two at once, and every trial by itself.

Twelve students of one teacher on digits, four methods and three seeds. The teacher is trained beforehand. Wall and CPU
seconds are of the whole command, starting processes included; ways take turns, and ratios within a round count.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

RECIPE = {
    "name": "packing",
    "dataset": {"name": "digits", "test_images": 200},
    "batch_size": 64,
    "schedule": {"name": "cosine"},
    "trials": 3,
    "pairs": [{"teacher": "resnet8x4", "student": "resnet8"}],
    "methods": {"kd": {}, "dkd": {}, "dist": {}, "ikl_kd": {}},
    "teacher_training": {"epochs": 1},
}
WAYS = {
    "cohorts of four, --jobs 1": ("--jobs", "1"),
    "cohorts of four, --jobs 2": ("--jobs", "2"),
    "trial by trial, --jobs 1": ("--jobs", "1", "--cohort-size", "1"),
    "trial by trial, --jobs 2": ("--jobs", "2", "--cohort-size", "1"),
}


def run(recipe: Path, out: Path, *more: str) -> tuple[float, float]:
    """Wall and CPU seconds of a run."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    arguments = [sys.executable, "-m", "kd_bench", "run", str(recipe), "--out", str(out), *more]
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Prints a line a way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        recipe = root / "packing.yaml"
        recipe.write_text(yaml.safe_dump(RECIPE | {"epochs": chosen.epochs}))
        run(recipe, root / "first", "--trials", "1", "--only", "method=kd")
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for number in range(chosen.rounds):
            for index, (way, more) in enumerate(WAYS.items()):
                out = root / f"{number}-{index}"
                shutil.copytree(root / "first" / "teachers", out / "teachers")
                found[way].append(run(recipe, out, *more))
        first = found[next(iter(WAYS))]
        for way, seconds in found.items():
            wall = statistics.median(one[0] for one in seconds)
            cpu = statistics.median(one[1] for one in seconds)
            times = [
                statistics.median(a[kind] / b[kind] for a, b in zip(seconds, first, strict=True)) for kind in (0, 1)
            ]
            print(f"{way}: {wall:.0f} s, {cpu:.0f} CPU seconds; {times[0]:.2f} and {times[1]:.2f} times the first")


if __name__ == "__main__":
    main()
