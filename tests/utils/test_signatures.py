"""Reading definitions from source."""

import doctest
from pathlib import Path

import pytest

from kd_bench.utils import signatures
from kd_bench.utils.errors import UserError
from kd_bench.utils.signatures import REQUIRED, NotLiteral, Parameter, arguments_in, read_classes, read_definitions

SOURCE = '''
raise SystemExit("this file must not be run")

class Base(some.module.Method[int]):
    pass

class Cool(base.Method, Mixin):
    """Does it
    all.

    More.

    Args:
        rate: How fast,
            or how slow.
        kind (str): Which.

    Attributes:
        other: Not an argument.
    """

    family: ClassVar[str] = "features"
    needs_teacher = False
    needs = Needs()
    sizes = (1, -2)

    def __init__(self, pair, *more, rate: "float" = -1e-3, kind: Literal["a", 'b'], other=None, **rest):
        """Makes one.

        Args:
            other: From here.
        """
'''


def test_read_classes(tmp_path: Path) -> None:
    path = tmp_path / "plugin.py"
    path.write_text(SOURCE)
    base, cool = read_classes(path).values()
    assert (base.name, base.doc, base.has_init, base.parameters) == ("Base", "", False, ())
    assert cool.summary == "Does it all."
    assert cool.bases == ("Method", "Mixin")
    assert cool.attributes == {"family": "features", "needs_teacher": False, "sizes": (1, -2)}
    assert cool.positional == ("pair", "*more", "**rest")
    assert cool.parameters == (
        Parameter("rate", "float", -0.001, "How fast, or how slow."),
        Parameter("kind", "Literal['a', 'b']", REQUIRED, "Which."),
        Parameter("other", "", None, "From here."),
    )
    assert cool.required == {"pair", "kind"}
    assert cool.takes("pair") and cool.takes("rate") and cool.takes("anything, by **rest") and not base.takes("pair")


def test_read_functions(tmp_path: Path) -> None:
    path = tmp_path / "plugin.py"
    path.write_text('def one(a, b=1, /, c=2, *, d, e=f(1)):\n    """Makes one."""\n\nclass Two: ...\n\nx = 3\n')
    assert list(read_definitions(path)) == ["one", "Two"] and list(read_classes(path)) == ["Two"]
    function = read_definitions(path)["one"]
    assert (function.summary, function.positional, function.required) == ("Makes one.", ("a", "b", "c"), {"a", "d"})
    assert function.keywords["e"].default == NotLiteral("f(1)", 1)
    assert function.takes("e") and not function.takes("z")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class A(:", "line 1, is not valid Python"),
        ("class A\0", "is not valid Python"),
    ],
)
def test_bad_sources(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "plugin.py"
    path.write_text(source)
    with pytest.raises(UserError, match=message) as caught:
        read_classes(path, "here.yaml: methods")
    assert str(caught.value).startswith(f"here.yaml: methods: {path}")
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.py cannot be read: No such file"):
        read_classes(tmp_path / "nowhere.py")


def test_arguments_end_with_their_section() -> None:
    doc = """Sentence.

    Args:
        a: One: with a colon,
            and a line like
            b: which is no argument.

        c: Two.

    Returns:
        d: No argument.
    """
    assert arguments_in(doc) == {"a": "One: with a colon, and a line like b: which is no argument.", "c": "Two."}
    assert arguments_in("No section.") == {}


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(signatures)
    assert result.attempted > 0
    assert result.failed == 0
