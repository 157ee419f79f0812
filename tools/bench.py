"""Time one loss and its gradients: the forms of samplesplit_nb.objectives against double back-propagation.

python tools/bench.py [--out results/objectives/bench.json] [--repeats 15]
One process, all ways interleaved; medians. The matmul rate is measured in the same loop.
"""

import argparse, copy, statistics, time
from pathlib import Path
import torch
from samplesplit_nb.networks import MLP, SmoothReLU, SurrogateReLU
from samplesplit_nb.objectives import KKTObjective, NTKObjective
from samplesplit_nb.storage import save_json
from samplesplit_nb.training import train_ntk


def double_backprop(target, net, x, lam):
    "What one would write first: differentiate in the parameters with create_graph, then in the inputs"
    x, lam = x.clone().requires_grad_(), lam.clone().requires_grad_()
    f = torch.autograd.grad((lam * net(x)[:, 0]).sum(), list(net.parameters()), create_graph=True)
    loss = sum((t - p).square().sum() for t, p in zip(target, f))
    return loss.detach(), *torch.autograd.grad(loss, (x, lam))


def residual_flops(k, widths):
    "Multiplications and additions of the residual form's matrix products, with one output"
    d, m, n, _ = widths
    return 2 * k * (5 * d * m + 7 * m * n)


def medians(ways, repeats):
    times = {name: [] for name in ways}
    for _ in range(repeats + 2):
        for name, f in ways.items():
            start = time.perf_counter()
            f()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t[2:]) for name, t in times.items()}  # two rounds to warm up


def case(k, d, m, dtype, repeats, n=100):
    g = torch.Generator().manual_seed(0)
    init = MLP([d, m, m, 1], seed=0, dtype=dtype)
    X, y = 0.3 * torch.randn(n, d, generator=g), torch.where(torch.randn(n, generator=g) > 0, 1.0, -1.0)
    model = train_ntk(init, X, y).model
    ntk = {form: NTKObjective(model, init, 50.0, form=form) for form in ('residual', 'auto')}
    labels = torch.where(torch.randn(k, generator=g) > 0, 1.0, -1.0)
    kkt = {form: KKTObjective(model, labels, 50.0, form=form) for form in ('residual', 'auto')}
    x, lam = (0.2 * torch.randn(k, d, generator=g)).to(dtype), (torch.randn(k, generator=g) / k).to(dtype)
    nets = {'ntk': copy.deepcopy(init), 'kkt': copy.deepcopy(model).requires_grad_()}
    nets['ntk'].activation, nets['kkt'].activation = SmoothReLU(50.0), SurrogateReLU(50.0)
    A, B = torch.randn(k, m, generator=g).to(dtype), torch.randn(m, m, generator=g).to(dtype)
    signed = labels.to(dtype)
    ways = {
        'matmul': lambda: A @ B,
        'NTK naive': lambda: double_backprop(ntk['auto'].target, nets['ntk'], x, lam),
        'NTK residual': lambda: ntk['residual'].value_and_grad(x, lam),
        'NTK auto': lambda: ntk['auto'].value_and_grad(x, lam),
        'KKT naive': lambda: double_backprop(kkt['auto'].target, nets['kkt'], x, lam * signed),
        'KKT residual': lambda: kkt['residual'].value_and_grad(x, lam),
        'KKT auto': lambda: kkt['auto'].value_and_grad(x, lam),
    }
    agreement = max(
        ((a - b).norm() / b.norm()).item() for a, b in zip(ways['NTK auto'](), ways['NTK naive']())
    )
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    assert agreement < tolerance, agreement
    seconds = medians(ways, repeats)
    rate = 2 * k * m * m / seconds['matmul']
    return dict(
        k=k,
        d=d,
        m=m,
        dtype=str(dtype)[6:],
        seconds=seconds,
        gflop=residual_flops(k, init.widths) / 1e9,
        matmul_gflops=rate / 1e9,
        share=residual_flops(k, init.widths) / seconds['NTK residual'] / rate,
        form='Gram' if ntk['auto']._uses_gram(k) else 'residual',
    )


def table(cases):
    lines = [
        f"{'':26s}{'naive':>8s}{'residual':>10s}{'auto':>8s}{'naive/auto':>12s}{'KKT naive/auto':>16s}{'share of matmul rate':>22s}"  # noqa: E501
    ]
    for c in cases:
        t = {name: 1e3 * s for name, s in c['seconds'].items()}
        lines.append(
            f"{c['dtype']} d={c['d']:<5d}k={c['k']:<5d}".ljust(26)
            + f"{t['NTK naive']:8.1f}{t['NTK residual']:10.1f}{t['NTK auto']:8.1f}"
            f"{t['NTK naive'] / t['NTK auto']:12.2f}{t['KKT naive'] / t['KKT auto']:16.2f}{c['share']:16.0%} ({c['form']})"  # noqa: E501
        )
    return '\n'.join(lines)


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--out', type=Path, default=None)
    ap.add_argument('--repeats', type=int, default=15)
    a = ap.parse_args()
    cases = [
        case(k, d, 1000, dtype, a.repeats if k < 1000 else max(5, a.repeats // 3))
        for dtype in (torch.float32, torch.float64)
        for d in (784, 3072)
        for k in (100, 200, 1000)
    ]
    print(
        table(cases),
        f'\nmilliseconds; m = 1000, {torch.get_num_threads()} threads, torch {torch.__version__}',
    )
    if a.out:
        found = dict(threads=torch.get_num_threads(), torch=torch.__version__, cases=cases)
        save_json(a.out, found, sealed=True)


if __name__ == '__main__':
    main()
