"""Two real processes, each a rank of a gloo group on 127.0.0.1, that train one layer on their halves of a batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

# `{loss}` is given the layer in DistributedDataParallel and the rank's own views (2 b, d), and backpropagates.
_SCRIPT = """
import os, sys, torch, torch.distributed as dist
from phenoscape_tune import ranks
{imports}
class Layer(torch.nn.Linear):
    def forward(self, x):
        return {output}
rank, world, folder = int(sys.argv[1]), 2, sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{{folder}}/store", rank=rank, world_size=world)
batch = torch.load(f"{{folder}}/batch.pt")                         # (2 views, B images, d)
own = batch.chunk(world, dim=1)[rank].reshape(-1, batch.shape[-1]).clone()
layer = Layer(own.shape[1], 5, dtype=torch.float64)
layer.load_state_dict(torch.load(f"{{folder}}/layer.pt"))
ddp = torch.nn.parallel.DistributedDataParallel(layer)
{loss}
torch.save({{"loss": ranks.mean_over_ranks(loss), "weight": layer.weight.grad, "bias": layer.bias.grad}},
           f"{{folder}}/rank{{rank}}.pt")
dist.barrier()
dist.destroy_process_group()
# The interpreter's own end is no part of this: threads of torch that outlive it abort the process now and then.
os._exit(0)
"""


def run_two_ranks(
    folder: Path,
    batch: torch.Tensor,
    layer: torch.nn.Linear,
    imports: str,
    loss: str,
    output: str = "super().forward(x)",
) -> list[dict[str, Any]]:
    """Each rank's mean loss and gradients of `layer` (d, 5) on `batch` (2 views, B images, d), float64."""
    torch.save(batch, folder / "batch.pt")
    torch.save(layer.state_dict(), folder / "layer.pt")
    script = _SCRIPT.format(imports=imports, loss=loss, output=output)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(rank), str(folder)], env=environment) for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=250) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
