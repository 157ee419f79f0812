"""Images off a whole training: random problems, what training may do and may not, bad input."""

import copy, math
import pytest, torch
from samplesplit_nb.checks import expect_fail
from samplesplit_nb.inactive import invert_training
from samplesplit_nb.networks import MLP
from samplesplit_nb.steps import invert_step


def images(n, d, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, d, generator=g, dtype=torch.float64) - 0.5


def trained(X, width=120, seed=0, *, start=0.05, steps=600, lr=0.2, batch=None, dtype=torch.float64,
            outputs=1, optimiser=torch.optim.SGD, **options):  # fmt: skip
    "(network before, after), by torch's own optimiser"
    g = torch.Generator().manual_seed(seed)
    before = MLP([X.shape[1], width, width, outputs], seed=seed, dtype=dtype, bias='first')
    for layer in before.layers:
        layer.weight.data.normal_(0, start, generator=g)
    after, X = copy.deepcopy(before), X.to(dtype)
    y = torch.arange(len(X)) % max(outputs, 2)
    take = optimiser(after.parameters(), lr, **options)
    for _ in range(steps):
        for part in torch.randperm(len(X), generator=g).split(batch or len(X)):
            f = after(X[part])
            take.zero_grad()
            if outputs == 1:
                loss = torch.nn.functional.soft_margin_loss(f.flatten(), 2.0 * y[part] - 1)
            else:
                loss = torch.nn.functional.cross_entropy(f, y[part])
            loss.backward()
            take.step()
    return before, after


def error(X, answer):
    "largest distance of an image from the nearest one found"
    return torch.cdist(X, answer.X).min(1).values.max().item() if len(answer.X) else math.inf


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('n', (2, 5, 10))
def test_all_images_to_rounding_by_any_seed(n, seed):
    X = images(n, 60, seed)
    answer = invert_training(*trained(X, seed=seed))
    assert answer.complete and answer.samples == answer.normals == n and len(answer.X) == n
    assert error(X, answer) < 1e-8 and answer.remainder < 1e-12


@pytest.mark.parametrize(
    'settings',
    (
        dict(batch=2),
        dict(momentum=0.9, lr=0.02),
        dict(momentum=0.9, nesterov=True, lr=0.02),
        dict(outputs=3),
        dict(steps=3),
        dict(start=0.03, steps=1000),
        dict(dtype=torch.float32),
    ),
    ids=str,
)
def test_whatever_the_training_as_long_as_it_is_gradient_descent(settings):
    X = images(6, 60, 3)
    answer = invert_training(*trained(X, seed=3, **settings))
    exact = settings.get('dtype') is None
    assert answer.complete and error(X, answer) < (1e-8 if exact else 0.02)


def test_weight_decay_is_undone_by_invert_step_and_not_without_it():
    X = images(6, 60, 1)
    before, after = trained(X, seed=1, weight_decay=2e-3)
    answer = invert_step(before, after)
    assert answer.found.complete and error(X, answer.found) < 1e-8 and answer.factors[0] < 1
    with expect_fail(ValueError, contains='gradient descent from before'):
        invert_training(before, after, samples=6, rounds=6)


def test_adam_and_another_start_give_nothing():
    X = images(6, 60, 2)
    before, after = trained(X, seed=2, optimiser=torch.optim.Adam, lr=1e-3, steps=200)
    with expect_fail(ValueError, contains='gradient descent from before'):
        invert_training(before, after, samples=6, rounds=6)
    with expect_fail(ValueError, contains='samples'):
        invert_training(MLP([60, 120, 120, 1], seed=9, dtype=torch.float64, bias='first'), after)


def test_too_few_neurons_give_less_and_never_a_wrong_image():
    "what is returned is right or agrees with the zeros by less than all of them"
    for width in (12, 16, 24, 40):
        X = images(8, 60, 4)
        answer = invert_training(*trained(X, width=width, seed=4), samples=8, rounds=12)
        assert answer.complete == (len(answer.X) == 8 == answer.normals)
        if answer.complete:
            assert error(X, answer) < 1e-6
        for x in answer.X if answer.normals == 8 else ():
            assert (X - x).norm(dim=1).min() < 1e-6


def test_seen_says_which_neurons_were_active():
    X = images(5, 40, 0)
    before, after = trained(X, seed=0, steps=1)
    answer = invert_training(before, after)
    order = torch.cdist(X, answer.X).argmin(1)
    active = (before.layers[0](X) > 0).detach()
    moved = (after.layers[0].weight != before.layers[0].weight).any(1)
    assert torch.equal(answer.seen[order][:, moved], active[:, moved])
    assert not answer.seen[:, ~moved].any()


def test_same_answer_for_the_same_seed_and_nothing_is_changed():
    X = images(5, 40, 0)
    pair = trained(X, seed=0)
    copies = copy.deepcopy(pair)
    first, again = (invert_training(*pair, seed=4) for _ in range(2))
    assert torch.equal(first.X, again.X)
    for net, kept in zip(pair, copies):
        for p, q in zip(net.parameters(), kept.parameters()):
            assert torch.equal(p, q)


@pytest.mark.parametrize(
    'change, said',
    (
        (dict(samples=0), 'samples'),
        (dict(starts=0), 'starts'),
        (dict(rounds=-1), 'rounds'),
        (dict(samples=41), 'samples'),
        (dict(samples=2.5), 'samples'),
        (dict(seed='x'), 'seed'),
    ),
)
def test_bad_settings_are_named(change, said):
    before, after = trained(images(3, 40, 0), width=60, steps=5)
    with expect_fail(ValueError, contains=said):
        invert_training(before, after, **change)


def test_bad_networks_are_named():
    before, after = trained(images(3, 40, 0), width=60, steps=5)
    broken = copy.deepcopy(after)
    broken.layers[0].weight.data[0, 0] = math.nan
    narrow = MLP([40, 30, 30, 1], bias='first', dtype=torch.float64)
    for pair, said in (((before, broken), 'finite'), ((narrow, after), 'like after')):
        with expect_fail(ValueError, contains=said):
            invert_training(*pair)


def test_a_frozen_bias_is_refused_as_no_length_is_known():
    X = images(6, 60, 0)
    before, after = trained(X)
    after.layers[0].bias.data.copy_(before.layers[0].bias.data)
    for samples in (None, 6):
        with expect_fail(ValueError, contains='first bias as before'):
            invert_training(before, after, samples=samples)
