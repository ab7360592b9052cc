"""Trial folders of the whole of Table 6, made up: as many as a real run leaves, with what goes wrong in real runs."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial, Trial
from kd_bench.plan import plan
from tests.report.trials import fail, put, write_trial

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
        failed, missing, damaged: Trials that failed, were not run, and whose result says half of the epochs.
        foreign: A trial of another augmentation that the recipe does not plan.
    """

    out: Path
    planned: list[PlannedTrial]
    done: dict[str, float]
    failed: tuple[str, ...]
    missing: tuple[str, ...]
    damaged: tuple[str, ...]
    foreign: str


def make(out: Path) -> Table6:
    """Writes all trials of Table 6 below ``out``."""
    planned = plan(read_recipe(RECIPE), RECIPE)
    cells = {(cell.student, cell.teacher, cell.label, cell.seed): cell for cell in planned}

    def named(teacher: str, student: str, label: str, seed: int) -> str:
        return cells[f"cifar_{student}", f"cifar_{teacher}", label, seed].trial_id

    failed = (named("vgg13", "mobilenet_v2", "fitnet", 1), named("resnet50", "mobilenet_v2", "crd", 0))
    missing = tuple(named("resnet50", "mobilenet_v2", "ofd", seed) for seed in range(3))
    missing += (named("wrn_40_2", "shufflenet_v1", "dkd", 2),)
    damaged = (named("resnet32x4", "shufflenet_v2", "reviewkd", 2),)
    damaged += tuple(named("vgg13", "mobilenet_v2", "rkd", seed) for seed in range(3))
    done = {}
    draw = random.Random(0)
    for cell in planned:
        folder = out / "table6" / cell.trial_id
        if cell.trial_id in missing or cell.trial_id in done:
            continue
        write_trial(folder, cell.trial, HOSTILE)
        if cell.trial_id in failed:
            fail(folder, f"the loss is not finite in epoch 3 {HOSTILE}")
            continue
        top1 = round(_BASE[cell.label] + 0.2 * cell.seed + draw.gauss(0, 0.2), 2)
        accuracies = curve(top1, cell.trial.epochs, draw)
        put(folder, top1_last=top1, top1_best=max(accuracies), best_epoch=accuracies.index(max(accuracies)) + 1,
            epochs=120 if cell.trial_id in damaged else 240,
            seconds_per_epoch=_SECONDS.get(cell.label, 12.0) + draw.random())  # fmt: skip
        write_metrics(folder, accuracies)
        if cell.trial_id not in damaged:
            done[cell.trial_id] = top1
        teacher = out / "teachers" / str(cell.teacher_id)
        if not teacher.exists() and isinstance(cell.taught_by, Trial):
            write_trial(teacher, cell.taught_by, HOSTILE)
            put(teacher, top1_last=79.0, top1_best=79.3, teacher_top1=None)
    base = cells["cifar_shufflenet_v1", "cifar_resnet32x4", "kd", 0].trial
    settings = base.settings()
    other = Trial.model_validate_json(json.dumps(settings | {"augment": settings["augment"] | {"flip": False}}))
    write_trial(out / "table6" / other.id, other, HOSTILE)
    put(out / "table6" / other.id, top1_last=60.0, top1_best=60.5)
    return Table6(out, planned, done, failed, missing, damaged, other.id)


def curve(top1: float, epochs: int, draw: random.Random) -> list[float]:
    """Accuracies by epoch that end at ``top1``."""
    shares = [1 - 0.97 ** (40 * epoch / epochs + 5) for epoch in range(1, epochs)]
    return [*(top1 * share / (1 - 0.97**45) + draw.gauss(0, 0.8) for share in shares), top1]


def write_metrics(folder: Path, accuracies: list[float]) -> None:
    """Writes ``metrics.csv`` with these accuracies, and losses that fall."""
    lines = ["epoch,lr,top1,top5,test_loss,train_top1,train_loss,seconds"]
    for epoch, value in enumerate(accuracies, 1):
        loss = 4 - 3 * epoch / len(accuracies)
        lines.append(f"{epoch},0.05,{value},88.0,{loss + 0.5},{value},{loss},4.0")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
