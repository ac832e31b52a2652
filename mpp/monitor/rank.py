"""How many directions the features use."""

import torch
from torch import Tensor


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the singular values as shares of their sum, 1..min(n, D): RankMe (arXiv 2210.02885, eq. 1), not centred.

    features: float [n, D].  It grows with n while n is near D, so compare it at equal n.  Features that are all zero have rank 0.
    """
    matrix = features.double()
    gram = matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    total = singular.sum()
    if not total > 0:
        return 0.0
    share = singular / total
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))
