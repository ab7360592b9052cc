"""Trials and the images that they are from: verification, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kd_bench.cli.main import app
from kd_bench.config.trial import PlannedTrial
from kd_bench.data.image_digest import ImageRecord
from kd_bench.trials.images import check_same_images, differing_images
from kd_bench.trials.reader import read_trial
from kd_bench.utils.errors import RunFailed, UserError
from tests.trials.folders import ENVIRONMENT, finish
from tests.trials.test_status import planned

RECORD: ImageRecord = {"digest": "a" * 32, "order": "c" * 32, "kind": "pixels"}


def finished(out: Path, cell: PlannedTrial, **images: str) -> Path:
    """A trial that is done, with the images in result and environment."""
    record = RECORD | images
    folder = finish(out / "small" / cell.trial_id, cell.trial, images=record)
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT | {"images": record}))
    return folder


def test_other_images_are_refused(tmp_path: Path) -> None:
    check_same_images(tmp_path, "it is", {"images": RECORD}, RECORD, ordered=True)
    check_same_images(tmp_path, "it is", {}, RECORD)  # written by an earlier version
    check_same_images(tmp_path, "it is", {"images": RECORD | {"kind": "names and sizes", "digest": "b" * 32}}, RECORD)
    check_same_images(tmp_path, "it is", {"images": RECORD | {"order": "d" * 32}}, RECORD)
    end = "; restore them, or remove this folder to train the trial again"
    with pytest.raises(UserError) as error:
        check_same_images(tmp_path, "it is", {"images": RECORD | {"digest": "b" * 32}}, RECORD)
    digests = f"(digest {'b' * 32}, now {'a' * 32})"
    assert str(error.value) == f"{tmp_path}: it is from other images than the present ones {digests}{end}"
    with pytest.raises(UserError) as error:
        check_same_images(tmp_path, "it is", {"images": RECORD | {"order": "d" * 32}}, RECORD, ordered=True)
    assert str(error.value) == f"{tmp_path}: it is from the same images in another order{end}"


def test_result_and_environment_must_agree(tmp_path: Path) -> None:
    folder = finished(tmp_path, planned()[0])
    assert read_trial(folder).verdict == "done"
    content = json.loads((folder / "environment.json").read_text())
    for images in (RECORD | {"digest": "b" * 32}, None):
        (folder / "environment.json").write_text(json.dumps(content | {"images": images}))
        faults = read_trial(folder).faults
        assert [str(fault) for fault in faults] == [
            "environment.json is damaged: its images are not those of result.json"
        ]
    (folder / "environment.json").write_text(json.dumps(content))
    result = json.loads((folder / "result.json").read_text())
    for damage in ({"digest": "a" * 31}, {"digest": 5}, {"kind": None}, {"order": "A" * 32}):
        (folder / "result.json").write_text(json.dumps(result | {"images": RECORD | damage}))
        assert read_trial(folder).verdict == "damaged"
    (folder / "result.json").write_text(json.dumps({key: value for key, value in result.items() if key != "images"}))
    assert read_trial(folder).verdict == "done"


def test_verify_names_the_trials_of_other_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = list({cell.trial_id: cell for cell in planned()}.values())
    folders = [finished(tmp_path, cell) for cell in cells]
    app(["verify", str(tmp_path)], standalone_mode=False)
    assert "no faults found" in capsys.readouterr().out
    other = finished(tmp_path, cells[1], digest="b" * 32)
    [sentence] = differing_images(folders)
    assert sentence == (
        f"{other}: is from other images of digits (100 test images) than most trials here (digest {'b' * 32} instead "
        f"of {'a' * 32}), so no table shows it beside them"
    )
    with pytest.raises(RunFailed):
        app(["verify", str(tmp_path)], standalone_mode=False)
    printed = capsys.readouterr().out
    assert sentence in printed and "1 fault found" in printed
    finished(tmp_path, cells[1], digest="b" * 32, kind="names and sizes")
    assert list(differing_images(folders)) == []
