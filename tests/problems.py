"Small problems shared by the tests"

import torch
from samplesplit_nb.networks import MLP
from samplesplit_nb.objectives import NTKObjective


def random_problem(
    widths=(6, 20, 20, 1), k=4, seed=0, sharpness=5.0, dtype=torch.float64, box=None, bias='all'
):
    """An NTK objective between two unrelated networks, and random candidates: the residual is large and S
    indefinite"""
    g = torch.Generator().manual_seed(seed)
    nets = [MLP(list(widths), seed=seed + s, dtype=dtype, bias=bias) for s in (100, 200)]
    x, lam = (torch.randn(*s, generator=g, dtype=torch.float64).to(dtype) for s in ((k, widths[0]), (k,)))
    return NTKObjective(*nets, sharpness=sharpness, box=box), x, lam
