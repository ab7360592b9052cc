"""Teachers of whose network a part is trained, from weights in a file; and the features that are computed once."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_bench.config.teacher_start import allows_features
from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.models import registry
from kd_bench.training.build import build_student
from kd_bench.training.cohort import CohortModule
from kd_bench.training.features import FeatureFile, OpenFeatureFile, compute_features, image_count
from kd_bench.training.fit import fit
from kd_bench.training.head_on_features import HeadOnFeaturesModule
from kd_bench.training.loaders import holdout_loader, loaders
from kd_bench.training.logit_cache import open_cache
from kd_bench.training.partly_trained import PartlyTrainedModule
from kd_bench.training.student import StudentModule
from kd_bench.utils.files import sha256
from tests.training.parts import CPU, MemoryWriter, same, splits, trial

DATA = splits(72, 40)
PLAIN = {"crop": 0, "flip": False}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of weights whose batch norms have seen images."""
    folder = tmp_path_factory.mktemp("weights")
    paths = {}
    for name in ("test_vit", "test_resnet"):
        torch.manual_seed(2)
        network = registry.create(name, 10, 160).train()
        network(torch.randn(8, 3, 160, 160))
        paths[name] = folder / f"{name}.pth"
        torch.save(network.state_dict(), paths[name])
    return paths


def started(file: Path, part: str = "head", name: str = "test_vit", **changes: Any) -> Trial:
    settings = {
        "input": {"size": 32, "normalise": "network"},
        "augment": PLAIN,
        "optimizer": {"name": "sgd", "lr": 0.1},
    }
    return trial("none", model=name, pretrained=sha256(file), trainable=part, **(settings | changes))


def opener(folder: Path) -> OpenFeatureFile:
    def open_file(count: int, length: int) -> FeatureFile | None:
        file = open_cache(folder, {"any": 1}, count, length, 256, kind=FeatureFile)
        assert isinstance(file, FeatureFile)
        return file

    return open_file


def in_memory(count: int, length: int) -> None:
    """Keeps features in memory only."""


class Notes(MemoryWriter):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def report_note(self, member: StudentModule, text: str) -> None:
        self.notes.append(text)


def train(
    trials: list[tuple[Trial, Path]],
    data: ArrayDataset = DATA,
    open_features: OpenFeatureFile | None = in_memory,
    states: list[dict[str, Any]] | None = None,
) -> list[tuple[StudentModule, Notes]]:
    """Trains a cohort of teachers, from their files or from ``states``."""
    members = []
    for index, (teacher_trial, file) in enumerate(trials):
        member = build_student(teacher_trial, data, None, Notes(), file, open_features)
        if states is not None:
            member.restore(copy.deepcopy(states[index]))
        members.append(member)
    first = trials[0][0]
    fit(CohortModule(members), *loaders(first, data, CPU), CPU, holdout=holdout_loader(first, data, CPU))
    return [(member, member.writer) for member in members]  # type: ignore[misc]


def weights(member: StudentModule) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in member.network.state_dict().items()}


@pytest.mark.parametrize("augment", [PLAIN, {"crop": 2, "flip": True}], ids=["features", "whole"])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_only_the_head_changes(files: dict[str, Path], name: str, augment: dict[str, Any]) -> None:
    teacher_trial = started(files[name], name=name, augment=augment)
    ((member, writer),) = train([(teacher_trial, files[name])])
    assert isinstance(member, HeadOnFeaturesModule) == (augment == PLAIN)
    before, after = weights(build_student(teacher_trial, DATA, None, Notes(), files[name])), weights(member)
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    head = "head" if name == "test_vit" else "fc"
    assert changed == {f"{head}.weight", f"{head}.bias"}  # neither the statistics nor the counters of batch norms
    assert set(writer.states[-1]["network"]) == changed
    assert len(member.optimizer.param_groups[0]["params"]) == 2
    assert [module for module in member.network.modules() if module.training] == [member.network.get_classifier()]


def test_the_last_block_trains_with_its_batch_norms(files: dict[str, Path]) -> None:
    teacher_trial = started(files["test_resnet"], "last_block", "test_resnet")
    ((member, _),) = train([(teacher_trial, files["test_resnet"])])
    before, after = torch.load(files["test_resnet"]), weights(member)
    changed = {
        key for key in after if after[key].shape != before[key].shape or not torch.equal(after[key], before[key])
    }
    assert changed == {key for key in after if key.startswith(("layer4.0.", "fc."))}
    assert "layer4.0.bn1.running_mean" in changed


def test_features_are_those_of_the_network(files: dict[str, Path]) -> None:
    data = splits(300, 40)  # more than one batch of features
    teacher_trial = started(files["test_resnet"], name="test_resnet")
    member = build_student(teacher_trial, data, None, Notes(), files["test_resnet"], in_memory)
    features = compute_features(teacher_trial, member.network, member.view, data, CPU, None)
    assert {split: tuple(rows.shape) for split, rows in features.items()} == {"train": (300, 96), "test": (40, 96)}
    member.network.eval()
    train, _ = loaders(teacher_trial, data, CPU)
    classifier = member.network.get_classifier()
    for batch in train:  # in other batches, and another order
        logits = member.network(member.view(batch.images))
        torch.testing.assert_close(classifier(features["train"][batch.index]), logits, rtol=1e-5, atol=1e-5)


def test_kept_features_have_the_same_bits(files: dict[str, Path], tmp_path: Path) -> None:
    teacher_trial, file = started(files["test_vit"]), files["test_vit"]
    ((member, writer),) = train([(teacher_trial, file)])
    ((first, first_writer),) = train([(teacher_trial, file)], open_features=opener(tmp_path))
    ((again, again_writer),) = train([(teacher_trial, file)], open_features=opener(tmp_path))
    assert [len(each.notes) for each in (writer, first_writer, again_writer)] == [1, 1, 0]
    assert "computes the features of 112 images once" in first_writer.notes[0]
    for other in (first, again):
        assert same(weights(member), weights(other))
        assert same(writer.states, other.writer.states)  # type: ignore[attr-defined]


def test_a_network_runs_once_for_each_image(files: dict[str, Path], tmp_path: Path) -> None:
    teacher_trial, passes = started(files["test_vit"]), []
    for _ in range(2):
        member = build_student(teacher_trial, DATA, None, Notes(), files["test_vit"], opener(tmp_path))
        seen: list[int] = []
        member.network.blocks[0].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
        fit(CohortModule([member]), *loaders(teacher_trial, DATA, CPU), CPU)
        passes.append(sum(seen))
        assert member.history[-1]["epoch"] == 3
    assert passes == [72 + 40, 0]


def test_features_that_a_kill_interrupts_are_not_computed_twice(files: dict[str, Path], tmp_path: Path) -> None:
    data, teacher_trial = splits(300, 40), started(files["test_vit"])
    member = build_student(teacher_trial, data, None, Notes(), files["test_vit"], in_memory)
    whole = compute_features(teacher_trial, member.network, member.view, data, CPU, None)
    file = opener(tmp_path)(image_count(data), 64)
    assert file is not None
    kept, calls = whole["train"], []

    class Killed(Exception):
        pass

    def view(images: Tensor) -> Tensor:
        calls.append(len(images))
        if len(calls) == 2:
            raise Killed
        result: Tensor = member.view(images)
        return result

    again = partial(compute_features, teacher_trial, member.network, view, data, CPU)
    with pytest.raises(Killed):
        again(file)
    file.close()
    reopened = opener(tmp_path)(image_count(data), 64)
    assert reopened is not None
    assert not reopened.is_complete
    features = again(reopened)
    assert calls == [256, 44, 44, 40]
    assert torch.equal(features["train"], kept)
    assert torch.equal(features["test"], whole["test"])
    assert reopened.is_complete


def test_a_damaged_row_is_computed_again(files: dict[str, Path], tmp_path: Path) -> None:
    teacher_trial, file = started(files["test_vit"]), files["test_vit"]
    ((member, _),) = train([(teacher_trial, file)], open_features=opener(tmp_path))
    (path,) = tmp_path.glob("*.logits")
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    ((again, writer),) = train([(teacher_trial, file)], open_features=opener(tmp_path))
    assert len(writer.notes) == 1  # type: ignore[attr-defined]
    assert same(weights(member), weights(again))


@pytest.mark.parametrize("part", ["head", "last_block"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_it_goes_on_to_the_same_bytes(files: dict[str, Path], part: str, ema: float | None) -> None:
    teacher_trial, file = started(files["test_resnet"], part, "test_resnet", ema=ema), files["test_resnet"]
    ((member, writer),) = train([(teacher_trial, file)])
    for state in writer.states[:-1]:
        ((resumed, _),) = train([(teacher_trial, file)], states=[state])
        assert same(weights(member), weights(resumed))
        assert same(member.state(), resumed.state())


def test_alone_as_in_company(files: dict[str, Path]) -> None:
    trials = [
        (started(files["test_vit"]), files["test_vit"]),
        (started(files["test_resnet"], "last_block", "test_resnet"), files["test_resnet"]),
        (started(files["test_resnet"], "head", "test_resnet"), files["test_resnet"]),
    ]
    cohort_members = train(trials)
    for trial_and_file, (member, _) in zip(trials, cohort_members, strict=True):
        ((alone, _),) = train([trial_and_file])
        assert same(weights(alone), weights(member))
        assert same(alone.state(), member.state())


def test_held_out_images_have_features(files: dict[str, Path]) -> None:
    held_out = splits(8, 24)
    data = ArrayDataset(**{**vars(DATA), "holdout": held_out})
    teacher_trial, file = started(files["test_vit"]), files["test_vit"]
    ((member, _),) = train([(teacher_trial, file)], data)
    ((whole, _),) = train([(teacher_trial, file)], data, open_features=None)
    assert type(whole) is PartlyTrainedModule
    for row, other in zip(member.history, whole.history, strict=True):
        assert row["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)
        assert row["test_loss"] == pytest.approx(other["test_loss"], rel=1e-4)
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)


def test_when_features_are_the_same_in_every_epoch(files: dict[str, Path]) -> None:
    file = files["test_vit"]
    assert allows_features(started(file))
    for changes in ({"augment": {"crop": 4, "flip": False}}, {"augment": {**PLAIN, "flip": True}}):
        assert not allows_features(started(file, **changes))
    assert not allows_features(started(file, augment={**PLAIN, "mixup": 0.2}))
    assert not allows_features(started(file, "last_block"))
    assert not allows_features(trial("none", augment=PLAIN))


def test_the_identity_depends_on_the_file_and_the_part(files: dict[str, Path]) -> None:
    trials = [
        started(files["test_vit"]),
        started(files["test_vit"], "last_block"),
        started(files["test_vit"], "all"),
        started(files["test_resnet"]),
    ]
    assert len({teacher_trial.id for teacher_trial in trials}) == 4
    students = [trial("kd", taught=False, teacher=teacher_trial.settings()) for teacher_trial in trials]
    assert len({student.id for student in students}) == 4
    assert not {"pretrained", "trainable"} & trial("none").settings().keys()
    assert len({teacher_trial.stream_key for teacher_trial in trials}) == 1  # they may be trained side by side
