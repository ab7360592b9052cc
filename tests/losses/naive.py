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


def batch_pairwise_mse(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Every pair of classes of every image, with one normalisation for all."""
    weights = weights.expand_as(student)
    pairs = weights[:, :, None] * weights[:, None, :]
    differences = (teacher[:, :, None] - teacher[:, None, :]) - (student[:, :, None] - student[:, None, :])
    return 0.25 * (pairs * differences**2).sum() / pairs.sum()


def ttm_divergences(student: Tensor, teacher: Tensor, gamma: float) -> tuple[list[Tensor], list[Tensor]]:
    """The divergence of each image, and its weight in WTTM."""
    divergences, masses = [], []
    for s, t in zip(student, teacher, strict=True):
        powers = softmax(t) ** gamma
        divergences.append(divergence(powers / powers.sum(), softmax(s)))
        masses.append(powers.sum())
    return divergences, masses


def nkd_terms(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    target, others = [], []
    for s, t, y in zip(student, teacher, labels.tolist(), strict=True):
        rest = [j for j in range(len(s)) if j != y]
        target.append(-softmax(t)[y] * softmax(s)[y].log())
        others.append(-(softmax(t[rest] / temperature) * softmax(s[rest] / temperature).log()).sum())
    return mean(target), temperature**2 * mean(others)


def rld_terms(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, confidence_temperature: float
) -> tuple[Tensor, Tensor]:
    scd, mcd = [], []
    for s, t, y in zip(student, teacher, labels.tolist(), strict=True):
        p, q = softmax(t / confidence_temperature).max(), softmax(s / confidence_temperature)[y]
        scd.append(divergence(torch.stack([p, 1 - p]), torch.stack([q, 1 - q])))
        below = [j for j in range(len(s)) if t[j] < t[y]]
        chosen = [divergence(softmax(t[below] / temperature), softmax(s[below] / temperature))] if below else []
        mcd.append(torch.stack([0 * s.sum(), *chosen]).sum())
    return confidence_temperature**2 * mean(scd), temperature**2 * mean(mcd)


def alpha_beta_divergence(student: Tensor, teacher: Tensor, a: float, b: float, temperature: float) -> Tensor:
    """The general form, and its limits by name."""
    divergences = []
    for s, t in zip(student, teacher, strict=True):
        q, p = softmax(s / temperature), softmax(t / temperature)
        if a == b == 0:
            terms = (p.log() - q.log()) ** 2 / 2
        elif a == 0:
            terms = (q**b * (q**b / p**b).log() - q**b + p**b) / b**2
        elif b == 0:
            terms = (p**a * (p**a / q**a).log() - p**a + q**a) / a**2
        elif a + b == 0:
            terms = ((q**a / p**a).log() + p**a / q**a - 1) / a**2
        else:
            terms = (a / (a + b) * p ** (a + b) + b / (a + b) * q ** (a + b) - p**a * q**b) / (a * b)
        divergences.append(terms.sum())
    return mean(divergences)


def standardise(logits: Tensor) -> Tensor:
    rows = []
    for z in logits:
        centred = z - z.sum() / len(z)
        rows.append(centred / (((centred**2).sum() / (len(z) - 1)).sqrt() + 1e-7))
    return torch.stack(rows)


def entropy_weights(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    def entropy(logits: Tensor) -> Tensor:
        p = softmax(logits / temperature)
        return torch.stack([-x * (x + 1e-10).log() for x in p]).sum()

    bound = torch.tensor(float(student.shape[1])).double().log()
    return torch.stack(
        [(entropy(t) + entropy(t) * entropy(s) / bound) / 2 for s, t in zip(student, teacher, strict=True)]
    )


def gram(student: Tensor, teacher: Tensor, temperature: float, by_class: bool, weights: Tensor) -> Tensor:
    """Squared differences of inner products, of images or of classes, one pair at a time; a weight for each row."""
    q = [softmax(s / temperature) for s in student]
    p = [softmax(t / temperature) for t in teacher]
    if by_class:
        q, p = list(torch.stack(q).T), list(torch.stack(p).T)
    rows = range(len(q))
    terms = [weights[i] * ((q[i] * q[j]).sum() - (p[i] * p[j]).sum()) ** 2 for i in rows for j in rows]
    return torch.stack(terms).sum() / len(q)


def median(values: Tensor) -> float:
    ordered = sorted(values.tolist())
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
