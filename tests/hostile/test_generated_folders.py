"""Folders of trials that are damaged at random: no command breaks, all commands agree, no number of them is shown."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kd_bench import api
from kd_bench.trials.integrity import check_trial
from kd_bench.trials.reader import read_trial
from kd_bench.trials.status import split_damaged
from tests.hostile import folders
from tests.hostile.folders import OTHER, Results, call, deadline, rows

FILES = ("trial.json", "result.json", "metrics.csv", "environment.json", "student.safetensors")

#: What takes the place of a value.
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=5),
    st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=2),
    st.sampled_from([0, 1, 3, 100, 100.5, "3", "61.23", [], {}, "done", "failed", 61.23, 71.87, 55.5, 1e308]),
)  # fmt: skip


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, ...]:
    """A file, what is done to it, and how: all that ``apply`` needs."""
    file = draw(st.sampled_from(FILES))
    kind = draw(
        st.sampled_from(["cut", "flip", "insert", "value", "remove key", "gone", "swap", "pipe", "folder", "loop"])
    )
    return file, kind, draw(st.integers(0, 10**6)), draw(VALUES)  # type: ignore[return-value]


def apply(folder: Path, file: str, kind: str, number: int, value: Any) -> None:
    """Damages one file, if it is still there."""
    path = folder / file
    if not path.is_file() or path.is_symlink():
        return
    content = path.read_bytes()
    match kind:
        case "cut":
            path.write_bytes(content[: number % (len(content) + 1)])
        case "flip" if content:
            at = number % len(content)
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << number % 7]) + content[at + 1 :])
        case "insert":
            at = number % (len(content) + 1)
            path.write_bytes(content[:at] + str(value).encode("utf-8", "replace") + content[at:])
        case "value" | "remove key" if file.endswith(".json"):
            path.write_text(changed(content, kind, number, value))
        case "value" if file == "metrics.csv":
            lines = [line.split(",") for line in content.decode("utf-8", "replace").splitlines()]
            if lines:
                line = lines[number % len(lines)]
                line[number // 7 % len(line)] = str(value)
                path.write_text("\n".join(map(",".join, lines)) + "\n", errors="replace")
        case "swap":
            other = folder / FILES[number % len(FILES)]
            if other.is_file():
                path.write_bytes(other.read_bytes())
        case "gone" | "pipe" | "folder" | "loop":
            path.unlink()
            makers = {"pipe": folders.pipe, "folder": Path.mkdir, "loop": folders.loop}
            makers.get(kind, lambda _: None)(path)


def changed(content: bytes, kind: str, number: int, value: Any) -> str:
    """A JSON file in which one value, at any depth, is replaced or removed."""
    try:
        tree = json.loads(content)
    except ValueError:
        return json.dumps(value)
    places: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, inner in list(entries):
            places.append((node, key))
            stack.append(inner)
    if not places:
        return json.dumps(value)
    node, key = places[number % len(places)]
    if kind == "value":
        node[key] = value
    else:
        del node[key]
    return json.dumps(tree)


def check_generated(whole: Results, changes: list[tuple[str, str, int, Any]], slow: bool) -> None:
    with tempfile.TemporaryDirectory() as name, deadline(120):
        results = whole.copy(Path(name))
        for change in changes:
            apply(results.folder, *change)
        record = read_trial(results.folder)
        checked = check_trial(results.folder)
        assert record.is_damaged == bool(record.faults)
        assert not record.is_damaged or checked.status in ("damaged", "changed by hand")
        status = call("status", results.recipe, "--out", results.out, "--all").stdout
        (line,) = (line for line in status.splitlines() if results.victim in line.split()[:2])
        state = line.split()[0]
        table = rows(call("table", results.recipe, "--out", results.out, "--format", "csv").stdout)[-1]
        export = rows(call("export", "csv", "--recipe", results.recipe, "--out", results.out).stdout)
        (row,) = (row for row in export if row["trial_id"] == results.victim)
        _, reasons = split_damaged(api.plan(str(results.recipe)).planned, results.out, "small")
        if record.verdict == "done":
            assert record.result is not None and record.metrics is not None
            assert state == ("done" if record.has_weights else "waiting")
            assert float(row["top1_last"]) == record.result["top1_last"] == record.metrics.columns["top1"][-1]
            assert table["done"] == "2" and results.victim not in reasons
        else:
            assert row["top1_last"] == row["top1_best"] == ""
            assert (table["done"], table["top1_last_mean"]) == ("1", str(OTHER))
            expected = {"damaged": "damaged", "changed": "damaged", "incomplete": "missing", "failed": "failed"}
            assert row["status"] == expected[record.verdict]
            assert (state in ("damaged", "changed")) == record.is_damaged == (results.victim in reasons)
            assert "%" not in line or record.is_damaged
        if slow:
            check_readers(results)


def check_readers(results: Results) -> None:
    """The commands that take longer end, and with a sentence."""
    for arguments in (
        ("verify", results.out),
        ("report", "--out", results.out, "--output", results.root / "page.html"),
        ("report", "--recipe", results.recipe, "--out", results.out, "--output", results.root / "page.html"),
        ("export", "csv", "--epochs", "--out", results.out),
    ):
        assert call(*arguments).code in (0, 1)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(damages(), min_size=1, max_size=3))
def test_generated_damage(whole: Results, changes: list[Any]) -> None:
    check_generated(whole, changes, slow=False)


@pytest.mark.slow
@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(damages(), min_size=1, max_size=3))
def test_much_generated_damage(whole: Results, changes: list[Any]) -> None:
    check_generated(whole, changes, slow=True)
