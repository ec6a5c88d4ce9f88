from __future__ import annotations

import torch

from phenoscape_tune import ranks


def test_without_a_process_group_there_is_one_rank_that_gathers_itself() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert (ranks.rank(), ranks.world_size(), ranks.in_group()) == (0, 1, False)
    assert ranks.all_gather(x) is x
    assert ranks.mean_over_ranks(x) is x
