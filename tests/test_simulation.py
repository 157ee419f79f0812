"Simulated training: derivatives, splits of any functional, batches, resuming, refusals"

import math
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from samplesplit_nb.descent import Descent, ReconstructionError, Running
from samplesplit_nb.networks import MLP, SmoothReLU
from samplesplit_nb.simulated import SimulatedTraining, restricted
from samplesplit_nb.simulation import (
    DifferentiableSimulator,
    Fineness,
    SoftCurvatureReLU,
    TrainingRecipe,
    WeightedLoss,
    weighted_loss,
)
from samplesplit_nb.spans import Span, SpannedObjective
from samplesplit_nb.splitting import (
    Every,
    SplitRule,
    Splitting,
    Stop,
    offspring,
    reconstruct,
    splitting_matrix,
)
from samplesplit_nb.storage import Checkpoint
from samplesplit_nb.tangents import ModuleTangent

RECIPES = {
    'joined': TrainingRecipe(0.2, 400),
    'decay': TrainingRecipe(0.2, 400, weight_decay=0.02),
    'momentum': TrainingRecipe(0.1, 15, momentum=0.9),
    'batches': TrainingRecipe(0.1, 12, batches=2, momentum=0.5, weight_decay=0.01),
    'adam': TrainingRecipe(0.01, 12, optimizer='adam'),
}


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def smooth(seed, widths=(4, 7, 5, 1), bias='all'):
    return MLP(list(widths), SmoothReLU(4.0), bias=bias, dtype=torch.float64, seed=seed)


def objective(name, labels=(1.0, -1.0, 1.0), **more):
    labels = torch.tensor(labels, dtype=torch.float64)
    return SimulatedTraining(smooth(1), smooth(0), labels, RECIPES[name], sharpness=None, **more)


def conv(seed):
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize('distance', ['squared', 'layers', 'cosine'])
@pytest.mark.parametrize('name', RECIPES)
def test_gradients_are_central_differences(name, distance):
    o = objective(name, distance=distance, fineness=Fineness(2e-4, 400))
    x, lam, h = randn(3, 4, seed=2), torch.tensor([0.3, 0.4, 0.2]).double(), 1e-5
    found = o.value_and_grad(x, lam)
    for seed in range(3):
        v, w = randn(3, 4, seed=10 + seed), randn(3, seed=20 + seed)
        rise = o.loss(x + h * v, lam + h * w) - o.loss(x - h * v, lam - h * w)
        wanted = (found.grad_x * v).sum() + (found.grad_lam * w).sum()
        # the derivative holds the steps fixed; here they are chosen anew at each place
        assert_close(rise / (2 * h), wanted, rtol=5e-2 if name in ('joined', 'decay') else 1e-5, atol=1e-8)


@pytest.mark.parametrize('name', [n for n in RECIPES if n not in ('joined', 'decay')])
def test_a_split_starts_without_a_change_and_bends_as_S_says(name):
    "The ghost's second derivative, for every optimiser; batches are inherited"
    o, x, lam = objective(name), randn(3, 4, seed=2), torch.tensor([0.3, 0.4, 0.2]).double()
    v = nn.functional.normalize(randn(3, 4, seed=3), dim=1)
    here = o.loss(x, lam).item()
    for i in range(3):
        chosen = torch.tensor([i])
        a = (v[i] @ splitting_matrix(o, x, lam, i) @ v[i]).item()
        changes = []
        for eta in (0.0, 0.02, 0.01):
            *children, parents = offspring(x, lam, chosen, v[chosen], eta)
            changes.append(o.select(parents).loss(*children).item() - here)
        assert abs(changes[0]) < 1e-12 * max(here, 1)
        left = [c - e**2 / 2 * a for c, e in zip(changes[1:], (0.02, 0.01))]
        assert abs(left[1]) < abs(left[0]) / 8 + 1e-12, (left, a)


def test_batches_change_when_children_do_not_share_them():
    "The control of the test above"
    o, x, lam = objective('batches'), randn(3, 4, seed=2), torch.tensor([0.3, 0.4, 0.2]).double()
    *children, parents = offspring(x, lam, torch.tensor([0]), randn(1, 4, seed=3), 0.0)
    right, wrong = o.select(parents), o.select(parents)
    wrong.slots = torch.tensor([0, 1, 2, 1])
    assert abs(right.loss(*children) - o.loss(x, lam)) < 1e-12
    assert abs(wrong.loss(*children) - o.loss(x, lam)) > 1e-6


@pytest.mark.parametrize('seed', range(4))
def test_the_true_sample_solves_a_training_by_torch(seed):
    "A convolution trained by torch's own optimiser, and the same steps simulated"
    first, last = conv(seed), conv(seed)
    X, y = randn(6, 9, seed=seed), torch.arange(6) % 3
    optimiser = torch.optim.SGD(last.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(25):
        optimiser.zero_grad()
        nn.functional.cross_entropy(last(X.view(6, 1, 3, 3)), y).backward()
        optimiser.step()
    recipe = TrainingRecipe(0.1, 25, 'cross-entropy', momentum=0.9, weight_decay=0.01)
    o = SimulatedTraining(last, first, y, recipe, shape=(1, 3, 3), chunk_size=4)
    weights = torch.full((6,), 1 / 6, dtype=torch.float64)
    assert o.loss(X, weights) < 1e-25
    assert o.loss(X.flip(0), weights) > 1e-3
    assert o.value_and_grad(X, weights).grad_x.norm() < 1e-10


def test_long_steps_approach_the_training():
    first, X, y = smooth(0), randn(5, 4, seed=1), torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]).double()
    loss = weighted_loss(ModuleTangent(first, (4,)), 'logistic')
    w, start = torch.full((5,), 0.2).double(), [p.detach() for p in first.parameters()]
    end = Simulator_end(loss, start, Fineness(0.0, 3000), X, y, w)
    errors, counts = [], []
    for tolerance in (0.1, 0.01, 0.001):
        path = DifferentiableSimulator(
            loss, start, 1.0, TrainingRecipe(0.01, 3000), Fineness(tolerance, 500)
        )(X, y, w)
        assert math.isclose(path.time, 30, rel_tol=1e-9)
        errors.append(sum((a - b).square().sum() for a, b in zip(path.end, end)).sqrt().item())
        counts.append(path.gradients)
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02
    assert counts[0] < counts[1] < counts[2] < 1000


def Simulator_end(loss, start, fineness, *sample):
    return DifferentiableSimulator(loss, start, 1.0, TrainingRecipe(0.01, 3000), fineness)(*sample).end


@pytest.mark.parametrize('bias', ['all', 'first', 'none'])
@pytest.mark.parametrize('several', [False, True])
def test_closed_form_is_autograd(bias, several):
    net = MLP([5, 8, 6, 3 if several else 1], bias=bias, dtype=torch.float64, seed=2)
    name = 'cross-entropy' if several else 'mse'
    t = ModuleTangent(net, (5,), SoftCurvatureReLU(15.0))
    y = torch.arange(4) % 3 if several else randn(4, seed=5)
    sample = randn(4, 5, seed=3), y, randn(4, seed=4).abs()
    for a, b in zip(
        weighted_loss(t, name, 3).gradient(t.weights, *sample),
        WeightedLoss(t, name).gradient(t.weights, *sample),
    ):
        assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_a_killed_run_goes_on_to_the_bit(tmp_path):
    o, x, lam = objective('joined'), randn(3, 4, seed=2), torch.full((3,), 1 / 3).double()

    class Killed(Exception):
        pass

    def kill(step, loss, x, lam):
        if step == 20:
            raise Killed

    def go(path, callbacks=()):
        rule = SplitRule(threshold=-1e-9, eta_max=0.1)
        running = Running(
            report_every=5, callbacks=list(callbacks), checkpoint=Checkpoint(path, every_steps=5)
        )
        descent = Descent(40, lr=0.02, lr_multipliers=1e-3, optimizer='unit-adam')
        return reconstruct(o, x, lam, descent, Splitting(rule, Every(10), Stop(events=2)), running)

    with pytest.raises(Killed):
        go(tmp_path / 'a.safetensors', [kill])
    again, whole = go(tmp_path / 'a.safetensors'), go(tmp_path / 'b.safetensors')
    assert torch.equal(again.x, whole.x) and torch.equal(again.lam, whole.lam)
    assert again.history.loss == whole.history.loss


def test_restricted_is_the_network_in_coordinates():
    net = MLP([6, 5, 4, 2], dtype=torch.float64, seed=1)
    span = Span(randn(6, seed=1), torch.linalg.qr(randn(6, 3, seed=2))[0].T.contiguous())
    z = randn(7, 3, seed=3)
    assert_close(restricted(net, span)(z), net(span.images(z)), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match='base not 0'):
        restricted(MLP([6, 5, 1], bias='none', dtype=torch.float64), span)


def test_in_a_span_as_in_pixels():
    o = objective('momentum')
    span = Span(torch.zeros(4).double(), torch.linalg.qr(randn(4, 2, seed=2))[0].T.contiguous())
    s, z, lam = SpannedObjective(o, span), randn(3, 2, seed=3), torch.full((3,), 1 / 3).double()
    a, b = s.value_and_grad(z, lam), o.value_and_grad(span.images(z), lam)
    assert_close(a.value, b.value, rtol=1e-12, atol=0)
    assert_close(a.grad_x, b.grad_x @ span.basis.T, rtol=1e-12, atol=1e-15)


def test_a_training_that_leaves_the_numbers_is_an_error_with_the_last_state():
    wild = SimulatedTraining(
        smooth(1), smooth(0), torch.ones(2).double(), TrainingRecipe(1e8, 40, 'mse'), Fineness(0.0)
    )
    with pytest.raises(ReconstructionError, match='finite'):
        reconstruct(wild, randn(2, 4), torch.ones(2).double() / 2, Descent(5, lr_multipliers=0.0))


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(recipe=TrainingRecipe(0.1, 500, momentum=0.9)), 'most=60'),
        (dict(recipe=TrainingRecipe(0.1, 500, batches=2)), 'most=60'),
        (dict(recipe=TrainingRecipe(0.1, 5, 'cross-entropy')), 'this network has 1'),
        (dict(labels=torch.tensor([0.0, 1.0]).double()), '-1 or [+]1'),
        (dict(labels=torch.ones(2, 2).double()), 'labels.shape'),
        (dict(labels=[1.0, -1.0]), 'dense tensor'),
        (dict(init=smooth(1)), 'theta = theta_0'),
        (dict(init=smooth(0, (4, 7, 6, 1))), 'same training'),
        (dict(distance='manhattan'), 'distance='),
        (dict(recipe=0.1), 'TrainingRecipe'),
        (dict(chunk_size=0), 'chunk_size=0'),
        (dict(sharpness=-1.0), 'sharpness=-1'),
    ],
)
def test_refusals_are_one_line(change, words):
    known = dict(
        model=smooth(1), init=smooth(0), labels=torch.tensor([1.0, -1.0]).double(), recipe=RECIPES['joined']
    )
    with pytest.raises(ValueError, match=words) as e:
        SimulatedTraining(**known | change)
    assert '\n' not in str(e.value)
