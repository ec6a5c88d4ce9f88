from __future__ import annotations

import torch

from phenoscape_tune import ranks


def test_without_a_process_group_there_is_one_rank_that_gathers_itself() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert (ranks.rank(), ranks.world_size(), ranks.in_group()) == (0, 1, False)
    assert ranks.all_gather(x) is x
    assert ranks.mean_over_ranks(x) is x


def test_without_a_process_group_a_share_is_all_there_is() -> None:
    x = torch.arange(5.0)[:, None]
    assert torch.equal(ranks.gather_shares(x, 5), x)
    norm = torch.nn.BatchNorm1d(2)
    before = norm.running_mean
    ranks.average_buffers(norm)
    assert norm.running_mean is before
