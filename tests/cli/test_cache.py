"""kd-bench cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from kd_bench.cli.main import app
from kd_bench.training.logit_cache import open_cache

ABOUT = {"teacher": "cifar_resnet14", "dataset": "digits"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_BENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("KD_BENCH_LOGITS_GB", "2")
    logits = open_cache(tmp_path / "logits", ABOUT, 100, 4, 16)
    assert logits is not None
    logits.get(torch.arange(16), torch.randn(16, 3, 4, 4), lambda images: images.flatten(1)[:, :4])
    logits.close()
    for name in ("digits-train-ab.json", "digits-train-ab-images.npy", "digits-train-ab-labels.npy", "other.txt"):
        (tmp_path / name).write_bytes(b"1" * 5000)
    return tmp_path


def test_shows_all_caches(cache: Path) -> None:
    shown = CliRunner().invoke(app, ["cache"]).output
    assert str(cache) in shown
    assert "cifar_resnet14 on digits" in shown
    assert "digits-train-ab" in shown
    assert "2.00 GB at most" in shown


def test_clears_the_given_kind_but_no_cache_in_use(cache: Path) -> None:
    used = open_cache(cache / "logits", {"teacher": "used", "dataset": "digits"}, 100, 4, 16)
    assert used is not None
    cleared = CliRunner().invoke(app, ["cache", "clear", "logits"])
    assert cleared.exit_code == 0
    assert "in use" in cleared.output
    assert [path.name for path in (cache / "logits").glob("*.logits")] == [used.path.name]
    assert (cache / "digits-train-ab-images.npy").exists()
    used.close()
    features = open_cache(cache / "logits", ABOUT | {"kind": "features"}, 100, 4, 16)
    assert features is not None
    features.close()
    runner = CliRunner()
    kinds = [line.split()[0] for line in runner.invoke(app, ["cache"]).output.splitlines()[3:-1]]
    assert sorted(kinds) == ["features", "images", "logits"]
    assert "did you mean 'features'" in str(runner.invoke(app, ["cache", "clear", "feature"]).exception)
    runner.invoke(app, ["cache", "clear", "features"])
    assert used.path.exists() and not features.path.exists()
    assert (cache / "digits-train-ab-images.npy").exists()
    runner.invoke(app, ["cache", "clear", "images"])
    assert used.path.exists() and not (cache / "digits-train-ab-images.npy").exists()
    CliRunner().invoke(app, ["cache", "clear"])
    assert [path.name for path in cache.rglob("*") if path.is_file()] == ["other.txt"]
