"""Networks with the channels last, and compiled ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_bench.training import forward_pass, teacher
from kd_bench.training.build import build_network
from tests.training.parts import MemoryWriter, same, splits, train, trial

METHODS = ("none", "kd", "fitnet")


@pytest.fixture(scope="module")
def plain() -> dict[str, MemoryWriter]:
    return {name: train([trial(name, epochs=1)], splits())[0] for name in METHODS}


def assert_close(writer: MemoryWriter, other: MemoryWriter) -> None:
    """Last bits grow in training: the loss of an epoch is as good as the same, the weights are near."""
    state, expected = writer.states[-1], other.states[-1]
    assert state["history"][0]["train_loss"] == pytest.approx(expected["history"][0]["train_loss"], rel=1e-3)
    for name, value in state["network"].items():
        torch.testing.assert_close(value, expected["network"][name], rtol=0.02, atol=0.02, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_channels_last_changes_the_layout_and_only_last_bits(
    method: str, plain: dict[str, MemoryWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    convolve = nn.Conv2d.forward

    def noting(self: nn.Conv2d, images: Tensor) -> Tensor:
        if self.weight.requires_grad and len(images) > 1:  # the student's, its dry run with one image aside
            seen.append(images.is_contiguous(memory_format=torch.channels_last))
        return convolve(self, images)

    monkeypatch.setattr(nn.Conv2d, "forward", noting)
    (writer,) = train([trial(method, epochs=1, channels_last=True)], splits())
    convolutions = sum(
        name.endswith("weight") and value.ndim == 4 for name, value in writer.states[-1]["network"].items()
    )
    assert len(seen) >= 5 * convolutions
    assert sum(seen) == len(seen) or (method == "fitnet" and sum(seen) > 0.9 * len(seen))  # its connector's apart
    assert_close(writer, plain[method])


def test_a_networks_weights_are_laid_out_with_it() -> None:
    network, view = build_network(trial("none", channels_last=True), splits())
    assert network.get_submodule("conv1").weight.is_contiguous(memory_format=torch.channels_last)
    assert view(torch.zeros(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("method", METHODS)
def test_compiled_networks_train_as_others(
    method: str, plain: dict[str, MemoryWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's tracing without its code generator, which takes minutes on a CPU."""
    compiled: list[Any] = []
    real = torch.compile

    def noting(code: Any, **options: Any) -> Any:
        compiled.append(code)
        return real(code, backend="aot_eager", **options)

    monkeypatch.setattr(forward_pass.torch, "compile", noting)
    (writer,) = train([trial(method, epochs=1, compile="on")], splits())
    assert compiled
    assert writer.crash is None
    assert_close(writer, plain[method])


@pytest.mark.slow
def test_compiled_by_inductor(plain: dict[str, MemoryWriter]) -> None:
    (writer,) = train([trial("kd", epochs=1, compile="on")], splits())
    assert writer.crash is None
    assert_close(writer, plain["kd"])


def test_they_are_part_of_the_trial() -> None:
    base = trial("kd")
    for name, value in (("channels_last", True), ("compile", "on"), ("sync_batch_norm", True)):
        assert trial("kd", **{name: value}).id != base.id
        assert name not in base.settings()
    assert trial("kd", compile="on").cohort_key != base.cohort_key


@pytest.mark.slow
def test_a_teacher_compiled_by_inductor_has_the_same_bits_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "COMPILE_FROM", {"cpu": 0.0})
    settings = {"epochs": 1, "compile": "auto"}
    (alone,) = train([trial("kd", **settings)], splits())
    writers = train([trial(name, **settings) for name in ("fitnet", "kd", "ofd")], splits())
    assert same(alone.states, writers[1].states)
    assert_close(alone, train([trial("kd", epochs=1, compile="off")], splits())[0])
