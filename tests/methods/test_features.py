"""The methods that compare feature maps: what they build for a pair, and their terms."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kd_bench import losses
from kd_bench.methods import _registry as methods
from kd_bench.methods._connectors import Connector, Fusion, Regressor, convolve_doubled
from kd_bench.methods.fitnet import FitNet
from kd_bench.methods.ofd import OFD
from kd_bench.methods.reviewkd import ReviewKD
from kd_bench.models import create
from kd_bench.models.outputs import observe, preact_norms, shapes
from kd_bench.types import Batch, Pair, Shapes
from kd_bench.utils.errors import UserError
from tests.methods.cases import PAIR, batch, call, make, mapped, outputs, teacher_outputs

TEACHER = PAIR.teacher
assert TEACHER is not None


@pytest.mark.parametrize(
    ("student", "teacher", "layer", "kernel", "stride"),
    [
        ((4, 8, 8), (6, 8, 8), "Conv2d", (1, 1), (1, 1)),
        ((4, 16, 16), (6, 8, 8), "Conv2d", (3, 3), (2, 2)),
        ((4, 8, 8), (6, 16, 16), "ConvTranspose2d", (4, 4), (2, 2)),
        ((4, 10, 9), (6, 8, 8), "Conv2d", (3, 2), (1, 1)),
        ((4, 32, 32), (6, 8, 8), "Conv2d", (5, 5), (4, 4)),
        ((4, 4, 4), (6, 12, 12), "ConvTranspose2d", (5, 5), (3, 3)),
        ((4, 4, 4), (6, 16, 16), "ConvTranspose2d", (8, 8), (4, 4)),
        ((4, 14, 14), (6, 16, 16), "Conv2d", (1, 1), (1, 1)),
        ((4, 14, 14), (6, 4, 4), "Conv2d", (1, 1), (1, 1)),
        ((4, 8, 16), (6, 4, 4), "Conv2d", (1, 1), (1, 1)),
    ],
)
def test_a_regressor_reaches_the_teachers_shape(student, teacher, layer, kernel, stride) -> None:
    regressor = Regressor(student, teacher)
    conv = regressor.conv
    assert (type(conv).__name__, conv.kernel_size, conv.stride) == (layer, kernel, stride)
    maps = regressor(torch.randn(2, *student))
    assert maps.shape == (2, *teacher)
    assert (maps >= 0).all()


def test_fitnet_terms() -> None:
    method, student, teacher = make("fitnet", hint_stage=1, hint_weight=7), outputs(1), teacher_outputs(2)
    assert isinstance(method, FitNet)
    method.eval()  # the regressor's batch norm, called twice
    terms = call(method, student, teacher, batch())
    assert set(terms) == {"ce", "hint"}
    expected = 7 * F.mse_loss(method.regressor(student.stages[1]), teacher.stages[1])
    torch.testing.assert_close(terms["hint"], expected)


def test_a_stage_that_a_network_has_not() -> None:
    with pytest.raises(UserError, match=r"fitnet: hint_stage = 4, but student has the stages 0 to 3"):
        make("fitnet", hint_stage=4)


def test_ofd_terms_and_margins() -> None:
    method, student, teacher = make("ofd", feature_weight=0.5), outputs(1), teacher_outputs(2)
    assert isinstance(method, OFD)
    method.eval()
    expected = torch.zeros(())
    for index in range(3):
        norm = PAIR.teacher_norms[index + 1]
        assert norm is not None
        student_maps = method.connectors[index](student.preacts[index + 1])
        loss = losses.partial_l2(student_maps, teacher.preacts[index + 1], losses.ofd_margin(*norm))
        expected = expected + loss / 2 ** (2 - index)
    terms = call(method, student, teacher, batch())
    assert set(terms) == {"ce", "feature"}
    torch.testing.assert_close(terms["feature"], 0.5 * expected)
    assert method.teacher_batch_norm == "batch"
    assert make("ofd", teacher_batch_norm="running").teacher_batch_norm == "running"
    assert "margin0" not in method.state_dict()


def test_ofd_reads_the_published_pre_activations_if_it_should() -> None:
    """Against the published sum over the cases of student and teacher, for the pair that published code can run."""
    torch.manual_seed(0)
    student, teacher = create("cifar_shufflenet_v2", 5).train(), create("cifar_resnet8x4", 5).eval()
    images, image = torch.randn(4, 3, 32, 32), (3, 32, 32)
    terms = {}
    for form in ("before_relu", "published"):
        needs = methods.needs("ofd", {"student_preacts": form})
        student_shapes, teacher_shapes = shapes(student, image, needs.student), shapes(teacher, image, needs.teacher)
        pair = Pair(5, 32, student_shapes, teacher_shapes, teacher_norms=preact_norms(teacher, image))
        torch.manual_seed(1)
        method = methods.build("ofd", pair, {"student_preacts": form, "feature_weight": 1})
        assert isinstance(method, OFD)
        assert method.needs == needs
        outputs, taught = observe(student, images, needs.student), observe(teacher, images, needs.teacher)
        samples = Batch(images, torch.arange(4), torch.arange(4), 0, 0)
        terms[form] = method(outputs, taught, samples)["feature"]
        if form == "published":
            expected = torch.zeros(())
            for index, (mine, other) in enumerate(zip(outputs.preacts[1:], taught.preacts[1:], strict=True)):
                s, t = method.connectors[index](mine), F.adaptive_avg_pool2d(other, mine.shape[2:])
                m = method.get_buffer(f"margin{index}").view(1, -1, 1, 1)
                counted = (s - m) ** 2 * ((s > m) & (t <= m)) + (s - t) ** 2 * (((s > t) & (t > m)) | (t > 0))
                expected = expected + counted.mean(0).sum() / 2 ** (2 - index)
            torch.testing.assert_close(terms[form], expected)
    assert abs(terms["published"] / terms["before_relu"] - 1) > 1e-3


def test_ofd_pairs_the_deepest_stages_and_their_margins() -> None:
    student = replace(PAIR.student, preacts=PAIR.student.preacts[-3:])
    pair = replace(PAIR, student=student)
    method = methods.build("ofd", pair, {})
    assert isinstance(method, OFD)
    assert [connector[0].weight.shape[:2] for connector in method.connectors if isinstance(connector, Connector)] == [
        (teacher_shape[0], student_shape[0])
        for student_shape, teacher_shape in zip(student.preacts[1:], TEACHER.preacts[2:], strict=True)
    ]
    for index, norm in enumerate(PAIR.teacher_norms[2:]):
        assert norm is not None
        assert torch.equal(method.get_buffer(f"margin{index}"), losses.ofd_margin(*norm))


def test_ofd_without_a_batch_norm() -> None:
    with pytest.raises(
        UserError, match="ofd: the pre-activation of stage 2 of teacher is not the output of a batch norm, which"
    ):
        methods.build("ofd", replace(PAIR, teacher_norms=(*PAIR.teacher_norms[:2], None, PAIR.teacher_norms[3])), {})
    methods.build("ofd", replace(PAIR, teacher_norms=(None, *PAIR.teacher_norms[1:])), {})  # the stem takes no part


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_ofd_between_networks_without_stages_after_the_stem(network: str) -> None:
    shapes = getattr(PAIR, network)
    pair = replace(PAIR, **{network: replace(shapes, preacts=shapes.preacts[:1]), f"{network}_name": "small_net"})
    with pytest.raises(UserError, match="ofd: small_net has 1 stages, the stem included, but ofd needs at least 2"):
        methods.build("ofd", pair, {})


def test_reviewkd_goes_from_the_deepest_to_the_shallowest() -> None:
    method, student, teacher = make("reviewkd", review_weight=3, max_mid_channels=7), outputs(1), teacher_outputs(2)
    assert isinstance(method, ReviewKD)
    method.eval()
    assert len(method.fusions) == 4
    student_maps = [*student.stages[1:], student.pooled[:, :, None, None]]
    teacher_maps = [*teacher.preacts[1:], teacher.pooled[:, :, None, None]]
    deeper, expected = None, torch.zeros(())
    for fusion, mine, other in list(zip(method.fusions, student_maps, teacher_maps, strict=True))[::-1]:
        assert isinstance(fusion, Fusion)
        assert fusion.reduce[0].weight.shape[:2] == (7, mine.shape[1])
        restored, deeper = fusion(mine, deeper)
        assert restored.shape == other.shape
        expected = expected + losses.hierarchical_context(restored, other)
    terms = call(method, student, teacher, batch(epoch=20))
    torch.testing.assert_close(terms["review"], 3 * expected)
    with pytest.raises(ValueError, match="only the deepest"):
        method.fusions[0](student_maps[0], None)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (3, 5)])
def test_a_convolution_of_a_doubled_map_is_made_of_the_small_one(height: int, width: int) -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, height, width, generator=draws, dtype=torch.float64).requires_grad_()
    weight = torch.randn(4, 3, 3, 3, generator=draws, dtype=torch.float64).requires_grad_()
    result = convolve_doubled(x, weight)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)
    torch.testing.assert_close(result, expected)
    factors = torch.randn(expected.shape, generator=draws, dtype=torch.float64)
    gradients, expected_gradients = (
        torch.autograd.grad((maps * factors).sum(), (x, weight)) for maps in (result, expected)
    )
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("sizes", [[(16, 32), (8, 16), (4, 8), (1, 1)], [(16, 32), (6, 12), (4, 4)], [(8, 6), (8, 16)]])
def test_fusions_compute_what_is_published(sizes: list[tuple[int, int]]) -> None:
    """Each map at the teacher's size before it is convolved, and in one piece with the deeper one for the attention."""
    torch.manual_seed(0)
    fusions = [
        Fusion(4, 5, 6, (teacher_edge, teacher_edge), deepest=level == len(sizes) - 1).double()
        for level, (_, teacher_edge) in enumerate(sizes)
    ]
    maps = [torch.randn(2, 4, student_edge, student_edge, dtype=torch.float64) for student_edge, _ in sizes]
    passed = whole = None
    for fusion, stage, (_, edge) in list(zip(fusions, maps, sizes, strict=True))[::-1]:
        restored, passed = fusion(stage, passed)
        x = fusion.reduce(stage)
        if fusion.attention is not None:
            assert whole is not None
            deeper = F.interpolate(whole, x.shape[2:], mode="nearest")
            weights = fusion.attention(torch.cat([x, deeper], 1)).sigmoid()
            x = x * weights[:, :1] + deeper * weights[:, 1:]
        whole = F.interpolate(x, (edge, edge), mode="nearest")
        torch.testing.assert_close(restored, fusion.restore(whole))


@pytest.mark.parametrize(("first", "factors"), [(0, [0, 0.25, 0.5, 0.75, 1, 1]), (1, [0.25, 0.5, 0.75, 1, 1, 1])])
def test_reviewkds_warm_up_counts_as_the_published_code_or_from_one(first: int, factors: list[float]) -> None:
    method = make("reviewkd", warmup_epochs=4, first_epoch=first).eval()
    terms = [call(method, outputs(1), teacher_outputs(2), batch(epoch=epoch))["review"] for epoch in range(6)]
    for term, factor in zip(terms, factors, strict=True):
        torch.testing.assert_close(term, factor * terms[-1])


def test_reviewkd_may_be_taught_what_every_network_can_give() -> None:
    method = make("reviewkd", teacher_features="stages").eval()
    assert method.needs.teacher == {"stages", "pooled"}
    teacher = teacher_outputs(2)
    call(method, outputs(1), replace(teacher, preacts=()), batch())
    assert make("reviewkd").needs.teacher == {"preacts", "pooled"}


def test_reviewkd_may_fuse_the_students_pre_activations() -> None:
    method = make("reviewkd", student_features="preacts").eval()
    assert method.needs.student == {"logits", "preacts", "pooled"}
    student, teacher = outputs(1), teacher_outputs(2)
    term = call(method, replace(student, stages=()), teacher, batch(epoch=20))["review"]
    swapped = replace(student, stages=student.preacts)
    plain = make("reviewkd").eval()
    assert term == call(plain, swapped, teacher, batch(epoch=20))["review"]


def test_feature_methods_under_any_shapes() -> None:
    """Stages of other sizes and numbers, as a transformer's all alike, on either side."""
    flat = Shapes((5,), stages=((12, 4, 4),) * 6, preacts=((12, 4, 4),) * 6, pooled=(12,))
    norms = ((torch.ones(12), torch.zeros(12)),) * 6
    for student, teacher, of in ((PAIR.student, flat, norms), (flat, TEACHER, PAIR.teacher_norms)):
        pair = Pair(5, 32, student, teacher, train_labels=PAIR.train_labels, teacher_norms=of)
        for name in ("fitnet", "ofd", "reviewkd", "rkd", "crd"):
            method = methods.build(name, pair, {"negatives": 8} if name == "crd" else {})
            given = mapped(outputs(1, of=student), lambda values: values.requires_grad_())
            terms = call(method, given, outputs(2, of=teacher), batch(epoch=20))
            torch.stack(list(terms.values())).sum().backward()
            assert all(torch.isfinite(term) for term in terms.values())


def test_rkd_and_dist_and_dkl_terms() -> None:
    student, teacher, samples = outputs(1), teacher_outputs(2), batch(epoch=1)
    terms = call(make("rkd", distance_weight=2, angle_weight=3), student, teacher, samples)
    torch.testing.assert_close(terms["distance"], 2 * losses.rkd_distance(student.pooled, teacher.pooled))
    torch.testing.assert_close(terms["angle"], 3 * losses.rkd_angle(student.pooled, teacher.pooled))

    inter, intra = losses.dist_terms(student.logits, teacher.logits, 4.0)
    terms = call(make("dist", beta=2, gamma=3), student, teacher, samples)
    torch.testing.assert_close(terms["inter"], 2 * 16 * 2 * inter)
    torch.testing.assert_close(terms["intra"], 2 * 16 * 3 * intra)
    terms = call(make("dist", tau_squared=False), student, teacher, samples)
    torch.testing.assert_close(terms["intra"], 2 * intra)

    terms = call(make("dkl_kd", warmup_epochs=4, temperature=3, alpha=5, beta=7), student, teacher, samples)
    student_logits, teacher_logits = student.logits / 3, teacher.logits / 3
    torch.testing.assert_close(terms["pairwise"], 0.5 * 9 * losses.dkl(student_logits, teacher_logits, 5.0, 0.0))
    torch.testing.assert_close(terms["soft_ce"], 0.5 * 9 * losses.dkl(student_logits, teacher_logits, 0.0, 7.0))


def test_dkl_trains_what_classical_distillation_trains() -> None:
    teacher, samples = teacher_outputs(2), batch(epoch=20)
    gradients = []
    for method in (make("dkl_kd", ce_weight=0), make("kd", ce_weight=0, kd_weight=1)):
        student = mapped(outputs(1), lambda values: values.requires_grad_())
        torch.stack(list(call(method, student, teacher, samples).values())).sum().backward()
        gradients.append(student.logits.grad)
    torch.testing.assert_close(*gradients)
