"""A second view of the images: it is exact, changes nothing of the first, and costs a second pass of each network."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import Trial
from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.estimate.step_cost import count_cohort
from kd_bench.plan import plan
from kd_bench.training.build import build_network, build_student
from kd_bench.training.callbacks import MidEpochCheckpoint
from kd_bench.training.cohort import CohortModule
from kd_bench.training.fit import fit
from kd_bench.training.loaders import loaders
from kd_bench.training.micro_batch import split_micro_batches
from kd_bench.training.recorded_cohort import FixedBatch
from kd_bench.types import Batch
from kd_bench.utils.errors import UserError
from tests.training.parts import CPU, MemoryWriter, same, splits, train, trial
from tests.training.tape import TapeRecorder
from tests.training.test_mid_epoch_state import Keeping
from tests.training.test_recorded import run, without

SECOND: dict[str, Any] = {
    "crop": 3,
    "flip": True,
    "randaugment": {"operations": 2, "magnitude": 15, "bins": 31},
    "cutout": 8,
}
DATA = splits()


def mlkd(**changes: Any) -> Trial:
    return trial("mlkd", **{"second_view": SECOND, "epochs": 2} | changes)


def batches(settings: Trial, epoch: int = 1) -> list[Batch]:
    train_loader, _ = loaders(settings, DATA, CPU)
    train_loader.set_epoch(epoch)
    return list(train_loader)


def by_image(epoch_batches: list[Batch]) -> dict[int, Tensor]:
    """The second view of each image, by the image's index."""
    pairs: dict[int, Tensor] = {}
    for batch in epoch_batches:
        assert batch.second_images is not None
        pairs |= dict(zip(batch.index.tolist(), batch.second_images, strict=True))
    return pairs


def test_the_first_view_is_that_of_a_trial_without_a_second() -> None:
    for plain_batch, batch in zip(batches(trial("mlkd", epochs=2)), batches(mlkd()), strict=True):
        assert plain_batch.second_images is None
        assert batch.second_images is not None
        assert torch.equal(plain_batch.images, batch.images)
        assert not torch.equal(batch.images, batch.second_images)
        assert torch.equal(plain_batch.labels, batch.labels)
        assert torch.equal(plain_batch.index, batch.index)
        assert (plain_batch.epoch, plain_batch.step) == (batch.epoch, batch.step)


def test_the_second_view_is_augmented_by_its_own_setting_with_its_own_draws() -> None:
    settings = mlkd(second_view={"crop": 2, "flip": True})  # as the first
    loader = InMemoryLoader(
        DATA.train_images,
        DATA.train_labels,
        batch_size=16,
        mean=DATA.mean,
        std=DATA.std,
        augment=settings.second_view,
        shuffle=True,
        seed=settings.seed,
        view=1,
    )
    loader.set_epoch(1)
    for batch, expected in zip(batches(settings), loader, strict=True):
        assert batch.second_images is not None
        assert torch.equal(batch.second_images, expected.images)
        assert not torch.equal(batch.second_images, batch.images)


def test_views_depend_neither_on_the_batch_size_nor_on_the_epochs_before() -> None:
    views = by_image(batches(mlkd()))
    assert len(views) == len(DATA.train_labels)
    other = by_image(batches(mlkd(batch_size=24)))
    assert all(torch.equal(views[index], other[index]) for index in views)
    train_loader, _ = loaders(mlkd(), DATA, CPU)
    for epoch in (0, 1):  # one epoch after another, as in a training that was not interrupted
        train_loader.set_epoch(epoch)
        later = by_image(list(train_loader))
    assert all(torch.equal(views[index], later[index]) for index in views)
    assert not all(torch.equal(views[index], view) for index, view in by_image(batches(mlkd(), 0)).items())


def test_resuming_after_an_epoch_is_exact() -> None:
    trials = [mlkd(epochs=3), mlkd(epochs=3, hyperparameters={"as_released": False})]
    whole = train(trials, DATA)
    resumed = train(trials, DATA, states=[writer.states[0] for writer in whole])
    for writer, other in zip(whole, resumed, strict=True):
        assert writer.crash is writer.divergence is None
        assert same(writer.states[-1], other.states[-1])


def _cohort(settings: list[Trial], writers: list[Keeping]) -> CohortModule:
    taught = settings[0].teacher
    assert isinstance(taught, Trial)
    teacher = build_network(taught, DATA)[0].eval()
    members = [
        build_student(member_trial, DATA, teacher, writer)
        for member_trial, writer in zip(settings, writers, strict=True)
    ]
    return CohortModule(members, teacher)


@pytest.mark.parametrize("epoch_and_step", [(0, 2), (1, 4)])
def test_resuming_within_an_epoch_is_exact(epoch_and_step: tuple[int, int]) -> None:
    settings, undisturbed, again = [mlkd(ema=0.9)], [Keeping()], [Keeping()]
    whole = _cohort(settings, undisturbed)
    fit(whole, *loaders(settings[0], DATA, CPU), CPU, [MidEpochCheckpoint(seconds=0.0)])
    resumed = _cohort(settings, again)
    for member, writer in zip(resumed.members, undisturbed, strict=True):
        member.restore_mid_epoch(torch.load(io.BytesIO(writer.kept[epoch_and_step]), weights_only=True))
    assert resumed.teacher is not None
    fit(CohortModule(resumed.members, resumed.teacher.network), *loaders(settings[0], DATA, CPU), CPU)
    assert same(again[0].states[-1], undisturbed[0].states[-1])


def test_a_student_is_the_same_alone_and_in_company() -> None:
    trials = [mlkd(), mlkd(hyperparameters={"temperature": 2}), mlkd(model="cifar_vgg8")]
    for member_trial, writer in zip(trials, train(trials, DATA), strict=True):
        assert same(train([member_trial], DATA)[0].states, writer.states)


def test_the_second_view_matters() -> None:
    plain_writers, writers = train([trial("mlkd", epochs=2)], DATA), train([mlkd()], DATA)
    assert not same(plain_writers[0].states[-1]["network"], writers[0].states[-1]["network"])


@pytest.mark.parametrize("changes", [{}, {"precision": "bfloat16"}, {"channels_last": True, "clip_norm": 1.0}], ids=str)
def test_recorded_steps_have_the_same_bits(changes: dict[str, Any]) -> None:
    trials, recorder = [mlkd(**changes)], TapeRecorder()
    (writer,), _ = run(trials, recorder)
    assert (writer.notes, writer.crash) == ([], None)
    assert recorder.replays > 5
    assert same(writer.states, without(trials)[0].states)


def test_a_batch_in_fixed_memory_keeps_its_second_view() -> None:
    first, second = batches(mlkd())[:2]
    fixed = FixedBatch(first)
    assert fixed.fits(second)
    filled = fixed.fill(second)
    assert filled.second_images is not None
    assert torch.equal(filled.second_images, second.second_images)
    assert filled.second_images.data_ptr() != second.second_images.data_ptr()


def test_micro_batches_have_their_images_second_views() -> None:
    batch = batches(mlkd())[0]
    cohort = _cohort([mlkd(micro_batch=8)], [Keeping()])
    whole = cohort.teacher_outputs(batch)["running"]
    parts = list(split_micro_batches(batch, 8))
    assert len(parts) == 2
    for index, part in enumerate(parts):
        rows = slice(8 * index, 8 * index + 8)
        assert torch.equal(part.batch.second_images, batch.second_images[rows])
        outputs = cohort.teacher_outputs(part.batch)["running"]
        assert torch.equal(outputs.second_view.logits, whole.second_view.logits[rows])
        assert not torch.equal(outputs.second_view.logits, outputs.logits)
    (writer,) = train([mlkd(micro_batch=8)], DATA)
    assert writer.crash is None
    assert len(writer.states) == 2


def test_each_view_has_a_pass_of_its_own_in_the_student() -> None:
    batch = batches(mlkd())[0]
    member = build_student(mlkd(), DATA, _teacher(), MemoryWriter()).train()
    outputs = member._student_outputs(batch, member.method.needs.student)
    other = build_student(mlkd(), DATA, _teacher(), MemoryWriter()).train()
    first, second = other.network(other.view(batch.images)), other.network(other.view(batch.second_images))
    assert torch.equal(outputs.logits, first)
    assert torch.equal(outputs.second_view.logits, second)
    assert same(member.network.state_dict(), other.network.state_dict())  # running statistics of both views
    assert {int(value) for name, value in member.network.named_buffers() if name.endswith("tracked")} == {2}


def _teacher() -> torch.nn.Module:
    taught = mlkd().teacher
    assert isinstance(taught, Trial)
    return build_network(taught, DATA)[0].eval()


def test_the_estimate_counts_both_passes() -> None:
    plain_cost, cost = count_cohort([trial("mlkd")], DATA), count_cohort([mlkd()], DATA)
    assert cost.teacher.flops == 2 * plain_cost.teacher.flops
    assert cost.members[0].step.flops == pytest.approx(2 * plain_cost.members[0].step.flops, rel=1e-3)
    assert cost.members[0].evaluation.flops == plain_cost.members[0].evaluation.flops
    assert cost.members[0].saved == pytest.approx(2 * plain_cost.members[0].saved, rel=0.01)
    images = 16 * 3 * 32 * 32 * 4
    assert cost.data == plain_cost.data + images
    assert not cost.members[0].uncounted


RECIPE: dict[str, Any] = {
    "name": "r",
    "dataset": "cifar100",
    "trials": 1,
    "pairs": [{"teacher": "resnet32x4", "student": "resnet8x4"}],
    "methods": {"kd": {}, "mlkd": {}, "two": {"method": "mlkd", "training": {"second_view": {"cutout": 8}}}},
}


def planned(*overrides: str, **changes: Any) -> dict[str, Trial]:
    recipe = read_recipe(RECIPE | changes, overrides)
    return {cell.label: cell.trial for cell in plan(recipe, "r")}


def test_a_row_has_it_and_the_others_are_the_trials_that_they_were() -> None:
    trials = planned()
    assert "second_view" not in trials["kd"].settings()
    assert "second_view" not in trials["mlkd"].settings()
    second = trials["two"].second_view
    assert second is not None
    assert (second.crop, second.flip, second.cutout) == (4, True, 8)  # those of the data set where none are given
    assert trials["two"].stream_key != trials["mlkd"].stream_key
    assert trials["two"].teacher == trials["mlkd"].teacher


def test_a_recipe_has_it_for_the_methods_that_read_it() -> None:
    trials = planned("second_view.cutout=12")
    assert trials["mlkd"].second_view is not None
    assert trials["mlkd"].second_view.cutout == 12
    assert trials["kd"].id == planned()["kd"].id
    assert trials["two"].second_view == planned()["two"].second_view
    of_pair = RECIPE["pairs"][0] | {"training": {"second_view": {"cutout": 12}}}
    assert planned(pairs=[of_pair])["mlkd"].id == trials["mlkd"].id


@pytest.mark.parametrize(
    ("overrides", "changes", "sentence"),
    [
        (
            ["methods.kd.training.second_view.cutout=8"],
            {},
            "r: methods.kd.training.second_view: kd reads one view of the images only",
        ),
        (
            ["second_view.cutout=8"],
            {"methods": {"kd": {}, "again": {"method": "kd"}, "dkd": {}}},
            "r: second_view: no method of these reads a second view: kd, dkd",
        ),
        (
            [],
            {"pairs": [RECIPE["pairs"][0] | {"training": {"second_view": {}}, "leave_out": ["mlkd", "two"]}]},
            "r: pairs.0.training.second_view: no method of these reads a second view: kd",
        ),
        (
            ["teacher_training.second_view.cutout=8"],
            {},
            "r: teacher_training.second_view: a teacher is trained on one view",
        ),
        (
            ["teachers.resnet32x4.second_view.cutout=8"],
            {},
            "r: teachers.resnet32x4.second_view: a teacher is trained on one view",
        ),
        (
            ["methods.two.training.second_view.crop=5"],
            {},
            "r: methods.two.training: second_view.crop: 5 is more than cifar100 allows, 4",
        ),
        (
            ["methods.two.training.second_view.mixup=0.4"],
            {},
            "second_view.mixup must be left out, because both views have the same labels",
        ),
        (
            ["methods.two.training.augment.cutmix=1.0"],
            {},
            "augment.cutmix must be left out with second_view, whose images are not mixed",
        ),
        (
            ["methods.two.training.second_view.cutuot=8"],
            {},
            "r: methods.two.training: second_view.cutuot: no such key; did you mean 'cutout'?",
        ),
    ],
)
def test_where_it_does_not_belong(overrides: list[str], changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        planned(*overrides, **changes)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_view_can_be_removed_for_a_pair() -> None:
    pair = RECIPE["pairs"][0] | {"methods": {"two": {"training": {"second_view": None}}}}
    trials = planned(pairs=[pair])
    assert trials["two"].id == trials["mlkd"].id
