"""Every inequality behind nbs/03_convergence over a hundred and more random instances, each with a control
that fails"""

import math
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.func import hessian, jvp
from torch.testing import assert_close
from problems import random_problem
from samplesplit_nb.convergence import (
    Majorant,
    activation_bounds,
    hessian_min_eigenvalue,
    hessian_product,
    local_smoothness,
    run_algorithm1,
    smoothness,
    stationarity_certificate,
    tangent_bounds,
    theorem_bound,
)
from samplesplit_nb.networks import MLP, Polynomial, SmoothReLU
from samplesplit_nb.objectives import KKTObjective, NTKObjective
from samplesplit_nb.splitting import min_curvature, offspring, splitting_matrix

HUNDRED = range(120)


def instance(seed, k=2):
    "A random objective of random width and depth, its candidates within radius 2, multipliers of both signs"
    g = torch.Generator().manual_seed(seed)
    d, depth = 2 + seed % 3, 1 + seed % 2
    activation = (SmoothReLU(), Polynomial((0.0, 1.0, 0.3, 0.1)))[seed % 5 == 4]
    nets = [
        MLP(
            [d] + [3 + seed % 4] * depth + [1],
            activation,
            seed=seed + s,
            dtype=torch.float64,
            bias=('all', 'first', 'none')[seed % 3],
        )
        for s in (500, 900)
    ]
    z = torch.randn(k, d, generator=g, dtype=torch.float64)
    return (
        NTKObjective(*nets, sharpness=2.0),
        2 * z / z.norm(dim=1, keepdim=True) * torch.rand(k, 1, generator=g, dtype=torch.float64),
        torch.randn(k, generator=g, dtype=torch.float64),
    )


def dense(objective, x, lam):
    return hessian(lambda x: objective.loss(x, lam))(x).reshape(x.numel(), x.numel())


def splittings(objective, x, lam):
    return torch.block_diag(*[splitting_matrix(objective, x, lam, i) for i in range(len(x))])


def test_lemma_b2():
    """lambda_min(H) >= min lambda_min(S); with J'J subtracted, or with the largest eigenvalue of S in place
    of the smallest, it fails"""
    turned = largest = 0
    for seed in HUNDRED:
        objective, x, lam = instance(seed)
        H, S = dense(objective, x, lam), splittings(objective, x, lam)
        low, bound, scale = torch.linalg.eigvalsh(H)[0], torch.linalg.eigvalsh(S)[0], H.abs().max()
        assert low >= bound - 1e-9 * scale
        turned += int(torch.linalg.eigvalsh(2 * S - H)[0] < bound - 1e-9 * scale)
        largest += int(low < torch.linalg.eigvalsh(S)[-1] - 1e-9 * scale)
    assert turned > 100 and largest > 50


def test_constants_bound_what_is_met():
    """l and rho against the second and third derivative at random points of the region; a thousandth of them
    is too little"""
    broken_l = broken_rho = 0
    for seed in HUNDRED:
        objective, x, lam = instance(seed)
        proved = smoothness(objective, x, lam, radius=2.0)
        l, rho = local_smoothness(objective, x, lam, iterations=2, starts=1)
        assert l <= proved.l and rho <= proved.rho
        broken_l, broken_rho = broken_l + int(l > proved.l / 1000), broken_rho + int(rho > proved.rho / 1000)
    assert broken_l > 20 and broken_rho > 5


def test_a_gradient_step_of_one_over_l_descends():
    "L(x - g/l) <= L - |g|^2 / (2 l), anywhere; with l a thousand times too small it breaks"
    broken = 0
    for seed in HUNDRED:
        objective, x, lam = instance(seed)
        l = smoothness(objective, x, lam, radius=2.5).l
        value, g, _ = objective.value_and_grad(x, lam)
        assert objective.loss(x - g / l, lam) <= value - g.square().sum() / (2 * l) + 1e-12 * value
        assert (x - g / l).norm(dim=1).max() <= 2.5  # the step stays in the region
        m = l / 1000
        broken += int(objective.loss(x - g / m, lam) > value - g.square().sum() / (2 * m))
    assert broken > 20


def test_a_split_of_the_theorems_length_descends():
    """Where lambda_min < -eps_H: L falls by at least eps_H eta^2 / 4, for eps over three decades; along the
    highest eigenvector it does not"""
    splits = wrong = 0
    for seed in HUNDRED:
        objective, x, lam = instance(seed)
        rho = smoothness(objective, x, lam, radius=2.5).rho
        values, vectors, _ = min_curvature(objective, x, lam)
        i, before = int(values.argmin()), objective.loss(x, lam)
        high = torch.linalg.eigh(splitting_matrix(objective, x, lam, i))
        for eps in (0.1 * values[i] ** 2 / rho, 0.9 * values[i] ** 2 / rho) if values[i] < 0 else ():
            eta, eps_H = 1.5 * math.sqrt(eps / rho), math.sqrt(rho * eps)
            assert values[i] < -eps_H
            fall = lambda v: before - objective.loss(*offspring(x, lam, torch.tensor([i]), v, eta)[:2])
            assert fall(vectors[i : i + 1]) >= eps_H * eta**2 / 4 - 1e-13 * before
            splits += 1
            wrong += int(fall(high[1][:, -1:].T) < eps_H * eta**2 / 4)
    assert splits >= 200 and wrong > 150


def test_rho_bounds_the_third_derivative_along_splits():
    """d^3 L / d eta^3 while the children of s splits move by unit vectors, at steps where L is no higher than
    before: at most s^(3/2) rho (the paper's route: (2 s)^(3/2) times the rho of all children). A thousandth
    of it is too little"""
    broken, tried = 0, [0, 0]
    for seed in HUNDRED:
        objective, x, lam = instance(seed)
        s, before = 1 + seed % 2, objective.loss(x, lam)
        rho, v = smoothness(objective, x, lam, radius=3.0).rho, min_curvature(objective, x, lam).vectors[:s]
        L = third = lambda eta: objective.loss(*offspring(x, lam, torch.arange(s), v, eta)[:2])
        for _ in range(3):
            third = (lambda f: lambda t: jvp(f, (t,), (torch.ones_like(t),))[1])(third)
        for eta in (0.1, 0.5, 0.9):
            if L(eta) <= before:
                here = third(torch.tensor(eta, dtype=torch.float64)).abs()
                assert here <= s**1.5 * rho
                broken += int(here > s**1.5 * rho / 1000)
                tried[s - 1] += 1
    assert broken > 10 and min(tried) > 30


@given(st.lists(st.floats(0, 3), min_size=4, max_size=4), st.lists(st.floats(0, 3), min_size=4, max_size=4))
def test_majorants_multiply_like_taylor_series(a, b):
    "Scaled by 1/p!, Leibniz is the product of polynomials, Faa di Bruno their composition"
    series = lambda m: [m[p] / math.factorial(p) for p in range(4)]
    product = [sum(series(a)[q] * series(b)[p - q] for q in range(p + 1)) for p in range(4)]
    assert_close(series(Majorant(a) * Majorant(b)), product, rtol=1e-12, atol=1e-12)
    inner, outer, composed, power = [0.0, *series(a)[1:]], series(b), [0.0] * 4, [1.0, 0.0, 0.0, 0.0]
    for n in range(4):
        composed = [c + outer[n] * p for c, p in zip(composed, power)]
        power = [sum(power[q] * inner[p - q] for q in range(p + 1)) for p in range(4)]
    assert_close(series(Majorant(a).compose(b)), composed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    'activation',
    [SmoothReLU(0.5), SmoothReLU(7.0), Polynomial.power(3), Polynomial((1.0, -2.0, 0.0, 0.5, 0.1))],
    ids=str,
)
def test_activation_bounds_hold(activation):
    z, f = torch.linspace(-3, 3, 4001, dtype=torch.float64), activation
    for bound in activation_bounds(activation, 3.0):
        assert f(z).abs().max() <= bound * (1 + 1e-12)
        f = (lambda g: lambda t: jvp(g, (t,), (torch.ones_like(t),))[1])(f)


@pytest.mark.parametrize('seed', range(12))
def test_algorithm_1_keeps_the_theorems_counts(seed):
    g = torch.Generator().manual_seed(seed)
    objective = NTKObjective(
        *[MLP([2, 8, 1], seed=seed + s, dtype=torch.float64) for s in (100, 200)], sharpness=2.0
    )
    objective.target = objective.weighted_sum(
        3 * torch.rand(3, 2, generator=g, dtype=torch.float64) - 1.5, torch.full((3,), 1 / 3).double()
    )
    x, lam = 0.2 * torch.randn(1, 2, generator=g, dtype=torch.float64), torch.ones(1).double()
    constants = smoothness(objective, x, lam, radius=2.5)
    r, bound = run_algorithm1(objective, x, lam, 0.005, constants, max_steps=30_000)
    assert r.result.startswith('stable') and r.x.norm(dim=1).max() <= 2.5
    assert sum(len(s.chosen) for s in r.splits) <= bound.splits and r.history.step[-1] <= bound.steps
    assert r.history.gradient[-1] <= 0.005 and r.splits[-1].values.min() > -bound.eps_H
    assert_close(r.lam.sum(), lam.sum(), rtol=1e-12, atol=0)  # fixed, but for the halving
    certificate = stationarity_certificate(objective, r.x, r.lam, 0.005, constants.rho)
    assert certificate.second_order and certificate.splitting_stable


def small_cnn(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Conv2d(1, 2, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8, 1)
        ).double()


CASES = {
    'mlp': lambda: NTKObjective(
        *[MLP([9, 7, 1], seed=s, dtype=torch.float64) for s in (1, 2)], sharpness=3.0
    ),
    'boxed': lambda: NTKObjective(
        *[MLP([9, 7, 1], seed=s, dtype=torch.float64) for s in (1, 2)], sharpness=3.0, box=(-0.3, 0.3)
    ),
    'cnn': lambda: NTKObjective(small_cnn(1), small_cnn(2), 3.0, shape=(1, 3, 3)),
    'three outputs': lambda: NTKObjective(
        *[MLP([9, 7, 3], seed=s, dtype=torch.float64) for s in (1, 2)], sharpness=3.0
    ),
}


@pytest.mark.parametrize('name', CASES)
def test_matrix_free_equals_dense(name):
    objective, g = CASES[name](), torch.Generator().manual_seed(0)
    x = torch.randn(3, 9, generator=g, dtype=torch.float64)
    lam = torch.randn(objective.multiplier_shape(3), generator=g, dtype=torch.float64)
    value = (
        (lambda x: objective.loss(x, lam) + objective.penalty(x, lam))
        if name == 'boxed'
        else lambda x: sum(
            (t - s).square().sum() for t, s in zip(objective.target, objective.weighted_sum(x, lam))
        )
    )
    H = hessian(value)(x).reshape(27, 27)
    product = hessian_product(objective, x, lam)
    v = torch.randn(3, 9, generator=g, dtype=torch.float64)
    assert_close(product(v).flatten(), H @ v.flatten(), rtol=1e-9, atol=1e-9)
    low = hessian_min_eigenvalue(objective, x, lam)
    assert_close(low.values.item(), torch.linalg.eigvalsh(H)[0].item(), rtol=1e-8, atol=1e-8)
    assert_close(product(low.vectors.view_as(x)).flatten(), low.values * low.vectors[0], rtol=0, atol=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.floats(1e-6, 1e3), st.floats(1e-6, 1e3))
def test_certificates_do_not_contradict_themselves(seed, eps, rho):
    objective, x, lam = random_problem((3, 8, 1), k=2, seed=seed)
    c = stationarity_certificate(objective, x, lam, eps, rho)
    assert (
        c.first_order == (c.gradient <= eps)
        and (c.second_order <= c.first_order)
        and (c.splitting_stable <= c.first_order)
    )
    if c.splitting_stable and c.hessian_error < 1e-6:
        assert c.second_order  # Lemma B.2
    assert c.hessian_min >= c.splitting_min - 1e-6 and c.products <= 6 + 20
    assert c.verdict.startswith(
        'second-order' if c.second_order else 'stationary but' if c.first_order else 'not stationary'
    )


def test_float32_certificate():
    a, b = (
        stationarity_certificate(*random_problem((5, 10, 1), k=2, seed=1, dtype=dtype), 0.1, 1.0)
        for dtype in (torch.float32, torch.float64)
    )
    assert_close(
        (a.loss, a.gradient, a.splitting_min, a.hessian_min),
        (b.loss, b.gradient, b.splitting_min, b.hessian_min),
        rtol=1e-3,
        atol=1e-4,
    )


def test_sampled_constants_grow_with_the_sample_and_stay_below_the_bound():
    objective, x, lam = instance(0)
    few, many, proved = (
        smoothness(objective, x, lam, radius=2.0, **kw)
        for kw in (dict(method='sampled', samples=2), dict(method='sampled', samples=5), {})
    )
    assert few.l <= many.l <= proved.l and few.rho <= many.rho <= proved.rho
    assert 'lower estimate' in few.meaning and proved.meaning.startswith('proved')


@given(st.floats(1e-3, 10), st.floats(1e-4, 1), st.floats(0.1, 100), st.floats(0.1, 100))
def test_the_bound_scales_as_the_theorem_says(L0, eps, l, rho):
    b = theorem_bound(L0, eps, l, rho)
    assert_close(b.splits, 16 / 9 * math.sqrt(rho) * L0 * eps**-1.5, rtol=1e-9, atol=0)
    assert_close(b.steps - b.splits, 2 * l * L0 / eps**2, rtol=1e-6, atol=0)
    assert theorem_bound(L0, eps, l, rho, eta=b.eta / 2).splits > b.splits


relu = lambda: NTKObjective(*[MLP([3, 5, 1], seed=s, dtype=torch.float64) for s in (1, 2)], sharpness=None)
surrogate = lambda: KKTObjective(MLP([3, 5, 1], bias='first', dtype=torch.float64), torch.ones(1))
cnn = lambda: NTKObjective(small_cnn(1), small_cnn(2), 3.0, shape=(1, 3, 3))
x3, x9, one = torch.ones(1, 3).double(), torch.ones(1, 9).double(), torch.ones(1).double()


@pytest.mark.parametrize(
    'call,says',
    [
        (lambda: theorem_bound(1.0, 0.0, 1.0, 1.0), 'eps=0.0'),
        (lambda: theorem_bound(1.0, 1.0, 1.0, -1.0), 'rho=-1.0'),
        (lambda: theorem_bound(1.0, math.nan, 1.0, 1.0), 'eps=nan'),
        (lambda: theorem_bound(math.inf, 1.0, 1.0, 1.0), 'L0=inf'),
        (lambda: theorem_bound(1.0, 1.0, 1.0, 1.0, eta_g=2.0), 'eta_g=2.0'),
        (lambda: theorem_bound(1.0, 1.0, 1.0, 1.0, eta=2.0), 'eta=2.0'),
        (lambda: stationarity_certificate(relu(), x3, one, 1.0, 1.0), 'smooth it: objective.smoothed'),
        (lambda: smoothness(relu(), x3, one), 'smooth it: objective.smoothed'),
        (lambda: smoothness(surrogate(), x3, one), 'surrogate derivative'),
        (lambda: stationarity_certificate(surrogate(), x3, one, 1.0, 1.0), 'surrogate derivative'),
        (lambda: smoothness(cnn(), x9, one), "'sampled' for this objective"),
        (lambda: smoothness(relu().smoothed(2.0), x3, one, radius=0.0), 'radius=0.0'),
        (lambda: smoothness(relu().smoothed(2.0), x3, one, method='guess'), "method='guess'"),
        (lambda: stationarity_certificate(relu().smoothed(2.0), x3, one, -1.0, 1.0), 'eps=-1.0'),
        (lambda: stationarity_certificate(relu().smoothed(2.0), x3, one, 1.0, 0.0), 'rho=0.0'),
        (lambda: hessian_min_eigenvalue(relu().smoothed(2.0), x3[:, :2], one), 'x.shape'),
        (lambda: hessian_min_eigenvalue(relu().smoothed(2.0), x3, one, num_matvecs=0), 'num_matvecs=0'),
        (lambda: tangent_bounds(relu().tangent, 1.0), 'smooth a ReLU'),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=says.replace('(', r'\(').replace('.', r'\.')):
        call()
