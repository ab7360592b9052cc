"""Training images that are held out: which they are, and that nothing is trained on them."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_bench.config.data import Dataset
from kd_bench.config.load import read_recipe
from kd_bench.data import registry as datasets
from kd_bench.data.array_dataset import ArrayDataset, drawn_indices
from kd_bench.plan import plan
from kd_bench.testing import SmallRun
from kd_bench.training.build import build_network
from kd_bench.training.evaluate import evaluate_accuracy
from kd_bench.utils.errors import UserError

DIGITS = {"name": "digits", "train_images": 120, "test_images": 40}


def images(**changes: object) -> ArrayDataset:
    return datasets.load(Dataset(**DIGITS, **changes))  # type: ignore[arg-type]


def test_the_images_are_split() -> None:
    whole, split = images(), images(holdout=30)
    assert split.holdout is not None
    kept, held_out = split.train_images, split.holdout.test_images
    assert (len(kept), len(held_out)) == (90, 30)
    every = {image.numpy().tobytes() for image in whole.train_images}
    assert {image.numpy().tobytes() for image in (*kept, *held_out)} == every
    assert torch.equal(split.holdout.test_labels.bincount(), torch.full((10,), 3))
    assert torch.equal(split.test_images, whole.test_images) and split.record["digest"] != whole.record["digest"]
    again = images(holdout=30)
    assert again.holdout is not None and torch.equal(again.holdout.test_images, held_out)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data())
def test_the_draw_is_balanced(labels: list[int], data: st.DataObject) -> None:
    """No class has two images more than another one that still has images left."""
    count = data.draw(st.integers(1, len(labels) - 1))
    drawn = drawn_indices(torch.tensor(labels), count)
    assert len(set(drawn.tolist())) == count and drawn.tolist() == sorted(drawn.tolist())
    taken = torch.tensor(labels)[drawn].bincount(minlength=5)
    left = torch.tensor(labels).bincount(minlength=5) - taken
    assert int(taken.max()) - 1 <= min((int(n) for n, rest in zip(taken, left, strict=True) if rest), default=count)


def small_run(**changes: object) -> SmallRun:
    run = SmallRun(epochs=2)
    run.recipe["dataset"] |= changes
    return run


def test_students_are_evaluated_on_them_and_not_trained() -> None:
    run = small_run(holdout=24)
    rows = run.states[-1]["history"]
    assert run.images.holdout is not None and len(run.images.train_images) == 72
    network, view = build_network(run.trials["own"], run.images)
    network.load_state_dict(run.states[-1]["network"])
    measured = evaluate_accuracy(network, view, run.images.holdout, torch.device("cpu"))
    assert rows[-1]["val_top1"] == pytest.approx(measured.top1) and rows[-1]["val_loss"] > 0
    assert all("val_top1" in row for row in rows)


def test_the_held_out_images_change_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training with other held-out images has the same weights, so that they choose nothing by themselves."""
    run, other = small_run(holdout=24), small_run(holdout=24)
    poisoned = other.images
    assert poisoned.holdout is not None
    poisoned.holdout.test_images.random_(0, 256, generator=torch.Generator().manual_seed(1))
    for name, weight in run.states[-1]["network"].items():
        assert torch.equal(weight, other.states[-1]["network"][name]), name
    assert run.states[-1]["history"][-1]["val_loss"] != other.states[-1]["history"][-1]["val_loss"]
    assert run.states[-1]["history"][-1]["test_loss"] == other.states[-1]["history"][-1]["test_loss"]


def test_resuming_and_company() -> None:
    run = small_run(holdout=24)
    run.check_resuming()
    run.check_company()


def test_teacher_and_students_have_the_same_images(tmp_path: Path) -> None:
    recipe = {
        "name": "small",
        "dataset": {**DIGITS, "holdout": 20},
        "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
        "methods": {"kd": {}},
        "trials": 1,
        "batch_size": 20,
    }
    (cell,) = plan(read_recipe(recipe), "small")
    assert cell.trial.dataset.holdout == 20 and cell.trial.dataset.title.endswith("20 held out)")
    assert cell.taught_by is not None and cell.taught_by.dataset == cell.trial.dataset
    assert "holdout" not in json.dumps(plan(read_recipe(recipe | {"dataset": DIGITS}), "small")[0].trial.settings())
    with pytest.raises(UserError, match="batch_size: 101 is more than the 100 training images"):
        plan(read_recipe(recipe | {"batch_size": 101}), "small")
    with pytest.raises(UserError, match="holdout: 120 of 120 training images leave none to train on"):
        plan(read_recipe(recipe | {"dataset": {**DIGITS, "holdout": 120}}), "small")
