"""SDD: scale-decoupled distillation."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kd_bench import losses
from kd_bench.methods._maps import class_maps
from kd_bench.methods.base import Method, hard_labels, require_teacher, warmup_of
from kd_bench.methods.parameters import Count, NonNegative, Temperature, Weight
from kd_bench.types import Batch, Needs, Outputs, Pair

#: Cells per edge of the grids, by the number of regions.
_GRIDS = {5: (1, 2), 21: (1, 2, 4)}


class SDD(Method):
    """Scale-decoupled distillation: a loss between logits, applied to the logits of regions of the last feature map.

    ce_weight * CE + warm-up * the mean of w * L over images and regions, where L is the loss of the method that
    ``host`` names. Wei et al., "Scale Decoupled Distillation" (2024). A region is a cell of a grid of 1, 2 or 4 cells
    per edge; its logits are the classifier of the average of its pixels. w is 2 where the teacher is right in the
    region and wrong for the whole map, or the other way round, and 1 elsewhere. As released, the map is averaged to 4 x
    4 pixels before the grids.

    The hosts are classical distillation ("kd"), DKD ("dkd"), NKD ("nkd"), and what the released code calls NKD, whose
    second sum includes the label ("nkd_with_label"); the published rows SD-NKD are the latter. As released, "kd" has no
    warm-up and a weight of 0.1 for the cross-entropy. The released code replaces a loss that is not finite by 0; this
    one does not. The label of a mixed image is the class with the largest share.

    Args:
        host: Loss of the regions: "kd", "dkd", "nkd" or "nkd_with_label".
        regions: 5 for grids of 1 and 2 cells per edge, published for networks of the same family, or 21 for grids of
            1, 2 and 4 cells, published for other pairs.
        kd_weight: Weight of the loss of "kd".
        alpha: Weight of the target class against the rest, of "dkd".
        beta: Weight of the other classes among themselves, of "dkd"; as for ``dkd``, it depends on the pair.
        gamma: Weight of the second term of "nkd" and "nkd_with_label"; published are 8, 6 and 2.
        temperature: T of teacher and student.
        warmup_epochs: Epochs over which the loss grows linearly to its full weight; null for those of the host, 0 of
            "kd" and 20 of the others.
        ce_weight: Weight of the cross-entropy with the labels; null for that of the host, 0.1 of "kd" and 1 of the
            others.
    """

    computes_logits = True
    needs = Needs(student=frozenset({"logits", "class_maps"}), teacher=frozenset({"class_maps"}))

    def __init__(
        self,
        pair: Pair,
        *,
        host: Literal["kd", "dkd", "nkd", "nkd_with_label"] = "kd",
        regions: Literal[5, 21] = 21,
        kd_weight: Weight = 0.9,
        alpha: Weight = 1.0,
        beta: Weight = 8.0,
        gamma: Weight = 8.0,
        temperature: Temperature = 4.0,
        warmup_epochs: Count | None = None,
        ce_weight: NonNegative | None = None,
    ) -> None:
        super().__init__(pair)
        self.host, self.grids, self.temperature = host, _GRIDS[regions], temperature
        self.kd_weight, self.alpha, self.beta, self.gamma = kd_weight, alpha, beta, gamma
        warmup_of_host, ce_of_host = (0, 0.1) if host == "kd" else (20, 1.0)
        self.warmup_epochs = warmup_of_host if warmup_epochs is None else warmup_epochs
        self.ce_weight = ce_of_host if ce_weight is None else ce_weight

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the term "ce" and those of the host: "kd", or "tckd" and "nckd", or "target" and "others"."""
        # Averages of the class maps are logits, because the classifier is linear.
        student_logits = losses.pool_regions(class_maps(student), self.grids)
        teacher_logits = losses.pool_regions(class_maps(require_teacher(teacher)).detach(), self.grids)
        labels = hard_labels(batch)
        weights = losses.region_weights(teacher_logits, labels)
        labels = labels[:, None].expand_as(weights).flatten()
        terms = self._host_terms(student_logits.flatten(0, 1), teacher_logits.flatten(0, 1), labels, weights.flatten())
        factor = warmup_of(batch, self.warmup_epochs)
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            **{name: factor * term for name, term in terms.items()},
        }

    def _host_terms(self, student: Tensor, teacher: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Returns the host's terms for logits, labels and weights of all regions of all images."""
        if self.host == "kd":
            return {"kd": self.kd_weight * losses.kd(student, teacher, self.temperature, weights)}
        if self.host == "dkd":
            tckd, nckd = losses.dkd_terms(student, teacher, labels, self.temperature, weights)
            return {"tckd": self.alpha * tckd, "nckd": self.beta * nckd}
        target, others = losses.nkd_terms(student, teacher, labels, self.temperature, weights)
        if self.host == "nkd_with_label":
            others = self.temperature**2 * losses.soft_cross_entropy(student, teacher, self.temperature, weights)
        return {"target": target, "others": self.gamma * others}
