"""A recipe of many small trials under a killer, and what became of them.

Every few seconds a random process of the run's tree is killed with SIGKILL, workers and now and then the runner itself,
which is started again. In the end every trial must be done once, no file be cut short, and all weights be the bytes of
an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

RECIPE = {
    "name": "soak",
    "dataset": {"name": "digits", "test_images": 200},
    "batch_size": 100,
    "optimizer": {"lr": 0.05},
    "schedule": {"name": "cosine"},
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": {"none": {}, "kd": {}, "ikl_kd": {"weights": "class", "tau": 4}, "crd": {"negatives": 50}},
    "teacher_training": {"epochs": 3},
}


def command(recipe: Path, out: Path) -> list[str]:
    """What is run, again and again."""
    arguments = ["run", str(recipe), "--out", str(out), "--jobs", "2", "--retries", "5", "--checkpoint-minutes", "0.05"]
    return [sys.executable, "-m", "kd_bench", *arguments, "--format", "csv"]


def weights(out: Path) -> dict[str, bytes]:
    """Of each finished trial."""
    return {path.parent.name: path.read_bytes() for path in out.glob("*/*/student.safetensors")}


def main() -> int:
    """Prints what was killed and what was found; the exit code is 0 where all is as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of killing, at least until all is done")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=6.0, help="mean time between two kills")
    parser.add_argument("--runner", type=float, default=0.15, help="share of kills that hit the runner")
    chosen = parser.parse_args()
    chance = random.Random(time.time_ns())
    root = Path(tempfile.mkdtemp(prefix="kd-bench-soak-"))
    recipe = root / "soak.yaml"
    seeds = chosen.trials // len(RECIPE["methods"])
    recipe.write_text(yaml.safe_dump(RECIPE | {"trials": seeds, "epochs": chosen.epochs}))
    print(
        f"soak: {seeds * len(RECIPE['methods'])} trials of {chosen.epochs} epochs and a teacher, in {root}", flush=True
    )
    out = root / "killed"
    killed = {"worker": 0, "runner": 0}
    begun, starts = time.monotonic(), 0
    while True:
        with open(root / "killed.log", "ab") as log:
            runner = subprocess.Popen(command(recipe, out), stdout=log, stderr=log)
        starts += 1
        while runner.poll() is None:
            time.sleep(chance.uniform(0.2, 2 * chosen.seconds))
            if time.monotonic() - begun > 60 * chosen.minutes:
                continue  # enough: what is left may end in peace
            try:
                workers = psutil.Process(runner.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                continue
            kind = "runner" if not workers or chance.random() < chosen.runner else "worker"
            victim = psutil.Process(runner.pid) if kind == "runner" else chance.choice(workers)
            try:
                victim.kill()
                killed[kind] += 1
            except psutil.NoSuchProcess:
                continue
        if runner.returncode == 0:
            break
    minutes = (time.monotonic() - begun) / 60
    print(f"killed {killed['worker']} workers and {killed['runner']} runners in {minutes:.1f} minutes, {starts} starts")
    subprocess.run(
        command(recipe, root / "undisturbed"), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    ours, theirs = weights(out), weights(root / "undisturbed")
    taken_up = [len(json.loads(path.read_text())["earlier"]) for path in out.glob("*/*/environment.json")]
    leftovers = [path for path in out.rglob("*") if path.suffix in (".tmp", ".pt") or path.name.startswith("lease.")]
    verified = subprocess.run(
        [sys.executable, "-m", "kd_bench", "verify", str(out)], check=False, capture_output=True, text=True
    )
    same = sum(ours.get(name) == content for name, content in theirs.items())
    print(f"{len(ours)} trainings done, {same} of {len(theirs)} with the bytes of the undisturbed run")
    print(f"{sum(count > 0 for count in taken_up)} of them were taken up again, one {max(taken_up)} times")
    print(f"verify: {verified.stdout.splitlines()[-1].split(': ', 1)[1]}; files left over: {len(leftovers)}")
    sound = ours == theirs and verified.returncode == 0
    print("soak: all is as it must be" if sound else "soak: NOT all is as it must be")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
