"""A trial's folder."""

import errno
import json
import os

import pytest

from kd_bench.trials import folder as folder_module
from kd_bench.trials.folder import TrialFolder
from kd_bench.utils.errors import UserError
from tests.training.parts import trial
from tests.trials.folders import finish


@pytest.fixture
def folder(tmp_path):
    settings = trial("kd")
    folder = TrialFolder(tmp_path / settings.id)
    folder.create(settings)
    return folder


def test_settings_edited_by_hand_are_noticed(folder):
    folder.check_settings()
    file = folder.path / "trial.json"
    settings = json.loads(file.read_text())
    settings["epochs"] += 1
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match="was changed by hand"):
        folder.check_settings()
    for content in ("{", "[1]", "null"):
        file.write_text(content)
        with pytest.raises(UserError, match=r"trial.json: is damaged: .* remove .* to train this trial again"):
            folder.check_settings()


def test_reformatting_is_no_change(folder):
    file = folder.path / "trial.json"
    file.write_text(json.dumps(json.loads(file.read_text()), sort_keys=True))
    folder.check_settings()


def test_checkpoints_keep_the_last_two(folder):
    for epoch in range(1, 5):
        folder.write_checkpoint(epoch, f"state {epoch}".encode())
    assert [(epoch, content) for epoch, _, content in folder.read_checkpoints()] == [(4, b"state 4"), (3, b"state 3")]


def test_a_damaged_checkpoint_is_reported_and_replaced(folder):
    folder.write_checkpoint(1, b"one")
    folder.write_checkpoint(2, b"two")
    _, path, _ = next(iter(folder.read_checkpoints()))
    path.write_bytes(b"tw0")
    assert [content for _, _, content in folder.read_checkpoints()] == [None, b"one"]
    folder.write_checkpoint(2, b"two, again")
    assert [content for _, _, content in folder.read_checkpoints()] == [b"two, again", b"one"]


def test_other_files_are_no_checkpoints(folder):
    folder.write_checkpoint(1, b"one")
    (folder.path / "checkpoint" / ".epoch-000002-x.pt.abc.tmp").write_bytes(b"half of i")
    assert [epoch for epoch, _, _ in folder.read_checkpoints()] == [1]
    folder.write_mid_epoch(1, 20, b"one and a half")
    (folder.path / "checkpoint" / "within-my-own-copy.pt").write_bytes(b"one and a half")
    assert list(folder.read_mid_epoch(1)) == [(1, b"one and a half")]


def test_finishing(folder):
    finish(folder.path, trial("kd"))
    result = folder.result()
    folder.remove_result()
    folder.write_checkpoint(1, b"one")
    assert folder.status() == "missing"
    folder.finish(result)
    assert folder.status() == "done"
    assert not (folder.path / "checkpoint").exists()
    folder.remove_failure()
    assert folder.status() == "done"
    folder.weights.unlink()
    assert folder.status() == "missing"
    assert folder.result() == result
    folder.remove_failure()  # a new attempt begins
    assert folder.result() is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"status": "fine"}'])
def test_a_damaged_result_is_an_error(folder, content):
    (folder.path / "result.json").write_text(content)
    with pytest.raises(UserError, match=r"result.json: is damaged"):
        folder.status()


def test_metrics_are_rewritten_completely(folder):
    folder.write_metrics([{"epoch": 1, "top1": 10.0}])
    folder.write_metrics([{"epoch": 1, "top1": 10.0}, {"epoch": 2, "top1": 20.0}])
    assert (folder.path / "metrics.csv").read_text() == "epoch,top1\n1,10.0\n2,20.0\n"


def test_the_environment_of_earlier_parts_is_kept(folder):
    for threads in (1, 2, 3):
        folder.write_environment({"threads": threads})
    environment = json.loads((folder.path / "environment.json").read_text())
    assert environment == {"threads": 3, "earlier": [{"threads": 1}, {"threads": 2}]}


def test_a_failure_that_cannot_be_written_is_no_error(folder, monkeypatch):
    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder_module, "write_json", full)
    folder.write_failure("the GPU is gone")


def test_a_failure_that_names_a_file_whose_name_is_no_text(folder):
    folder.write_failure(os.fsdecode(b"caf\xe9.jpg: the image cannot be decoded"))
    assert folder.read("failure.json") == {"reason": "caf?.jpg: the image cannot be decoded"}
