"""A finished trial in other hands: timm loads its weights, and its exported folder, to the same logits."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from kd_bench.cli.main import app
from kd_bench.config.load import read_recipe
from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.models import register, resolve
from kd_bench.models.registry import source_hash
from kd_bench.plan import plan
from kd_bench.training.build import build_network, build_student
from kd_bench.training.student import StudentModule
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.recipe_file import write_recipe
from kd_bench.trials.result_writer import TrialResultWriter
from kd_bench.utils.errors import UserError
from tests.training.parts import splits, trial

IMAGES = splits()
TEN = replace(IMAGES, class_names=tuple("abcdefghij"))
CLASSES = {"name": "digits", "classes": 4}


class Held:
    """A lease that nobody disputes."""

    def is_held(self) -> bool:
        return True

    def release(self, finished: bool) -> None:
        pass


def finished(out: Path, settings: Trial, images: ArrayDataset = IMAGES) -> tuple[TrialFolder, StudentModule]:
    """A trial that is done, written by what writes all of them, with its network as drawn."""
    folder = TrialFolder(out / "some" / settings.id)
    folder.create(settings)
    folder.write_environment({"command": "kd-bench run mine.yaml --trials 4", "packages": {"torch": "2.9"}})
    teacher = build_network(settings.teacher, images)[0].eval() if settings.teacher else None
    writer = TrialResultWriter(folder, Held(), lambda *_, **__: None, 97.125 if teacher else None, 72)
    member = build_student(settings, images, teacher, writer)
    member.class_top1 = [50.0] * 4
    for epoch in range(1, settings.epochs + 1):
        member.history.append(
            {"epoch": epoch, "top1": 76.54 + epoch, "top5": 98.0, "test_loss": 1.0, "seconds": 2.0, "members": 1}
        )
        writer.write_epoch(member)
    return folder, member


def export(*arguments: str) -> None:
    app(["export", *arguments], standalone_mode=False)


@pytest.mark.parametrize(
    ("name", "options", "changes"),
    [
        ("cifar_resnet8", {}, {}),
        ("test_vit", {"img_size": 32}, {"input": {"normalise": "network"}}),
        ("test_resnet", {}, {"input": {"size": 48}}),
    ],
)
def test_timm_loads_the_weights_and_the_folder(tmp_path, monkeypatch, capsys, name, options, changes):
    settings = trial("kd" if name.startswith("cifar") else "none", model=name, dataset=CLASSES, **changes)
    folder, member = finished(tmp_path, settings)
    size = settings.input.size or 32
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = member.evaluated_network.eval()(images)
        register()
        loaded = timm.create_model(name, num_classes=4, checkpoint_path=str(folder.weights), **options).eval()
        assert torch.equal(loaded(images), wanted)

        export("card", settings.id, "--out", str(tmp_path), "--output", str(tmp_path / "card"))
        assert "nothing was uploaded" in capsys.readouterr().out
        assert (tmp_path / "card/model.safetensors").read_bytes() == folder.weights.read_bytes()
        code = re.search("```python\n(.*?)```", (tmp_path / "card/README.md").read_text(), re.DOTALL)
        monkeypatch.chdir(tmp_path / "card")
        space: dict = {}
        exec(code[1], space)
        assert torch.equal(space["network"](images), wanted)

    # A smooth picture, as Pillow cuts off what bicubic resizing has below 0 and above 255.
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    pixels = torch.stack([60 + 4 * rows, 190 - 3 * columns, 50 + 2 * rows + columns], dim=2).to(torch.uint8)
    # What the member makes of it: of the normalisation of its images the network's own, or it stays.
    mean, std = (IMAGES.mean[0], IMAGES.std[0]) if "normalise" in changes.get("input", {}) else (0.3048, 0.3752)
    seen = member.view((pixels.permute(2, 0, 1)[None] / 255 - mean) / std)[0]
    assert (space["transform"](Image.fromarray(np.asarray(pixels))) - seen).abs().max() < 0.02


def test_the_card_carries_what_was_measured_and_nothing_else(tmp_path, monkeypatch):
    first, _ = finished(tmp_path, trial("kd", dataset=CLASSES, seed=3))
    finished(tmp_path, trial("kd", dataset=CLASSES, seed=4))
    finished(tmp_path, trial("kd", dataset=CLASSES, seed=4, epochs=2))
    export("card", str(first.path), "--out", str(tmp_path), "--output", str(tmp_path / "card"))
    text = (tmp_path / "card/README.md").read_text()
    _, metadata, page = text.split("---\n", 2)
    data = yaml.safe_load(metadata)
    assert data["library_name"] == "timm"
    assert (data["teacher"], data["distillation_method"]) == ("cifar_resnet14", "kd")
    assert "license" not in data
    (entry,) = data["model-index"][0]["results"]
    assert entry["dataset"] == {"type": "digits", "name": "digits (first 4 classes)", "split": "test"}
    assert {metric["name"]: metric["value"] for metric in entry["metrics"]} == {
        "Top-1 accuracy": 0.7954,
        "Top-5 accuracy": 0.98,
    }
    assert set(re.findall(r"([\d.]+(?: ± [\d.]+)?) %", page)) == {"79.54", "79.54 ± 0.00", "98.00", "97.12"}
    assert "over 2 seeds" in page
    assert "kd-bench run mine.yaml --trials 5\n" in page  # the trial with seed 4 came later
    settings = yaml.safe_load(re.search("```yaml\n(.*?)```", page, re.DOTALL)[1])
    assert settings == trial("kd", dataset=CLASSES, seed=3).settings()

    from huggingface_hub import ModelCard

    assert [result.metric_value for result in ModelCard(text).data.eval_results] == [0.7954, 0.98]


def test_a_packaged_recipe_is_the_command_that_repeats_it(tmp_path):
    cell = next(cell for cell in plan(read_recipe("demo"), "demo", ["method=none"]) if cell.seed == 1)
    folder, _ = finished(tmp_path, cell.trial, TEN)
    folder.path.parent.rename(tmp_path / "demo")
    export("card", folder.id, "--out", str(tmp_path), "--output", str(tmp_path / "card"))
    page = (tmp_path / "card/README.md").read_text()
    assert "kd-bench run demo --only method=none --only student=cifar_resnet8 --only seed=1" in page


def test_a_kept_recipe_is_found_by_its_name_and_a_wrong_name_writes_nothing(tmp_path):
    recipe = read_recipe("demo").model_copy(update={"name": "compare-digits"})
    cells = plan(recipe, "demo")
    write_recipe(recipe, tmp_path, cells)
    cell = next(cell for cell in cells if (cell.label, cell.seed) == ("none", 1))
    folder, _ = finished(tmp_path, cell.trial, TEN)
    folder.path.rename(tmp_path / "compare-digits" / folder.id)
    arguments = ("card", folder.id, "--out", str(tmp_path), "--output", str(tmp_path / "card"), "--recipe")
    with pytest.raises(UserError, match="did you mean 'compare-digits'"):
        export(*arguments, "compare-digit")
    assert not (tmp_path / "card").exists()
    export(*arguments, "compare-digits")
    page = (tmp_path / "card/README.md").read_text()
    kept = tmp_path / "compare-digits" / "recipe.yaml"
    assert f"kd-bench run {kept} --only method=none --only student=cifar_resnet8 --only seed=1" in page


def test_a_network_of_ones_own_is_loaded_by_kd_bench(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef tiny(num_classes, image_size=32):\n"
        '    """A line."""\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))\n'
    )
    name = resolve(f"{tmp_path / 'net.py'}:tiny")
    folder, member = finished(tmp_path, trial("none", model=name, model_source=source_hash(name), dataset=CLASSES))
    export("card", str(folder.path), "--output", str(tmp_path / "card"))
    assert sorted(path.name for path in (tmp_path / "card").iterdir()) == ["README.md", "model.safetensors"]
    monkeypatch.chdir(tmp_path / "card")
    space: dict = {}
    exec(re.search("```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[1], space)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(space["network"](images), member.evaluated_network.eval()(images))
