"Sweeps behind nbs/support/certificates and training: kinks and ties, Clarke's sense, trainings that repeat"

import copy
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close
from samplesplit_nb.networks import MLP
from samplesplit_nb.training import train_gd, train_kkt
from samplesplit_nb.stationarity import (
    _affine, sample_margins, clarke_stationarity, kkt_stationarity, pin_to_kinks)

flat = lambda net: torch.cat([p.detach().double().flatten() for p in net.parameters()])


def problem(widths, n, seed, bias='first'):
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, widths[0], generator=g, dtype=torch.float64)
    y = (
        torch.arange(n) % widths[-1]
        if widths[-1] > 1
        else torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0).double()
    )
    return (
        MLP(list(widths), bias=bias, seed=seed, dtype=torch.float64, init='pytorch').requires_grad_(False),
        X,
        y,
    )


shapes = st.tuples(st.integers(1, 8), st.integers(1, 12), st.integers(1, 9), st.sampled_from([1, 2, 4]))


@given(
    shapes,
    st.integers(1, 12),
    st.sampled_from(['first', 'none', 'all']),
    st.floats(1e-3, 0.5),
    st.integers(0, 99),
)
def test_pinning_moves_each_neuron_by_at_most_tol_and_leaves_no_near_kink(widths, n, bias, tol, seed):
    """Also with more samples than dimensions; a plane within reach of a neuron that did not move at all does
    not exist"""
    net, X, y = problem(widths, n, seed, bias)
    before = flat(net)
    pinned, moved = pin_to_kinks(net, X, y if widths[-1] > 1 else None, tol)
    assert torch.equal(flat(net), before) and moved <= tol * (1 + 1e-9)
    h = X
    for old, new in zip(net.layers, pinned.layers):
        (a, _), (b, inputs) = _affine(old, h), _affine(new, h)
        change, size = (a - b).norm(dim=1), a.norm(dim=1)
        if new is pinned.layers[-1]:
            assert (a - b).norm() <= tol * a.norm() * (1 + 1e-6)
            break
        assert (change <= tol * size * (1 + 1e-6)).all()
        length = inputs.norm(dim=1)
        distance = (inputs @ a.T).abs() / length.clamp_min(1e-300)[:, None]
        still = (change == 0) & (length > 1e-9).any()
        assert (distance[length > 1e-9][:, still] > tol * size[still]).all()
        h = new(h).relu()


@pytest.mark.parametrize('bias', ['first', 'none', 'all'])
def test_copies_of_a_sample_are_pinned_with_it(bias):
    net, X, _ = problem((6, 30, 20, 1), 4, 0, bias)
    both, moved = pin_to_kinks(net, torch.cat([X, X]), tol=0.1)
    alone, alike = pin_to_kinks(net, X, tol=0.1)
    assert_close((flat(both), moved), (flat(alone), alike), rtol=0, atol=1e-9)
    zero = (both.layers[0](X).abs() < 1e-14).sum()
    assert zero == (alone.layers[0](X).abs() < 1e-14).sum() > 0


def gated_sum(net, X, y, lam, slopes):
    "sum_i lam_i g_i(s) by autograd: hidden layers h = s z, whose derivative is s wherever z is"
    net = copy.deepcopy(net).double().requires_grad_()
    h = X
    for layer, s in zip(net.layers, slopes):
        h = s * layer(h)
    (lam @ sample_margins(net.layers[-1](h), y)).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@settings(max_examples=20)
@given(
    shapes.filter(lambda w: w[-1] != 4),
    st.integers(1, 6),
    st.sampled_from(['first', 'none']),
    st.sampled_from([0.05, 0.3]),
    st.integers(0, 99),
)
def test_residual_is_that_of_the_slopes_and_multipliers_returned(widths, n, bias, tol, seed):
    net, X, y = problem(widths, n, seed, bias)
    net, _ = pin_to_kinks(net, X, tol=tol)
    r, lam, slopes = clarke_stationarity(net, X, y)
    theta = flat(net)
    assert_close(
        (theta - gated_sum(net, X, y, lam, slopes)).norm() / theta.norm(),
        torch.tensor(r).double(),
        rtol=1e-6,
        atol=1e-6,
    )
    assert (lam >= 0).all()
    h = X
    for layer, s in zip(net.layers, slopes):
        z, (rows, inputs) = layer(h), _affine(layer, h)
        off = z.abs() > 1e-13 * inputs.norm(dim=1)[:, None] * rows.norm(dim=1)
        assert torch.equal(s[off], (z > 0).double()[off])  # nothing is free off the kinks
        assert (s >= 0).all() and (s <= 1).all()
        h = z.relu()


@pytest.mark.parametrize('widths', [(10, 20, 1), (10, 20, 12, 1), (10, 20, 3)])
@pytest.mark.parametrize('seed', range(3))
def test_trained_networks(widths, seed):
    """The record holds for the networks in it; the certificate does not depend on scale or, up to rounding,
    on the dtype"""
    net, X, y = problem(widths, 6, seed)
    k = train_kkt(net, X, y, max_steps=1000)
    assert k.clarke <= k.stationarity and k.moved <= 1e-2
    assert sample_margins(k.pinned(X), y).min() > 0.9
    assert_close(k.stationarity, kkt_stationarity(k.model, X, y)[0], rtol=1e-6, atol=1e-7)
    assert_close(k.clarke, clarke_stationarity(k.pinned, X, y)[0], rtol=1e-6, atol=1e-7)
    assert_close(
        k.moved, ((flat(k.pinned) - flat(k.model)).norm() / flat(k.model).norm()).item(), rtol=1e-6, atol=1e-9
    )
    assert_close(
        k.clarke, clarke_stationarity(copy.deepcopy(k.pinned).float(), X, y)[0], rtol=5e-2, atol=1e-4
    )
    bigger = copy.deepcopy(k.pinned)
    for p in bigger.parameters():
        p.mul_(3.0)
    assert_close(k.clarke, clarke_stationarity(bigger, X, y)[0], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize('train,kw', [(train_gd, dict(steps=30)), (train_kkt, dict(max_steps=300))])
def test_a_training_repeats_itself_and_shows_how_far_it_is(train, kw, capsys):
    "To the bit, however long the first step takes: the clock has no say in a run that max_steps ends"
    net, X, y = problem((5, 12, 1), 6, 0)
    one, two = train(net, X, y, **kw), train(net, X, y, progress='going', **kw)
    assert torch.equal(flat(one.model), flat(two.model)) and one.stationarity == two.stationarity
    last = capsys.readouterr().err.replace('\r', '\n').strip().split('\n')[-1]
    assert last.startswith('going: 100%') and 'loss=' in last


def test_one_gradient_for_each_class_that_ties():
    """Three classes, two of them wrong and equal: theta is a combination of both gradients, and of no single
    one"""
    net = MLP([2, 3], bias='none', dtype=torch.float64).requires_grad_(False)
    x, y = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([0])
    net.layers[0].weight.copy_(torch.tensor([[2.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]))
    r, lam, _ = clarke_stationarity(net, x, y)
    assert r < 1e-6 and abs(lam.item() - 2) < 1e-6
    net.layers[0].weight[1, 0] = -1.001  # no tie, no choice
    assert clarke_stationarity(net, x, y)[0] > 0.4
    tied, moved = pin_to_kinks(net, x, y)
    assert 0 < moved < 1e-3 and clarke_stationarity(tied, x, y)[0] < 1e-3


def test_dead_samples_and_dead_networks():
    net, X, y = problem((4, 5, 5, 1), 3, 0, 'none')
    net.layers[0].weight.zero_()
    r, lam, _ = clarke_stationarity(pin_to_kinks(net, X)[0], X, y)
    assert r == 1.0 and not lam.any()
    net, X, y = problem((4, 5, 5, 1), 3, 0, 'none')
    X[0] = 0.0  # all its pre-activations are 0, whatever the weights
    r, _, slopes = clarke_stationarity(net, X, y)
    assert_close(r, kkt_stationarity(net, X, y)[0])
    assert not slopes[0][0].any()
