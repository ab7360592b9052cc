"""The benchmark of the losses runs and prints its table. Its measurements are not tested."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOSSES = (
    "KD",
    "DKD",
    "DIST",
    "IKL",
    "GKL",
    "RKD distance",
    "RKD angle",
    "PKT",
    "CC",
    "ITRD correlation",
    "ITRD mutual",
    "CRD",
    "drawing",
    "OFD partial L2",
    "ReviewKD HCL",
    "NST",
    "AT",
    "VID",
    "SP",
    "KDSVD",
)


@pytest.fixture(scope="module")
def lines() -> list[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "losses.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_loss_has_its_row(lines: list[str]) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    header, _, *rows = rows
    assert header == [
        "",
        "ours, ms",
        "direct, ms",
        "faster",
        "ours, MiB",
        "direct, MiB",
        "smaller",
        "of KL's time",
        "difference",
    ]
    assert len(rows) == len(LOSSES)
    for name, row in zip(LOSSES, rows, strict=True):
        assert row[0].startswith((f"{name} ", f"{name},"))
        for cell in row[1:7]:
            assert float(cell.split(" ")[0].replace(",", "")) > 0
        assert bool(row[7]) == (name == "IKL")
        assert not row[8] or float(row[8]) < 1e-4


def test_small_sizes_keep_no_promises(lines: list[str]) -> None:
    assert not any("promised" in line for line in lines)
