"""What the command line answers to options, arguments and names that are mistyped or have no meaning; and its help."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from kd_bench.cli import show
from kd_bench.cli.app import app
from kd_bench.cli.main import main
from kd_bench.cli.targets import share
from kd_bench.models.timm_names import TimmNames
from kd_bench.utils.errors import UserError

Refused = Callable[..., str]

PAIR = ("compare", "--dataset", "digits", "--teacher", "resnet14", "--student", "resnet8")


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command in an empty folder, and returns its sentence."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["kd-bench", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        output, errors = capsys.readouterr()
        assert (end.value.code, output) == (2, "")
        assert errors.startswith("kd-bench: ") and errors.count("\n") == 1
        return errors.removeprefix("kd-bench: ").strip()

    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--verison"], "no option is called '--verison'; did you mean --version?"),
        (["run", "demo", "--jbos", "2"], "run: no option is called '--jbos'; did you mean --jobs?"),
        (["run", "demo", "--all"], "run: no option is called '--all'; see: kd-bench run --help"),
        (["teacher", "train", "-x"], "teacher train: no option is called '-x'; see: kd-bench teacher train --help"),
        (["run", "demo", "--only"], "--only: the value is missing"),
        ([*PAIR, "--methods", "kd", "dkd"], "compare: too many arguments, from 'dkd' on; see: kd-bench compare --help"),
        (
            ["report", "demo", "x"],
            "report: too many arguments, from 'demo' on; a recipe is named with --recipe; see: kd-bench report --help",
        ),
    ],
)
def test_a_mistyped_command_line_is_answered_with_the_command_and_a_choice(
    refused: Refused, arguments: list[str], sentence: str
) -> None:
    assert refused(*arguments) == sentence


@pytest.mark.parametrize(
    ("price", "end"),
    [
        ("2,50", "50 is one price too many; write 2.50 with a point (it is '2,50')"),
        ("h100=2,50", "50 is one price too many; write 2.50 with a point (it is 'h100=2,50')"),
        ("h100=2,h100=3", "h100=3 is one price too many; write 2.50 with a point (it is 'h100=2,h100=3')"),
    ],
)
def test_a_price_with_a_comma_is_not_read_as_two(refused: Refused, price: str, end: str) -> None:
    assert refused("estimate", "demo", "--price", price) == f"--price: {end}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["estimate", "demo", "--cards", "none", "--price", "h100=2"],
         "--price: h100=2 is the price of a card, and --cards none leaves all of them out"),
        (["new", "method", "kd"], "new method: kd-bench has a row 'kd' already; choose another name, e.g. my_kd"),
        (["new", "method", "ikl_kd_class"],
         "new method: kd-bench has a row 'ikl_kd_class' already; choose another name, e.g. my_ikl_kd_class"),
        (["new", "model", "net", "--to", "file"], "new model: file is a file, not a folder"),
        (["teacher", "train", "--dataset", "digts"], "--dataset: no dataset is called 'digts'; did you mean 'digits'?"),
        (["teacher", "train", "--dataset", "digits"],
         "there is no recipe digits/teachers; name the network: kd-bench teacher train NETWORK --dataset digits"),
        ([*PAIR, "--weights", "no.pt"],
         "--weights no.pt: there is no such file; write published for those of: kd-bench teacher fetch NAME"),
        (["teacher", "verify", "resnet14", "--dataset", "digits", "--weights", "no.pt"],
         "--weights no.pt: there is no such file; write published for those of: kd-bench teacher fetch NAME"),
        (["run", "demo", "--method", "at, crd"],
         "--method at, crd: should be one method each time: --method at --method crd"),
        (["replay", "x"], "x: is neither the folder of a trial nor the id of one in runs"),
        (["replay", ""], "'': is neither the folder of a trial nor the id of one in runs"),
        (["export", "card", "x", "--output", "y"], "x: is neither the folder of a trial nor the id of one in runs"),
    ],
)  # fmt: skip
def test_values_that_are_refused(refused: Refused, arguments: list[str], sentence: str) -> None:
    Path("file").write_text("")
    assert refused(*arguments) == sentence
    assert sorted(path.name for path in Path().iterdir()) == ["file"]


@pytest.mark.parametrize("command", ["attack", "evaluate"])
def test_a_file_of_weights_has_no_settings_of_a_training(refused: Refused, command: str) -> None:
    Path("w.pt").write_bytes(b"any")
    sentence = refused(command, "w.pt", "--model", "resnet8", "--dataset", "digits", "--epochs", "3")
    assert sentence == (
        "--set (or an option that is short for it): epochs=3 has no meaning for a file of weights, which is not "
        "trained; only settings of its images have one, e.g. dataset.test_images=100"
    )


def test_a_row_whose_label_has_a_comma_can_be_tuned(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(
        "dataset: digits\npairs: [{teacher: resnet14, student: resnet8}]\nmethods: {'kd, T=2': {method: kd}, dkd: {}}\n"
    )
    tuned: list[str] = []

    def tune(planned: Any, settings: Any, *_: Any) -> None:
        tuned.extend(settings.labels)
        raise UserError("enough")

    monkeypatch.setattr("kd_bench.api.tune", tune)
    assert refused("tune", "r.yaml", "--method", "kd, T=2", "--method", "dkd, kd") == "enough"
    assert tuned == ["kd, T=2", "dkd", "kd"]


def test_shares_have_their_verb() -> None:
    assert share(1, 3, "network") == "1 of 3 networks is" and share(2, 3, "network") == "2 of 3 networks are"
    assert share(1, 1, "trial") == "1 of 1 trial is"


def test_networks_of_timm_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    names = TimmNames(frozenset({"vit_a", "vit_b"}), frozenset({"vit_a.x", "vit_a.y", "vit_ab.x"}), frozenset())
    monkeypatch.setattr(show, "cached_timm_names", lambda: names)
    assert show.describe("vit_a") == (
        "vit_a: a network of timm\n  pretrained weights: vit_a.x\n  pretrained weights: vit_a.y"
    )
    assert show.describe("vit_b") == "vit_b: a network of timm"
    assert show.describe("vit_a.y") == "vit_a.y: pretrained weights of timm's network vit_a"
    with pytest.raises(UserError, match="is called 'vit_c'"):
        show.describe("vit_c")


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields all commands below one, with their names."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def test_every_command_has_help_by_both_options_and_in_words() -> None:
    for path, _ in commands(typer.main.get_command(app)):
        long, short = (CliRunner().invoke(app, [*path, option]) for option in ("--help", "-h"))
        assert (long.exit_code, short.exit_code) == (0, 0) and long.output == short.output
        if path[:1] != ("reproduce",):
            assert "list[" not in long.output, path
