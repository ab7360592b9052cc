"""Seconds that ``kd-bench status`` and ``kd-bench table`` take with 1,000 and with 10,000 finished trials."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks.measure import wall_and_cpu_seconds
from kd_bench.config.load import read_recipe
from kd_bench.plan import plan
from kd_bench.trials.folder import TrialFolder
from kd_bench.utils.files import sha256

RECIPE = {
    "name": "many",
    "dataset": {"name": "digits"},
    "epochs": 2,
    "pairs": [{"teacher": None, "student": "resnet8"}],
    "methods": {"none": {}},
}


def main() -> None:
    """Prints a line per command and number of trials: wall seconds, and CPU seconds."""
    for trials, aim in ((1_000, 2), (10_000, 10)):
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            content = RECIPE | {"trials": trials}
            (root / "many.yaml").write_text(yaml.safe_dump(content))
            for cell in plan(read_recipe(content), "many"):
                folder = TrialFolder(root / "many" / cell.trial_id)
                folder.create(cell.trial)
                folder.write_environment({"command": "kd-bench run many.yaml"})
                folder.weights.write_bytes(b"weights")
                folder.write_metrics([{"epoch": epoch, "top1": 50.0} for epoch in (1, 2)])
                accuracies = {"top1_last": 50.0, "top1_best": 50.0, "best_epoch": 1}
                digest = sha256(folder.weights)
                folder.finish({"status": "done", "reason": None, **accuracies, "epochs": 2, "weights_sha256": digest})
            for command in ("status", "table"):
                arguments = [sys.executable, "-m", "kd_bench", command, str(root / "many.yaml"), "--out", str(root)]
                run = functools.partial(subprocess.run, arguments, check=True, stdout=subprocess.DEVNULL)
                wall, cpu = wall_and_cpu_seconds(run)
                print(f"{command}, {trials:6,} trials: {wall:.1f} s, of the processor {cpu:.1f} s (aim: {aim})")


if __name__ == "__main__":
    main()
