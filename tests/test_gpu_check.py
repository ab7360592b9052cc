"""``make gpu-check`` measures, keeps and compares what it says. A tape takes the place of CUDA graphs."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import gpu, gpu_bits, gpu_device, gpu_speed
from benchmarks.gpu_cohort import TINY, Context, Sizes, collected_messages
from kd_bench.config.trial import Trial
from tests.training.tape import Tapes

CPU = torch.device("cpu")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_bench.training.fit.RECORDED_BLOCK", 2)


@pytest.fixture
def same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "code_hash", lambda: "0123456789abcdef")


def check(out: Path, *arguments: str, tapes: Tapes | None = None) -> int:
    return gpu.main(["--device", "cpu", "--tiny", "--out", str(out), *arguments], tapes or Tapes())


def parts_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    return content["parts"]


def test_without_a_gpu_one_sentence_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no CUDA device" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "bits,sped"], "there is no section 'sped'"),
        (["--out", "x.json"], "name the page"),
        (["--device", "cpu", "--only", "VGG31"], "no measurement of these sections has 'VGG31'"),
    ],
)
def test_wrong_options(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("small_blocks", "same_code")
def test_what_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, tapes = tmp_path / "new" / "page.md", Tapes()
    arguments = ("--sections", "facts,bits", "--minutes", "10")
    assert check(out, *arguments, tapes=tapes) == 0
    assert "ab, abkd: done" in capsys.readouterr().out
    text, parts = out.read_text(), parts_of(out)
    assert "2 of 2 trainings have the same bits in all cases" in text
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if " yes |" in line]
    assert lines == [[method, "yes", *["same"] * 4, "-"] for method in ("ab", "abkd")]
    assert "- speed: " in text.split("## Not measured")[1]
    assert sum(tape.replays for tape in tapes.made) > 40

    again = Tapes()
    assert check(out, *arguments, tapes=again) == 0
    assert not again.made
    assert parts_of(out) == parts
    assert out.read_text().splitlines()[4:] == text.splitlines()[4:]  # its line with the time apart

    content = json.loads(out.with_suffix(".json").read_text())
    del content["parts"]["facts"]
    out.with_suffix(".json").write_text(json.dumps(content))
    capsys.readouterr()
    assert check(out, *arguments, tapes=again) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("gpu-check:")]
    assert [line.endswith("facts: done") for line in lines] == [True, False]
    assert not again.made

    content["environment"]["code"] = "other"
    out.with_suffix(".json").write_text(json.dumps(content))
    assert check(out, "--sections", "facts") == 0
    assert "measured anew" in capsys.readouterr().out
    assert set(parts_of(out)) == {"facts"}


@pytest.mark.usefixtures("small_blocks")
def test_other_bits_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = gpu_bits._Trainer.train

    def train_wrongly(self: Any, trials: Sequence[Trial], **options: Any) -> list[gpu_bits.StateWriter]:
        if options.get("eager"):
            trials = [trial.model_copy(update={"clip_norm": 0.1}) for trial in trials]
        writers = train(self, trials, **options)
        if options.get("stop"):
            writers[0].mid_epoch, writers[0].failure = None, "it is broken"
        return writers

    monkeypatch.setattr(gpu_bits._Trainer, "train", train_wrongly)
    out = tmp_path / "page.md"
    assert check(out, "--sections", "bits") == 1
    text = capsys.readouterr().out
    for method in ("ab", "abkd"):
        assert f"  {method}, not recorded: state.network.conv1.weight\n" in text
    assert "  ab, stopped and resumed: no result: it is broken\n" in text
    assert "0 of 2 trainings have the same bits" in out.read_text()
    results = parts_of(out)["bits: ab, abkd"]["result"]
    assert [result["again"] for result in results.values()] == ["same", "same"]


def test_what_is_logged_is_collected_and_not_printed(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("kd_bench.training.recorded_cohort")
    with collected_messages() as messages:
        logger.info("memory is %s", "short")
    assert messages == ["memory is short"]
    assert not caplog.messages
    logger.warning("later")
    assert messages == ["memory is short"]
    assert caplog.messages == ["later"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks", "same_code")
def test_a_whole_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, tapes = tmp_path / "page.md", Tapes()
    assert check(out, "--minutes", "10", tapes=tapes) == 0
    assert "0 problems" in capsys.readouterr().out
    text, parts = out.read_text(), parts_of(out)
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    sections = ["The machine", "The same bits", "cuDNN", "Steps", "Queues for streams", "A whole epoch"]
    assert titles == [f"## {section}" for section in sections]
    assert len(parts) == 1 + 3 + 1 + 1 + 1 + 2 + 1 + 1 + 1
    assert all(tape.replays > 0 for tape in tapes.made if tape.recordings)
    epoch = parts["epoch"]["result"]
    assert epoch["steps"] == 4
    assert epoch["ratio"] >= epoch["epoch_seconds"] / (4 * max(epoch["step_seconds"]))
    assert epoch["epoch_seconds"] > epoch["training_seconds"] > 0 < epoch["checkpoint_seconds"]
    assert parts["busy: cifar_resnet14 -> cifar_resnet8"]["result"] == {"fraction": None}
    timed = {key: part["result"] for key, part in parts.items() if key.startswith(("speed", "methods", "compiled"))}
    assert all(len(case["recorded"]) == TINY.rounds for case in timed.values())
    cases_with_one_member = [case for case in timed.values() if "one_recorded" in case]
    assert all(len(case["one_recorded"]) == TINY.rounds for case in cases_with_one_member)
    assert len(cases_with_one_member) == text.count(", KD x 1, ") == 3
    notes = {key: case["notes"] for key, case in timed.items()}
    (compiled,) = [key for key in notes if notes[key]]  # a tape cannot see what compiled code does
    assert compiled.startswith("compiled: ")
    assert "the teacher's pass is not recorded" in notes[compiled][0]
    assert text.count("the teacher's pass is not recorded") == 1
    assert sorted(case["members"] for case in timed.values()) == [1, 2, 2, 2, 2, 2]
    convs = parts["convs: cifar_resnet8"]["result"]
    assert [convs[way]["difference"] for way in ("deterministic", "default", "contiguous")] == ["", "", ""]
    assert parts["queues"]["result"]["case"] == "cifar_resnet14 -> cifar_resnet8, KD x 2, float32"


class Fails(Exception):
    pass


def fail() -> dict[str, Any]:
    raise Fails("no\nsuch thing")


def test_a_part_that_fails_leaves_the_others_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = gpu.ResultFile(tmp_path / "x.json", {"device_name": "a card"})
    parts = [gpu.Part("bits", "a", 1, fail), gpu.Part("epoch", "", 1, lambda: {"ratio": 1.0})]
    assert gpu.run_parts(parts, file, 60) == []
    assert file.errors == {"bits: a": "Fails: no"}
    assert file.results == {"epoch": {"ratio": 1.0}}
    kept = json.loads((tmp_path / "x.json").read_text())["parts"]["bits: a"]
    assert "raise Fails" in kept["traceback"]
    assert "bits: a: failed, Fails: no" in capsys.readouterr().out
    assert "**bits: a failed**: Fails: no" in gpu.make_page([], file, [])
    mended = gpu.ResultFile(tmp_path / "x.json", {"device_name": "a card"})
    assert gpu.run_parts([gpu.Part("bits", "a", 1, lambda: {"a": 1}), parts[1]], mended, 60) == []
    assert mended.errors == {}
    assert mended.results == {"bits: a": {"a": 1}, "epoch": {"ratio": 1.0}}


def test_after_a_failure_that_leaves_no_device_the_next_check_goes_on_with_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    def part(name: str, error: type[Exception] | None = None) -> gpu.Part:
        def measure() -> dict[str, Any]:
            order.append(name)
            known = json.loads((tmp_path / "x.json").read_text())["parts"]
            assert known[f"bits: {name}"]["error"] == "it began and did not end"
            if error is not None:
                raise error("CUDA error: an illegal memory access was encountered")
            return {}

        return gpu.Part("bits", name, 1, measure)

    parts = [part("good"), part("bad", RuntimeError), part("later")]
    for expected in (["good", "bad"], ["later", "bad"]):
        order.clear()
        file = gpu.ResultFile(tmp_path / "x.json", {})
        left = gpu.run_parts(parts, file, 60, is_usable=lambda: False)
        assert order == expected
        assert [gpu_part.name for gpu_part in left] == (["later"] if expected[0] == "good" else [])
        assert "cannot use the device any more" in capsys.readouterr().out
    assert set(file.results) == {"bits: good", "bits: later"}
    assert file.errors == {"bits: bad": "RuntimeError: CUDA error: an illegal memory access was encountered"}


def test_a_device_is_usable_unless_it_cannot_be_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    assert gpu_device.is_usable(CPU)
    assert not gpu_device.is_usable(torch.device("cuda", 0))


def test_a_part_begins_only_if_its_time_is_left(tmp_path: Path) -> None:
    file = gpu.ResultFile(tmp_path / "x.json", {})
    parts = [gpu.Part("speed", str(seconds), seconds, dict) for seconds in (90, 90, 5)]
    parts[1] = gpu.Part("compiled", "long", 90, dict)
    assert [part.name for part in gpu.run_parts(parts, file, 10)] == ["long"]
    assert set(file.results) == {"speed: 90", "speed: 5"}


def test_sections_have_shares_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part takes what is expected. What a section leaves is for the next, and what does not fit comes last."""
    now = 0.0
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: now)

    def part(section: str, name: str, expected: float, takes: float) -> gpu.Part:
        def measure() -> dict[str, Any]:
            nonlocal now
            now += takes
            return {"ended": now}

        return gpu.Part(section, name, expected, measure)

    monkeypatch.setattr(gpu, "SHARES", {"facts": 10, "speed": 30, "bits": 60})
    parts = [
        part("facts", "", 5, 5),
        *(part("speed", str(number), 10, 20) for number in range(3)),
        *(part("bits", str(number), 10, 15) for number in range(2)),
        part("compiled", "", 12, 12),
    ]
    file = gpu.ResultFile(tmp_path / "x.json", {})
    left = gpu.run_parts(parts, file, 100)
    assert list(file.results) == ["facts", "speed: 0", "speed: 1", "bits: 0", "bits: 1", "speed: 2"]
    assert [gpu_part.key for gpu_part in left] == ["compiled"]
    assert file.results["speed: 2"]["ended"] == 95
    now = 0.0
    parts = [part("speed", "", 10, 70), *(part("bits", str(number), 20, 20) for number in range(2))]
    monkeypatch.setattr(gpu, "SHARES", {"speed": 30, "bits": 40, "methods": 30})
    late = gpu.ResultFile(tmp_path / "y.json", {})
    assert [gpu_part.name for gpu_part in gpu.run_parts([*parts, part("methods", "", 5, 5)], late, 100)] == ["1"]
    assert list(late.results) == ["speed", "bits: 0", "methods"]
    assert gpu.section_ends(parts) == {"speed": 30 / 70, "bits": 1.0}
    assert gpu.section_ends(parts[1:]) == {"bits": 1.0}


def test_the_page_is_there_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PAGE_SECONDS", 0.0)
    out = tmp_path / "page.md"
    seen = []

    def killed(context: Context, case: gpu_speed.Case) -> dict[str, Any]:
        seen.append(out.read_text())
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_speed, "time_case", killed)
    with pytest.raises(KeyboardInterrupt):
        check(out, "--sections", "facts,speed")
    assert "starting an operation from Python" in seen[0] == out.read_text()


def test_names_of_parts_are_unique() -> None:
    context = Context(CPU, Sizes())
    parts = gpu.plan_parts(context)
    keys = [part.key for part in parts]
    assert len(set(keys)) == len(keys)
    assert list(dict.fromkeys(part.section for part in parts)) == list(gpu.SECTIONS)
    assert list(gpu.SHARES) == [section for section in gpu.SECTIONS if section in gpu.SHARES]
    assert "speed: ResNet32x4 -> ResNet8x4, KD x 8, float32" in keys
    assert "speed: WRN-40-2 alone, bfloat16" in keys
    assert set(gpu_speed.AIMS) == set(context.trials)


def results_with(cases: list[gpu_speed.Case], seconds: float) -> dict[str, Any]:
    return {
        case.name: {"recorded": [seconds] * 3, "eager": [], "peak": 2**30, "members": case.students, "notes": []}
        for case in cases
    }


def test_an_aim_is_reached_by_one_of_the_ways() -> None:
    plain = gpu_speed.Case("VGG13 -> MobileNet-V2", "KD", 8, "float32")
    half = gpu_speed.Case("VGG13 -> MobileNet-V2", "KD", 8, "bfloat16")
    alone = gpu_speed.Case("VGG13 -> MobileNet-V2", "KD", 1, "float32")
    results = results_with([plain], 0.0100) | results_with([half], 0.0090) | results_with([alone], 0.0001)
    (aim,) = gpu_speed.speed_section([plain, half, alone], results, {plain.pair: 0.5}).promises
    assert (aim.measured, aim.kept) == ("0.98 (float32), 0.88 (bfloat16)", True)
    (aim,) = gpu_speed.speed_section([plain, alone], results, {}).promises
    assert (aim.measured, aim.kept) == ("0.98 (float32)", False)


def test_a_trained_teacher_has_an_aim() -> None:
    case = gpu_speed.Case("WRN-40-2 -> ShuffleNet-V1", "teacher", 1, "bfloat16")
    (aim,) = gpu_speed.speed_section([case], results_with([case], 0.0033), {}).promises
    assert (aim.subject, aim.measured, aim.kept) == ("WRN-40-2 alone", "2.58 (bfloat16)", True)
    trials = gpu_speed.Case.trials(case, Context(CPU, Sizes()).trials[case.pair], 8)
    assert [(trial.model, trial.teacher, trial.precision) for trial in trials] == [("cifar_wrn_40_2", None, "bfloat16")]


def test_hours_of_table_6() -> None:
    cases = [case for kind in gpu_speed.plan_cases(Context(CPU, Sizes())).values() for case in kind]
    measured = [case for case in cases if case.members == "Table 6" and case.precision == "float32"]
    assert len(measured) == 5
    rows = gpu_speed.table6_section(cases, results_with(measured, 0.01), 1.1).tables[0].rows
    hours = 3 * 240 * 782 * 0.01 * 1.1 / 3600
    assert rows[0][1:] == ["5,760", "720", f"{hours:.1f}", "-"]
    assert rows[-1] == ["all", "28,800", "3,600", f"{5 * hours:.1f}", "-"]
    rows = gpu_speed.table6_section(cases, results_with(measured[1:], 0.01), None).tables[0].rows
    assert [row[3] for row in rows].count("-") == 2


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), min_size=1))
def test_the_union_of_intervals(starts_and_lengths: list[tuple[int, int]]) -> None:
    intervals = [(start, start + length) for start, length in starts_and_lengths]
    covered = {point for start, end in intervals for point in range(start, end)}
    span = max(end for _, end in intervals) - min(start for start, _ in intervals)
    assert gpu_device.union_fraction(intervals) == pytest.approx(len(covered) / span)


def test_a_profile_without_kernels_is_an_error() -> None:
    with pytest.raises(ValueError, match="no kernel"):
        gpu_device.union_fraction([])
