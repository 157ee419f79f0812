"""Every published setting against the formulas of its source, step by step.

The reference has its own activations, sums, penalties and optimisers. It shares the initial numbers
with ours, and no code."""

import math
import pytest, torch
from torch.testing import assert_close
from samplesplit_nb.descent import Descent
from samplesplit_nb.networks import MLP
from samplesplit_nb.objectives import DecayObjective
from samplesplit_nb.presets import PRESETS, preset
from samplesplit_nb.problems import make_descent, make_objective
from samplesplit_nb.rules import PublishedRule
from samplesplit_nb.runs import run
from samplesplit_nb.settings import Experiment, published
from samplesplit_nb.splitting import reconstruct

K, D, STEPS = 6, 5, 200
PIXELS = (-0.3, 0.7)  # less the mean, as `data.box` has them


class Surrogate(torch.autograd.Function):
    "ReLU whose derivative is a sigmoid, as Haim et al. (2022) define it"

    @staticmethod
    def forward(ctx, z, a):
        ctx.save_for_backward(z)
        ctx.a = a
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return grad * torch.sigmoid(ctx.a * z), None


def outputs(weights, x, activation):
    "Two hidden layers; weights and, where there are any, biases in order"
    weights, h, last = list(weights), x, False
    matrices = [i for i, w in enumerate(weights) if w.ndim == 2]
    for number, i in enumerate(matrices):
        h = h @ weights[i].T
        if i + 1 < len(weights) and weights[i + 1].ndim == 1:
            h = h + weights[i + 1]
        last = number == len(matrices) - 1
        h = h if last else activation(h)
    return h


def weighted_gradients(weights, x, lam, values_of):
    "(1/k) sum_i lam_i grad_theta of the i-th value, one sample at a time"
    weights = [w.detach().requires_grad_() for w in weights]
    total = [0.0] * len(weights)
    for i in range(len(x)):
        value = lam[i] * values_of(weights, x[i : i + 1], i)
        parts = torch.autograd.grad(value, weights, create_graph=True)
        total = [t + p / len(x) for t, p in zip(total, parts)]
    return total


def published_loss(name, before, after, labels, wrong=False):
    "(step, x, lam) -> the loss that the source of this preset minimises; `wrong`: one detail is another"
    p = preset(name)
    square = lambda parts: sum(t.square().sum() for t in parts)
    change = [a - b for a, b in zip(after, before)]

    def loss(step, x, lam):
        b = min(10 + 10 ** (step / 20_000), 200.0)
        soft = lambda z: torch.logaddexp(b * z, torch.zeros_like(z)) / b
        relu = soft if name == 'loo-ntk' else lambda z: Surrogate.apply(z, p.sharpness)
        phi = lambda w, x, i: outputs(w, x, relu)[0]

        def margin(w, x, i):
            logits = phi(w, x, i)
            others = torch.cat([logits[: labels[i]], logits[labels[i] + 1 :]])
            return logits[labels[i]] - others.max()

        value = {
            'kkt': lambda w, x, i: labels[i] * phi(w, x, i)[0],
            'multiclass': margin,
        }.get(p.attack, lambda w, x, i: phi(w, x, i)[0])
        at = lambda weights: weighted_gradients(weights, x, lam, value)
        outside = (x - 1).relu().square().sum() + (-1 - x).relu().square().sum()
        hinge = lambda v: 5 * (p.lam_min - v).relu().square().sum()
        if name == 'loo-ntk':
            low, high = PIXELS
            out = ((x - high).relu() ** 2 + (low - x).relu() ** 2).mean() * len(x)
            gradient = at(before if wrong else after)  # the final tangent is its default
            return square(t - s for t, s in zip(change, gradient)) + 0.1 * out
        if p.attack == 'ntk':
            half = [(s + t) / 2 for s, t in zip(at(before), at(after))]
            bound = hinge(lam if wrong else lam.abs())
            return square(t - s for t, s in zip(change, half)) + outside + bound
        rest = square(t - s for t, s in zip(after, at(after))) + outside
        if p.attack == 'regression':
            return rest + 5 * (0.45 - lam).relu().square().sum() if wrong else rest
        return rest if wrong else rest + hinge(lam)

    return loss


def momentum(lr):
    "Plain SGD with momentum 0.9"
    velocity = 0.0

    def move(p, g):
        nonlocal velocity
        velocity = 0.9 * velocity + g
        return p - lr * velocity

    return move


def lazy(lr, eps=1e-8):
    "Adam, entry by entry; one with a zero gradient stays as it is"
    memory = {}

    def move(p, g):
        new = p.clone().flatten()
        for j, slope in enumerate(g.flatten().tolist()):
            if slope == 0:
                continue
            n, m, v = memory.get(j, (0, 0.0, 0.0))
            n, m, v = n + 1, 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
            memory[j] = n, m, v
            new[j] -= lr * (m / (1 - 0.9**n)) / (math.sqrt(v / (1 - 0.999**n)) + eps)
        return new.view_as(p)

    return move


def reference(name, before, after, labels, x, lam, wrong=False):
    "(x, lam) after all steps, and the loss at each"
    p, loss, losses = preset(name), published_loss(name, before, after, labels, wrong), []
    rule = lazy if name == 'loo-ntk' else momentum
    move_x, move_lam = rule(p.lr), rule(p.lr_multipliers)
    for step in range(STEPS):
        x, lam = x.detach().requires_grad_(), lam.detach().requires_grad_()
        value = loss(step, x, lam)
        losses.append(value.item())
        grad_x, grad_lam = torch.autograd.grad(value, (x, lam))
        x, lam = move_x(x.detach(), grad_x), move_lam(lam.detach(), grad_lam)
    return x, lam, losses


def ours(name, init, model, x, lam):
    "The same by the library, in the multipliers of the source"
    p = preset(name)
    if p.attack == 'regression':
        # f has no factor 1/k here: the multipliers have it, and their rate its square
        objective = DecayObjective(model, p.sharpness)
        descent = Descent(STEPS, p.lr, p.lr_multipliers / K**2, 'sgd')
        found = reconstruct(objective, x, lam / K, descent)
        return found.x, found.lam * K, found.history.loss
    e = Experiment(**published(name) | dict(k=K, steps=STEPS, splits=0, dtype='float64'))
    objective = make_objective(e, model, init, K, PIXELS)
    found = reconstruct(objective, x, lam, make_descent(e, K))
    return found.x, found.lam, found.history.loss


@pytest.mark.parametrize('name', sorted(PRESETS))
def test_two_hundred_steps_are_those_of_the_formulas(name):
    p = preset(name)
    many = p.attack == 'multiclass'
    bias = 'all' if name == 'loo-ntk' else 'first'
    init, model = (
        MLP([D, 8, 7, 3 if many else 1], bias=bias, seed=s, dtype=torch.float64) for s in (1, 2)
    )
    labels = [i % 3 for i in range(K)] if many else [2 * (i % 2) - 1 for i in range(K)]
    x, lam = p.start(K, D, seed=3, dtype=torch.float64)
    if not many:
        x = 0.5 * x / p.start_scale  # large enough that some pixels leave the box
    if p.attack == 'regression':  # at a rate near 1, larger weights make the path chaotic
        with torch.no_grad():
            for q in model.parameters():
                q.mul_(0.5)
    weights = [[q.detach() for q in net.parameters()] for net in (init, model)]
    x_end, lam_end, losses = reference(name, *weights, labels, x, lam)
    x_ours, lam_ours, history = ours(name, init, model, x, lam)
    assert (x_end - x).norm() > 1e-3 * x.norm() and losses[-1] < losses[0]  # it moved, and descended
    assert_close(history[0], losses[0], rtol=1e-12, atol=0)
    assert_close(x_ours, x_end, rtol=1e-10, atol=1e-10)
    assert_close(lam_ours, lam_end, rtol=1e-10, atol=1e-10)
    x_wrong, lam_wrong, _ = reference(name, *weights, labels, x, lam, wrong=True)
    assert (x_wrong - x_ours).abs().max() + (lam_wrong - lam_ours).abs().max() > 0.1  # control


def test_the_experiment_of_the_paper_runs_as_a_whole():
    "Trained, attacked without and with the published rule, scored; sizes are all that differs"
    e = Experiment(
        **published('splitting-ntk-short')
        | dict(n=4, k=8, width=20, training_steps=40, steps=30, splits=2, split_every=10, evaluations=2)
        | dict(device='cpu')
    )
    assert e.rule == PublishedRule() and (e.tangent, e.dtype, e.optimizer) == ('mean', 'float64', 'sgd')
    result = run(e)
    init, model = result.problem.trained.init, result.problem.trained.model
    assert init.bias == 'first' and (init.layers[1].weight.std() / 1e-3 - 1).abs() < 0.1
    assert not torch.equal(init.layers[2].weight, model.layers[2].weight)
    objective = result.problem.objective(e.k)
    change = [q - p for p, q in zip(init.parameters(), model.parameters())]
    for target, step in zip(objective.target, change):
        assert_close(target, step)
    splits = result.runs['split'].reconstruction.splits
    assert [s.step for s in splits] == [10, 20] and result.record.steps('plain') == 30
    assert len(result.runs['split'].reconstruction.x) == 8 + sum(len(s.chosen) for s in splits)
    assert len(result.runs['plain'].reconstruction.x) == 8
