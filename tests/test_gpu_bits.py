"""Section "bits" of ``make gpu-check``: which trainings it compares, and in which ways it trains them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import gpu_bits, pairs
from benchmarks.gpu_cohort import TINY, Context, Sizes
from kd_bench.methods import _registry as methods
from tests.training.tape import Tapes

CPU = torch.device("cpu")


def test_nothing_is_recorded_where_bits_of_eager_steps_are_wanted() -> None:
    tapes = Tapes()
    context = Context(CPU, TINY, make_recorder=tapes)
    writers = gpu_bits._Trainer(context).train(list(context.bit_trials().values()), eager=True)
    assert [tape.recordings for tape in tapes.made] == [0]
    assert all(writer.state and "for a comparison" in writer.notes[0] for writer in writers)


def test_if_memory_is_short_everything_is_recorded_in_one_queue() -> None:
    tapes = Tapes()
    context = Context(CPU, TINY, make_recorder=tapes)
    writers = gpu_bits._Trainer(context).train(list(context.bit_trials().values()), short_of_memory=True)
    (tape,) = tapes.made
    assert [one_queue for _, one_queue in tape.lane_counts] == [False, True] * 2  # the first time for a preparation
    assert tape.recordings >= 3
    assert all(writer.state and not writer.notes for writer in writers)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_few_cohorts_of_about_equal_size_have_all_trials(count: int) -> None:
    names = [f"{number}" for number in range(7)]
    groups = list(gpu_bits.cohorts(dict.fromkeys(names), count))  # type: ignore[arg-type]
    assert [name for group in groups for name in group] == names
    assert len(groups) == -(-7 // count)
    sizes = {len(group) for group in groups}
    assert max(sizes) <= count
    assert max(sizes) - min(sizes) <= 1


def test_bits_are_compared_for_all_methods_and_more_settings() -> None:
    context = Context(CPU, Sizes())
    trials = context.bit_trials()
    assert list(trials)[:8] == list(pairs.METHODS)
    described = {name for name in methods.names() if methods.describe(name).family != "adversarial"}
    assert {trial.method.name for trial in trials.values()} == described
    assert len({trial.id for trial in trials.values()}) == len(trials)
    assert len({trial.stream_key for trial in trials.values()}) == 1
    images = context.sizes.bits[0]
    assert trials["crd"].method.hyperparameters["negatives"] > images
    assert trials["crd, 32 negatives"].method.hyperparameters["negatives"] < images
    settings = {name: (trial.optimizer.name, trial.ema) for name, trial in trials.items() if name.startswith("kd")}
    assert settings == {
        "kd": ("sgd", None),
        "kd, AdamW": ("adamw", None),
        "kd, DOT": ("dot", None),
        "kd, moving average": ("sgd", 0.9),
        "kdsvd": ("sgd", None),
    }
    half = context.bit_trials_in_bfloat16()
    assert {trial.precision for trial in half.values()} == {"bfloat16"}
    assert list(half) == ["kd, bfloat16", "reviewkd, bfloat16", "ofd, bfloat16", "crd, bfloat16"]


@pytest.mark.slow
@pytest.mark.parametrize("group", ["crd, 32 negatives", "kd, AdamW", "kd, DOT", "kd, moving average", "bfloat16"])
def test_further_settings_have_the_same_bits(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_bench.training.fit.RECORDED_BLOCK", 2)
    context = Context(CPU, replace(TINY, methods=None), make_recorder=Tapes())
    trials = context.bit_trials() if group != "bfloat16" else context.bit_trials_in_bfloat16()
    chosen = trials if group == "bfloat16" else {name: trials[name] for name in ("kd", group)}
    results = gpu_bits.compare_bits(context, chosen, in_one_queue=True)
    assert gpu_bits.differences(results) == []
    assert all(result["queue"] == "same" for result in results.values())
    assert [name for name, result in results.items() if not result["recorded"]] == []
