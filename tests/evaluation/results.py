"""Results folders whose trials look trained: their weights are as drawn, with the batch norms of real images."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PlannedTrial, Trial
from kd_bench.data import registry as datasets
from kd_bench.models import weights
from kd_bench.plan import plan
from kd_bench.training.build import build_network, build_student
from kd_bench.training.evaluate import evaluate_accuracy
from kd_bench.training.loaders import Images
from kd_bench.training.result_writer import ResultWriter
from kd_bench.trials.folder import TEACHERS, TrialFolder

RECIPE: dict[str, Any] = {
    "name": "small",
    "dataset": {"name": "digits", "test_images": 60},
    "epochs": 1,
    "batch_size": 100,
    "trials": 2,
    "schedule": {"name": "cosine"},
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "methods": {"none": {}, "kd": {}, "simkd": {}},
}


@dataclass(frozen=True)
class Made:
    """A recipe's file, its trials, and the results folder."""

    recipe: Path
    planned: tuple[PlannedTrial, ...]
    out: Path

    def folder(self, label: str, seed: int = 0) -> Path:
        """The folder of a trial."""
        (name,) = {cell.trial_id for cell in self.planned if (cell.label, cell.seed) == (label, seed)}
        return self.out / "small" / name

    def copied(self, root: Path) -> Made:
        """A copy in another folder, which a test may change."""
        shutil.copytree(self.recipe.parent, root, dirs_exist_ok=True)
        return Made(root / self.recipe.name, self.planned, root / self.out.name)

    @property
    def teacher(self) -> Path:
        """The folder of the teacher."""
        (name,) = {cell.teacher_id for cell in self.planned if cell.teacher_id}
        return self.out / TEACHERS / name


def make(root: Path, changes: Mapping[str, Any] | None = None) -> Made:
    """Makes the results of the recipe, with the changes, in a folder."""
    file = root / "small.yaml"
    file.write_text(yaml.safe_dump({**RECIPE, **(changes or {})}))
    planned = plan(read_recipe(str(file)), str(file))
    out = root / "runs"
    teacher = planned[0].taught_by
    assert isinstance(teacher, Trial)
    images = datasets.open_dataset(teacher.dataset, None, datasets.resolve_data_dir(None))
    network, view = build_network(teacher, images)
    _settle(network, images)
    _finish(out / TEACHERS / teacher.id, teacher, network, view, images)
    for cell in {cell.trial_id: cell for cell in planned}.values():
        member = build_student(cell.trial, images, network.eval(), ResultWriter())
        _settle(member.network, images)
        _finish(out / "small" / cell.trial_id, cell.trial, member.deployed, member.view, images)
    return Made(file, tuple(planned), out)


def _settle(network: nn.Module, images: Images) -> None:
    """Gives batch norms the statistics of some images, so that predictions differ from image to image."""
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(images.train_images[:100].float() / 255)  # type: ignore[union-attr]
    network.eval()


def _finish(path: Path, trial: Trial, network: nn.Module, view: nn.Module, images: Images) -> None:
    folder = TrialFolder(path)
    folder.create(trial)
    folder.write_environment({"command": "kd-bench run small.yaml", "images": images.record})
    digest = weights.write(folder.weights, network.state_dict(), {})
    top1 = evaluate_accuracy(network, view, images, torch.device("cpu")).top1
    folder.write_metrics([{"epoch": epoch, "top1": top1} for epoch in range(1, trial.epochs + 1)])
    numbers = {"top1_last": top1, "top1_best": top1, "epochs": trial.epochs, "weights_sha256": digest}
    folder.finish({"status": "done", "reason": None, **numbers, "images": images.record})
