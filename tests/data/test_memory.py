"""How often images are in memory: once for all processes that train on them, never as floats for their statistics."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_bench.data.array_dataset import channel_statistics
from tests.data import make

BYTES = 8000 * 3 * 32 * 32

HOLDER = """
import sys
from pathlib import Path
import torch
from kd_bench.data import decoded_cache, registry
from kd_bench.config.recipe import Dataset

def measure():
    rows = [line.split() for line in open("/proc/self/smaps_rollup")]
    size = {row[0]: int(row[1]) * 1024 for row in rows if row[-1] == "kB"}
    return size["Private_Clean:"] + size["Private_Dirty:"], size["Rss:"]

def load_and_touch():
    splits = registry.load(Dataset(name="cifar100"), Path(sys.argv[1]))
    return splits, int(splits.train_images.sum())

load_and_touch()  # decodes, which loads everything that decoding needs
print("ready", flush=True)
sys.stdin.readline()
before = measure()
splits, total = load_and_touch()
print("touched", flush=True)
sys.stdin.readline()
after = measure()
print(after[0] - before[0], after[1] - before[1], total, flush=True)
sys.stdin.readline()
"""

BUILDER = """
import sys
import numpy as np
from kd_bench.data import decoded_cache

def peak():
    rows = (line.split() for line in open("/proc/self/status"))
    return sum(int(row[1]) for row in rows if row[0] == "VmHWM:")

def decode(allocate):
    images = allocate((16_000, 3, 32, 32))
    for start in range(0, len(images), 100):
        images[start : start + 100] = start % 251
    return decoded_cache.Decoded(images, np.zeros((len(images), 1), np.int64), (("a",),))

before = peak()
found = decoded_cache.load("set", [], decode)
total = int(found.images.sum())
print((peak() - before) * 1024, found.images.nbytes)
"""

STATISTICS = """
import torch
from kd_bench.data.array_dataset import ArrayDataset

def peak():
    rows = (line.split() for line in open("/proc/self/status"))
    return sum(int(row[1]) for row in rows if row[0] == "VmHWM:")

images = torch.randint(0, 256, (16_000, 3, 32, 32), dtype=torch.uint8)
labels = torch.zeros(len(images), dtype=torch.int64)
before = peak()
ArrayDataset.from_arrays(images, labels, images[:10], labels[:10])
print((peak() - before) * 1024, images.numel())
"""

linux = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells private memory")


@linux
def test_two_processes_share_the_images(tmp_path: Path) -> None:
    flat = make.encode_all(make.pixels(16, 0), "BMP")
    for split, count in (("train", 8000), ("test", 16)):
        make.parquet(tmp_path / f"{split}.parquet", flat * (count // 16), make.labels(count, 0))
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]

    def answers() -> list[list[str]]:
        """Reads a line of both processes, and lets both continue."""
        said = [holder.stdout.readline().split() if holder.stdout else [] for holder in holders]
        for holder in holders:
            if holder.stdin:
                holder.stdin.write("go on\n")
                holder.stdin.flush()
        return said

    assert answers() == [["ready"]] * 2
    assert answers() == [["touched"]] * 2
    measured = answers()
    for holder in holders:
        holder.communicate(timeout=60)
    for private, mapped, total in measured:
        assert int(private) < 0.1 * BYTES
        assert int(mapped) > 0.9 * BYTES
        assert total == measured[0][2]


@linux
def test_decoding_has_the_images_in_memory_once() -> None:
    out = subprocess.run([sys.executable, "-c", BUILDER], capture_output=True, text=True, check=True).stdout
    peak, size = map(int, out.split())
    assert size <= peak < 1.1 * size


@linux
def test_statistics_of_the_channels_need_less_than_a_copy_of_the_images() -> None:
    out = subprocess.run([sys.executable, "-c", STATISTICS], capture_output=True, text=True, check=True).stdout
    peak, size = map(int, out.split())
    assert peak < size


@pytest.mark.parametrize("brightest", [1, 7, 256])
def test_statistics_of_the_channels_are_those_of_the_pixels(brightest: int) -> None:
    images = np.random.default_rng(0).integers(0, brightest, (20, 3, 5, 5), np.uint8)
    mean, std = channel_statistics(torch.from_numpy(images))
    np.testing.assert_allclose(mean, (images / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 2, 3)).clip(1 / 255), rtol=1e-12)
