"""Trial folders of the whole of Table 6, made up: as many as a real run leaves, with what goes wrong in real runs."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial, Trial
from kd_bench.plan import plan
from tests.report.trials import RESULT, fail, put

RECIPE = "cifar100/table6"

#: What a page must show and never run.
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"

_BASE = {
    "none": 70,
    "fitnet": 72,
    "rkd": 72.5,
    "crd": 74,
    "ofd": 75,
    "reviewkd": 76,
    "kd": 73,
    "dkd": 76,
    "ikl_kd": 76.5,
}
_SECONDS = {"none": 10, "fitnet": 14, "rkd": 15, "crd": 24, "ofd": 22, "reviewkd": 26}


@dataclass(frozen=True)
class Table6:
    """What was made.

    Attributes:
        out: The results folder.
        planned: The recipe's trials.
        done: Accuracy of the last epoch by trial, of those that are done by the recipe's protocol.
        failed, missing, shorter: Trials that failed, were not run, and ran for half of the epochs.
        foreign: A trial of another augmentation that the recipe does not plan.
    """

    out: Path
    planned: list[PlannedTrial]
    done: dict[str, float]
    failed: tuple[str, ...]
    missing: tuple[str, ...]
    shorter: tuple[str, ...]
    foreign: str


def make(out: Path, epochs: int = 240) -> Table6:
    """Writes all trials of Table 6 below ``out``, with ``epochs`` lines of metrics each."""
    planned = plan(read_recipe(RECIPE), RECIPE)
    cells = {(cell.student, cell.teacher, cell.label, cell.seed): cell for cell in planned}

    def named(teacher: str, student: str, label: str, seed: int) -> str:
        return cells[f"cifar_{student}", f"cifar_{teacher}", label, seed].trial_id

    failed = (named("vgg13", "mobilenet_v2", "fitnet", 1), named("resnet50", "mobilenet_v2", "crd", 0))
    missing = tuple(named("resnet50", "mobilenet_v2", "ofd", seed) for seed in range(3))
    missing += (named("wrn_40_2", "shufflenet_v1", "dkd", 2),)
    shorter = (named("resnet32x4", "shufflenet_v2", "reviewkd", 2),)
    shorter += tuple(named("vgg13", "mobilenet_v2", "rkd", seed) for seed in range(3))
    done = {}
    draw = random.Random(0)
    for cell in planned:
        folder = out / "table6" / cell.trial_id
        if cell.trial_id in missing or cell.trial_id in done:
            continue
        write_trial(folder, cell.trial)
        if cell.trial_id in failed:
            fail(folder, f"the loss is not finite in epoch 3 {HOSTILE}")
            continue
        top1 = round(_BASE[cell.label] + 0.2 * cell.seed + draw.gauss(0, 0.2), 2)
        length = 120 if cell.trial_id in shorter else 240
        put(folder, top1_last=top1, top1_best=top1 + 0.25, epochs=length,
            seconds_per_epoch=_SECONDS.get(cell.label, 12.0) + draw.random())  # fmt: skip
        write_metrics(folder, top1, epochs, draw)
        if cell.trial_id not in shorter:
            done[cell.trial_id] = top1
        teacher = out / "teachers" / str(cell.teacher_id)
        if not teacher.exists() and isinstance(cell.taught_by, Trial):
            write_trial(teacher, cell.taught_by)
            put(teacher, top1_last=79.0, top1_best=79.3, epochs=240, teacher_top1=None)
    base = cells["cifar_shufflenet_v1", "cifar_resnet32x4", "kd", 0].trial
    settings = base.settings()
    other = Trial.model_validate_json(json.dumps(settings | {"augment": settings["augment"] | {"flip": False}}))
    write_trial(out / "table6" / other.id, other)
    put(out / "table6" / other.id, top1_last=60.0, top1_best=60.5, epochs=240)
    return Table6(out, planned, done, failed, missing, shorter, other.id)


def write_trial(folder: Path, trial: Trial) -> None:
    """The settings and the environment."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trial.json").write_text(json.dumps(trial.settings()))
    environment = {
        "started": "2026-11-24T01:48:15+00:00",
        "host": "secret-host",
        "python": "3.11.7",
        "packages": {"torch": "2.14.1"},
        "device": "cpu",
        "threads": 1,
        "command": f"kd-bench run {RECIPE} --out runs {HOSTILE}",
        "earlier": [],
    }
    (folder / "environment.json").write_text(json.dumps(environment))


def write_metrics(folder: Path, top1: float, epochs: int, draw: random.Random) -> None:
    """A curve that ends at ``top1``."""
    lines = ["epoch,lr,top1,top5,test_loss,train_top1,train_loss,seconds"]
    for epoch in range(1, epochs + 1):
        share = 1 - 0.97 ** (40 * epoch / epochs + 5)
        noise = draw.gauss(0, 0.8) if epoch < epochs else 0.0
        value = top1 * share / (1 - 0.97**45) + noise
        lines.append(f"{epoch},0.05,{value},{min(value + 20, 100)},{4.6 - 3.5 * share},{value},{4 - 3 * share},4.0")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


__all__ = ["HOSTILE", "RECIPE", "RESULT", "Table6", "make", "write_metrics", "write_trial"]
