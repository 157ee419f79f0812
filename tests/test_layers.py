"Sweeps behind nbs/beyond/layers and nbs/beyond/spans: closed forms against autograd on the network itself"

import copy
from dataclasses import replace
import pytest, torch
from hypothesis import given, strategies as st
from torch import nn
from torch.func import functional_call, jacrev
from torch.testing import assert_close
from samplesplit_nb.checks import expect_fail
from samplesplit_nb.descent import Descent, Running
from samplesplit_nb.layers import ProjectionObjective, layer_names, on_layers
from samplesplit_nb.networks import MLP, SmoothReLU
from samplesplit_nb.objectives import (
    DecayObjective, KKTObjective, MapObjective, MulticlassKKTObjective, NTKObjective,
    ReconstructionObjective)
from samplesplit_nb.problems import make_objective
from samplesplit_nb.peeling import Peeling, Search, peel
from samplesplit_nb.settings import Experiment, config, fingerprint, from_config
from samplesplit_nb.spans import Span, SpannedObjective, first_layer_span
from samplesplit_nb.splitting import (
    Every, SplitRule, Splitting, min_curvature, reconstruct, splitting_matrix)
from samplesplit_nb.storage import Checkpoint, identify
from samplesplit_nb.training import train_gd, train_ntk

D, K = 6, 3
normal = lambda *shape, seed=0: torch.randn(
    *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
mlps = lambda outputs=1, bias='all', seed=0: [
    MLP([D, 7, 5, outputs], bias=bias, init='pytorch', seed=seed + s, dtype=torch.float64)
    for s in (100, 200)
]


def cnns(seed=0):
    "Two networks of one shape, on 1 x 4 x 4 images"
    made = []
    for s in (1, 2):
        torch.manual_seed(seed + s)
        made.append(nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1)
        ).double())
    return made


def soft(net, b):
    "The same network with softplus of sharpness b for ReLU"
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.Softplus(b))
    if isinstance(net, MLP):
        net.activation = SmoothReLU(b)
    return net


def rows(net, x, shape):
    "[(k, numbers)] of each tensor: the gradients of the only output, by torch.func"
    params = {n: p.detach() for n, p in net.named_parameters()}
    made = jacrev(lambda p: functional_call(net, p, (x.view(len(x), *shape),))[:, 0])(params)
    return [made[n].flatten(1) for n in params]


PROBLEMS = {  # objective, the network of its gradients, shape of an input
    'perceptron': lambda seed: (
        NTKObjective(*mlps(seed=seed)[::-1], sharpness=5.), mlps(seed=seed)[0], (D,)),
    'no biases': lambda seed: (
        NTKObjective(*mlps(bias='none', seed=seed)[::-1], sharpness=5.),
        mlps(bias='none', seed=seed)[0], (D,)),
    'cnn': lambda seed: (
        NTKObjective(*cnns(seed)[::-1], sharpness=5., shape=(1, 4, 4)), cnns(seed)[0], (1, 4, 4)),
}  # fmt: skip


@given(
    st.sampled_from(sorted(PROBLEMS)),
    st.lists(st.sampled_from([0.0, 0.3, 1.0, 4.0]), min_size=3, max_size=3).filter(any),
    st.sampled_from(['auto', 'gram', 'residual']),
    st.integers(0, 50),
)
def test_layers_against_autograd(name, weights, form, seed):
    objective, net, shape = PROBLEMS[name](seed)
    part = on_layers(objective, {i: w for i, w in enumerate(weights) if w})
    part.form = 'residual' if name == 'cnn' else form
    net, names = soft(net, 5.0), [n for n, _ in net.named_parameters()]
    layers = layer_names(objective)
    each = [weights[layers.index(n.rpartition('.')[0])] for n in names]
    x = normal(K, objective.d, seed=seed).requires_grad_()
    lam = normal(K, seed=seed + 1).requires_grad_()
    value = sum(
        w**2 * (t.flatten() - lam @ r).square().sum()
        for w, t, r in zip(each, objective.target, rows(net, x, shape))
    )
    wanted = value, *torch.autograd.grad(value, (x, lam))
    for ours, theirs in zip(part.value_and_grad(x.detach(), lam.detach()), wanted):
        assert_close(ours, theirs.detach(), rtol=1e-9, atol=1e-10)
    assert_close(part.loss(x, lam), value, rtol=1e-9, atol=1e-12)


def test_a_wrong_weight_is_seen():
    "Control of the sweep above"
    objective, _, _ = PROBLEMS['perceptron'](0)
    x, lam = normal(K, D), normal(K)
    a, b = (on_layers(objective, {0: 1.0, 1: w}).value_and_grad(x, lam) for w in (1.0, 1.001))
    assert all((p - q).abs().max() > 1e-6 for p, q in zip(a, b))


@pytest.mark.parametrize('tangent', ['init', 'final', 'mean', 'both'])
@pytest.mark.parametrize('form', ['auto', 'residual'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_default_changes_no_bit(tangent, form, dtype):
    "None is the same object; all layers with weight 1 the same numbers up to rounding"
    nets = [n.to(dtype) for n in mlps()]
    o = NTKObjective(*nets, tangent=tangent, form=form)
    assert on_layers(o) is o
    x, lam = normal(K, D).to(dtype), normal(K).to(dtype)
    same = on_layers(o, (0, 1, 2))
    for a, b in zip(o.value_and_grad(x, lam), same.value_and_grad(x, lam)):
        assert_close(a, b, rtol=1e-4 if dtype == torch.float32 else 1e-12, atol=1e-6)


def objectives(seed=0):
    "One of each kind, on D numbers"
    pair, many = mlps(seed=seed), mlps(3, seed=seed)
    return {
        'ntk': NTKObjective(*pair, sharpness=5.0, box=(-0.5, 0.5)),
        'both': NTKObjective(*pair, sharpness=5.0, tangent='both'),
        'mean': NTKObjective(*pair, sharpness=5.0, tangent='mean'),
        'chunks': NTKObjective(*pair, sharpness=5.0, chunk_size=2),
        'outputs': NTKObjective(*many, sharpness=5.0),
        'kkt': KKTObjective(
            pair[0], torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64), sharpness=5.0, lam_min=0.1),
        'multiclass': MulticlassKKTObjective(many[0], torch.tensor([0, 2, 1]), sharpness=5.0),
        'decay': DecayObjective(many[0], sharpness=5.0),
    }  # fmt: skip


@pytest.mark.parametrize('name', sorted(objectives()))
@pytest.mark.parametrize('how', ['layers', 'projection', 'span'])
def test_every_attack_keeps_the_interface(name, how):
    "Value and gradients against autograd through the sum; select, to, smoothed, check, identity"
    o = objectives()[name]
    span = Span(normal(D), torch.linalg.qr(normal(D, 4))[0].T)
    made = dict(
        layers=lambda o: on_layers(o, {0: 0.5, 2: 2.0}),
        projection=lambda o: ProjectionObjective(o, {0: 0.5, 1: 1.0, 2: 2.0}),
        span=lambda o: SpannedObjective(ProjectionObjective(on_layers(o, (1, 2)), (1, 2)), span),
    )[how]
    a = made(o)
    x, lam = normal(K, a.d, seed=2), normal(*a.multiplier_shape(K), seed=3)
    a.check(x, lam)
    with torch.enable_grad():
        y, m = x.clone().requires_grad_(), lam.clone().requires_grad_()
        value = a(y, m)
        wanted = value, *torch.autograd.grad(value, (y, m))
    for ours, theirs in zip(a.value_and_grad(x, lam), wanted):
        assert_close(ours, theirs.detach(), rtol=1e-9, atol=1e-10)
    best = a.projected_value_and_grad(x)
    assert_close(best.lam, a.multipliers(x), rtol=1e-9, atol=1e-10)
    assert_close(best.value, a(x, best.lam).detach(), rtol=1e-9, atol=1e-10)
    assert_close(sum(r.square().sum() for r in a.residual(x, lam)), a.loss(x, lam), rtol=1e-9, atol=1e-12)
    turn = torch.tensor([2, 0, 1])
    assert_close(a.select(turn).loss(x[turn], lam[turn]), a.loss(x, lam), rtol=1e-9, atol=1e-12)
    lower = a.to(dtype=torch.float32)
    assert_close(lower.loss(x.float(), lam.float()), a.loss(x, lam).float(), rtol=1e-3, atol=1e-3)
    assert identify(a.identity()) == identify(made(objectives()[name]).identity())
    assert identify(a.identity()) != identify(made(objectives(1)[name]).identity())
    assert identify(a.identity()) != identify(o.identity())
    assert_close(a.smoothed(5.0).loss(x, lam), a.loss(x, lam), rtol=1e-9, atol=1e-12)
    assert (a.smoothed(50.0).loss(x, lam) - a.loss(x, lam)).abs() > 1e-9
    curved = min_curvature(a, x, lam, num_matvecs=a.d)
    for i in range(K):
        S = splitting_matrix(a, x, lam, i)
        assert_close(curved.values[i], torch.linalg.eigvalsh(S)[0], rtol=1e-6, atol=1e-9)
    with expect_fail(ValueError):
        a.check(x[:, 1:], lam)


@pytest.mark.parametrize('name', ['ntk', 'both', 'kkt', 'outputs'])
def test_projection_is_the_least_over_all_multipliers(name):
    "It is never above the attack with a multiplier for all layers, and equal for one layer"
    o = objectives()[name]
    o.lam_min = None
    x = normal(K, D, seed=4)
    every, one = ProjectionObjective(o), o.projected_value_and_grad(x).value
    assert every.projected_value_and_grad(x).value < one
    for i in range(3):
        a = ProjectionObjective(o, (i,)).projected_value_and_grad(x)
        b = on_layers(o, (i,)).projected_value_and_grad(x)
        assert_close(a.value, b.value, rtol=1e-9, atol=1e-12)
        assert_close(a.grad_x, b.grad_x, rtol=1e-9, atol=1e-12)
    parts = [on_layers(o, (i,)).projected_value_and_grad(x).value for i in range(3)]
    assert_close(
        sum(parts) - 2 * o.penalty(x), every.projected_value_and_grad(x).value, rtol=1e-9, atol=1e-12
    )


def test_frozen_layers_are_no_layers():
    nets = mlps()
    for net in nets:
        net.layers[0].requires_grad_(False)
    nets[1].layers[0].load_state_dict(nets[0].layers[0].state_dict())
    o = NTKObjective(*nets)
    assert layer_names(o) == ('layers.1', 'layers.2')
    part = on_layers(o, (-1,))
    assert [bool(t.any()) for t in part.target] == [False, False, True, True]


@pytest.mark.parametrize('eliminated', [True, False])
def test_killed_and_resumed_in_a_span(tmp_path, eliminated):
    o = objectives()['kkt']
    span = Span(normal(D), torch.linalg.qr(normal(D, 4))[0].T)
    a = SpannedObjective(ProjectionObjective(o), span)
    x, lam = normal(K, 4), normal(K, 3).abs()
    how = Descent(40, lr=0.05, lr_multipliers=None if eliminated else 0.01)
    split = Splitting(SplitRule(threshold=-1e-9, eta_max=0.1), Every(15))
    kept = Running(checkpoint=Checkpoint(tmp_path / 'a.safetensors', every_steps=10))

    def stumble(step, *_):
        if step >= 30:
            raise KeyboardInterrupt

    with expect_fail(KeyboardInterrupt):
        reconstruct(a, x, lam, how, split, replace(kept, callbacks=[stumble]))
    whole, resumed = reconstruct(a, x, lam, how, split), reconstruct(a, x, lam, how, split, kept)
    assert torch.equal(whole.x, resumed.x) and torch.equal(whole.lam, resumed.lam)
    assert len(whole.x) > K
    for other in (SpannedObjective(ProjectionObjective(o, (0, 1, -1)), Span(normal(D), span.basis.flip(1))),
                  SpannedObjective(ProjectionObjective(o, {0: 1.0, 1: 1.0, 2: 2.0}), span)):  # fmt: skip
        with expect_fail(ValueError):
            reconstruct(other, x, lam, how, split, kept)


def test_peeling_takes_them():
    o = objectives()['ntk']
    span = Span(normal(D), torch.linalg.qr(normal(D, 4))[0].T)
    for a in (on_layers(o, (0, 2)), ProjectionObjective(o), SpannedObjective(ProjectionObjective(o), span)):
        found = peel(
            a, lambda k, number: normal(k, a.d, seed=number), 2, Search(90, lr=0.05), Peeling(rounds=1))
        assert found.x.shape[1] == a.d and found.history.loss[-1] < found.history.loss[0]  # fmt: skip


class Foreign(ReconstructionObjective):
    "An objective that is no network's, with nothing but the common interface"

    def __init__(self, d):
        super().__init__([normal(5)], d)
        self.A = normal(d, 5, seed=9)

    def weighted_sum(self, x, lam):
        return [lam @ torch.sin(x @ self.A)]

    def inner(self, vector, x):
        return torch.sin(x @ self.A) @ vector[0]

    def multipliers(self, x):
        return torch.linalg.lstsq(torch.sin(x @ self.A).T, self.target[0]).solution


def test_a_span_takes_any_objective():
    span, o = Span(normal(D), torch.linalg.qr(normal(D, 3))[0].T), Foreign(D)
    a = SpannedObjective(o, span)
    z, lam = normal(2, 3), normal(2)
    assert_close(a.loss(z, lam), o.loss(span.base + z @ span.basis, lam))
    S = splitting_matrix(o, span.images(z), lam, 1)
    assert_close(splitting_matrix(a, z, lam, 1), span.basis @ S @ span.basis.T)
    run = reconstruct(a, z, lam, Descent(50, lr=0.05), Splitting(SplitRule(threshold=-1e-9), Every(20)))
    assert run.history.loss[-1] < run.history.loss[0] and run.x.shape[1] == 3
    for bad in (on_layers, ProjectionObjective, layer_names):
        with expect_fail(ValueError, contains='objective='):
            bad(a)


@pytest.mark.parametrize('n', [1, 3, 5])
@pytest.mark.parametrize('how', ['ntk', 'gd', 'momentum'])
def test_the_span_of_the_step_is_that_of_the_samples(n, how):
    X = normal(n, 20, seed=n)
    y = torch.ones(n, dtype=torch.float64)
    y[::2] = -1
    init = MLP([20, 30, 10, 1], seed=n, dtype=torch.float64)
    model = (
        train_ntk(init, X, y).model if how == 'ntk'
        else train_gd(init, X, y, lr=0.1, steps=30, momentum=0.9 * (how == 'momentum')).model
    )  # fmt: skip
    span = first_layer_span(model, init)
    assert span.rank == n and span.outside(X).max() < 1e-6
    assert_close(span.basis @ span.basis.T, torch.eye(n, dtype=torch.float64))
    if n > 1:
        assert first_layer_span(model, init, rank=n - 1).outside(X).max() > 1e-3
    assert first_layer_span(model, init).outside(normal(4, 20)).min() > 0.3


def test_more_samples_than_dimensions_leave_no_span():
    init = MLP([4, 30, 10, 1], seed=0, dtype=torch.float64)
    y = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    span = first_layer_span(train_gd(init, normal(8, 4), y, lr=0.1, steps=20).model, init)
    assert span.rank == 4 and 'all are kept' in span.sentence


def test_layers_of_an_experiment():
    "Saved, read and fingerprinted; what saved results have is not touched"
    e = Experiment(layers=(0, 2))
    assert from_config(config(e)) == e and 'layers' not in config(Experiment())
    assert fingerprint(e) != fingerprint(Experiment()) == fingerprint(Experiment(layers=None))
    pair = [n.float() for n in mlps()]
    made = make_objective(e, *pair, 2)
    assert [bool(t.any()) for t in made.target] == [True, True, False, False, True, True]
    assert all(bool(t.any()) for t in make_objective(Experiment(), *pair, 2).target)


@pytest.mark.parametrize(
    'bad, says',
    [
        (lambda o: on_layers(o, (9,)), 'layers=9'),
        (lambda o: on_layers(o, ['layers.7']), "layers='layers.7'"),
        (lambda o: on_layers(o, {0: -1.0}), 'layers[0]=-1.0'),
        (lambda o: on_layers(o, {0: '1'}), "layers[0]='1'"),
        (lambda o: on_layers(o, {}), 'layers={}'),
        (lambda o: on_layers(o, (None,)), 'layers=None'),
        (lambda o: ProjectionObjective(o, (0, 'layers')), 'named once'),
        (lambda o: on_layers(MapObjective(torch.sin, torch.zeros(2), 2)), '<MapObjective>'),
        (lambda o: first_layer_span(mlps()[0], rank=0), 'rank=0'),
        (lambda o: first_layer_span(cnns()[0], shape=(1, 4, 4)), 'patches'),
        (lambda o: first_layer_span(nn.Linear(3, 1)), 'shape=None'),
        (lambda o: Span(torch.zeros(2), torch.ones(1, 2)), 'orthonormal'),
        (lambda o: Span(torch.zeros(2), torch.zeros(0, 2)), 'basis.shape=(0, 2)'),
        (lambda o: SpannedObjective(o, Span(torch.zeros(2), torch.eye(2))), 'in 2 dimensions'),
    ],
)  # fmt: skip
def test_mistakes_are_told(bad, says):
    with expect_fail(ValueError, contains=says):
        bad(objectives()['ntk'])
