"""The losses written as in their papers: one probability, one pair of classes at a time. For small float64 inputs."""

import torch
from torch import Tensor


def softmax(logits: Tensor) -> Tensor:
    powers = (logits - logits.max()).exp()
    return powers / powers.sum()


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return torch.stack([a * (a / b).log() for a, b in zip(p, q, strict=True)]).sum()


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    pairs = zip(student, teacher, strict=True)
    return temperature**2 * mean([divergence(softmax(t / temperature), softmax(s / temperature)) for s, t in pairs])


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    pairs = zip(student, teacher, strict=True)
    return mean([-(softmax(t / temperature) * softmax(s / temperature).log()).sum() for s, t in pairs])


def dkd_terms(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    target, others = [], []
    for s, t, y in zip(student, teacher, labels.tolist(), strict=True):
        q, p = softmax(s / temperature), softmax(t / temperature)
        rest = [j for j in range(len(s)) if j != y]
        target.append(divergence(torch.stack([p[y], 1 - p[y]]), torch.stack([q[y], 1 - q[y]])))
        others.append(divergence(p[rest] / p[rest].sum(), q[rest] / q[rest].sum()))
    return temperature**2 * mean(target), temperature**2 * mean(others)


def correlation(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.norm() * y.norm() + 1e-8)


def dist_terms(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    q = torch.stack([softmax(row / temperature) for row in student])
    p = torch.stack([softmax(row / temperature) for row in teacher])
    images = mean([correlation(x, y) for x, y in zip(q, p, strict=True)])
    classes = mean([correlation(x, y) for x, y in zip(q.unbind(1), p.unbind(1), strict=True)])
    return 1 - images, 1 - classes


def pairwise_mse(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """1/4 sum_jk w_j w_k ((t_j - t_k) - (s_j - s_k))^2 by forming every pair."""
    weights = weights.expand_as(student)
    pairs = weights[:, :, None] * weights[:, None, :]
    teacher_pairs = teacher[:, :, None] - teacher[:, None, :]
    student_pairs = student[:, :, None] - student[:, None, :]
    return 0.25 * (pairs * (teacher_pairs - student_pairs) ** 2).sum((1, 2)).mean()
