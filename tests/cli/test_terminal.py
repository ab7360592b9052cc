"""Commands break lines between words at the terminal's width, and not at all for a program that reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_bench.cli.attack import log_progress
from kd_bench.cli.terminal import fit
from tests.cli.test_main import run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three four", "one two three\nfour"),
        ("name   one two three four", "name   one two\n       three\n       four"),
        ("  key: one two three", "  key: one two\n    three"),
        ("source: one two three", "source: one two\n  three"),
        ("one\n\ntwo", "one\n\ntwo"),
        ("a_word_that_is_longer_than_the_line x", "a_word_that_is_longer_than_the_line\nx"),
    ],
)
def test_lines_are_broken_between_words(text: str, expected: str) -> None:
    assert fit(text, 15) == expected
    assert fit(text, None) == text


@pytest.mark.parametrize(
    "command",
    ["", "list methods", "list recipes", "show ikl_kd", "show cifar100/table6", "show digits", "doctor",
     pytest.param("estimate demo --steps 0", marks=pytest.mark.slow)],
)  # fmt: skip
def test_commands_fit_a_terminal(command: str, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path)) if command.startswith(("doctor", "estimate")) else ()
    done = run(*command.split(), *out, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    long = [line for line in done.stdout.splitlines() if len(line) > 80 and " " in line.strip()]
    assert long == []


def test_a_program_finds_a_line_for_each_name() -> None:
    lines = run("list", "recipes", COLUMNS="").stdout.splitlines()
    assert all(not line.startswith(" ") for line in lines)
    assert max(map(len, lines)) > 100


def test_the_first_commands_are_those_of_the_first_hour() -> None:
    text = run(COLUMNS="80").stdout
    names = [line.split()[0] for line in text.partition("Commands:")[2].splitlines() if line[2:3].strip()]
    assert names[:3] == ["run", "compare", "table"]
    assert "..." not in text.partition("Commands:")[2]


def test_doctor_ends_with_a_verdict(tmp_path: Path) -> None:
    done = run("doctor", "--out", str(tmp_path), COLUMNS="")
    assert done.stdout.splitlines()[-1].startswith("kd-bench works on this machine")


def test_the_progress_of_an_attack_says_how_many_images_it_left(capsys: pytest.CaptureFixture[str]) -> None:
    log_progress("clean", 1, 1, 9)
    log_progress("apgd-ce", 1, 2, 5)  # not the last batch
    log_progress("apgd-ce", 2, 2, 1)
    assert capsys.readouterr().err.splitlines() == [
        "clean: batch 1 of 1, 9 images are classified correctly",
        "APGD-CE: batch 2 of 2, 1 image is still classified correctly",
    ]
