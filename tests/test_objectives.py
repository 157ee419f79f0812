"Sweeps behind nbs/01_objectives: every closed form against autograd on the network itself"
import copy
import pytest, torch
from hypothesis import given, strategies as st
from torch.func import functional_call, jacrev
from torch.testing import assert_close
from problems import random_problem
from samplesplit_nb.networks import MLP, SmoothReLU
from samplesplit_nb.objectives import ReconstructionObjective, least_squares_multipliers


def per_sample_gradients(objective, x):
    "(k, P), by torch.func"
    net, params = copy.deepcopy(objective.network), dict(objective.network.named_parameters())
    net.activation = objective.activation
    rows = jacrev(lambda p: functional_call(net, p, (x,))[:, 0])(params)
    return torch.cat([rows[n].flatten(1) for n in params], dim=1)


flat = lambda vector: torch.cat([v.flatten() for v in vector])


@given(st.lists(st.integers(1, 7), min_size=2, max_size=4), st.integers(1, 5), st.sampled_from(['all', 'first', 'none']),
       st.sampled_from([1., 20., None]), st.integers(0, 1000))
def test_closed_forms_match_autograd(hidden, k, bias, sharpness, seed):
    objective, x, lam = random_problem((*hidden, 1), k=k, seed=seed, sharpness=sharpness, bias=bias, box=(-.3, .3))
    F = per_sample_gradients(objective, x)
    assert_close(flat(objective.weighted_sum(x, lam)), lam @ F, rtol=1e-9, atol=1e-9)
    r = objective.residual(x, lam)
    assert_close(objective.inner(r, x), F @ flat(r), rtol=1e-9, atol=1e-9)
    assert_close(objective.loss(x, lam), flat(r).square().sum(), rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(objective.value_and_grad(x, lam), ReconstructionObjective.value_and_grad(objective, x, lam)):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('seed', range(5))
def test_float32_gradient_is_that_of_float64(seed):
    a, x, lam = random_problem((30, 60, 60, 1), k=6, seed=seed)
    b, y, mu = random_problem((30, 60, 60, 1), k=6, seed=seed, dtype=torch.float32)
    for exact, rounded in zip(a.value_and_grad(x, lam), b.value_and_grad(y, mu)):
        assert (exact - rounded).norm() < 2e-5*exact.norm()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('copies', [2, 5])
def test_multipliers_of_coinciding_candidates(dtype, copies):
    "Copies share the weight: evenly in float64; in float32 the rounding of <target, f> moves some between them, but nothing blows up"
    objective, x, _ = random_problem((30, 60, 60, 1), k=4, seed=1, dtype=dtype)
    single = objective.multipliers(x)
    many = objective.multipliers(torch.cat([x] + [x[:1]]*(copies - 1)))
    same = torch.cat([many[:1], many[4:]])
    tol = 2e-2 if dtype == torch.float32 else 1e-3
    assert_close(same.sum(), single[0], rtol=tol, atol=0)
    assert (same - same.mean()).abs().max() < (single[0].abs() if dtype == torch.float32 else tol*same.mean().abs())
    assert_close(many[1:4], single[1:], rtol=tol, atol=tol)


def test_least_squares_beats_any_other_multipliers():
    objective, x, _ = random_problem((10, 30, 1), k=5, seed=2)
    best, g = objective.multipliers(x), torch.Generator().manual_seed(0)
    lowest = objective.loss(x, best)
    for _ in range(50): assert objective.loss(x, best + 1e-3*torch.randn(5, generator=g, dtype=torch.float64)) > lowest


def test_least_squares_multipliers_of_nothing_but_zero():
    "A candidate whose map vanishes gets a finite multiplier"
    lam = least_squares_multipliers(torch.diag(torch.tensor([4., 0.])), torch.tensor([8., 0.]))
    assert_close(lam, torch.tensor([2., 0.]), rtol=1e-5, atol=1e-5)


def test_smoothed_shares_weights_and_changes_nothing_else():
    objective, x, lam = random_problem()
    other = objective.smoothed(50.)
    assert other.network is objective.network and other.target is objective.target
    assert objective.activation == SmoothReLU(5.) and other.activation == SmoothReLU(50.)


def test_objective_keeps_its_own_copy_of_the_network():
    init, model = MLP([3, 4, 1], seed=0), MLP([3, 4, 1], seed=1)
    from samplesplit_nb.objectives import NTKObjective
    objective = NTKObjective(model, init)
    before = objective.loss(torch.ones(1, 3), torch.ones(1)).item()
    with torch.no_grad(): init.layers[0].weight.zero_(); model.layers[0].weight.zero_()
    assert objective.loss(torch.ones(1, 3), torch.ones(1)).item() == before
