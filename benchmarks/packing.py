"""Time of a recipe by how its trials are packed: cohorts one by one, two at once, and every trial by itself.

Twelve students of one teacher on digits, four methods and three seeds. The teacher is trained beforehand. Wall and CPU
seconds are those of the whole command, including the start of processes. The ways take turns, and ratios are taken
within a round.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import yaml

from benchmarks.measure import median_ratio, wall_and_cpu_seconds

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


def run(recipe: Path, out: Path, *options: str) -> tuple[float, float]:
    """Returns the wall and CPU seconds of a run."""
    arguments = [sys.executable, "-m", "kd_bench", "run", str(recipe), "--out", str(out), *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return wall_and_cpu_seconds(lambda: subprocess.run(arguments, check=True, **quiet))


def main() -> None:
    """Prints a line per way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        recipe = root / "packing.yaml"
        recipe.write_text(yaml.safe_dump(RECIPE | {"epochs": options.epochs}))
        run(recipe, root / "first", "--trials", "1", "--only", "method=kd")
        seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for number in range(options.rounds):
            for index, (way, arguments) in enumerate(WAYS.items()):
                out = root / f"{number}-{index}"
                shutil.copytree(root / "first" / "teachers", out / "teachers")
                seconds[way].append(run(recipe, out, *arguments))
        first_wall, first_cpu = zip(*seconds[next(iter(WAYS))], strict=True)
        for way, rounds in seconds.items():
            wall, cpu = zip(*rounds, strict=True)
            ratios = f"{median_ratio(wall, first_wall):.2f} and {median_ratio(cpu, first_cpu):.2f} times the first"
            print(f"{way}: {median(wall):.0f} s, {median(cpu):.0f} CPU seconds; {ratios}")


if __name__ == "__main__":
    main()
