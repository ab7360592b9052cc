"""Losses computed the way published code does it: every difference, pair and copy in memory.

Tests compare values and gradients of our losses with these; time and memory are compared in ``benchmarks/losses.py``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_q, p = (student / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    return F.kl_div(log_q, p, reduction="none").sum(1).mean() * temperature**2


def dkd(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, beta: float, temperature: float) -> Tensor:
    """Masks of the target and of the others, and a number from which the target's softmax does not recover."""
    target = torch.zeros_like(student).scatter_(1, labels[:, None], 1)
    others = 1 - target
    q, p = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    q = torch.stack([(q * target).sum(1), (q * others).sum(1)], 1)
    p = torch.stack([(p * target).sum(1), (p * others).sum(1)], 1)
    tckd = F.kl_div(q.log(), p, reduction="sum") / len(student) * temperature**2
    log_q = (student / temperature - 1000 * target).log_softmax(1)
    p = (teacher / temperature - 1000 * target).softmax(1)
    nckd = F.kl_div(log_q, p, reduction="sum") / len(student) * temperature**2
    return alpha * tckd + beta * nckd


def ikl(
    student: Tensor, teacher: Tensor, weights: Tensor, alpha: float, beta: float, temperature: float = 1.0
) -> Tensor:
    """(B, C, C) differences of both networks and weights of the pairs."""
    teacher_pairs = teacher[:, :, None] - teacher[:, None, :]
    student_pairs = student[:, :, None] - student[:, None, :]
    pairs = weights[:, :, None] * weights[:, None, :]
    squares = (F.mse_loss(student_pairs, teacher_pairs, reduction="none") * pairs).sum() / len(student) / 4
    p, log_q = (teacher.detach() / temperature).softmax(1), (student / temperature).log_softmax(1)
    return alpha * squares - beta * (p * log_q).sum(1).mean()


def gkl(
    student: Tensor, teacher: Tensor, weights: Tensor, alpha: float, beta: float, temperature: float = 1.0
) -> Tensor:
    """As ``ikl``, with the squares divided by the sum of the weights of all pairs."""
    teacher_pairs = teacher[:, :, None] - teacher[:, None, :]
    student_pairs = student[:, :, None] - student[:, None, :]
    pairs = weights[:, :, None] * weights[:, None, :]
    squares = (F.mse_loss(student_pairs, teacher_pairs, reduction="none") * pairs).sum() / pairs.sum() / 4
    p, log_q = (teacher.detach() / temperature).softmax(1), (student / temperature).log_softmax(1)
    return alpha * squares - beta * (p * log_q).sum(1).mean()


def dist_terms(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Published code forms nothing large here, nor do we."""
    q, p = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    return 1 - _correlations(q, p).mean(), 1 - _correlations(q.T, p.T).mean()


def rkd_distance(student: Tensor, teacher: Tensor, squared: bool = False, eps: float = 1e-12) -> Tensor:
    with torch.no_grad():
        targets = _relative_distances(teacher, squared, eps)
    return F.smooth_l1_loss(_relative_distances(student, squared, eps), targets)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """(B, B, D) differences, normalised, and their inner products."""
    with torch.no_grad():
        targets = _angles(teacher)
    return F.smooth_l1_loss(_angles(student), targets)


def contrast(anchors: Tensor, bank: Tensor, index: Tensor, z: Tensor, temperature: float) -> Tensor:
    """A copy of (B, 1 + K, D) rows of the bank, and logarithms of the probabilities' odds."""
    negatives, eps = index.shape[1] - 1, 1e-7
    rows = bank.index_select(0, index.flatten()).view(*index.shape, -1)
    probability = torch.bmm(rows, anchors[:, :, None]).squeeze(-1).div(temperature).exp() / z
    noise = negatives / len(bank)
    positive = probability[:, 0]
    log_d1 = (positive / (positive + noise + eps)).log()
    log_d0 = (noise / (probability[:, 1:] + noise + eps)).log()
    return -(log_d1.sum() + log_d0.sum()) / len(anchors)


def normaliser(anchors: Tensor, bank: Tensor, index: Tensor, temperature: float) -> Tensor:
    rows = bank[index]
    return (rows @ anchors[:, :, None] / temperature).exp().mean() * len(bank)


def partial_l2(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """All squares, and three masks of which of them count."""
    teacher = torch.max(teacher, margin.view(1, -1, 1, 1))
    squares = F.mse_loss(student, teacher, reduction="none")
    counts = ((student > teacher) | (teacher > 0)).to(squares.dtype)
    return (squares * counts).sum() / len(student)


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Both maps averaged to each of the grids."""
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for edge in (4, 2, 1):
        if edge < student.shape[2]:
            weight, total = weight / 2, total + weight / 2
            pooled, target = F.adaptive_avg_pool2d(student, edge), F.adaptive_avg_pool2d(teacher, edge)
            loss = loss + weight * F.mse_loss(pooled, target)
    return loss / total


def draw_negatives(others: list[Tensor], labels: Tensor, negatives: int) -> Tensor:
    """For each image a random choice, without replacement, of ``others``[its class], all images of other classes."""
    rows = [others[label] for label in labels.tolist()]
    return torch.stack([row[torch.randperm(len(row))[:negatives]] for row in rows])


def _correlations(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + 1e-8)


def _relative_distances(embeddings: Tensor, squared: bool, eps: float) -> Tensor:
    differences = embeddings[:, None, :] - embeddings[None, :, :]
    distances = differences.square().sum(-1).clamp(min=eps)
    if not squared:
        distances = distances.sqrt()
    distances = distances * (1 - torch.eye(len(embeddings), dtype=distances.dtype))
    return distances / distances[distances > 0].mean()


def _angles(embeddings: Tensor) -> Tensor:
    differences = embeddings[None, :, :] - embeddings[:, None, :]
    directions = F.normalize(differences, dim=2)
    return torch.bmm(directions, directions.transpose(1, 2))
