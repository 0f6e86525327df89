"""Agreement of clusters with classes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, Num


class Agreement(NamedTuple):
    """Homogeneity, completeness and their harmonic mean, each 0 to 1."""

    homogeneity: float
    completeness: float
    v_measure: float


def v_measure(classes: Integer[np.ndarray, " N"], clusters: Integer[np.ndarray, " N"]) -> Agreement:
    """Return the V-measure (Rosenberg and Hirschberg 2007), as scikit-learn's `homogeneity_completeness_v_measure`.

    Homogeneity is 1 - H(class | cluster) / H(class), completeness 1 - H(cluster | class) / H(cluster); 1 where the divisor is 0.
    """
    _, class_numbers = np.unique(classes, return_inverse=True)
    _, cluster_numbers = np.unique(clusters, return_inverse=True)
    table = np.zeros((class_numbers.max() + 1, cluster_numbers.max() + 1))
    np.add.at(table, (class_numbers, cluster_numbers), 1)
    of_class, of_cluster, of_both = _entropy(table.sum(1)), _entropy(table.sum(0)), _entropy(table.ravel())
    shared = of_class + of_cluster - of_both
    homogeneity = shared / of_class if of_class else 1.0
    completeness = shared / of_cluster if of_cluster else 1.0
    both = homogeneity + completeness
    return Agreement(homogeneity, completeness, 2 * homogeneity * completeness / both if both else 0.0)


def _entropy(counts: Num[np.ndarray, " n"]) -> float:
    """Return the entropy in nats of frequencies."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum()) if len(shares) > 1 else 0.0
