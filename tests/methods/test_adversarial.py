"""The methods of adversarial training: their terms, the gradients of both sides, and the class weights."""

from pathlib import Path

import pytest
import torch

from kd_bench import losses
from kd_bench.config.load import read_recipe
from kd_bench.methods import _registry as methods
from kd_bench.plan import plan
from kd_bench.utils.errors import UserError
from tests.methods.cases import CLASSES, batch, call, make, mapped, outputs

NAMES = ["ikl_at", "ikl_at sample", "improved_trades", "trades"]


def test_the_family() -> None:
    family = [name for name in methods.names() if methods.describe(name).family == "adversarial"]
    assert family == ["ikl_at", "improved_trades", "trades"]
    assert not any(methods.describe(name).needs_teacher for name in family)
    assert methods.describe("improved_trades").required_settings == ("ramp", "weight_perturbation")
    assert methods.describe("trades").required_settings == ()


def test_published_settings_are_the_defaults() -> None:
    assert methods.check("trades", {})["beta"] == 6.0
    assert methods.check("improved_trades", {})["beta"] == 9.0
    settings = methods.check("ikl_at", {})
    assert (settings["alpha"], settings["beta"], settings["tau"], settings["weights"]) == (20.0, 3.0, 4.0, "class")
    assert (settings["inner_alpha"], settings["inner_beta"], settings["ce_weight"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("name", ["trades", "improved_trades"])
def test_terms_of_trades(name: str) -> None:
    natural, adversarial, samples = outputs(1), outputs(2), batch()
    assert make(name, beta=3)(adversarial, natural, samples) == {
        "ce": losses.cross_entropy(natural.logits, samples.labels),
        "kl": 3.0 * losses.trades(natural.logits, adversarial.logits),
    }


@pytest.mark.parametrize("weights", ["class", "sample"])
def test_terms_of_ikl_at(weights: str) -> None:
    natural, adversarial, samples = outputs(1), outputs(2), batch()
    method = make("ikl_at", weights=weights, alpha=7, beta=2, tau=3, ce_weight=0.5)
    probabilities = (natural.logits / 3).softmax(-1)
    w = torch.full((CLASSES,), 1 / CLASSES) if weights == "class" else probabilities
    terms = method(adversarial, natural, samples)
    assert terms["ce"] == 0.5 * losses.cross_entropy(natural.logits, samples.labels)
    expected = losses.ikl_adversarial(natural.logits, adversarial.logits, w, 7.0, 2.0)
    torch.testing.assert_close(terms["pairwise"] + terms["soft_ce"], expected)
    torch.testing.assert_close(
        terms["soft_ce"], 2 * losses.soft_cross_entropy(adversarial.logits, natural.logits), msg="soft_ce"
    )


def test_class_weights_lag_by_an_epoch_and_come_from_the_images_as_they_are() -> None:
    method, natural, samples = make("ikl_at", tau=2), outputs(1), batch()
    method(outputs(2), natural, samples)
    prior = method.state_dict()["prior"]
    assert torch.equal(prior, torch.full((CLASSES, CLASSES), 1 / CLASSES))
    method.on_epoch_end()
    probabilities = (natural.logits / 2).softmax(-1)
    expected = torch.stack([probabilities[samples.labels == y].mean(0) for y in range(CLASSES)])
    torch.testing.assert_close(prior, expected)
    inner = method.inner_loss(natural.logits, outputs(3).logits, samples)
    torch.testing.assert_close(
        inner, losses.ikl_adversarial(natural.logits, outputs(3).logits, expected[samples.labels], 1.0, 1.0)
    )
    assert int(method.state_dict()["counts"].sum()) == 0  # the inner loss counts nothing


@pytest.mark.parametrize("name", NAMES)
def test_the_inner_loss_is_the_method_s_and_no_image_has_a_part_in_another_s(name: str) -> None:
    method, samples = make(name).eval(), batch()
    natural, adversarial = outputs(1).logits, outputs(2).logits.requires_grad_()
    (whole,) = torch.autograd.grad(method.inner_loss(natural, adversarial, samples), adversarial)
    changed = adversarial.detach().clone()
    changed[1:] = 0
    (alone,) = torch.autograd.grad(method.inner_loss(natural, changed.requires_grad_(), samples), changed)
    torch.testing.assert_close(alone[0], whole[0])
    if name not in {"ikl_at", "ikl_at sample"}:
        torch.testing.assert_close(
            method.inner_loss(natural, adversarial, samples), losses.trades(natural, adversarial)
        )


def test_the_inner_loss_of_cifar10_has_the_gradients_of_the_divergence() -> None:
    method, samples = make("ikl_at", inner_alpha=0, inner_beta=1), batch()
    natural, adversarial = outputs(1).logits, outputs(2).logits.requires_grad_()
    (gradient,) = torch.autograd.grad(method.inner_loss(natural, adversarial, samples), adversarial)
    (expected,) = torch.autograd.grad(losses.trades(natural, adversarial), adversarial)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_gradient_goes_to_both_sides_and_is_finite(name: str, kind: torch.dtype, scale: float) -> None:
    method, samples = make(name), batch()
    natural, adversarial = (
        mapped(outputs(seed), lambda values: (scale * values).to(kind).requires_grad_()) for seed in (1, 2)
    )
    before = adversarial.logits.detach().clone()
    loss = torch.stack(list(call(method, adversarial, natural, samples).values())).sum()
    loss.backward()
    assert loss.dtype == torch.float32
    for side in (natural, adversarial):
        assert side.logits.grad is not None
        assert torch.isfinite(side.logits.grad).all()
        assert side.logits.grad.abs().max() > 0
    assert torch.equal(adversarial.logits, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_mixed_label_counts_as_its_largest_share_everywhere_but_in_the_cross_entropy(name: str) -> None:
    natural, adversarial = outputs(1), outputs(2)
    first, second = make(name)(adversarial, natural, batch()), make(name)(adversarial, natural, batch(mixed=True))
    assert {**second, "ce": first["ce"]} == first
    assert second["ce"] != first["ce"]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_goes_on_from_its_state(name: str) -> None:
    first, again, samples = make(name), make(name), batch()
    call(first, outputs(1), outputs(2), samples)
    first.on_epoch_end()
    again.load_state_dict(first.state_dict())
    assert call(again, outputs(3), outputs(4), samples) == call(first, outputs(3), outputs(4), samples)


def test_without_the_images_as_they_are_nothing_is_trained() -> None:
    for name in NAMES:
        with pytest.raises(ValueError, match="needs the outputs for the natural images"):
            make(name)(outputs(1), None, batch())


RECIPE = {
    "name": "robust",
    "dataset": {"name": "digits"},
    "epochs": 4,
    "adversarial": {
        "eps": "8/255",
        "steps": 2,
        "ramp": True,
        "weight_perturbation": {"from_epoch": 2},
        "average": {"decay": 0.5},
    },
    "pairs": [{"teacher": None, "student": "resnet8"}],
    "methods": {
        "none": {},
        "trades": {"beta": 2, "training": {"adversarial": {"ramp": False, "weight_perturbation": None}}},
        "improved_trades": {},
        "ikl_at": {"tau": 2},
        "ikl_at_20": {"method": "ikl_at", "tau": 2, "alpha": 20},
    },
    "baseline": "trades",
    "trials": 1,
}


def test_a_recipe_with_rows_that_are_trained_otherwise() -> None:
    planned = {cell.label: cell.trial for cell in plan(read_recipe(RECIPE), "robust")}
    assert planned["none"].adversarial is None
    assert "adversarial" not in planned["none"].settings()
    improved, plain = planned["improved_trades"].adversarial, planned["trades"].adversarial
    assert improved is not None
    assert plain is not None
    assert improved.eps == plain.eps == 8 / 255
    assert improved.ramp
    assert improved.weight_perturbation is not None
    assert not plain.ramp
    assert plain.weight_perturbation is None
    assert plain.average == improved.average
    assert planned["trades"].method.hyperparameters == {"beta": 2.0, "ce_weight": 1.0}
    # The same training under two labels is one trial.
    assert planned["ikl_at"].id == planned["ikl_at_20"].id
    streams = {trial.cohort_key for label, trial in planned.items() if label != "none"}
    assert len(streams) == 1
    assert planned["none"].cohort_key not in streams


def test_a_plain_trial_is_the_one_of_recipes_without_perturbations() -> None:
    without = {key: value for key, value in RECIPE.items() if key != "adversarial"} | {
        "methods": {"none": {}},
        "baseline": "none",
    }
    plain = plan(read_recipe(without), "plain")[0].trial
    assert {cell.label: cell.trial_id for cell in plan(read_recipe(RECIPE), "robust")}["none"] == plain.id


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adversarial=null"], "adversarial.eps: this key is missing"),
        (["adversarial=null", "methods.trades.training=null"], "trades trains on perturbed images, so adversarial is"),
        (["adversarial.ramp=false"], "improved_trades is another method without adversarial.ramp"),
        (["adversarial.weight_perturbation=null"], "without adversarial.weight_perturbation"),
        (["adversarial.esp=1"], "adversarial.esp: no such key; did you mean 'eps'?"),
        (["adversarial.norm=L3"], "'L3' is none of"),
        (["adversarial.schedule=released"], "schedule sets steps and step_size"),
        (["epochs=1"], "weight_perturbation.from_epoch must not be above epochs"),
        (["methods.trades.training.adversarial.steps=0"], "at least 1"),
        (["adversarial.generated.path=nowhere.npz"], "there is no file"),
        (
            ["adversarial.generated.path=nowhere.npz", "adversarial.generated.sha256=abc"],
            "should be a SHA-256 checksum",
        ),
    ],
)
def test_recipes_that_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(read_recipe(RECIPE, overrides), "robust")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_view_of_its_own_makes_a_stream_of_its_own() -> None:
    trial = plan(read_recipe(RECIPE), "robust")[1].trial
    assert trial.adversarial is not None
    from kd_bench.config.adversarial import SecondView

    other = trial.model_copy(update={"adversarial": trial.adversarial.model_copy(update={"second_view": SecondView()})})
    assert trial.cohort_key != other.cohort_key


PLUGIN = """
from kd_bench.methods.adversarial import AdversarialMethod

class Mine(AdversarialMethod):
    family = "adversarial"
    needs_teacher = False
    required_settings = ("ramp",)

    def forward(self, student, teacher, batch):
        return {"ce": self.label_loss(student, batch)}
"""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('("ramp")', "required_settings = 'ramp' should be a tuple of names of settings of adversarial"),
        ("(1,)", "required_settings = (1,) should be a tuple of names of settings of adversarial"),
        (
            '("weight_perturbations",)',
            "required_settings of Mine has 'weight_perturbations', which is no setting of adversarial; did you mean "
            "'weight_perturbation'?",
        ),
        ('("second_view",)', "is another method without adversarial.second_view, which is not switched on"),
    ],
)
def test_required_settings_of_a_plug_in_are_checked(tmp_path: Path, settings: str, message: str) -> None:
    file = tmp_path / "mine.py"
    recipe = {**RECIPE, "methods": {"none": {}, "mine": {"method": f"{file}:Mine"}}, "baseline": "mine"}
    file.write_text(PLUGIN)
    assert [cell.label for cell in plan(read_recipe(recipe), "robust")] == ["none", "mine"]
    file.write_text(PLUGIN.replace('("ramp",)', settings))
    with pytest.raises(UserError) as caught:
        plan(read_recipe(recipe), "robust")
    assert message in str(caught.value)


INHERITED = """
from kd_bench.methods.improved_trades import ImprovedTRADES

class Mine(ImprovedTRADES):
    family = "adversarial"
    needs_teacher = False

    def __init__(self, pair):
        super().__init__(pair)
"""


def test_required_settings_are_written_in_the_class_itself(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(INHERITED)
    with pytest.raises(UserError, match=r"required_settings, .* are not what the source of Mine says"):
        methods.load(f"{file}:Mine")
    file.write_text(INHERITED + '    required_settings = ("ramp", "weight_perturbation")\n')
    assert methods.load(f"{file}:Mine").__name__ == "Mine"
