"""Kills processes of a run of many small trials at random, and checks the results.

Every few seconds a random process of the run is killed with SIGKILL: a worker, or sometimes the runner itself, which is
started again. In the end every trial must be done once, no file be cut short, and all weights be the bytes of an
undisturbed run.
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


def run_command(recipe: Path, out: Path) -> list[str]:
    arguments = ["run", str(recipe), "--out", str(out), "--jobs", "2", "--retries", "5", "--checkpoint-minutes", "0.05"]
    return [sys.executable, "-m", "kd_bench", *arguments, "--format", "csv"]


def read_weights(out: Path) -> dict[str, bytes]:
    """Returns the file of weights of each finished trial."""
    return {path.parent.name: path.read_bytes() for path in out.glob("*/*/student.safetensors")}


def main() -> int:
    """Prints what was killed and checked. Returns 0 if all checks pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of killing, unless all is done before")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=6.0, help="mean time between two kills")
    parser.add_argument("--runner", type=float, default=0.15, help="share of kills that hit the runner")
    options = parser.parse_args()
    rng = random.Random(time.time_ns())
    root = Path(tempfile.mkdtemp(prefix="kd-bench-soak-"))
    recipe, out = root / "soak.yaml", root / "killed"
    methods = len(RECIPE["methods"])
    seeds = options.trials // methods
    recipe.write_text(yaml.safe_dump(RECIPE | {"trials": seeds, "epochs": options.epochs}))
    print(f"soak: {seeds * methods} trials of {options.epochs} epochs and a teacher, in {root}", flush=True)
    killed = {"worker": 0, "runner": 0}
    begin, starts = time.monotonic(), 0
    while True:
        with open(root / "killed.log", "ab") as log:
            runner = subprocess.Popen(run_command(recipe, out), stdout=log, stderr=log)
        starts += 1
        while runner.poll() is None:
            time.sleep(rng.uniform(0.2, 2 * options.seconds))
            if time.monotonic() - begin > 60 * options.minutes:
                continue  # no more kills: the rest of the run may end
            try:
                workers = psutil.Process(runner.pid).children(recursive=True)
                kind = "runner" if not workers or rng.random() < options.runner else "worker"
                victim = psutil.Process(runner.pid) if kind == "runner" else rng.choice(workers)
                victim.kill()
            except psutil.NoSuchProcess:
                continue
            killed[kind] += 1
        if runner.returncode == 0:
            break
    minutes = (time.monotonic() - begin) / 60
    print(f"killed {killed['worker']} workers and {killed['runner']} runners in {minutes:.1f} minutes, {starts} starts")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(run_command(recipe, root / "undisturbed"), check=True, **quiet)
    weights, undisturbed = read_weights(out), read_weights(root / "undisturbed")
    resumes = [len(json.loads(path.read_text())["earlier"]) for path in out.glob("*/*/environment.json")]
    leftovers = [path for path in out.rglob("*") if path.suffix in (".tmp", ".pt") or path.name.startswith("lease.")]
    verify = [sys.executable, "-m", "kd_bench", "verify", str(out)]
    verified = subprocess.run(verify, check=False, capture_output=True, text=True)
    same = sum(weights.get(name) == content for name, content in undisturbed.items())
    print(f"{len(weights)} trainings done, {same} of {len(undisturbed)} with the bytes of the undisturbed run")
    print(f"{sum(count > 0 for count in resumes)} of them were resumed, one {max(resumes)} times")
    print(f"verify: {verified.stdout.splitlines()[-1].split(': ', 1)[1]}; files left over: {len(leftovers)}")
    passed = weights == undisturbed and verified.returncode == 0
    print("soak: all checks passed" if passed else "soak: a check FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
