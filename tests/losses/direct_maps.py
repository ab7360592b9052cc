"""Losses of feature maps and of relations computed the way published code does it: every pair and copy in memory.

Tests compare values and gradients of our losses with these; time and memory are compared in ``benchmarks/losses.py``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pooled(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps, the larger one averaged to the smaller one's size."""
    edge = min(student.shape[2], teacher.shape[2])
    return F.adaptive_avg_pool2d(student, edge), F.adaptive_avg_pool2d(teacher, edge)


def attention_map(maps: Tensor) -> Tensor:
    return F.normalize(maps.pow(2).mean(1).flatten(1))


def at(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = pooled(student, teacher)
    return (attention_map(student) - attention_map(teacher)).pow(2).mean()


def ft(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = pooled(student, teacher)
    return (attention_map(student) - attention_map(teacher)).abs().mean()


def cat_kd(student: Tensor, teacher: Tensor, resolution: int, normalise: bool) -> Tensor:
    """Map by map and pixel by pixel; the cells overlap where the resolution does not divide the size."""

    def cells(maps: Tensor) -> Tensor:
        bounds = [
            [(i * edge // resolution, -(-(i + 1) * edge // resolution)) for i in range(resolution)]
            for edge in maps.shape[2:]
        ]
        return torch.stack([maps[:, :, a:b, c:d].mean((2, 3)) for a, b in bounds[0] for c, d in bounds[1]], -1)

    both = [
        [m / m.pow(2).sum().sqrt() if normalise else m for image in cells(maps) for m in image]
        for maps in (student, teacher)
    ]
    terms = [(s - t).pow(2).mean() for s, t in zip(*both, strict=True)]
    return torch.stack(terms).mean()


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = student.flatten(1), teacher.flatten(1)
    difference = F.normalize(teacher @ teacher.T) - F.normalize(student @ student.T)
    return difference.pow(2).sum() / len(student) ** 2


def cc(student: Tensor, teacher: Tensor) -> Tensor:
    difference = (student - teacher).abs()
    return torch.bmm(difference[:-1, None, :], difference[1:, :, None]).sum() / (len(student) - 1)


def cc_gaussian(student: Tensor, teacher: Tensor, gamma: float) -> Tensor:
    """The kernel itself, of which ours is a series, by the distances of all pairs."""
    kernels = [(-gamma * (x[:, None] - x[None]).pow(2).sum(-1)).exp() for x in (student, teacher)]
    return (kernels[0] - kernels[1]).pow(2).sum() / len(student) ** 2


def pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    probabilities = []
    for embeddings in (student, teacher):
        directions = embeddings / (embeddings.pow(2).sum(1, keepdim=True).sqrt() + eps)
        similarities = (directions @ directions.T + 1) / 2
        probabilities.append(similarities / similarities.sum(1, keepdim=True))
    q, p = probabilities
    return (p * ((p + eps) / (q + eps)).log()).mean()


def vid(prediction: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    prediction, teacher = pooled(prediction, teacher)
    v = variance.view(1, -1, 1, 1)
    return (0.5 * ((prediction - teacher).pow(2) / v + v.log())).mean()


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """(B, C, D, H W) products of all pairs of channels."""
    student, teacher = pooled(student, teacher)
    student, teacher = F.normalize(student.flatten(2), dim=2), F.normalize(teacher.flatten(2), dim=2)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, None] * b[:, :, None]).sum(-1).pow(2).mean()

    return kernel(teacher, teacher).detach() + kernel(student, student) - 2 * kernel(student, teacher)


def itrd_correlation(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    standardised_student, standardised_teacher = ((x - x.mean(0)) / x.std(0) for x in (student, teacher))
    correlations = (standardised_student * standardised_teacher).sum(0) / len(student)
    return (correlations - 1).abs().pow(2).pow(alpha).sum().log2()


def itrd_mutual(student: Tensor, teacher: Tensor) -> Tensor:
    gram, other = (F.normalize(x) @ F.normalize(x).T for x in (student, teacher))
    joint = gram * other
    return ((gram / gram.trace()).pow(2) - (joint / joint.trace()).pow(2)).sum()


def ab(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    above = (student > -margin) & (teacher <= 0)
    below = (student <= margin) & (teacher > 0)
    squares = (student + margin).pow(2) * above + (student - margin).pow(2) * below
    return squares.sum() / len(student)


def fsp(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    flows = []
    for network in (student, teacher):
        first, second = (maps.flatten(2) for maps in pooled(*network))
        flows.append((first[:, :, None] * second[:, None]).mean(-1))
    return (flows[0] - flows[1]).pow(2).mean()


def kdsvd(students: Sequence[Tensor], teachers: Sequence[Tensor], vectors: int, matrix: str) -> Tensor:
    """The decompositions of torch, their gradient by autograd, and masks for the vectors that match."""
    terms, before = [], None
    for maps in zip(students, teachers, strict=True):
        student, teacher = matrices(*maps, matrix)
        _, values, rows = torch.linalg.svd(teacher, full_matrices=False)
        teacher_vectors, values = rows.mT[..., :vectors], F.normalize(values[:, :vectors])[:, None]
        teacher_vectors = (
            teacher_vectors * teacher_vectors.gather(1, teacher_vectors.abs().argmax(1, keepdim=True)).sign()
        )
        student_vectors = torch.linalg.svd(student, full_matrices=False)[2].mT[..., : vectors + 3]
        cosines = student_vectors.mT @ teacher_vectors
        mask = torch.where(cosines.abs() == cosines.abs().amax(1, keepdim=True), cosines.sign(), 0)
        after = student_vectors @ mask * values, teacher_vectors * values
        if before is not None:
            student_correlations, teacher_correlations = (
                (-(v[:, :, None] - w[:, None]).pow(2) / 8).exp() for v, w in zip(after, before, strict=True)
            )
            terms.append((student_correlations - teacher_correlations.detach()).pow(2).sum() / len(student))
        before = after
    return torch.stack(terms).sum()


def matrices(student: Tensor, teacher: Tensor, matrix: str) -> tuple[Tensor, Tensor]:
    """KDSVD's matrices of a pair of maps."""
    if matrix == "channels":
        return student.flatten(2).mT, teacher.flatten(2).mT
    student, teacher = pooled(student, teacher)
    return student.flatten(1, 2), teacher.flatten(1, 2)
