"Properties and boundary tables behind nbs/02_splitting"
import math
from functools import partial
import pytest, torch
from hypothesis import given, strategies as st
from torch.testing import assert_close
from problems import random_problem
from samplesplit_nb.splitting import (ReconstructionError, SplitRule, inherit_state, lanczos_min, min_curvature, offspring, reconstruct, split_samples,
                                      splitting_matrix, splitting_product, warm_restarts)

seeds = st.integers(0, 10_000)


# --- curvature

@pytest.mark.parametrize('dtype,tol', [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize('d', [1, 2, 3, 17, 40])
def test_lanczos_at_full_order_is_exact(d, dtype, tol):
    g = torch.Generator().manual_seed(d)
    A = torch.randn(6, d, d, generator=g, dtype=torch.float64); A = A + A.mT
    values, vectors, residuals = lanczos_min(lambda v: torch.einsum('kab,kb->ka', A.to(dtype), v), torch.randn(6, d, generator=g, dtype=torch.float64).to(dtype), d)
    exact, V = torch.linalg.eigh(A)
    scale = torch.linalg.matrix_norm(A, 2)
    assert ((values.double() - exact[:, 0]).abs() < tol*scale).all()
    assert (residuals.double() < max(tol, 1e-7)*scale).all()
    assert ((vectors.double()*V[:, :, 0]).sum(1).abs() > 1 - 1e-3).all()


@given(seeds, st.integers(1, 12), st.integers(-14, 3), st.sampled_from(['random', 'identity', 'zero', 'rank one', 'clustered']))
def test_lanczos_is_bounded_by_the_spectrum(seed, order, exponent, kind):
    "The Ritz value never leaves the spectrum, its vector is a unit vector whose Rayleigh quotient it is, whatever the scale and the degeneracy"
    d, g = 12, torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]
    spectrum = {'random': torch.randn(d, generator=g, dtype=torch.float64), 'identity': torch.ones(d).double(), 'zero': torch.zeros(d).double(),
                'rank one': torch.eye(d).double()[0], 'clustered': torch.arange(d).double() % 2 - 3}[kind]*10.**exponent
    A = Q @ torch.diag(spectrum) @ Q.T
    value, vector, _ = lanczos_min(lambda v: v @ A, torch.randn(1, d, generator=g, dtype=torch.float64), order)
    scale = max(spectrum.abs().max().item(), 1e-300)
    assert spectrum.min() - 1e-12*scale <= value <= spectrum.max() + 1e-12*scale
    assert abs(vector.norm() - 1) < 1e-9
    assert abs((vector @ A @ vector.T) - value) < 1e-11*scale


def test_samples_in_one_batch_do_not_disturb_each_other():
    objective, x, lam = random_problem((12, 30, 30, 1), k=6, seed=3)
    together = splitting_product(objective, x, lam)(torch.ones_like(x))
    # the residual is shared, so the comparison is row by row of the same product, one row non-zero at a time
    for i in range(6):
        v = torch.zeros_like(x); v[i] = 1
        assert_close(splitting_product(objective, x, lam)(v)[i], together[i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('seed', range(5))
def test_float32_curvature(seed):
    a, x, lam = random_problem((40, 60, 60, 1), k=5, seed=seed)
    b, y, mu = random_problem((40, 60, 60, 1), k=5, seed=seed, dtype=torch.float32)
    exact, rounded = min_curvature(a, x, lam)[0], min_curvature(b, y, mu)[0]
    assert_close(rounded.double(), exact, rtol=1e-3, atol=1e-3*exact.abs().max().item())


def test_default_order_is_capped_by_the_dimension():
    objective, x, lam = random_problem((3, 10, 1), k=2)
    exact = torch.stack([torch.linalg.eigvalsh(splitting_matrix(objective, x, lam, i))[0] for i in range(2)])
    assert_close(min_curvature(objective, x, lam)[0], exact, rtol=1e-9, atol=1e-9)


# --- one split

@given(seeds, st.integers(1, 6), st.data())
def test_offspring_invariants(seed, k, data):
    objective, x, lam = random_problem(k=k, seed=seed)
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, k - 1), unique=True)), dtype=torch.long)
    directions = torch.nn.functional.normalize(torch.randn(len(chosen), x.shape[1], dtype=torch.float64))
    eta = data.draw(st.floats(0, .5))
    new_x, new_lam, parents = offspring(x, lam, chosen, directions, eta)
    assert len(new_x) == len(new_lam) == len(parents) == k + len(chosen)
    sums = torch.zeros(k, dtype=torch.float64).index_add(0, parents, new_lam)
    assert_close(sums, lam, rtol=1e-14, atol=0)
    assert (new_lam*lam[parents] > 0).all()  # signs kept
    assert_close(torch.zeros_like(x).index_add(0, parents, new_lam[:, None]*new_x), lam[:, None]*x, rtol=1e-9, atol=1e-12)  # weighted centre kept
    if eta == 0: assert_close(objective.loss(new_x, new_lam), objective.loss(x, lam), rtol=1e-12, atol=0)
    still, mu, _ = offspring(x, lam, chosen, directions, 0.)
    assert_close(objective.loss(still, mu), objective.loss(x, lam), rtol=1e-12, atol=0)


@given(seeds, st.integers(1, 9), st.floats(.1, 1), st.floats(-3, -1e-6), st.booleans(), st.floats(1e-3, 1.))
def test_split_obeys_its_rule(seed, k, fraction, threshold, relative, eta_max):
    objective, x, lam = random_problem(k=k, seed=seed)
    rule = SplitRule(threshold=threshold, relative=relative, max_fraction=fraction, eta_max=eta_max)
    new_x, new_lam, split = split_samples(objective, x, lam, rule)
    scale = sum(t.square().sum() for t in objective.target) if relative else 1
    assert len(split.chosen) <= fraction*k
    assert (split.values[split.chosen] < threshold*scale).all()
    assert split.eta <= eta_max and torch.isfinite(new_x).all() and torch.isfinite(new_lam).all()
    assert len(new_x) == k + len(split.chosen)
    if len(split.chosen):
        others = torch.ones(k, dtype=torch.bool); others[split.chosen] = False
        if others.any(): assert split.values[split.chosen].max() <= split.values[others].min()  # most negative first
        assert split.loss_after < split.loss_before + rule.sufficient*min(split.predicted, 0)
        assert_close(objective.loss(new_x, new_lam).item(), split.loss_after, rtol=1e-12, atol=0)
        assert split.result.startswith('split ')
    else:
        assert torch.equal(new_x, x) and torch.equal(new_lam, lam) and split.result.startswith('nothing split')


@given(seeds)
def test_same_seed_same_split(seed):
    objective, x, lam = random_problem(k=5, seed=seed % 7)
    rule = SplitRule(threshold=-1e-9, eta_max=.1, direction='random', selection='random')
    a, b = (split_samples(objective, x, lam, rule, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_controls_split_exactly_as_often_as_told():
    objective, x, lam = random_problem(k=6, seed=1)
    for direction in ('curvature', 'random'):
        rule = SplitRule(every=5, counts=(2, 5), accept_any=True, direction=direction, selection='random', eta_max=.1)
        r = reconstruct(objective, x, lam, steps=11, lr=1e-3, rule=rule)
        assert [len(s.chosen) for s in r.splits] == [2, 5] and len(r.x) == 13


def test_fewer_are_split_where_all_together_do_not_help():
    "Two candidates whose single splits lower the loss; with one allowed step only, the refusal path halves the set"
    objective, x, lam = random_problem(k=8, seed=5)
    sizes = set()
    for eta in (.01, .1, .3, 1., 3., 10.):
        split = split_samples(objective, x, lam, SplitRule(threshold=-1e-9, eta_max=eta, halvings=0, max_fraction=1.))[2]
        sizes.add(len(split.chosen))
        if 'left out' in split.result: assert 0 < len(split.chosen)
    assert max(sizes) > 1 and min(sizes) == 0


# --- the loop

@pytest.mark.parametrize('make', [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, partial(torch.optim.SGD, momentum=.9), partial(torch.optim.SGD, momentum=.9, nesterov=True),
                                  torch.optim.NAdam, torch.optim.LBFGS], ids=lambda m: getattr(m, '__name__', 'SGD'))
@pytest.mark.parametrize('lr_multipliers', [None, 1e-4])
def test_any_torch_optimiser_survives_splits(make, lr_multipliers):
    if make is torch.optim.LBFGS and lr_multipliers is not None: pytest.skip('LBFGS takes one parameter group only')
    objective, x, lam = random_problem(k=4, seed=6)
    r = reconstruct(objective, x, lam, steps=30, lr=1e-3, lr_multipliers=lr_multipliers, optimizer=make, rule=SplitRule(every=10, threshold=-1e-9, eta_max=.1))
    assert len(r.x) > 4 and len(r.splits) == 2 and r.history.loss[-1] < r.history.loss[0]
    assert r.history.num_candidates[-1] == len(r.x) == len(r.lam)


def test_momentum_is_inherited_by_both_children():
    p = torch.randn(3, 2, requires_grad=True)
    old = torch.optim.SGD([p], lr=.1, momentum=.9); p.square().sum().backward(); old.step()
    q = torch.zeros(5, 2, requires_grad=True)
    new = torch.optim.SGD([q], lr=.1, momentum=.9)
    inherit_state(old, new, torch.tensor([0, 1, 2, 0, 2]))
    assert torch.equal(new.state[q]['momentum_buffer'], old.state[p]['momentum_buffer'][[0, 1, 2, 0, 2]])


def test_state_without_rows_is_dropped():
    p = torch.randn(3, 2, requires_grad=True)
    old = torch.optim.LBFGS([p], lr=.1)
    def closure(): old.zero_grad(); loss = p.square().sum(); loss.backward(); return loss
    old.step(closure)
    q = torch.zeros(4, 2, requires_grad=True)
    new = torch.optim.LBFGS([q], lr=.1)
    inherit_state(old, new, torch.tensor([0, 1, 2, 0]))
    assert not new.state


def test_split_continues_from_the_parent_state():
    "After a split with a vanishing step the gradients halve; with the parents' moments Adam takes almost the step it would have taken, afresh it would not"
    objective, x, lam = random_problem(k=3, seed=8)
    rule = SplitRule(every=10, counts=(3,), accept_any=True, eta_max=1e-9, halvings=0, max_events=1)
    go = partial(reconstruct, objective, x, lam, lr=1e-3, lr_multipliers=0.)
    before, after, plain = go(steps=10), go(steps=11, rule=rule), go(steps=11)
    step = (plain.x - before.x).abs()
    assert ((after.x[:3] - plain.x).abs() < 0.2*step).all()
    assert (after.x - after.x[after.splits[0].parents]).abs().max() < 1e-6


def test_callback_sees_every_report_and_can_stop():
    objective, x, lam = random_problem()
    seen = []
    r = reconstruct(objective, x, lam, steps=100, lr=1e-3, report_every=10, callback=lambda step, *_: seen.append(step) or step >= 30)
    assert seen == [0, 10, 20, 30] and r.history.step == seen and 'callback after 31 steps' in r.result


@pytest.mark.parametrize('lr_multipliers', [None, 1.])
def test_divergence_keeps_the_last_good_state(lr_multipliers):
    objective, x, lam = random_problem(k=3, seed=2)
    sgd = torch.optim.SGD
    with pytest.raises(ReconstructionError, match='must stay finite; use a smaller lr') as caught:
        reconstruct(objective, x, lam, steps=400, lr=1e200, lr_multipliers=lr_multipliers, optimizer=sgd, report_every=1)
    last = caught.value.last
    assert len(last.x) == 3 and torch.isfinite(last.x).all() and torch.isfinite(last.lam).all() and len(last.history.step) >= 1


def test_start_is_not_changed_in_place():
    objective, x, lam = random_problem()
    x0, lam0 = x.clone(), lam.clone()
    reconstruct(objective, x, lam, steps=5, lr=1e-2)
    assert torch.equal(x, x0) and torch.equal(lam, lam0)


@pytest.mark.parametrize('kw,says', [(dict(steps=-1), 'steps=-1'), (dict(steps=2.), 'steps=2.0'), (dict(steps=1, lr=0.), 'lr=0.0'), (dict(steps=1, lr=math.nan), 'lr=nan'),
                                     (dict(steps=1, report_every=0), 'report_every=0'), (dict(steps=1, lr_multipliers=-1.), 'lr_multipliers=-1.0')])
def test_bad_settings_are_named(kw, says):
    objective, x, lam = random_problem()
    with pytest.raises(ValueError, match=says): reconstruct(objective, x, lam, **kw)


def test_bad_candidates_are_named():
    objective, x, lam = random_problem()
    for bad, says in (((x[:, :3], lam), r'x.shape=\(4, 3\)'), ((x, lam[:2]), r'lam.shape=\(2,\)'), ((x[:0], lam[:0]), 'k=0'), ((x*math.nan, lam), 'x=<24 of 24'), ((x, lam.float()), 'lam=<torch.float32')):
        for call in (lambda *a: min_curvature(objective, *a), lambda *a: reconstruct(objective, *a, steps=1), lambda *a: split_samples(objective, *a, SplitRule())):
            with pytest.raises(ValueError, match=says): call(*bad)


def test_warm_restarts_stay_in_range():
    f = warm_restarts(7, warmup=3)
    values = [f(s) for s in range(50)]
    assert all(0 <= v <= 1 for v in values) and values[0] == values[7] == values[49]
