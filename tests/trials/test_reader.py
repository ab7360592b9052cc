"""The reader of trial folders. What it makes of damaged ones is in ``tests/hostile/test_folders.py``."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_bench.config.trial import Trial
from kd_bench.trials.metrics_file import read_metrics
from kd_bench.trials.reader import WEIGHTS, read_trial, trial_settings
from kd_bench.utils.files import sha256
from kd_bench.utils.regular_files import BadFile, read_regular
from tests.training.parts import trial
from tests.trials.folders import finish

MEASURED = Path(__file__).parents[2] / "results" / "measured"


def test_kept_results_are_done() -> None:
    folders = [file.parent for file in MEASURED.glob("*/*/result.json")]
    assert len(folders) > 100
    for folder in folders:
        record = read_trial(folder)
        assert (record.verdict, record.faults, record.remarks) == ("done", (), ())
        assert trial_settings(record).id == folder.name
        if record.has_weights:
            assert record.result and record.result["weights_sha256"] == sha256(folder / WEIGHTS)
    with_weights = {file.parent.name for file in MEASURED.glob(f"*/*/{WEIGHTS}")}
    assert with_weights == {"f60ddcdf3beb0a1c"}  # the teacher of cifar100/two_cores


def test_the_content_of_a_finished_trial(tmp_path: Path) -> None:
    of = trial("kd")
    record = read_trial(finish(tmp_path / of.id, of, 61.25, top1_best=70.5, note=[1]))
    assert (record.verdict, record.has_weights, record.is_damaged) == ("done", True, False)
    assert record.result is not None and record.metrics is not None
    assert (record.result["top1_last"], record.result["note"]) == (61.25, [1])
    assert record.metrics.rows == of.epochs == len(list(record.metrics.records()))
    assert record.environment["packages"] == {"torch": "2.14.1"}
    assert isinstance(trial_settings(record), Trial) and trial_settings(record) == of


def test_an_unfinished_trial(tmp_path: Path) -> None:
    of = trial("kd")
    assert read_trial(tmp_path / of.id).verdict == "incomplete"
    folder = finish(tmp_path / of.id, of)
    (folder / "result.json").unlink()
    assert read_trial(folder).verdict == "incomplete" and read_trial(folder).settings == of.settings()
    (folder / "metrics.csv").write_text("epoch,top1\n1,")
    record = read_trial(folder)
    assert (record.verdict, record.metrics) == ("incomplete", None)
    assert [str(remark) for remark in record.remarks] == ["metrics.csv is damaged: its last line is cut off"]


NUMBER = st.one_of(st.floats(0, 100), st.floats(0, 1e300), st.integers(0, 10**6))


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.floats(0, 100), NUMBER, st.one_of(NUMBER, st.just(math.nan), st.just(math.inf), st.none())),
        min_size=1,
    )
)
def test_metrics_are_read_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple]) -> None:
    """Finite numbers take the fast way, others the slow one."""
    file = tmp_path_factory.mktemp("metrics") / "metrics.csv"
    lines = [f"{epoch},{top1},{loss},{'' if other is None else other}"
             for epoch, (top1, loss, other) in enumerate(rows, 1)]  # fmt: skip
    file.write_text("\n".join(["epoch,top1,test_loss,other", *lines]) + "\n")
    metrics = read_metrics(file)
    assert metrics is not None and metrics.rows == len(rows)
    for number, column in enumerate(("top1", "test_loss", "other")):
        assert repr(metrics.columns[column]) == repr(tuple(row[number] for row in rows))


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"content"
    assert read_regular(tmp_path / "none") is None
    with pytest.raises(BadFile, match="is a folder, not a regular file"):
        read_regular(tmp_path)
    with pytest.raises(BadFile, match="is larger than"):
        read_regular(tmp_path / "file", largest=6)
