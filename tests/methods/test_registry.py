"""Methods by name: built in, by path, by entry point; and what is said of bad ones."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_bench.methods import _registry as methods
from kd_bench.utils.errors import UserError
from tests.methods.cases import ALONE, PAIR, batch, outputs

PLUGIN = '''"""A plug-in."""
from kd_bench.methods.base import Method
from kd_bench.methods.parameters import NonNegative

class Mine(Method):
    """Mean squared error of logits.

    Args:
        scale: Weight of it.
    """

    def __init__(self, pair, *, scale: NonNegative = 2, power: int):
        super().__init__(pair)
        self.scale = scale

    def forward(self, student, teacher, batch):
        return {"ce": self.scale * (student.logits - teacher.logits).square().mean()}
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package whose entry point "mine_kd" leads to a module inside it."""
    folder = tmp_path / "site" / "some_pack" / "inner"
    folder.mkdir(parents=True)
    for directory in (folder.parent, folder):
        (directory / "__init__.py").write_text("LOADED = True\n")
    (folder / "mine.py").write_text(PLUGIN)
    meta = tmp_path / "site" / "some_pack-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: some-pack\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text(
        "[kd_bench.methods]\nmine_kd = some_pack.inner.mine:Mine\nkd = some_pack.inner.mine:Mine\n"
        "lost = some_pack.gone:Mine\nnowhere = no_such_package:Mine\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield folder / "mine.py"
    for name in [name for name in sys.modules if name.startswith("some_pack")]:
        del sys.modules[name]


def refusal(function: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_names() -> None:
    assert {"none", "kd", "dkd", "ikl_kd"} <= set(methods.names())
    assert list(methods.names()) == sorted(methods.names())


@pytest.mark.parametrize("name", methods.names())
def test_every_built_in_method_is_documented_and_builds_from_its_defaults(name: str) -> None:
    info = methods.describe(name)
    assert info.path.name == f"{name}.py"
    assert info.summary.endswith(".")
    assert all(parameter.text for parameter in info.parameters)
    resolved = methods.check(name, {})
    assert list(resolved) == [parameter.name for parameter in info.parameters]
    assert [type(value) for value in resolved.values()] == [type(parameter.default) for parameter in info.parameters]
    pair = replace(PAIR, teacher=PAIR.student) if name == "fsp" and PAIR.student else PAIR  # it needs equal channels
    method = methods.build(name, pair, {})
    assert bool(method.all_needs_with(resolved).teacher) == info.needs_teacher
    assert methods.source_hash(name) is None


def test_describe() -> None:
    info = methods.describe("none")
    assert (info.family, info.needs_teacher, info.parameters, info.class_name) == ("baseline", False, (), "Alone")
    info = methods.describe("ikl_kd")
    assert (info.family, info.needs_teacher) == ("logits", True)
    assert {parameter.name: parameter.annotation for parameter in info.parameters}["weights"] == (
        "Literal['sample', 'class']"
    )
    assert "its ALPHA is our ``beta``" in info.doc


def test_settings_of_the_published_runs_are_the_defaults() -> None:
    assert methods.check("kd", {}) == {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0}
    assert methods.check("dkd", {}) == {
        "alpha": 1.0,
        "beta": 8.0,
        "temperature": 4.0,
        "warmup_epochs": 20,
        "ce_weight": 1.0,
    }
    assert methods.check("ikl_kd", {}) == {
        "alpha": 8.0,
        "beta": 1.0,
        "temperature": 4.0,
        "warmup_epochs": 20,
        "ce_weight": 1.0,
        "weights": "sample",
        "tau": 100.0,
    }


def test_equal_settings_have_one_form() -> None:
    values = methods.check("ikl_kd", {"warmup_epochs": 5.0, "alpha": 12, "weights": "class"})
    same = methods.check("ikl_kd", {"weights": "class", "alpha": 12.0, "warmup_epochs": 5})
    assert json.dumps(values) == json.dumps(same)
    assert json.dumps(values).startswith('{"alpha": 12.0, ')
    assert methods.check("ikl_kd", values) == values


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("ikl_dk", {}, "r.yaml: no method is called 'ikl_dk'; did you mean 'ikl_kd'?"),
        (
            "zzz",
            {},
            f"r.yaml: no method is called 'zzz'; there are: {', '.join(methods.names()[:12])}, ",
        ),
        ("ikl_kd", {"alfa": 1}, "r.yaml: ikl_kd has no hyper-parameter 'alfa'; did you mean 'alpha'?"),
        ("KD", {}, "r.yaml: no method is called 'KD'; did you mean 'kd'?"),
        ("zzz", {}, ", ... (see: kd-bench list methods)"),
        ("kd", {"zzz": 1}, "kd has no hyper-parameter 'zzz'; there are: ce_weight, kd_weight, temperature"),
        ("none", {"zzz": 1}, "none has no hyper-parameter 'zzz'; it has none"),
        ("kd", {"temperature": 0}, "r.yaml: kd: temperature = 0 should be a finite number, above 0"),
        ("kd", {"temperature": "4"}, "kd: temperature = '4' should be a finite number, above 0"),
        ("kd", {"ce_weight": True}, "kd: ce_weight = True should be a finite number, at least 0"),
        ("kd", {"ce_weight": float("nan")}, "kd: ce_weight = nan should be a finite number, at least 0"),
        ("kd", {"ce_weight": None}, "kd: ce_weight = None should be a finite number, at least 0"),
        ("ikl_kd", {"weights": "klass"}, "ikl_kd: weights = 'klass' should be 'sample' or 'class'"),
        ("dkd", {"warmup_epochs": 2.5}, "dkd: warmup_epochs = 2.5 should be a whole number, at least 0"),
    ],
)
def test_bad_names_and_values(name: str, values: dict[str, Any], message: str) -> None:
    assert message in refusal(methods.check, name, values, "r.yaml")


def test_a_method_that_needs_a_teacher_is_not_built_without() -> None:
    assert "method 'kd' needs a teacher, and cifar_resnet8x4 has none" in refusal(methods.build, "kd", ALONE, {})
    assert methods.build("none", ALONE, {}).pair is ALONE


def test_plug_in_by_path(plugin: Path) -> None:
    name = f"{plugin}:Mine"
    info = methods.describe(name)
    assert (info.summary, info.family, info.needs_teacher) == ("Mean squared error of logits.", "logits", True)
    assert [parameter.text for parameter in info.parameters] == ["Weight of it.", ""]
    assert methods.check(name, {"power": 1}) == {"scale": 2.0, "power": 1}
    method = methods.build(name, PAIR, {"power": 1, "scale": 3})
    difference = outputs(1).logits - outputs(2).logits
    torch.testing.assert_close(method(outputs(1), outputs(2), batch())["ce"], 3 * difference.square().mean())
    assert methods.source_hash(name) == hashlib.sha256(PLUGIN.encode()).hexdigest()
    assert list(plugin.parent.iterdir()) == [plugin]


def test_an_edited_plug_in_is_read_anew(plugin: Path) -> None:
    name, first = f"{plugin}:Mine", methods.source_hash(f"{plugin}:Mine")
    methods.build(name, PAIR, {"power": 1})
    plugin.write_text(PLUGIN.replace("self.scale = scale", "self.scale = -scale"))
    assert methods.source_hash(name) != first
    assert methods.build(name, PAIR, {"power": 1})(outputs(1), outputs(2), batch())["ce"] < 0


def test_plug_in_by_relative_path(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plugin.parent)
    assert methods.describe("mine.py:Mine").path == plugin.resolve()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("class Mine(Method)", "class Mine"), "Mine is not a kd_bench.methods.base.Method"),
        (("def __init__", "def make"), "has no hyper-parameter 'power'; it has none"),
        (("pair, *,", "pair, x=1, *,"), "should take 'self, pair, *' and then its hyper-parameters, not pair, x"),
        (("power: int", "**rest"), "not pair, **rest"),
        (("power: int", "power: list"), "the type of hyper-parameter 'power', list, should be one of float, int"),
        (("power: int", "power"), "the type of hyper-parameter 'power', not given, should be one of"),
        (("    def __init__", "    family = 'feature'\n    def __init__"), "family = 'feature' should be 'logits'"),
        (("    def __init__", "    needs_teacher = 0\n    def __init__"), "needs_teacher = 0 should be true or false"),
        (
            ("    def __init__", "    added_hyperparameters = ('scale', 'power')\n    def __init__"),
            "added_hyperparameters = ('scale', 'power') should be a tuple of names of hyper-parameters with defaults",
        ),
        (("= 2", "= 1 / 3"), "the default of 'scale' should be a literal"),
        (("= 2", "= -2"), "scale = -2 should be a finite number, at least 0"),
        (("= 2", "= 2:"), "is not valid Python"),
    ],
)
def test_sources_that_break_the_rules(plugin: Path, change: tuple[str, str], message: str) -> None:
    plugin.write_text(PLUGIN.replace(*change))
    assert message in refusal(methods.check, f"{plugin}:Mine", {"power": 1}, "r.yaml")


def test_an_added_hyper_parameter_is_left_out_of_settings_where_it_has_its_default(plugin: Path) -> None:
    name = f"{plugin}:Mine"
    assert methods.settings(name, {"power": 1}) == {"scale": 2.0, "power": 1}
    plugin.write_text(PLUGIN.replace("    def __init__", "    added_hyperparameters = ('scale',)\n    def __init__"))
    for same in ({"power": 1}, {"power": 1, "scale": 2.0}):
        assert methods.settings(name, same) == {"power": 1}
    assert methods.settings(name, {"power": 1, "scale": 3}) == {"scale": 3.0, "power": 1}
    assert methods.check(name, {"power": 1}) == {"scale": 2.0, "power": 1}
    assert methods.build(name, PAIR, methods.settings(name, {"power": 1})).scale == 2.0


def test_trials_of_ofd_keep_their_identity() -> None:
    before = {"feature_weight": 1e-3, "teacher_batch_norm": "batch", "ce_weight": 1.0}
    assert methods.settings("ofd", {}) == before
    assert methods.settings("ofd", {"student_preacts": "published"}) == {**before, "student_preacts": "published"}
    assert methods.needs("ofd", before).student == {"logits", "preacts"}


WITHOUT_INIT = '''
from kd_bench.methods.base import Method

class Mine(Method):
    """The squared distance of the logits."""

    def forward(self, student, teacher, batch):
        return {"distance": (student.logits - teacher.logits).square().mean()}
'''


def test_a_method_without_hyper_parameters_needs_no_init(plugin: Path) -> None:
    plugin.write_text(WITHOUT_INIT)
    name = f"{plugin}:Mine"
    assert (methods.describe(name).parameters, methods.check(name, {})) == ((), {})
    terms = methods.build(name, PAIR, {})(outputs(1), outputs(2), batch())
    torch.testing.assert_close(terms["distance"], (outputs(1).logits - outputs(2).logits).square().mean())
    assert "has no hyper-parameter 'scale'; it has none" in refusal(methods.check, name, {"scale": 1}, "r.yaml")


def test_what_a_base_class_with_hyper_parameters_asks_for(plugin: Path) -> None:
    plugin.write_text(WITHOUT_INIT.replace("base import Method", "kd import KD").replace("(Method)", "(KD)"))
    assert "Mine has no __init__ of its own, and KD may have hyper-parameters; write an __init__ whose" in refusal(
        methods.check, f"{plugin}:Mine", {}, "r.yaml"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("class Mine(Method)", "class Mine(dict)"), "Mine in {} is not a kd_bench.methods.base.Method"),
        (('"""A plug-in."""', "1 / 0"), "{} cannot be imported: ZeroDivisionError: division by zero"),
        (('"""A plug-in."""', "import no_such_module"), "{} cannot be imported: ModuleNotFoundError: No module"),
        (
            ("    def __init__", "    family = 'features'.lower()\n    def __init__"),
            "are not what the source of Mine says",
        ),
        (("    def __init__", "    needs_teacher = False\n    def __init__"), "say the same in both ({})"),
        (("super().__init__(pair)", "pass"), ": __init__ should call super().__init__(pair) first ({})"),
        (
            ("super().__init__(pair)", "self.pair = pair; torch.nn.Module.__init__(self)"),
            ": __init__ should call super().__init__(pair) first ({})",
        ),
        (
            ("super().__init__(pair)", "self.layer = torch.nn.Linear(1, 1)"),
            "Mine in {} failed: AttributeError: cannot assign module before Module.__init__() call; __init__ should "
            "call super().__init__(pair) first (line 14)",
        ),
        (("super().__init__(pair)", "raise ValueError('so')"), "Mine in {} failed: ValueError: so (line 14)"),
        (
            ("self.scale = scale", "self.inference_head = abs"),
            "inference_head should be a torch.nn.Module or None (it is",
        ),
        (("self.scale = scale", "self.needs = {'stages'}"), "needs should be what kd_bench.types.Needs returns, e.g."),
        (("self.scale = scale", "self.teacher_batch_norm = 'eval'"), "should be 'running' or 'batch' (it is 'eval')"),
        (
            ("    def __init__", "    needs = {'student'}\n    def __init__"),
            "needs should be what kd_bench.types.Needs",
        ),
        (
            ("    def __init__", "    needs = Needs(student={'stage'})\n    def __init__"),
            "{} cannot be imported: ValueError: Needs: student: there is no output 'stage'; did you mean 'stages'? (",
        ),
        (
            ("    def __init__", "    needs = Needs(teacher='stages')\n    def __init__"),
            "TypeError: Needs: teacher should be a set, e.g. frozenset({{'stages'}}) (it is 'stages')",
        ),
        (
            ("    def __init__", "    needs_with = classmethod(lambda cls, values: values['x'])\n    def __init__"),
            "Mine in {} failed: KeyError: 'x' (line",
        ),
        (
            ("    def __init__", "    needs_with = classmethod(lambda cls, values: values)\n    def __init__"),
            "needs_with should return what kd_bench.types.Needs returns (it returns {{'scale': 2.0, 'power': 1}}) ({})",
        ),
        (("def forward", "def forwards"), "Mine has no function forward(self, student, teacher, batch), which returns"),
        (("power: int", "power: int, preparation_epochs: int = 1"), "Mine has no function prepare(self, student,"),
        (
            ("student, teacher, batch)", "logits, target)"),
            "forward should take 'self, student, teacher, batch', not 'self, logits, target' ({})",
        ),
        (("    def forward", "    @property\n    def inference_head(self): 1 / 0\n\n    def forward"), "no setter"),
    ],
)
def test_plug_ins_that_turn_out_bad_when_run(plugin: Path, change: tuple[str, str], message: str) -> None:
    source = PLUGIN.replace("import Method\n", "import Method\nimport torch; from kd_bench.types import Needs\n")
    plugin.write_text(source.replace(*change))

    def needs_and_build(name: str, values: dict[str, Any]) -> None:
        methods.needs(name, values)
        methods.build(name, PAIR, values)

    sentence = refusal(needs_and_build, f"{plugin}:Mine", {"power": 1})
    assert message.format(plugin.resolve()) in sentence


def test_a_set_of_outputs_and_attributes_before_super_are_accepted(plugin: Path) -> None:
    source = PLUGIN.replace("import Method\n", "import Method\nfrom kd_bench.types import Needs\n")
    source = source.replace("    def __init__", "    needs = Needs(student={'stages'})\n    def __init__")
    plugin.write_text(source.replace("super().__init__(pair)", "self.power = power; super().__init__(pair)"))
    method: Any = methods.build(f"{plugin}:Mine", PAIR, {"power": 3})
    assert (method.needs.student, method.power, method.scale) == (frozenset({"stages"}), 3, 2.0)


def test_names_of_plug_ins_that_lead_nowhere(plugin: Path) -> None:
    assert f"there is no file {plugin.parent}/gone.py" in refusal(
        methods.describe, f"{plugin.parent}/gone.py:Mine", "r.yaml"
    )
    assert "did you mean 'Mine'?" in refusal(methods.describe, f"{plugin}:Mime", "r.yaml")
    assert f"write {plugin}:ClassName" in refusal(methods.describe, str(plugin), "r.yaml")
    assert "needs a value for 'power': a whole number" in refusal(methods.check, f"{plugin}:Mine", {})
    plugin.write_text("x = 1\n")
    assert "holds no class" in refusal(methods.describe, f"{plugin}:Mine", "r.yaml")


def test_plug_in_of_an_installed_package(package: Path) -> None:
    assert "mine_kd" in methods.names()
    info = methods.describe("mine_kd")
    assert info.path.samefile(package)
    assert methods.check("mine_kd", {"power": 2.0}) == {"scale": 2.0, "power": 2}
    assert methods.source_hash("mine_kd") == hashlib.sha256(PLUGIN.encode()).hexdigest()
    assert not [name for name in sys.modules if name.startswith("some_pack")]
    assert type(methods.build("mine_kd", PAIR, {"power": 1})).__module__ == "some_pack.inner.mine"


def test_a_built_in_name_is_never_taken_over(package: Path) -> None:
    assert methods.describe("kd").class_name == "KD"
    assert methods.source_hash("kd") is None


@pytest.mark.parametrize("name", ["lost", "nowhere"])
def test_entry_points_that_lead_nowhere(package: Path, name: str) -> None:
    module = {"lost": "some_pack.gone", "nowhere": "no_such_package"}[name]
    assert refusal(methods.describe, name, "r.yaml") == (
        f"r.yaml: method {name!r}: there is no module {module!r}, which its entry point '{module}:Mine' names"
    )


def test_one_name_of_two_packages(package: Path) -> None:
    meta = package.parents[2] / "other-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text("[kd_bench.methods]\nmine_kd = other.mine:Mine\n")
    message = refusal(methods.describe, "mine_kd")
    assert message.endswith("by more than one package: other.mine:Mine, some_pack.inner.mine:Mine")


def test_listing_and_checking_import_no_torch(plugin: Path) -> None:
    code = (
        "import sys; from kd_bench.methods import _registry as methods\n"
        "for name in methods.names(): methods.describe(name); methods.check(name, {}); methods.source_hash(name)\n"
        f"methods.check({f'{plugin}:Mine'!r}, {{'power': 1}})\n"
        "print([name for name in ('torch', 'numpy', 'timm', 'pandas', 'pydantic') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
