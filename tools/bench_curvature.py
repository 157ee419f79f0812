"""Time `min_curvature` for many candidates against a loop over them with torch.autograd.functional.hvp.

python tools/bench_curvature.py [--out results/splitting/bench.json]
Each case in a process of its own, so that its peak memory is its own; both ways in the same process,
interleaved, medians.
"""

import argparse, multiprocessing, resource, statistics, time
from pathlib import Path
import torch
from samplesplit_nb.networks import MLP
from samplesplit_nb.objectives import NTKObjective
from samplesplit_nb.splitting import min_curvature
from samplesplit_nb.storage import save_json


def loop(objective, x, lam, residual, products):
    """What one would write first: sample by sample, product by product (only the products of Lanczos, none of
    its algebra)"""
    for z, l in zip(x, lam):
        f = lambda z: -2 * l * objective.inner(residual, z[None]).sum()
        v = torch.ones_like(z)
        for _ in range(products):
            v = torch.nn.functional.normalize(torch.autograd.functional.hvp(f, z, v)[1], dim=0)


def product_flops(k, d, m):
    """Multiplications and additions of one product with S for two hidden layers of m: the tangents along v,
    forwards and backwards, through the weights and through the residual"""
    return 2 * k * (4 * d * m + 6 * m * m)


def case(k, d, m=1000, products=20, few=5, repeats=3):
    g = torch.Generator().manual_seed(0)
    objective = NTKObjective(*[MLP([d, m, m, 1], seed=s) for s in (0, 1)], sharpness=50.0)
    x, lam = 0.2 * torch.randn(k, d, generator=g), torch.randn(k, generator=g) / k
    residual = objective.residual(x, lam)
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours, theirs = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        min_curvature(objective, x, lam, products)
        ours.append(time.perf_counter() - start)
        if len(ours) == 1:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        loop(objective, x[:few], lam[:few], residual, products)
        theirs.append((time.perf_counter() - start) * k / few)
    return dict(
        k=k,
        d=d,
        m=m,
        products=products,
        seconds=statistics.median(ours[1:]),
        loop_seconds=statistics.median(theirs[1:]),
        loop_measured_on=few,
        gflop=product_flops(k, d, m) / 1e9,
        peak_gb=(peak - baseline) / 2**20,
        repeats=repeats,
    )


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--out', type=Path, default=None)
    a = ap.parse_args()
    with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        cases = pool.starmap(case, [(100, 784), (1000, 784), (1000, 3072)], chunksize=1)
    for c in cases:
        print(
            f"k={c['k']} d={c['d']}: {c['seconds']:.2f} s for {c['products']} products ({c['gflop']:.1f} GFLOP each), loop {c['loop_seconds']:.0f} s: "  # noqa: E501
            f"{c['loop_seconds'] / c['seconds']:.0f} times faster; {c['peak_gb']:.2f} GB above the weights"
        )
    print(f'{torch.get_num_threads()} threads, torch {torch.__version__}, float32, m = 1000')
    if a.out:
        found = dict(threads=torch.get_num_threads(), torch=torch.__version__, cases=cases)
        save_json(a.out, found, sealed=True)


if __name__ == '__main__':
    main()
