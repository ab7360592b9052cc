from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.distributed_sampler import RepeatAugSampler

from kd_bench.data.batch_order import BatchOrder
from kd_bench.utils import seeding


def test_without_repeats_an_epoch_is_the_set_in_another_order() -> None:
    order = BatchOrder(0, 50, 8, 8)
    epochs = []
    for epoch in range(2):
        images, repeats = order.epoch(epoch)
        assert images.shape == repeats.shape == (len(order), 8) == (6, 8)
        assert len(set(images.flatten().tolist())) == 48 and not repeats.any()
        epochs.append(images)
    assert not torch.equal(*epochs)
    assert torch.equal(epochs[1], BatchOrder(0, 50, 8, 8).epoch(1)[0])
    assert not torch.equal(epochs[1], BatchOrder(1, 50, 8, 8).epoch(1)[0])


@pytest.mark.parametrize("size", [64, 240, 256, 1000])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_repeats_are_timms(size: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "generator", lambda seed, stream, epoch: torch.Generator().manual_seed(epoch))
    order = BatchOrder(0, size, 16, 16 // processes, repeats=3)
    images, repeats = order.epoch(5)
    groups = images.view(len(order), processes, -1)
    for number in range(processes):
        sampler = RepeatAugSampler(range(size), num_replicas=processes, rank=number, num_repeats=3)
        sampler.set_epoch(5)
        indices = torch.tensor(list(sampler))
        whole = len(indices) // (16 // processes)  # without the last batch if it is not full
        assert whole == len(order)
        assert torch.equal(groups[:, number].flatten(), indices[: whole * (16 // processes)])
    pairs = set(zip(images.flatten().tolist(), repeats.flatten().tolist(), strict=True))
    assert len(pairs) == images.numel() and repeats.max() == 2


@settings(max_examples=100)
@given(data=st.data(), repeats=st.integers(1, 3))
def test_processes_share_every_batch(data: Any, repeats: int) -> None:
    world = data.draw(st.sampled_from([1, 2, 3, 4, 6]))
    groups = data.draw(st.sampled_from([n for n in (1, 2, 3, 4, 6, 12) if n % world == 0 or world % n == 0]))
    group = 2 * max(1, world // groups) * data.draw(st.integers(1, 4))
    batch = groups * group
    whole = BatchOrder(3, 200, batch, group, repeats)
    images = torch.stack(whole.epoch(1), 2)  # (steps, B, 2)
    taken = []
    for rank in range(world):
        order = BatchOrder(3, 200, batch, group, repeats, rank, world)
        assert len(order) == len(whole)
        mine = torch.stack(order.epoch(1), 2)
        assert mine.shape[1] == batch // world
        taken.append(order.positions)
        # In the order that the whole batch has them, and group by group with their partners.
        columns = [whole.positions.tolist().index(position) for position in order.positions.tolist()]
        assert torch.equal(mine, images[:, columns])
        for chunk in torch.tensor(columns).chunk(len(order.groups)):
            assert set((chunk // group).tolist()) <= set(order.groups)
            assert (chunk + chunk.flip(0) == 2 * (chunk[0] // group) * group + group - 1).all()
    assert sorted(torch.cat(taken).tolist()) == list(range(batch))


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of 3 do not make up a batch of 8"):
        BatchOrder(0, 100, 8, 3)
    with pytest.raises(ValueError, match="3 processes cannot share a batch of 8 images in 2 groups"):
        BatchOrder(0, 100, 8, 4, rank=0, world_size=3)
    with pytest.raises(ValueError, match="8 processes cannot share a batch of 8 images in 1 groups"):
        BatchOrder(0, 100, 8, 8, rank=0, world_size=8)
    with pytest.raises(ValueError, match="no process 2 among 2"):
        BatchOrder(0, 100, 8, 8, rank=2, world_size=2)
