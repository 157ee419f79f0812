"Sweeps behind nbs/01_objectives: every closed form against autograd on the network itself"

import copy
import pytest, torch
from hypothesis import given, strategies as st
from torch.func import functional_call, jacrev
from torch.testing import assert_close
from problems import random_problem
from samplesplit_nb.descent import Descent
from samplesplit_nb.networks import MLP, SmoothReLU
from samplesplit_nb.objectives import (
    DecayObjective, KKTObjective, MulticlassKKTObjective, NTKObjective,
    ReconstructionObjective, least_squares_multipliers)
from samplesplit_nb.presets import PRESETS, preset
from samplesplit_nb.splitting import Every, SplitRule, Splitting, reconstruct, split_samples
from samplesplit_nb.training import train_ntk


def per_sample_gradients(objective, x):
    "(k, P), by torch.func"
    network = objective.tangent.network
    net, params = copy.deepcopy(network), dict(network.named_parameters())
    net.activation = objective.activation
    rows = jacrev(lambda p: functional_call(net, p, (x,))[:, 0])(params)
    return torch.cat([rows[n].flatten(1) for n in params], dim=1)


flat = lambda vector: torch.cat([v.flatten() for v in vector])


@given(
    st.lists(st.integers(1, 7), min_size=2, max_size=4),
    st.integers(1, 5),
    st.sampled_from(['all', 'first', 'none']),
    st.sampled_from([1.0, 20.0, None]),
    st.integers(0, 1000),
)
def test_closed_forms_match_autograd(hidden, k, bias, sharpness, seed):
    objective, x, lam = random_problem(
        (*hidden, 1), k=k, seed=seed, sharpness=sharpness, bias=bias, box=(-0.3, 0.3)
    )
    F = per_sample_gradients(objective, x)
    assert_close(flat(objective.weighted_sum(x, lam)), lam @ F, rtol=1e-9, atol=1e-9)
    r = objective.residual(x, lam)
    assert_close(objective.inner(r, x), F @ flat(r), rtol=1e-9, atol=1e-9)
    assert_close(objective.loss(x, lam), flat(r).square().sum(), rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(
        objective.value_and_grad(x, lam), ReconstructionObjective.value_and_grad(objective, x, lam)
    ):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('seed', range(5))
def test_float32_gradient_is_that_of_float64(seed):
    a, x, lam = random_problem((30, 60, 60, 1), k=6, seed=seed)
    b, y, mu = random_problem((30, 60, 60, 1), k=6, seed=seed, dtype=torch.float32)
    for exact, rounded in zip(a.value_and_grad(x, lam), b.value_and_grad(y, mu)):
        assert (exact - rounded).norm() < 2e-5 * exact.norm()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('copies', [2, 5])
def test_multipliers_of_coinciding_candidates(dtype, copies):
    """Copies share the weight, evenly in float64.

    In float32 the rounding of <target, f> moves some between them, but nothing blows up."""
    objective, x, _ = random_problem((30, 60, 60, 1), k=4, seed=1, dtype=dtype)
    single = objective.multipliers(x)
    many = objective.multipliers(torch.cat([x] + [x[:1]] * (copies - 1)))
    same = torch.cat([many[:1], many[4:]])
    tol = 2e-2 if dtype == torch.float32 else 1e-3
    assert_close(same.sum(), single[0], rtol=tol, atol=0)
    assert (same - same.mean()).abs().max() < (
        single[0].abs() if dtype == torch.float32 else tol * same.mean().abs()
    )
    assert_close(many[1:4], single[1:], rtol=tol, atol=tol)


def test_least_squares_beats_any_other_multipliers():
    objective, x, _ = random_problem((10, 30, 1), k=5, seed=2)
    best, g = objective.multipliers(x), torch.Generator().manual_seed(0)
    lowest = objective.loss(x, best)
    for _ in range(50):
        assert objective.loss(x, best + 1e-3 * torch.randn(5, generator=g, dtype=torch.float64)) > lowest


def test_least_squares_multipliers_of_nothing_but_zero():
    "A candidate whose map vanishes gets a finite multiplier"
    lam = least_squares_multipliers(torch.diag(torch.tensor([4.0, 0.0])), torch.tensor([8.0, 0.0]))
    assert_close(lam, torch.tensor([2.0, 0.0]), rtol=1e-5, atol=1e-5)


def test_smoothed_shares_weights_and_changes_nothing_else():
    objective, x, lam = random_problem()
    other = objective.smoothed(50.0)
    assert other.tangent.network is objective.tangent.network and other.target is objective.target
    assert objective.activation == SmoothReLU(5.0) and other.activation == SmoothReLU(50.0)


def test_objective_keeps_its_own_copy_of_the_network():
    init, model = MLP([3, 4, 1], seed=0), MLP([3, 4, 1], seed=1)
    objective = NTKObjective(model, init)
    before = objective.loss(torch.ones(1, 3), torch.ones(1)).item()
    with torch.no_grad():
        init.layers[0].weight.zero_()
        model.layers[0].weight.zero_()
    assert objective.loss(torch.ones(1, 3), torch.ones(1)).item() == before


# The published attacks, any network, and the forms


def small_networks(outputs, bias='first', seed=0):
    return [
        MLP([6, 9, 8, outputs], bias=bias, init='pytorch', seed=seed + s, dtype=torch.float64)
        for s in (0, 50)
    ]


def labelled(kind, seed, k, **settings):
    "A KKT attack on a random network, candidates and multipliers"
    g = torch.Generator().manual_seed(seed)
    x, lam = (
        torch.randn(k, 6, generator=g, dtype=torch.float64),
        torch.randn(k, generator=g, dtype=torch.float64),
    )
    if kind == 'binary':
        return (
            KKTObjective(
                small_networks(1, seed=seed)[0],
                torch.where(torch.rand(k, generator=g) < 0.5, -1.0, 1.0),
                5.0,
                **settings,
            ),
            x,
            lam,
        )
    return (
        MulticlassKKTObjective(
            small_networks(4, seed=seed)[0], torch.randint(4, (k,), generator=g), 5.0, **settings
        ),
        x,
        lam,
    )


@given(
    st.sampled_from(['binary', 'multiclass']),
    st.integers(1, 7),
    st.integers(0, 1000),
    st.sampled_from(['residual', 'gram']),
)
def test_labelled_attacks_match_autograd_through_the_loss(kind, k, seed, form):
    objective, x, lam = labelled(kind, seed, k, form=form, box=(-0.3, 0.3), lam_min=0.2)
    for ours, theirs in zip(
        objective.value_and_grad(x, lam), ReconstructionObjective.value_and_grad(objective, x, lam)
    ):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    best = objective.multipliers(x)
    assert (best >= 0.2 - 1e-12).all()
    value, grad, lam_star = objective.projected_value_and_grad(x)
    assert_close(lam_star, best, rtol=1e-6, atol=1e-6)
    assert_close(value, objective(x, best), rtol=1e-6, atol=1e-8)


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 1000), st.sampled_from(['binary', 'multiclass']))
def test_chunks_change_nothing(chunk, k, seed, kind):
    whole, x, lam = labelled(kind, seed, k, lam_min=0.0)
    parts, *_ = labelled(kind, seed, k, lam_min=0.0, chunk_size=chunk)
    for a, b in zip(
        (*whole.value_and_grad(x, lam), whole.multipliers(x)),
        (*parts.value_and_grad(x, lam), parts.multipliers(x)),
    ):
        assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 2e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize('k', [1, 5, 40])
def test_gram_form_is_the_residual_form(dtype, tolerance, k):
    "Dense, low-rank and own targets; k below and above the widths"
    g = torch.Generator().manual_seed(k)
    init = MLP([30, 60, 50, 1], seed=1, dtype=dtype)
    data = torch.randn(4, 30, generator=g, dtype=torch.float64)
    model = train_ntk(init, data, torch.tensor([1.0, -1, 1, -1])).model
    x, lam = torch.randn(k, 30, generator=g).to(dtype), torch.randn(k, generator=g).to(dtype)
    labels = torch.where(torch.rand(k, generator=g) < 0.5, -1.0, 1.0)
    for make in (
        lambda form: NTKObjective(model, init, 20.0, form=form),
        lambda form: NTKObjective(MLP([30, 60, 50, 1], seed=2, dtype=dtype), init, 20.0, form=form),
        lambda form: KKTObjective(model, labels, 20.0, form=form),
    ):
        for a, b in zip(make('gram').value_and_grad(x, lam), make('residual').value_and_grad(x, lam)):
            assert (a - b).norm() <= tolerance * b.norm()


def test_gram_form_says_which_target_is_thin():
    init = MLP([100, 120, 110, 1], seed=1)
    g = torch.Generator().manual_seed(0)
    model = train_ntk(init, torch.randn(7, 100, generator=g), torch.tensor([1.0, -1, 1, -1, 1, -1, 1])).model
    assert [p.rank for p in NTKObjective(model, init)._gram_form.parts[:2]] == [7, 7]
    assert [p.rank for p in NTKObjective(MLP([100, 120, 110, 1], seed=5), init)._gram_form.parts[:2]] == [
        100,
        110,
    ]
    assert all(p.own for p in KKTObjective(model, torch.ones(3))._gram_form.parts)


def test_value_near_a_solution_does_not_cancel():
    "float32: the Gram form's own value would be off by more than the loss itself"
    init = MLP([100, 120, 110, 1], seed=1)
    g = torch.Generator().manual_seed(0)
    X = torch.randn(7, 100, generator=g)
    trained = train_ntk(init, X, torch.tensor([1.0, -1, 1, -1, 1, -1, 1]))
    gram, residual = (NTKObjective(trained.model, init, None, form=form) for form in ('gram', 'residual'))
    lam = trained.multipliers.float()
    a, b = gram.value_and_grad(X, lam)[0], residual.value_and_grad(X, lam)[0]
    assert_close(a, b, rtol=1e-3, atol=0)
    assert b < 1e-8 * sum(t.square().sum() for t in gram.target)


def test_children_inherit_labels_and_a_split_lowers_the_loss():
    for kind in ('binary', 'multiclass'):
        objective, x, lam = labelled(kind, 3, 5)
        x2, lam2, split = split_samples(
            objective, x, lam, SplitRule(threshold=-1e-6, eta_max=0.3, max_fraction=0.6)
        )
        assert len(split.chosen) and split.loss_after < split.loss_before
        after = objective.select(split.parents)
        assert torch.equal(after.labels, objective.labels[split.parents]) and len(after.labels) == len(x2)
        assert_close(after.loss(x2, lam2).item(), split.loss_after, rtol=1e-9, atol=0)
        with pytest.raises(ValueError, match='one candidate per label'):
            objective.loss(x2, lam2)


def test_reconstruct_carries_labels_through_splits():
    objective, x, lam = labelled('binary', 1, 4, lam_min=0.0)
    splitting = Splitting(SplitRule(threshold=-1e-9, eta_max=0.3), Every(15))
    out = reconstruct(objective, 0.3 * x, lam, Descent(40, 0.01), splitting)
    assert len(out.x) > 4 and len(out.splits) == 2 and (out.lam >= 0).all()
    assert out.history.loss[-1] < out.history.loss[0]


def test_a_convolutional_network_without_softening_has_no_curvature_and_with_it_some():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(3 * 9, 1)
    ).double()
    x = torch.randn(2, 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sharpness, some in ((None, False), (10.0, True)):
        objective = KKTObjective(net, torch.tensor([1.0, -1]), sharpness, shape=(1, 5, 5))
        z = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(
            objective.inner(objective.residual(x, torch.ones(2).double()), z).sum(), z, create_graph=True
        )
        (second,) = torch.autograd.grad(slope.sum(), z, materialize_grads=True)
        assert (second.abs().max() > 1e-6) == some
    assert isinstance(net[1], torch.nn.ReLU)  # the user's network is left as it is


def test_dropout_and_batch_statistics_are_frozen():
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 8),
        torch.nn.BatchNorm1d(8),
        torch.nn.Tanh(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(8, 1),
    ).double()
    objective = KKTObjective(net, torch.ones(3), shape=(6,))
    x, lam = (
        torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        torch.ones(3).double(),
    )
    assert objective.loss(x, lam) == objective.loss(x, lam) and net.training


def test_vector_multipliers_of_regression():
    objective = DecayObjective(small_networks(3)[0], 5.0)
    g = torch.Generator().manual_seed(0)
    x, lam = (
        torch.randn(4, 6, generator=g, dtype=torch.float64),
        torch.randn(4, 3, generator=g, dtype=torch.float64),
    )
    for ours, theirs in zip(
        objective.value_and_grad(x, lam), ReconstructionObjective.value_and_grad(objective, x, lam)
    ):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    best = objective.multipliers(x)
    assert best.shape == (4, 3)
    assert_close(objective.value_and_grad(x, best)[2], torch.zeros(4, 3).double(), rtol=0, atol=1e-8)


@pytest.mark.parametrize('name', sorted(PRESETS))
def test_presets_make_their_start(name):
    values = preset(name)
    x, lam = values.start(300, 50, seed=2)
    assert x.shape == (300, 50) and abs(x.std().item() / values.start_scale - 1) < 0.05
    if values.multipliers == 'normal':
        assert values.lam_min is None and lam.abs().max() > 2 and abs(lam.std() - 1) < 0.1
    else:
        assert values.multipliers[0] <= lam.min() and lam.max() <= values.multipliers[1]
    assert torch.equal(x, values.start(300, 50, seed=2)[0]) and not torch.equal(
        x, values.start(300, 50, seed=3)[0]
    )
    assert values.start(7, 5, outputs=3)[1].shape == (7, 3)
