"""Seconds that ``kd-bench status`` and ``kd-bench table`` take with 1,000 and with 10,000 finished trials."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

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
    """Prints a line a command and number of trials: all seconds, and the processor's."""
    for trials, aim in ((1_000, 2), (10_000, 10)):
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            content = RECIPE | {"trials": trials}
            (root / "many.yaml").write_text(yaml.safe_dump(content))
            for cell in plan(read_recipe(content), "many"):
                folder = TrialFolder(root / "many" / cell.trial_id)
                folder.begin(cell.trial)
                folder.weights.write_bytes(b"weights")
                folder.write_metrics([{"epoch": epoch, "top1": 50.0} for epoch in (1, 2)])
                digest = sha256(folder.weights)
                folder.finish({"status": "done", "reason": None, "top1_last": 50.0, "weights_sha256": digest})
            for command in ("status", "table"):
                arguments = ["-m", "kd_bench", command, str(root / "many.yaml"), "--out", str(root)]
                before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
                seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
                used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                print(f"{command}, {trials:6,} trials: {seconds:.1f} s, of the processor {used:.1f} s (aim: {aim})")


if __name__ == "__main__":
    main()
