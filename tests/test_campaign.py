"""``benchmarks/campaign.py``: a stopped piece goes on elsewhere with the same bits, and archives have what it needs."""

from __future__ import annotations

import json
import os
import signal
import tarfile
import threading
import time
from pathlib import Path

import pytest

from benchmarks import campaign, campaign_archive
from kd_bench.launch.options import RunOptions
from kd_bench.utils.errors import UserError

STEPS = (campaign.TeacherStep("resnet14"), campaign.StudentsStep("demo", "resnet14", "resnet8", ("none", "kd")))
CHANGES = ("dataset=digits", "augment.crop=null", "augment.flip=null", "dataset.train_images=160")
TINY = [f"--set={change}" for change in (*CHANGES, "dataset.test_images=80", "epochs=4")]


def stop_after_an_epoch(out: Path) -> threading.Thread:
    """Asks this process to stop when a training of the results folder has finished an epoch."""

    def wait() -> None:
        while not any(out.glob("*/*/metrics.csv")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def weights_of(out: Path) -> dict[str, str]:
    """Returns the checksums of all weights, by trial."""
    results = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/*/result.json")}
    return {trial: result["weights_sha256"] for trial, result in results.items()}


@pytest.mark.slow
def test_a_stopped_piece_goes_on_elsewhere_with_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_out, resumed_out, whole, parts = (tmp_path / name for name in ("here", "there", "whole", "parts"))
    handler, stopper = signal.getsignal(signal.SIGTERM), stop_after_an_epoch(stopped_out)
    assert campaign.main(["--out", str(stopped_out), "--pack", str(parts), *TINY], STEPS) == 0
    stopper.join()
    assert signal.getsignal(signal.SIGTERM) is handler
    text = capsys.readouterr().out
    assert "campaign: stopped" in text and " of 4 |" in text
    assert "Not begun: resnet14 to resnet8, none, kd, seed 0." in text
    assert f"go on with: python benchmarks/campaign.py --out {stopped_out} --pack {parts}" in text
    assert text.rstrip().endswith(f"--unpack {parts}")
    with tarfile.open(parts / "results.tar.xz.00") as archive:
        names = archive.getnames()
    assert len([name for name in names if name.endswith(".pt")]) == 1

    assert campaign.main(["--out", str(resumed_out), "--unpack", str(parts), *TINY], STEPS) == 0
    text = capsys.readouterr().out
    assert "go on with" not in text and text.count("|    done |") == 3
    assert "before the weights were rounded to half precision" in text
    assert campaign.main(["--out", str(whole), *TINY], STEPS) == 0
    assert weights_of(resumed_out) == weights_of(whole) and len(weights_of(whole)) == 4
    rounded = [[path.read_bytes() for path in sorted((out / "rounded").iterdir())] for out in (resumed_out, whole)]
    assert rounded[0] == rounded[1] and len(rounded[0]) == 2

    # What is finished is not trained again after it has lost its weights.
    campaign_archive.pack(resumed_out, parts)
    again = tmp_path / "again"
    assert campaign.main(["--out", str(again), "--unpack", str(parts), *TINY], STEPS) == 0
    assert weights_of(again) == weights_of(whole)
    assert not list(again.glob("*/*/student.safetensors"))


def test_no_minutes_train_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert campaign.main(["--out", str(tmp_path / "out"), "--minutes", "0", *TINY], STEPS) == 0
    assert "Not begun: teacher resnet14; resnet14 to resnet8" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("of_user", [None, "elsewhere"])
def test_compiled_code_is_kept_with_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_user: str | None
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    if of_user is not None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", of_user)
    seen = []
    monkeypatch.setattr(campaign, "run_steps", lambda *_: seen.append(os.environ["TORCHINDUCTOR_CACHE_DIR"]) or {})
    assert campaign.main(["--out", str(tmp_path / "out"), *TINY], STEPS) == 0
    assert seen == [of_user or str(tmp_path / "out" / "compiled")]
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == of_user


def test_students_wait_for_their_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert campaign.main(["--out", str(tmp_path / "out"), *TINY], STEPS[1:]) == 1
    assert "its teacher is missing" in capsys.readouterr().err


def test_the_steps_are_those_of_the_recipes(tmp_path: Path) -> None:
    settings = campaign.Settings(RunOptions(out=tmp_path))
    planned = {step: step.plan(settings).planned for step in campaign.STEPS}
    assert [step.title for step in campaign.STEPS[:4]] == [
        "teacher vgg13",
        "vgg13 to mobilenet_v2, none, kd, dkd, ikl_kd, seed 0",
        "teacher wrn_40_2",
        "teacher resnet32x4",
    ]
    students = [cell.trial_id for step, cells in planned.items() for cell in cells if step.title[:7] != "teacher"]
    assert len(students) == len(set(students)) == 3 * 3 * 9
    assert {cell.trial.epochs for cells in planned.values() for cell in cells} == {240}
    taught = {cell.trial.teacher.id for cells in planned.values() for cell in cells if cell.trial.teacher}
    assert taught == {planned[step][0].trial_id for step in campaign.STEPS if isinstance(step, campaign.TeacherStep)}


def write(path: Path, content: bytes = b"content") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_an_archive_has_what_is_needed_and_no_more(tmp_path: Path) -> None:
    out = tmp_path / "out"
    needed = [
        write(out / "table6" / "done" / "result.json"),
        write(out / "table6" / "begun" / "checkpoint" / "within-000000-000000020-0.pt", os.urandom(5000)),
        write(out / "table6" / "other" / "checkpoint" / "epoch-000012-0.pt"),
        write(out / "teachers" / "done" / "result.json"),
        write(out / "rounded" / "vgg13.safetensors"),
    ]
    teacher = write(out / "teachers" / "done" / "student.safetensors")
    write(out / "table6" / "done" / "student.safetensors")
    write(out / "table6" / "begun" / "lease.000001")
    write(out / "table6" / "begun" / "checkpoint" / "within-000000-000000010-0.pt")
    write(out / "table6" / "other" / "checkpoint" / "within-000013-000000020-0.pt")
    write(out / "table6" / "other" / "checkpoint" / "epoch-000011-0.pt")
    write(out / "table6" / "other" / ".metrics.csv.1.tmp")
    write(tmp_path / "parts" / "results.tar.xz.17")  # of an earlier archive, which was larger
    parts = campaign_archive.pack(out, tmp_path / "parts", part=2000)
    assert parts == sorted((tmp_path / "parts").iterdir()) and len(parts) > 2
    assert all(part.stat().st_size == 2000 for part in parts[:-1])
    assert campaign_archive.unpack(tmp_path / "parts", tmp_path / "copy")
    copies = {path.relative_to(tmp_path / "copy"): path for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert set(copies) == {path.relative_to(out) for path in needed}
    assert all(copies[path.relative_to(out)].read_bytes() == path.read_bytes() for path in needed)

    campaign_archive.pack(out, tmp_path / "kept", [teacher])
    assert campaign_archive.unpack(tmp_path / "kept", tmp_path / "with teacher")
    assert (tmp_path / "with teacher" / "teachers" / "done" / "student.safetensors").is_file()


def test_a_cohort_goes_on_from_the_step_at_which_it_was_stopped(tmp_path: Path) -> None:
    out = tmp_path / "out"
    stopped = [write(out / "table6" / name / "checkpoint" / "within-000013-000000020-0.pt") for name in "abc"]
    epochs = [write(out / "table6" / name / "checkpoint" / "epoch-000012-0.pt") for name in "abc"]
    write(out / "table6" / "done" / "result.json")

    def packed() -> set[str]:
        campaign_archive.pack(out, tmp_path / "parts")
        with tarfile.open(tmp_path / "parts" / "results.tar.xz.00") as archive:
            return {name for name in archive.getnames() if name.endswith(".pt")}

    def names(*paths: Path) -> set[str]:
        return {path.relative_to(out).as_posix() for path in paths}

    assert packed() == names(*stopped)
    stopped[1].unlink()  # as if its process had been killed while it saved the states
    assert packed() == names(*epochs)
    for path in epochs:
        path.unlink()
    assert packed() == names(stopped[0], stopped[2])


def test_an_archive_replaces_no_results_and_must_be_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "out" / "file", os.urandom(5000))
    parts = campaign_archive.pack(tmp_path / "out", tmp_path / "parts", part=2000)
    assert not campaign_archive.unpack(tmp_path / "parts", tmp_path / "out")
    parts[-1].unlink()
    with pytest.raises(UserError, match="is damaged or lacks a part"):
        campaign_archive.unpack(tmp_path / "parts", tmp_path / "copy")
    assert campaign.main(["--out", str(tmp_path / "copy 2"), "--unpack", str(tmp_path / "none")], STEPS) == 2
    assert "there is no file results.tar.xz.00" in capsys.readouterr().err
