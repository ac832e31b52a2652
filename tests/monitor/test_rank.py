import math

import pytest
import torch

from mpp.monitor.rank import effective_rank


def test_effective_rank_of_known_spectra():
    assert effective_rank(torch.eye(50, 7)) == pytest.approx(7)
    assert effective_rank(torch.ones(20, 6)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(5, 3)) == 0
    half, quarter = 0.5, 0.25  # singular values 2, 1, 1 as shares
    assert effective_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(
        math.exp(-half * math.log(half) - 2 * quarter * math.log(quarter))
    )


@pytest.mark.parametrize("shape", [(40, 9), (9, 40)])
def test_effective_rank_is_that_of_the_singular_values_and_knows_no_scale(shape):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    share = torch.linalg.svdvals(features.double())
    share = share / share.sum()
    expected = float((-(share * share.log()).sum()).exp())
    assert effective_rank(features) == pytest.approx(expected, rel=1e-6)
    assert effective_rank(100 * features) == pytest.approx(expected, rel=1e-6)
