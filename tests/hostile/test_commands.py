"""The command line: what is mistyped, where output goes, and how a run is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kd_bench import __version__
from kd_bench.cli import main as command_line
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import write_output
from kd_bench.utils.paths import logit_cache_limit
from kd_bench.utils.python_process import module_command

RECIPE = {
    "dataset": "digits",
    "epochs": 40,
    "trials": 1,
    "batch_size": 20,
    "pairs": [{"teacher": None, "student": "resnet8"}],
    "methods": ["none"],
}


@dataclass(frozen=True)
class Done:
    code: int
    output: str
    errors: str


Run = Callable[..., Done]


@pytest.fixture
def kd_bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["kd-bench", *arguments])
        capsys.readouterr()
        code = 0
        try:
            command_line.main()
        except SystemExit as end:
            code = int(end.code or 0)
        output, errors = capsys.readouterr()
        return Done(code, output, errors)

    return run


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kd_bench", *arguments]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ((), ("run", "compare", "teacher", "data")),
        (("teacher",), ("train", "fetch", "verify", "convert")),
        (("data",), ("fetch",)),
        (("export",), ("csv", "card")),
        (("reproduce",), ("cifar", "imagenet", "methods", "robustness")),
    ],
)
def test_a_group_without_a_command_lists_its_commands(kd_bench: Run, group: tuple[str, ...], names: tuple[str]) -> None:
    done = kd_bench(*group)
    assert (done.code, done.errors) == (0, "")
    listed = [line.split()[0] for line in done.output.partition("Commands:\n")[2].splitlines() if line.strip()]
    assert set(names) <= set(listed)


def test_the_version(kd_bench: Run) -> None:
    assert kd_bench("--version") == Done(0, f"kd-bench {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tabel"], "no command is called 'tabel'; did you mean 'table'?"),
        (["runn", "demo"], "no command is called 'runn'; did you mean 'run'?"),
        (["teacher", "fetc"], "teacher: no command is called 'fetc'; did you mean 'fetch'?"),
        (["cache", "claer"], "cache: no command is called 'claer'; did you mean 'clear'?"),
        (["run", "dmeo"], "dmeo: there is no such recipe; did you mean 'demo'?"),
        (["table", "cifar100/tabel6"], "there is no such recipe; did you mean 'cifar100/table6'?"),
        (["show", "ikl_kdd"], "did you mean 'ikl_kd'?"),
        (["list", "metods"], "did you mean 'methods'?"),
        (["run", ""], "'': there is no such recipe"),
        (["run", "demo", "--jbos", "2"], "--jbos"),
        (["run", "demo", "--out", ""], "--out: is empty; write . for the working folder"),
        (["table", "demo", "--out="], "--out: is empty"),
        (["run", "demo", "--data", ""], "--data: is empty"),
        (["report", "--output", ""], "--output: is empty"),
        (["run", "demo", "--trials", "2147483648"], "--trials: should be a whole number from 1 to 10,000 (it is"),
        (["run", "demo", "--trials", "1_0"], "--trials: should be a whole number from 1 to 10,000 (it is '1_0')"),
        (["run", "demo", "--trials", "9" * 5000], "--trials: should be a whole number from 1 to 10,000"),
        (["run", "demo", "--threads", "1e9"], "--threads: should be a whole number from 1 to 1,024"),
        (["run", "demo", "--jobs", "-1"], "--jobs: should be a whole number from 1 to 10,000"),
        (["run", "demo", "--checkpoint-minutes", "nan"], "--checkpoint-minutes: should be a number from 0 to"),
        (["run", "demo", "--checkpoint-minutes", "inf"], "--checkpoint-minutes: should be a number from 0 to"),
        (["estimate", "demo", "--of-peak", "nan"], "--of-peak: should be a number from 0 to 1"),
        (["attack", "x", "--eps", "1e999999999"], "'1e999999999' is not a number"),
        (["attack", "x", "--seed", "-1"], "--seed: should be a whole number from 0 to 2,147,483,647"),
        (["run", "demo", "--set", "epochs="], "--set epochs=: the value is missing"),
        (["run", "demo", "--set", "published=nope"], "no file of published numbers is called 'nope'"),
        (["status", "demo", "--set", "name=teachers"], "name: 'teachers' is the folder of the trained teachers"),
        (["run", "n" * 300], "there is no such recipe"),
        (["show", "n" * 300], "no method, network, data set, recipe or setting is called"),
        (["show", "~nosuchuser/x.py:Y"], "there is no file ~nosuchuser/x.py"),
        (["run", "demo", "--method", f"{'n' * 300}.py:X"], "there is no file nnn"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(kd_bench: Run, arguments: list[str], sentence: str) -> None:
    done = kd_bench(*arguments)
    assert (done.code, done.output) == (2, "")
    assert done.errors.startswith("kd-bench: ")
    assert done.errors.count("\n") == 1
    assert sentence in done.errors


@pytest.mark.parametrize(
    "arguments", [["tabel"], ["run", "dmeo"], ["show", "ikl_kdd"], ["attack", "x", "--eps", "y"], ["list", "metods"]]
)
def test_mistakes_are_answered_without_heavy_imports(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['kd-bench', *{arguments!r}]\n"
        "from kd_bench.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 2\n"
        "print(sorted(set(sys.modules) & {'torch', 'timm', 'pandas', 'scipy', 'pytorch_lightning', 'sklearn'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("methods", [",", "", " , "])
def test_a_comparison_of_no_methods_is_refused(kd_bench: Run, methods: str) -> None:
    pair = ("--dataset", "digits", "--teacher", "resnet14", "--student", "resnet8")
    done = kd_bench("compare", *pair, "--methods", methods)
    assert done.code == 2
    assert "--methods: should name at least one method" in done.errors


@pytest.mark.parametrize("value", ["abc", "-1", "nan", "inf", "1e9"])
def test_a_wrong_limit_of_the_logit_cache_is_refused(
    kd_bench: Run, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("KD_BENCH_LOGITS_GB", value)
    sentence = f"KD_BENCH_LOGITS_GB: should be a number of gigabytes from 0 to 1,000,000 (it is {value!r})"
    assert kd_bench("run", "demo") == Done(2, "", f"kd-bench: {sentence}\n")


@pytest.mark.parametrize(("value", "limit"), [("", None), ("0", 0), ("0.5", 500_000_000), ("16", 16 * 10**9)])
def test_the_limit_of_the_logit_cache(monkeypatch: pytest.MonkeyPatch, value: str, limit: int | None) -> None:
    monkeypatch.setenv("KD_BENCH_LOGITS_GB", value)
    assert logit_cache_limit() == limit


def test_a_message_cannot_change_the_terminal(kd_bench: Run) -> None:
    done = kd_bench("run", "a\x1b[31m\u202e\rb")
    sentence = "there is no such recipe, and runs has no comparison of this name"
    assert done.errors == f"kd-bench: a\\x1b[31m\\u202e b: {sentence}\n"


def test_output_is_written_through_links_and_to_devices_but_never_instead_of_them(tmp_path: Path) -> None:
    file, link, folder = tmp_path / "a" / "file", tmp_path / "link", tmp_path / "folder"
    write_output(file, "first", "--output")
    assert file.read_text() == "first"
    link.symlink_to(file)
    write_output(link, "second", "--output")
    assert link.is_symlink()
    assert file.read_text() == "second"
    dangling = tmp_path / "dangling"
    dangling.symlink_to(folder / "new")
    write_output(dangling, "third", "--output")
    assert dangling.is_symlink()
    assert (folder / "new").read_text() == "third"
    write_output(Path("/dev/null"), "fourth", "--output")
    assert Path("/dev/null").is_char_device()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "dangling", "folder", "link"]


def test_output_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    cases = {
        tmp_path: "is a folder; name a file in it",
        tmp_path / "loop": "cannot be written: Too many levels of symbolic links",
        tmp_path / "file" / "x": "cannot be written: Not a directory",
        tmp_path / "pipe": "cannot be written: nothing reads from this pipe",
        Path("/dev/full"): "cannot be written: No space left on device",
        tmp_path / ("n" * 300): "cannot be written: File name too long",
    }
    for path, sentence in cases.items():
        with pytest.raises(UserError) as caught:
            write_output(path, "text", "--output")
        assert str(caught.value) == f"--output: {path} {sentence}"
    assert (tmp_path / "pipe").is_fifo()


def test_output_goes_to_a_pipe_that_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True) as reader:
        deadline = time.monotonic() + 20
        while True:
            try:
                write_output(tmp_path / "pipe", "text", "--output")
                break
            except UserError:  # the reader has not opened the pipe yet
                assert time.monotonic() < deadline
        assert reader.communicate()[0] == "text"


@pytest.mark.parametrize("arguments", [["list", "methods"], ["--help"], ["status", "demo"]])
def test_a_full_standard_output_is_a_sentence(arguments: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command(*arguments), stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path
        )
    assert (done.returncode, done.stderr) == (1, "kd-bench: standard output: No space left on device\n")


def test_a_closed_pipe_is_silent() -> None:
    with subprocess.Popen(command("list", "methods"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_closed_streams_are_no_error() -> None:
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        line = f"'{sys.executable}' -m kd_bench list datasets {closed}"
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("moment", ["the commands are imported", "the worker starts"])
def test_ctrl_c_before_training_ends_with_130_and_a_sentence(recipe: Path, moment: str) -> None:
    process = subprocess.Popen(
        command("run", str(recipe), "--out", str(recipe.parent / "out")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    if moment == "the worker starts":
        assert "to train" in process.stderr.readline()
    else:
        while "pydantic" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "kd-bench: stopped; the same command goes on from here"
    assert "Traceback" not in errors


def test_ctrl_c_in_code_given_as_a_string_ends_with_130(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(
        "from kd_bench.cli import main as m\nm._run = lambda _: exec('raise KeyboardInterrupt')\nm.main()\n"
    )
    module = [sys.executable, "-m", "command"]
    done = subprocess.run(module, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "kd-bench: stopped; the same command goes on from here\n")


def test_files_of_the_working_folder_do_not_replace_modules(recipe: Path) -> None:
    for name in ("queue", "random", "torch", "yaml"):
        (recipe.parent / f"{name}.py").write_text(f"raise SystemExit('{name} of the working folder was imported')\n")
    note = "status: no trial of r.yaml is in runs yet; train with: kd-bench run r.yaml\n"
    for arguments, errors in ((["list", "datasets"], ""), (["status", "r.yaml"], note)):
        done = subprocess.run(command(*arguments), cwd=recipe.parent, capture_output=True, text=True, check=False)
        assert done.stderr == errors
    done = subprocess.run(
        module_command("kd_bench.launch.worker"), cwd=recipe.parent, input="not a job\n", capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert "of the working folder" not in done.stderr


def test_a_process_finds_the_package_the_working_folder_and_pythonpath(tmp_path: Path) -> None:
    """The folder is searched last: a plug-in may import its neighbours."""
    (tmp_path / "cwd").mkdir()
    (tmp_path / "path").mkdir()
    (tmp_path / "cwd" / "neighbour.py").write_text("")
    (tmp_path / "cwd" / "queue.py").write_text("raise SystemExit('wrong queue')\n")
    (tmp_path / "path" / "main_module.py").write_text(
        "import kd_bench, neighbour, queue, sys; print(queue.__file__, sys.argv[0])\n"
    )
    old = Path.cwd()
    os.chdir(tmp_path / "cwd")
    try:
        process = module_command("main_module")
    finally:
        os.chdir(old)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "path")}
    done = subprocess.run(process, cwd=tmp_path / "cwd", env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert str(tmp_path / "cwd") not in done.stdout.split()[0]


WORDS = st.sampled_from(
    [
        "run",
        "table",
        "status",
        "list",
        "show",
        "report",
        "export",
        "csv",
        "teacher",
        "data",
        "cache",
        "demo",
        "methods",
        "--set",
        "--only",
        "--trials",
        "--out",
        "--format",
        "epochs=1",
        "method=kd",
        "--",
        "-",
        "",
        "=",
        "--help",
        "--recipe",
        "--method",
        "x.py:Y",
        "kd",
        "-1",
        "1e9",
        "a\nb",
        "é",
        "n" * 300,
        "--output",
        "/dev/null",
        "--all",
    ]
)


def _check_words(kd_bench: Run, words: list[str]) -> None:
    if {"teacher", "data", "cache"} & set(words) or "run" in words[:1]:
        words = [*words, "--no-such-option"]  # these train, download or remove
    done = kd_bench(*words)
    assert done.code in {0, 1, 2}
    if done.code == 2:
        assert done.errors.startswith("kd-bench: ")
        assert done.errors.count("\n") == 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(WORDS, max_size=5))
def test_any_words_are_a_command_or_a_sentence(
    kd_bench: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _check_words(kd_bench, words)


@pytest.mark.slow
@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(WORDS, max_size=6))
def test_a_thousand_command_lines(
    kd_bench: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _check_words(kd_bench, words)
