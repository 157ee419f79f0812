"Sweeps, boundaries, controls and bad input behind beyond/inversion"

import copy, functools, math, re, time
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn.functional import cross_entropy, normalize, softplus
from samplesplit_nb.data import load_data
from samplesplit_nb.decomposition import match_samples
from samplesplit_nb.inversion import invert_gradient, recover_from_gradient
from samplesplit_nb.networks import MLP, Polynomial, SmoothReLU, SurrogateReLU
from samplesplit_nb.training import train_gd

randn = lambda *shape, seed=0: torch.randn(
    *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
)
perceptron = functools.partial(MLP, dtype=torch.float64)

RELU, SOFT, SQUARE, CUBE = SmoothReLU(), SmoothReLU(10.0), Polynomial((0, 0, 1.0)), Polynomial.power(3)
ACTIVATIONS = dict(relu=RELU, softplus=SOFT, square=SQUARE, cube=CUBE)


def spread(n, d, seed=0):
    "Rows of length sqrt(d), for which the pre-activations are of size 1: powers of them stay in range"
    return normalize(randn(n, d, seed=seed), dim=1) * d**0.5


def gradient_of(network, loss):
    return list(torch.autograd.grad(loss, list(network.parameters())))


def linear_loss(network, X, c):
    "The gradient of a loss whose derivative by the outputs is c"
    return gradient_of(network, (c * network(X)).sum())


def logistic(network, X, y):
    return gradient_of(network, softplus(-y * network(X)[:, 0]).mean())


def nearest(X, others):
    "(distance, place) of the row of `others` nearest to each row of X"
    return torch.cdist(X, others, compute_mode='donot_use_mm_for_euclid_dist').min(1)


def errors(X, c, found):
    "(largest distance of a sample, largest relative error of its multipliers); each has a row of its own"
    error, index = nearest(X, found.X)
    assert len(index.unique()) == len(X)
    return error.max().item(), ((found.multipliers[index] - c).norm(dim=1) / c.norm(dim=1)).max().item()


def moves(before, after):
    return [q.detach() - p.detach() for p, q in zip(before.parameters(), after.parameters())]


# One hidden layer: an activation t^degree


def gradient_problem(X, y, m, degree=3, seed=0, eta=0.1):
    "One full-batch step of gradient descent on the mean logistic loss, by autograd"
    W = (randn(m, X.shape[1], seed=seed) / X.shape[1] ** 0.5).requires_grad_()
    a = randn(m, seed=seed + 1) / m**0.5
    (grad,) = torch.autograd.grad(softplus(-y * ((X @ W.T) ** degree @ a)).mean(), W)
    return W.detach(), a, -eta * grad


def test_forty_images_from_one_gradient():
    data = load_data('faces', n=40, seed=1, mean='collection')
    W0, a0, dW = gradient_problem(data.X, data.y, 1645)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        answer = recover_from_gradient(W0, a0, dW, 3)
        best = min(best, time.perf_counter() - start)
    error = match_samples(normalize(data.X, dim=1), answer.X, 3).error.max()
    print(f'{best:.2f} s, error {error:.0e}')
    assert answer.unique and error < 1e-10 and best <= 5


@pytest.mark.parametrize('degree, n', [(3, 2), (3, 7), (4, 3), (4, 5), (5, 2), (5, 4)])
def test_one_gradient_is_enough_for_every_degree(degree, n):
    for seed in range(10):
        X = normalize(randn(n, 12, seed=seed), dim=1)
        y = torch.where(randn(n, seed=seed + 9) > 0, 1.0, -1.0).double()
        W0, a0, dW = gradient_problem(X, y, 2 * math.comb(n + degree - 2, degree - 1) + 5, degree, seed)
        for interpolation in ('kernel', 'symmetric'):
            answer = recover_from_gradient(W0, a0, dW, degree, interpolation=interpolation)
            assert answer.unique and match_samples(X, answer.X, degree).error.max() < 1e-9


# Two hidden layers and more
# Exact recovery, at four neurons per sample and more. Higher powers multiply what samples of different size
# weigh, layer by layer: they have two hidden layers and fewer samples.


@st.composite
def problems(draw):
    name = draw(st.sampled_from(sorted(ACTIVATIONS)))
    power = name in ('square', 'cube')
    n = draw(st.integers(1, 8 if power else 12))
    d, outputs, seed = draw(st.integers(max(n, 2), 30)), draw(st.integers(1, 4)), draw(st.integers(0, 10**6))
    widths = draw(st.lists(st.integers(5 * n + 20, 5 * n + 50), min_size=2, max_size=2 if power else 4))
    net = perceptron(
        [d, *widths, outputs], ACTIVATIONS[name], draw(st.sampled_from(['all', 'first'])), seed=seed
    )
    return net, spread(n, d, seed), randn(n, outputs, seed=seed + 1)


@settings(max_examples=70)
@given(problems())
def test_one_gradient_gives_all_samples_and_multipliers(problem):
    net, X, c = problem
    found = invert_gradient(net, linear_loss(net, X, c))
    assert found.complete and found.samples == len(found.X) == len(X)
    assert found.X.dtype == found.multipliers.dtype == torch.float64 and not found.X.requires_grad
    x_error, c_error = errors(X, c, found)
    assert x_error < 1e-6 and c_error < 1e-5 and found.remainder < 1e-8 and found.distance.max() < 1e-6
    assert found.sentence.startswith(f'all {len(X)} samples')


def alike(net, X):
    "(n,) which samples switch on the same ReLU neurons as another, in every hidden layer"
    on = []
    for layer in list(net.layers)[:-1]:
        X = layer(X).relu()
        on.append(X > 0)
    on = torch.cat(on, 1).double()
    return (torch.cdist(on, on).fill_diagonal_(1) == 0).any(1)


def test_samples_of_one_linear_network_leave_their_mean():
    "Found by hypothesis: four samples, two of which switch on the same neurons, are counted as three"
    net, X, c = perceptron([9, 10, 10, 1], seed=1083), randn(4, 9, seed=1083), randn(4, 1, seed=1084)
    assert alike(net, X).tolist() == [True, False, True, False]
    found = invert_gradient(net, linear_loss(net, X, c))
    assert found.complete and found.samples == 3
    mean = (c[[0, 2]] * X[[0, 2]]).sum(0) / c[[0, 2]].sum()
    assert nearest(torch.stack([mean, X[1], X[3]]), found.X)[0].max() < 1e-8


@settings(max_examples=40)
@given(
    st.integers(2, 8), st.integers(1, 3), st.integers(2, 3), st.booleans(), st.integers(0, 10**6), st.data()
)
def test_complete_is_no_lie_in_narrow_networks(n, outputs, depth, smooth, seed, data):
    """Down to the border: with a sample missing it is not called complete, but for samples that leave no
    trace, and those that see the same linear network: no method takes their weighted mean apart"""
    widths = data.draw(st.lists(st.integers(max(2 * n, 10), 4 * n + 6), min_size=depth, max_size=depth))
    net = perceptron([n + 5, *widths, outputs], SOFT if smooth else RELU, seed=seed)
    X, c = randn(n, n + 5, seed=seed), randn(n, outputs, seed=seed + 1)
    trace = torch.stack([linear_loss(net, X[i : i + 1], c[i : i + 1])[2].norm() for i in range(n)])
    found = invert_gradient(net, linear_loss(net, X, c))
    merged = torch.zeros(n, dtype=torch.bool) if smooth else alike(net, X)
    if found.complete and not merged.all():
        assert nearest(X[(trace > 1e-4 * trace.max()) & ~merged], found.X)[0].max() < 1e-3
    assert found.complete == found.sentence.startswith('all')


@pytest.mark.parametrize('name', ['relu', 'softplus', 'surrogate'])
def test_multipliers_are_the_derivatives_of_the_loss(name):
    net = perceptron([20, 60, 60, 3], SurrogateReLU(20.0) if name == 'surrogate' else ACTIVATIONS[name])
    X, labels, numbers = randn(6, 20, seed=1), torch.arange(6) % 3, randn(6, 3, seed=2)
    for loss in (
        lambda out: cross_entropy(out, labels),
        lambda out: (out - numbers).square().mean(),
        lambda out: (out - numbers).abs().sum(),
        lambda out: out.logsumexp((0, 1)),
    ):
        out = net(X)
        (c,) = torch.autograd.grad(loss(out), out)
        found = invert_gradient(net, gradient_of(net, loss(net(X))))
        assert found.complete and max(errors(X, c, found)) < 1e-8


@pytest.mark.parametrize('small', [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_a_sample_that_weighs_little_is_found_as_well(small):
    net, X, c = perceptron([20, 80, 80, 1]), randn(6, 20, seed=1), randn(6, 1, seed=2)
    c[0] *= small
    found = invert_gradient(net, linear_loss(net, X, c))
    assert found.complete and max(errors(X, c, found)) < 1e-6


@pytest.mark.parametrize(
    'widths', [[12, 40, 40, 1], [12, 40, 16, 1], [12, 20, 40, 2], [12, 40, 60, 30, 3], [200, 40, 40, 1]]
)
@pytest.mark.parametrize('n', [1, 2, 3])
def test_layers_of_unequal_width(widths, n):
    net, X, c = perceptron(widths, seed=3), randn(n, widths[0], seed=1), randn(n, widths[-1], seed=2)
    found = invert_gradient(net, linear_loss(net, X, c))
    assert found.complete and max(errors(X, c, found)) < 1e-8


# What the answer does not depend on


def permuted(net, gradient, seed):
    "The same network, and its gradient, with the neurons of each hidden layer in another order"
    net, gradient = copy.deepcopy(net), [g.clone() for g in gradient]
    g = torch.Generator().manual_seed(seed)
    place = {p: i for i, p in enumerate(net.parameters())}
    with torch.no_grad():
        for before, after in zip(net.layers, net.layers[1:]):
            order = torch.randperm(before.out_features, generator=g)
            for p in (before.weight, before.bias):
                if p is not None:
                    p.copy_(p[order])
                    gradient[place[p]] = gradient[place[p]][order]
            after.weight.copy_(after.weight[:, order])
            gradient[place[after.weight]] = gradient[place[after.weight]][:, order]
    return net, gradient


@settings(max_examples=12)
@given(
    st.sampled_from(['relu', 'softplus', 'square']),
    st.sampled_from(['all', 'first']),
    st.integers(2, 3),
    st.integers(0, 10**6),
)
def test_what_the_answer_does_not_depend_on(name, bias, depth, seed):
    "A factor, the order of samples and of neurons, the seed of the starts"
    net = perceptron([14, *[50] * (2 if name == 'square' else depth), 2], ACTIVATIONS[name], bias, seed=seed)
    X, c = spread(5, 14, seed), randn(5, 2, seed=seed + 1)
    gradient = linear_loss(net, X, c)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    same, shuffled = permuted(net, gradient, seed)
    assert torch.allclose(same(X), net(X)) and not torch.equal(same.layers[1].weight, net.layers[1].weight)
    for answer, factor in (
        (invert_gradient(net, gradient), 1),
        (invert_gradient(net, [-3 * g for g in gradient]), -3),
        (invert_gradient(net, [1e12 * g for g in gradient]), 1e12),
        (invert_gradient(net, [1e-12 * g for g in gradient]), 1e-12),
        (invert_gradient(net, linear_loss(net, X[order], c[order])), 1),
        (invert_gradient(same, shuffled), 1),
        (invert_gradient(net, gradient, seed=seed + 1), 1),
    ):
        assert answer.complete and len(answer.X) == 5 and max(errors(X, factor * c, answer)) < 1e-7


def test_the_same_seed_gives_the_same_bits():
    net, X = perceptron([20, 60, 60, 2]), randn(8, 20, seed=1)
    gradient = linear_loss(net, X, randn(8, 2, seed=2))
    one, two, other = (invert_gradient(net, gradient, seed=s) for s in (5, 5, 6))
    for field in ('X', 'multipliers', 'distance'):
        assert torch.equal(getattr(one, field), getattr(two, field))
    assert (one.samples, one.remainder, one.sentence) == (two.samples, two.remainder, two.sentence)
    assert not torch.equal(one.X, other.X)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('grad', [True, False])
def test_nothing_of_the_caller_is_touched(dtype, grad):
    net, X = MLP([20, 60, 60, 2], dtype=dtype), randn(5, 20, seed=1).to(dtype)
    gradient = linear_loss(net, X, randn(5, 2, seed=2).to(dtype))
    net.layers[0].weight.requires_grad_(False)
    net.layers[1].weight.grad = torch.ones_like(net.layers[1].weight)
    net.eval()
    weights, kept = copy.deepcopy(net.state_dict()), [g.clone() for g in gradient]
    flags, state = [p.requires_grad for p in net.parameters()], torch.get_rng_state()
    with torch.set_grad_enabled(grad):
        assert invert_gradient(net, gradient).complete
        assert torch.is_grad_enabled() == grad
    assert torch.equal(torch.get_rng_state(), state)
    assert flags == [p.requires_grad for p in net.parameters()] and not net.training
    assert all(torch.equal(weights[k], v) and v.dtype == dtype for k, v in net.state_dict().items())
    assert all(torch.equal(a, b) and b.dtype == dtype and not b.requires_grad for a, b in zip(kept, gradient))
    assert [p.grad is None for p in net.parameters()] == [True, True, False, True, True, True]
    assert (net.layers[1].weight.grad == 1).all()


def test_the_gradient_may_be_any_iterable_and_carry_a_graph():
    net, X, c = perceptron([20, 60, 60, 2]), randn(5, 20, seed=1), randn(5, 2, seed=2)
    gradient = torch.autograd.grad((c * net(X)).sum(), list(net.parameters()), create_graph=True)
    found = invert_gradient(net, (g for g in gradient))
    assert found.complete and torch.equal(found.X, invert_gradient(net, list(gradient)).X)
    assert not found.X.requires_grad and not found.multipliers.requires_grad


# Rounding


@pytest.mark.parametrize('n', [3, 8])
@pytest.mark.parametrize('name', ACTIVATIONS)
def test_rounding(name, n):
    "A gradient in float32, by float32 or rounded; weights in float32 before and after a step"
    net, X, c = (
        MLP([30, 12 * n, 12 * n, 1], ACTIVATIONS[name]),
        randn(n, 30, seed=1).float(),
        randn(n, 1, seed=2).float(),
    )
    exact = linear_loss(copy.deepcopy(net).double(), X.double(), c.double())
    length = lambda parts: math.sqrt(sum(v.detach().double().square().sum().item() for v in parts))

    def moved(share):
        size = share * length(net.parameters()) / length(exact)
        return [
            (p.detach().double() - size * g).float().double() - p.detach().double()
            for p, g in zip(net.parameters(), exact)
        ]

    error = {}
    for key, gradient in {
        'float64': exact,
        'rounded': [g.float() for g in exact],
        'float32': linear_loss(net, X, c),
        'moved by .1': moved(0.1),
        'moved by .001': moved(0.001),
    }.items():
        found = invert_gradient(net, gradient)
        assert found.complete and found.samples == n and found.X.dtype == torch.float64
        error[key] = nearest(X.double(), found.X)[0].max().item()
        if 'moved' not in key:
            assert errors(X.double(), c, found)[1] < (1e-10 if key == 'float64' else 1e-4)
    assert error['float64'] < 1e-11
    assert 1e-9 < error['rounded'] < 1e-5 and 1e-8 < error['float32'] < 1e-4
    assert 1e-7 < error['moved by .1'] < 1e-4
    assert (
        10 < error['moved by .001'] / error['moved by .1'] < 1000
    )  # a hundredth of the step, a hundred times the error


# How many neurons


@pytest.mark.parametrize('bias', ['all', 'first'])
@pytest.mark.parametrize('n', [2, 3, 5, 8])
def test_fewer_than_two_neurons_per_sample_are_refused(bias, n):
    "2n - 1 with a bias in the second layer, which is a neuron more; 2n without"
    least, X, c = 2 * n - (bias == 'all'), randn(n, 40, seed=1), randn(n, 1, seed=2)
    for m in (least - 1, least, least + 2):
        net = perceptron([40, m, m, 1], SOFT, bias)
        gradient = linear_loss(net, X, c)
        if m >= least:
            assert invert_gradient(net, gradient, samples=n).samples == n
        else:
            with pytest.raises(ValueError) as error:
                invert_gradient(net, gradient, samples=n)
            assert (
                f'samples={n}: samples must be at most {n - 1} with hidden layers of {m} and {m} neurons: '
                f'{n - 1} unknowns per sample'
                in str(error.value)
            )
    net = perceptron([40, 4 * n, 4 * n, 1], SOFT, bias)
    assert max(errors(X, c, invert_gradient(net, linear_loss(net, X, c)))) < 1e-8


@pytest.mark.parametrize('per_sample', [2.0, 2.25, 2.5, 3.0, 4.0])
def test_neurons_per_sample(per_sample):
    data, n = load_data('faces', n=12, seed=4, mean='collection'), 12
    for seed in range(3):
        net = perceptron([625, *[round(n * per_sample)] * 2, 1], seed=seed)
        found = invert_gradient(net, logistic(net, data.X, data.y))
        right = nearest(data.X, found.X)[0] < 1e-3 if len(found.X) else torch.zeros(n).bool()
        assert found.samples == n and len(found.X) <= n
        assert found.complete == bool(right.all())  # it knows when it is right
        if per_sample >= 2.5:
            assert right.sum() >= len(found.X) - 2  # a pair with equal patterns
        if per_sample >= 4:
            assert right.all()


def test_two_samples_that_switch_on_the_same_neurons_hide_each_other():
    "Their second signals are parallel: of their activations only a combination is in the span"
    data, net = load_data('faces', n=40, seed=0, mean='collection'), perceptron([625, 120, 120, 1], seed=2)
    found = invert_gradient(net, logistic(net, data.X, data.y))
    error = nearest(data.X, found.X)[0]
    missing = (error > 1e-3).nonzero()[:, 0].tolist()
    assert (found.samples, len(found.X), len(missing), found.complete) == (40, 38, 2, False)
    assert error[error < 1e-3].max() < 1e-6 and found.sentence.startswith('38 of 40 samples')
    with torch.no_grad():
        first = net.layers[0](data.X)
        patterns = [first > 0, net.layers[1](first.relu()) > 0]
    equal = [
        [[i, j] for i in range(40) for j in range(i + 1, 40) if torch.equal(on[i], on[j])] for on in patterns
    ]
    assert equal == [[], [missing]]


# Dependent samples


@pytest.mark.parametrize(
    'activation, bias, init',
    [
        (RELU, 'all', 'lecun'),
        (RELU, 'all', 'pytorch'),
        (RELU, 'first', 'pytorch'),
        (SOFT, 'all', 'lecun'),
        (SOFT, 'first', 'lecun'),
        (SOFT, 'all', 'pytorch'),
        (CUBE, 'first', 'pytorch'),
    ],
)
def test_more_samples_than_dimensions(activation, bias, init):
    "The first span tells nothing; the second is enough. What is found is right; not every draw gives all"
    complete = 0
    for seed in range(4):
        net = perceptron([5, 120, 120, 2], activation, bias, seed=seed, init=init)
        X, c = randn(20, 5, seed=seed + 50), randn(20, 2, seed=seed + 51)
        found = invert_gradient(net, linear_loss(net, X, c))
        assert found.samples == 20 and found.complete == (len(found.X) == 20)
        assert nearest(found.X, X)[0].max() < 1e-8
        if found.complete:
            assert errors(X, c, found)[0] < 1e-8
        complete += found.complete
    assert complete >= 2


@pytest.mark.parametrize('n', [4, 5, 6, 7])
@pytest.mark.parametrize('name', ['relu', 'softplus'])
def test_about_as_many_samples_as_dimensions(name, n):
    net, X, c = (
        perceptron([5, 60, 60, 1], ACTIVATIONS[name], seed=1),
        randn(n, 5, seed=3),
        randn(n, 1, seed=4),
    )
    found = invert_gradient(net, linear_loss(net, X, c))
    assert found.complete and found.samples == n and max(errors(X, c, found)) < 1e-8


def test_dependent_samples_have_the_scale_of_the_step_of_the_bias():
    "No bias but a first one of zeros: h(tx) = t h(x). With one sample missing there are directions only"
    net, X, c = perceptron([5, 120, 120, 2], bias='first'), randn(20, 5, seed=50), randn(20, 2, seed=51)
    found = invert_gradient(net, linear_loss(net, X, c))
    assert found.complete and max(errors(X, c, found)) < 1e-6
    part = invert_gradient(net, linear_loss(net, X, c), samples=19)
    assert not part.complete and part.remainder > 0.1
    step = linear_loss(net, X, c)
    with pytest.raises(ValueError, match='determined up to its scale only'):  # the bias at rest
        invert_gradient(net, [step[0], 0 * step[1], *step[2:]])
    few = spread(5, 5, 50)  # independent ones have: the first span gives it
    found = invert_gradient(net, linear_loss(net, few, c[:5]))
    assert found.complete and max(errors(few, c[:5], found)) < 1e-6


def test_squares_in_few_dimensions_have_too_few_features():
    "Squares of 5 inputs span 15 dimensions, and one for the bias: of 20 samples 16 are counted"
    for seed in range(2):
        net, X, c = (
            perceptron([5, 120, 120, 2], SQUARE, seed=seed),
            randn(20, 5, seed=seed),
            randn(20, 2, seed=seed + 1),
        )
        found = invert_gradient(net, linear_loss(net, X, c))
        assert found.samples == 16 and not found.complete and found.remainder > 0.01


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_equal_samples_count_once(name):
    net, X, c = perceptron([20, 80, 80, 2], ACTIVATIONS[name]), randn(6, 20, seed=1), randn(7, 2, seed=2)
    repeated = torch.cat([X, X[:1]])
    found = invert_gradient(net, linear_loss(net, repeated, c))
    together = torch.cat([c[:1] + c[6:], c[1:6]])  # multipliers add up
    assert found.complete and found.samples == 6 and max(errors(X, together, found)) < 1e-6
    c[6] = -c[0]  # and may cancel: no trace is left
    found = invert_gradient(net, linear_loss(net, repeated, c))
    assert found.complete and found.samples == 5 and max(errors(X[1:], c[1:6], found)) < 1e-6
    c[2] = 0
    found = invert_gradient(net, linear_loss(net, X, c[:6]))
    assert (
        found.complete
        and found.samples == 5
        and max(errors(X[[0, 1, 3, 4, 5]], c[[0, 1, 3, 4, 5]], found)) < 1e-6
    )


@pytest.mark.parametrize('name', ['relu', 'softplus', 'square'])
def test_affinely_dependent_samples_are_told_apart(name):
    net, X, c = perceptron([20, 80, 80, 2], ACTIVATIONS[name]), randn(6, 20, seed=1), randn(7, 2, seed=3)
    X = torch.cat([X, X[:1] + X[1:2] - X[2:3]])
    found = invert_gradient(net, linear_loss(net, X, c))
    assert found.complete and found.samples == 7 and max(errors(X, c, found)) < 1e-8


@pytest.mark.parametrize(
    'name, told', [('relu', True), ('softplus', True), ('square', False), ('cube', False)]
)
def test_opposite_samples(name, told):
    "Powers have equal or opposite activations for them, and the answer says that it is not complete"
    net, X, c = perceptron([20, 80, 80, 2], ACTIVATIONS[name]), randn(6, 20, seed=1), randn(8, 2, seed=3)
    X = torch.cat([X, -X[:2]])
    found = invert_gradient(net, linear_loss(net, X, c))
    assert found.complete == told
    if told:
        assert found.samples == 8 and max(errors(X, c, found)) < 1e-8


# Negative controls


@pytest.mark.parametrize('name', ACTIVATIONS)
@pytest.mark.parametrize('n', [1, 3, 8])
def test_other_weights_find_nothing(name, n):
    "And an empty answer has its shapes"
    net, other = (perceptron([30, 100, 100, 2], ACTIVATIONS[name], seed=s) for s in (0, 5))
    X, c = randn(n, 30, seed=1), randn(n, 2, seed=2)
    gradient = linear_loss(net, X, c)
    found = invert_gradient(other, gradient)
    assert found.samples == n and not found.complete and found.sentence.startswith(f'0 of {n} samples')
    assert [tuple(v.shape) for v in (found.X, found.multipliers, found.distance)] == [(0, 30), (0, 2), (0,)]
    assert found.X.dtype == found.multipliers.dtype == torch.float64 and found.remainder == 1
    assert len(invert_gradient(net, gradient).X) == n


@pytest.mark.parametrize('bias', ['all', 'first'])
@pytest.mark.parametrize('outputs', [1, 3])
def test_a_linear_network_hides_its_samples(outputs, bias):
    "One output: only the weighted mean; several: only the span of the means"
    net, X, c = (
        perceptron([30, 100, 100, outputs], Polynomial((0.0, 1.0)), bias),
        randn(8, 30, seed=1),
        randn(8, outputs, seed=2),
    )
    found = invert_gradient(net, linear_loss(net, X, c))
    assert found.samples == outputs and len(found.X) <= outputs
    means = c.T @ torch.cat([X, torch.ones(8, 1).double()], 1)  # (outputs, d+1)
    if outputs == 1:
        assert torch.allclose(found.X, means[:, :-1] / means[:, -1:], rtol=1e-8, atol=1e-8)
    mine = torch.cat([found.X, torch.ones(len(found.X), 1).double()], 1)
    Q = torch.linalg.qr(means.T)[0]
    assert (mine - mine @ Q @ Q.T).norm() < 1e-8 * mine.norm() and nearest(X, found.X)[0].min() > 0.1


@pytest.mark.parametrize('seed', range(3))
def test_noise_finds_nothing(seed):
    net = perceptron([30, 60, 60, 2], seed=seed)
    noise = [randn(*p.shape, seed=10 * seed + i) for i, p in enumerate(net.parameters())]
    with pytest.raises(ValueError, match='samples=None: samples must be given .* pass samples=n'):
        invert_gradient(net, noise)
    for given_settings in (
        dict(samples=5),
        dict(samples=5, directions=5),
        dict(samples=5, directions=5, accept=0.5),
    ):
        found = invert_gradient(net, noise, **given_settings)
        assert (len(found.X), found.samples, found.complete) == (0, 5, False)


@pytest.mark.parametrize('wrong', [3, 5, 7, 12])
def test_a_wrong_number_of_samples_is_not_complete(wrong):
    "Too few: nothing is certain; too many: those that are there"
    net, X, c = perceptron([20, 80, 80, 2]), randn(6, 20, seed=1), randn(6, 2, seed=2)
    found = invert_gradient(net, linear_loss(net, X, c), samples=wrong)
    assert found.samples == wrong and not found.complete
    if wrong > 6:
        assert len(found.X) == 6 and max(errors(X, c, found)) < 1e-8 and found.remainder < 1e-10
    else:
        assert not len(found.X) or nearest(found.X, X)[0].max() < 1e-3


def test_fewer_rounds_find_less_and_say_so():
    net, X, c = perceptron([40, 100, 100, 1]), randn(20, 40, seed=1), randn(20, 1, seed=2)
    gradient = linear_loss(net, X, c)
    few = invert_gradient(net, gradient, rounds=1, starts=4)
    assert (
        1 <= len(few.X) <= 4
        and not few.complete
        and f'{len(few.X)} of 20 samples' in few.sentence
        and few.remainder > 0.1
    )
    assert nearest(few.X, X)[0].max() < 1e-6
    assert invert_gradient(net, gradient).complete


# Training runs

FACES = load_data('faces', n=10, seed=2, mean='collection')
APART = torch.cdist(FACES.X, FACES.X).fill_diagonal_(math.inf).amin(1)  # of each sample to the nearest other


@functools.cache
def trained(momentum=0.0):
    start = perceptron([625, 300, 300, 1])
    run = train_gd(
        start,
        FACES.X,
        FACES.y,
        loss='mse',
        lr=0.05 if momentum == 0 else 0.02,
        steps=1000,
        momentum=momentum,
        stop_loss=1e-6,
    )
    assert run.loss < 1e-6 and run.steps > 20
    return start, moves(start, run.model)


@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_a_training_run_gives_most_samples_nearly(momentum):
    start, step = trained(momentum)
    found = invert_gradient(start, step)
    assert (
        found.samples == 10 and not found.complete and found.remainder > 1e-3
    )  # counted exactly, read nearly
    error = nearest(FACES.X, found.X)[0]
    assert (error < APART / 2).sum() >= 8
    assert error.min() > 1e-6  # it is not one gradient
    assert re.match(r'(8|9|10) inputs found of 10 counted, nearly', found.sentence)


def test_controls_of_the_training_run():
    start, step = trained()
    other = invert_gradient(perceptron([625, 300, 300, 1], seed=1), step)
    assert (other.samples, len(other.X), other.complete) == (10, 0, False)
    single = invert_gradient(start, step, directions=10)  # as if it had been one step
    assert not single.complete and (
        not len(single.X) or (nearest(FACES.X, single.X)[0] < APART / 2).sum() < 5
    )


def run_of(optimiser, batches=False, steps=40):
    "The step of a short run in torch, and its samples"
    net, X, y = perceptron([30, 100, 100, 1]), randn(8, 30, seed=1), randn(8, seed=3)
    model = copy.deepcopy(net)
    optimiser = optimiser(model.parameters())
    for i in range(steps):
        keep = [(3 * i + j) % 8 for j in range(3)] if batches else list(range(8))
        optimiser.zero_grad()
        (model(X[keep])[:, 0] - y[keep]).square().mean().backward()
        optimiser.step()
    return net, moves(net, model), X


class SignDescent(torch.optim.SGD):
    "Adam without memory"

    def step(self):
        for group in self.param_groups:
            for p in group['params']:
                p.grad.sign_()
        return super().step()


@pytest.mark.parametrize('batches', [False, True])
@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_sums_of_gradients_are_counted_exactly(batches, momentum):
    net, step, _ = run_of(lambda p: torch.optim.SGD(p, 0.02, momentum=momentum), batches)
    found = invert_gradient(net, step)
    assert found.samples == 8 and not found.complete


@pytest.mark.parametrize('steps', [1, 40])
@pytest.mark.parametrize('name', ['signs', 'Adam', 'weight decay'])
def test_other_steps_are_not_trusted(name, steps):
    "They leave the span: not counted as 8 samples, and with 8 given nothing is called complete"
    optimiser = {
        'signs': lambda p: SignDescent(p, 1e-3),
        'Adam': lambda p: torch.optim.Adam(p, 1e-3),
        'weight decay': lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.01),
    }[name]
    net, step, X = run_of(optimiser, steps=steps)
    try:
        found = invert_gradient(net, step)
    except ValueError as error:
        assert str(error).startswith('samples=') and 'samples must be' in str(error)
    else:
        assert found.samples != 8 and not found.complete and not len(found.X)
    found = invert_gradient(net, step, samples=8)
    assert not found.complete and found.remainder > 0.1
    if name != 'weight decay':
        assert not len(found.X) or nearest(X, found.X)[0].min() > 0.1


# Bad input

W, A, NAN = randn(7, 6), randn(7, seed=1), math.nan
NET = perceptron([20, 80, 80, 2])
G = linear_loss(NET, randn(6, 20, seed=1), randn(6, 2, seed=2))
ONE, BARE = perceptron([20, 80, 2]), perceptron([20, 80, 80, 2], bias='none')
TINY = perceptron([20, 9, 9, 2], SOFT)
TINY_G = linear_loss(TINY, randn(6, 20, seed=1), randn(6, 2, seed=2))


def with_weight(value):
    net = copy.deepcopy(NET)
    with torch.no_grad():
        net.layers[2].weight[0, 0] = value
    return net


def changed(place, value):
    return [value if i == place else g for i, g in enumerate(G)]


def call(net=NET, gradient=None, **settings):
    return lambda: invert_gradient(net, G if gradient is None else gradient, **settings)


BAD = {
    'gradient of another shape': (lambda: recover_from_gradient(W, A, W[:3], 3), 'dW.shape=(3, 6)'),
    'gradient of zero': (lambda: recover_from_gradient(W, A, 0 * W, 3), 'dW=<all zero>'),
    'gradient with nan': (lambda: recover_from_gradient(W, A, W * NAN, 3), 'dW=<42 of 42'),
    'gradient, degree 2': (lambda: recover_from_gradient(W, A, W, 2), 'degree=2'),
    'gradient, zero outputs': (lambda: recover_from_gradient(W, 0 * A, W, 3), 'a0=<all zero>'),
    'another module': (call(torch.nn.Sequential(torch.nn.Linear(20, 2))), 'network=<Sequential'),
    'no network': (call(None), 'network=<NoneType'),
    'one hidden layer': (
        call(ONE, linear_loss(ONE, randn(3, 20), randn(3, 2))),
        'network=<MLP with 2 layers>',
    ),
    'no biases': (call(BARE, linear_loss(BARE, randn(3, 20), randn(3, 2))), "bias='none'"),
    'a tensor too few': (call(gradient=G[:-1]), 'gradient=['),
    'a tensor too many': (call(gradient=[*G, G[0]]), 'gradient=['),
    'no tensors': (call(gradient=[]), 'gradient=[]'),
    'transposed': (call(gradient=changed(0, G[0].T)), 'gradient=[(20, 80)'),
    'in another order': (call(gradient=[G[2], *G[1:2], G[0], *G[3:]]), 'gradient=[(80, 80)'),
    'one flat tensor': (call(gradient=[torch.cat([g.flatten() for g in G])]), 'gradient=[('),
    'of another network': (call(perceptron([20, 80, 80, 3])), 'gradient=['),
    'nan gradient': (call(gradient=changed(5, G[5] * math.nan)), 'gradient=<2 of 2'),
    'infinite gradient': (call(gradient=changed(0, G[0] / 0)), 'gradient=<'),
    'nan weight': (call(with_weight(math.nan)), 'weights=<1 of 160'),
    'infinite weight': (call(with_weight(math.inf)), 'weights=<1 of 160'),
    'zero gradient': (call(gradient=[0 * g for g in G]), 'gradient=<all zero>'),
    'zero in the first layer': (call(gradient=[0 * G[0], 0 * G[1], *G[2:]]), 'gradient=<all zero>'),
    'zero in the second layer': (call(gradient=[*G[:2], 0 * G[2], 0 * G[3], *G[4:]]), 'gradient=<all zero>'),
    'too many samples for the network': (
        call(TINY, TINY_G, samples=6),
        'samples=6: samples must be at most 5 with hidden layers of 9 and 9 neurons',
    ),
    'too many samples, counted': (
        call(TINY, TINY_G),
        'samples=6: samples must be at most 5 with hidden layers of 9 and 9 neurons',
    ),
    'directions as many as neurons': (call(directions=80), 'fewer directions'),
    'more directions than neurons': (call(directions=100), 'fewer directions'),
    **{
        f'{name} = {value!r}': (call(**{name: value}), f'{name}={value!r}: {name} must be a whole number')
        for name in ('samples', 'directions', 'starts', 'rounds', 'iterations')
        for value in (0, -1, 2.0, '3')
    },
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_says_what_to_do(name):
    attempt, says = BAD[name]
    with pytest.raises(ValueError) as error:
        attempt()
    assert says in str(error.value) and 'must be' in str(error.value)


def test_the_input_of_the_table_is_otherwise_good():
    assert call()().complete


# What once went wrong


def test_a_black_image_is_found_once():
    "Nearness is measured with the last entry of 1, which keeps the norm of a zero image from zero"
    net, c = perceptron([20, 80, 80, 2], SOFT), randn(7, 2, seed=3)
    X = torch.cat([randn(6, 20, seed=1), torch.zeros(1, 20).double()])
    found = invert_gradient(net, linear_loss(net, X, c))
    assert found.complete and max(errors(X, c, found)) < 1e-6


@pytest.mark.parametrize('smaller', [0.2, 0.3])
def test_multipliers_of_samples_with_very_different_shares(smaller):
    net, X, c = perceptron([20, 60, 60, 2], CUBE), randn(4, 20, seed=1), randn(4, 2, seed=2)
    X[0] *= smaller
    found = invert_gradient(net, linear_loss(net, X, c))
    assert found.complete and errors(X, c, found)[1] < 1e-5


def test_a_sample_of_tiny_weight_is_counted():
    "The last sharp drop of the singular values counts, not the largest"
    net, X, c = perceptron([20, 80, 80, 1]), randn(6, 20, seed=1), randn(6, 1, seed=2)
    c[0] *= 1e-8
    found = invert_gradient(net, linear_loss(net, X, c))
    assert found.complete and found.samples == 6


@pytest.mark.parametrize('unit', [1e-200, 1e160])
def test_gradients_of_any_size(unit):
    net, X, c = perceptron([20, 80, 80, 1]), randn(4, 20, seed=1), randn(4, 1, seed=2)
    found = invert_gradient(net, [unit * g for g in linear_loss(net, X, c)])
    assert found.complete and errors(X, unit * c, found)[0] < 1e-6


@pytest.mark.parametrize('steps', [1, 2, 3, 5])
def test_a_few_steps_of_descent_are_exact(steps):
    "The activations before the first step are in the span, however many directions the others add"
    data, start = load_data('faces', n=10, seed=0, mean='collection'), perceptron([625, 300, 300, 1])
    after = train_gd(start, data.X, data.y, loss='mse', lr=0.02, steps=steps).model
    found = invert_gradient(
        start, [q.detach() - p.detach() for p, q in zip(start.parameters(), after.parameters())]
    )
    assert found.samples == 10 and nearest(data.X, found.X)[0].max() < 1e-6 and found.complete == (steps == 1)
