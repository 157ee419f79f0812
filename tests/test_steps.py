"One hidden layer, modules of any make, weight decay and likely causes: beyond/shallow, beyond/steps"

import copy, json
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from samplesplit_nb.cli import main
from samplesplit_nb.data import load_data
from samplesplit_nb.inversion import invert_gradient
from samplesplit_nb.networks import MLP
from samplesplit_nb.perceptrons import LIKELY, activation_named, perceptron, perceptron_in
from samplesplit_nb.shallow import invert_shallow
from samplesplit_nb.steps import decay_factors, invert_step

DATA = load_data('faces', n=20, seed=0)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def net_of(widths, name='relu', seed=0, dtype=torch.float64):
    return MLP(widths, activation_named(name), seed=seed, dtype=dtype, init='pytorch')


def gradient(net, X, c):
    return list(torch.autograd.grad((c * net(X)).sum(), list(net.parameters())))


def nearest(X, found):
    return torch.cdist(X, found, compute_mode='donot_use_mm_for_euclid_dist').min(1).values


def train(net, n=10, steps=1, lr=0.02, optimiser=torch.optim.SGD, no_decay=(), **settings):
    "A copy after some steps on faces"
    model = copy.deepcopy(net).requires_grad_(True)
    params = dict(model.named_parameters())
    free = [p for name, p in params.items() if name.endswith(tuple(no_decay))] if no_decay else []
    rest = [p for p in params.values() if not any(p is q for q in free)]
    groups = [dict(params=rest), *([dict(params=free, weight_decay=0.0)] if free else [])]
    opt = optimiser(groups, lr=lr, **settings)
    X, y = (v[:n].to(rest[0].dtype) for v in (DATA.X, DATA.y))
    for _ in range(steps):
        opt.zero_grad()
        (model(X)[:, 0] - y).square().mean().backward()
        opt.step()
    return model


# Activations


@pytest.mark.parametrize('name', LIKELY)
def test_every_likely_activation_is_inverted(name):
    net = net_of([30, 80, 80, 1], name)
    X, c = randn(6, 30, seed=1), randn(6, 1, seed=2)
    found = invert_gradient(net, gradient(net, X, c))
    assert found.complete and nearest(X, found.X).max() < 1e-5, found.sentence
    other = net_of([30, 80, 80, 1], name, seed=9)  # control: other weights
    assert not len(invert_gradient(other, gradient(net, X, c)).X)


THEIRS = {
    'relu': nn.ReLU(), 'ReLU': nn.ReLU(), 'LeakyReLU': nn.LeakyReLU(), 'leaky_relu:0.3': nn.LeakyReLU(0.3),
    'Tanh': nn.Tanh(), 'Sigmoid': nn.Sigmoid(), 'GELU': nn.GELU(), 'gelu-tanh': nn.GELU('tanh'),
    'Swish': nn.SiLU(), 'Softplus': nn.Softplus(), 'softplus:5': nn.Softplus(5), 'ELU:0.5': nn.ELU(0.5),
    'SELU': nn.SELU(), 'Mish': nn.Mish(), 'Hardswish': nn.Hardswish(), 'relu6': nn.ReLU6(),
}  # fmt: skip


@pytest.mark.parametrize('name', THEIRS)
def test_names_are_those_of_torch(name):
    z, f = randn(50) * 3, activation_named(name)
    assert torch.allclose(f(z), THEIRS[name](z), atol=1e-12)
    z.requires_grad_()
    assert torch.allclose(f.slope(z), torch.autograd.grad(THEIRS[name](z).sum(), z)[0], atol=1e-12)


@pytest.mark.parametrize('name', ['', 'rleu', 'tanh:2', 'elu:-1', 'elu:nan', 'leaky-relu:x', ':', 'a,b'])
def test_unknown_activations_are_refused(name):
    with pytest.raises(ValueError, match='activation='):
        activation_named(name)


def test_one_activation_for_each_layer():
    parts = net_of([30, 80, 80, 80, 1])
    each = [activation_named(v) for v in ('tanh', 'relu', 'gelu')]
    net = perceptron([(v.weight, v.bias) for v in parts.layers], each).requires_grad_(True)
    X, c = randn(6, 30, seed=1), randn(6, 1, seed=2)
    assert invert_gradient(net, gradient(net, X, c)).complete
    wrong = copy.copy(net)
    wrong.activations = wrong.activations[::-1]
    assert not len(invert_gradient(wrong, gradient(net, X, c)).X)


# Modules of any make


class Gated(nn.Module):
    "An activation of one's own"

    def forward(self, z):
        return z * torch.sigmoid(1.7 * z)


class Odd(nn.Module):
    "Names in no order, functions for layers, a scaled input, an unused layer's name"

    def __init__(self):
        super().__init__()
        self.zeta, self.alpha = nn.Linear(12, 9), nn.Linear(7, 2)
        self.m = nn.ModuleDict({'x': nn.Linear(9, 7)})

    def forward(self, x):
        h = F.gelu(self.zeta((x.flatten(1) - 0.5) / 0.25))
        return self.alpha(F.leaky_relu(self.m['x'](h), 0.2)).softmax(1)


GOOD = {
    'Sequential': (nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 1)), (12,), ['tanh']),
    'in place': (nn.Sequential(nn.Linear(12, 9), nn.ReLU(True), nn.Linear(9, 1)), (12,), None),
    'nested': (nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(12, 9), nn.ELU()), nn.Dropout(),
                             nn.Identity(), nn.Linear(9, 1)), (3, 4), ['elu']),
    'own activation': (nn.Sequential(nn.Linear(12, 9), Gated(), nn.Linear(9, 1)), (12,), ['own']),
    'no last bias': (
        nn.Sequential(nn.Linear(12, 9), nn.SiLU(), nn.Linear(9, 1, bias=False)), (12,), ['silu']),
    'functions': (Odd(), (3, 4), ['gelu', 'leaky-relu:0.2']),
    'no hidden layer': (nn.Sequential(nn.Linear(12, 2), nn.Softmax(1)), (12,), []),
}  # fmt: skip


@pytest.mark.parametrize('name', GOOD)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_perceptron_in_a_module(name, dtype):
    model, shape, names = GOOD[name]
    model = copy.deepcopy(model).to(dtype).eval()
    found, x = perceptron_in(model, shape), torch.rand(5, *shape, dtype=torch.float64)
    rows = found.scale * x.flatten(1) + found.shift
    last = list(m for m in model.modules() if isinstance(m, nn.Linear))
    assert len(found.network.layers) == len(last)
    if names is not None:
        assert [f.name for f in found.network.activations] == names
    mine = found.network(rows.to(dtype))
    mine = mine.softmax(1) if name in ('functions', 'no hidden layer') else mine
    assert torch.allclose(mine, model(x.to(dtype)), atol=1e-5)
    assert torch.allclose(found.inputs(rows), x.flatten(1))


class Short(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 1)

    def forward(self, x):
        return self.b(x + self.a(x).relu())


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.c(self.a(x).tanh() * self.b(x).sigmoid())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 1)

    def forward(self, x):
        return self.b(self.a(self.a(x).relu()).relu())


class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 1)

    def forward(self, x):
        return self.a(x.flip(1))


def layers(*between, start=5):
    return nn.Sequential(nn.Linear(start, 5), *between, nn.Linear(5, 1))


REFUSED = {
    'convolution': (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1)), (1, 4, 4), 'convolution'),
    'PReLU': (layers(nn.PReLU()), (5,), '<1.weight>'),
    'BatchNorm': (layers(nn.BatchNorm1d(5)), (5,), '1.weight'),
    'LayerNorm': (layers(nn.LayerNorm(5, elementwise_affine=False)), (5,), '<between 0 and 2>'),
    'softmax between': (layers(nn.Softmax(1)), (5,), '<between 0 and 2>'),
    'shortcut': (Short(), (5,), '<between a and b>'),
    'two branches': (Parallel(), (5,), 'between'),
    'called twice': (Twice(), (5,), 'shared'),
    'input turned': (Turned(), (5,), '<input (5,)>'),
    'another shape': (layers(), (6,), 'check `shape`'),
    'per token': (layers(nn.ReLU()), (3, 5), ''),
    'LSTM': (nn.Sequential(nn.Linear(5, 5), nn.LSTM(5, 5)), (5,), 'weight_ih'),
    'nothing dense': (nn.Sequential(nn.ReLU()), (5,), 'no dense layer'),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_other_modules_are_refused_in_a_line(name):
    model, shape, says = REFUSED[name]
    with pytest.raises(ValueError) as error:
        perceptron_in(model, shape)
    assert says in str(error.value) and '\n' not in str(error.value) and 'must be' in str(error.value)


def test_nothing_of_the_module_is_touched():
    model = nn.Sequential(nn.Linear(12, 9), nn.Dropout(), nn.Tanh(), nn.Linear(9, 1)).train()
    before = copy.deepcopy(model.state_dict())
    perceptron_in(model, (12,))
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# One hidden layer


@pytest.mark.parametrize('n', [1, 2, 5, 10])
@pytest.mark.parametrize('name, outputs', [
    ('relu', 1), ('relu', 10), ('leaky-relu:0.1', 1), ('leaky-relu:0.1', 3), ('hardtanh', 1),
    ('tanh', 1), ('sigmoid', 1), ('gelu', 1), ('softplus', 1), ('elu', 1),
])  # fmt: skip
def test_one_hidden_layer(name, outputs, n):
    scale = 3 if name == 'hardtanh' else 1
    net = net_of([30, 200, outputs], name)
    X, c = scale * randn(n, 30, seed=1), randn(n, outputs, seed=2)
    found = invert_shallow(net, gradient(net, X, c))
    assert found.complete and found.samples == n and nearest(X, found.X).max() < 1e-5, found.sentence
    index = torch.cdist(X, found.X).argmin(1)
    assert torch.allclose(found.multipliers[index], c, rtol=1e-4, atol=1e-6)
    if n > 1:  # control: one sample is in the step itself, whatever the weights
        none = invert_shallow(net_of([30, 200, outputs], name, seed=7), gradient(net, X, c))
        assert not len(none.X) and none.sentence.startswith(f'0 of {n} samples')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('n, width', [(1, 20), (10, 100), (20, 300)])
def test_one_hidden_layer_in_files_precision(n, width, dtype):
    net = net_of([625, width, 1], dtype=dtype)
    answer = invert_step(net, train(net, n))
    assert answer.found.samples == n == len(answer.found.X)
    assert nearest(DATA.X[:n], answer.found.X).max() < 1e-2 and answer.notes == ()
    unseen = load_data('faces', n=40, seed=3).X[20:]
    assert nearest(unseen, answer.found.X).min() > 0.5 or n == 20


def test_too_few_neurons_are_never_called_exact():
    for seed in range(3):
        net = net_of([625, 60, 1], seed=seed)
        found = invert_shallow(net, gradient(net, DATA.X, randn(20, 1, seed=seed)))
        if found.complete:
            assert nearest(DATA.X, found.X).max() < 1e-3
        else:
            assert 'exactly' not in found.sentence and found.samples == 20


@pytest.mark.parametrize('name', ['relu', 'tanh'])
def test_one_hidden_layer_after_some_steps(name):
    "Counted exactly; what is found is not called exact unless it is"
    net = net_of([625, 200, 1], name)
    answer = invert_step(net, train(net, 6, steps=5, lr=0.002), rounds=6)
    assert answer.found.samples == 6
    if 'exactly' in answer.found.sentence:
        assert nearest(answer.found.X, DATA.X[:6]).max() < 1e-2


@pytest.mark.parametrize('net, says', [
    (MLP([5, 4, 4, 1]), 'one hidden layer'), (MLP([5, 4, 1], bias='none'), 'bias='),
    (net_of([5, 9, 3], 'tanh'), 'outputs=3'), (MLP([5, 3, 1]), 'samples='), (MLP([5, 1]), 'one hidden layer'),
], ids=['deep', 'no bias', 'smooth', 'narrow', 'linear'])  # fmt: skip
def test_what_one_hidden_layer_cannot(net, says):
    dtype = next(net.parameters()).dtype
    with pytest.raises(ValueError, match=says):
        invert_shallow(net, gradient(net, randn(4, 5).to(dtype), torch.ones(4, 1)))


# Weight decay

DECAYS = {
    'decay': (dict(weight_decay=0.05), 'all'), 'weak': (dict(weight_decay=1e-4), 'all'),
    'momentum': (dict(weight_decay=0.05, momentum=0.9), 'all'),
    'nesterov': (dict(weight_decay=0.05, momentum=0.9, nesterov=True), 'all'),
    'biases not': (dict(weight_decay=0.05, no_decay=['bias']), 'weights'),
    'last layer not': (dict(weight_decay=0.05, no_decay=['layers.2.weight', 'layers.2.bias']), 'all'),
    'second layer not': (dict(weight_decay=0.05, no_decay=['layers.1.weight', 'layers.1.bias']), 'first'),
    'none': ({}, 'none'),
}  # fmt: skip


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('name', DECAYS)
def test_weight_decay_is_one_number(name, dtype):
    settings, which = DECAYS[name]
    net = net_of([625, 150, 150, 1], dtype=dtype)
    model = train(net, steps=30, **settings)
    c, plain = decay_factors(net, model), 'momentum' not in settings
    true = (1 - 0.02 * settings.get('weight_decay', 0)) ** 30
    noise = 1e-6 if dtype == torch.float32 else 1e-10
    if dtype == torch.float32 and name == 'weak':  # rounding hides it, and does not care
        return
    decays = dict(all=(1, 1, 1, 1), weights=(1, 0, 1, 0), first=(1, 1, 0, 0), none=(0, 0, 0, 0))[which]
    for i, yes in enumerate(decays):
        if plain:
            assert abs(c[i] - (true if yes else 1)) < (noise if i < 2 else 1e-5), (i, c)
        else:
            assert c[i] < 0.99 and abs(c[i] - c[0]) < 1e-5
    answer = invert_step(net, model)
    # the gradients of a bias that does not decay have other weights: one direction more
    assert answer.found.samples in ((10, 11) if name == 'biases not' else (10,))
    assert bool(answer.notes) == (which != 'none')
    assert not answer.notes or 'weight decay' in answer.notes[0]
    assert (nearest(DATA.X[:10], answer.found.X) < 1).sum() >= 7


@pytest.mark.parametrize('shape', [(150, 20), (20, 150), (90, 90)])
@pytest.mark.parametrize('c', [0.999999, 0.9, 0.3])
def test_the_factor_of_any_shape(shape, c):
    d, m = shape
    before = net_of([d, m, 10, 1])
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.layers[0].weight.mul_(c).add_(randn(m, 3, seed=1) @ randn(3, d, seed=2))
    assert abs(decay_factors(before, after)[0] - c) < 1e-9


# Likely causes


@pytest.mark.parametrize('name, cause', [
    ('Adam', 'Adam'), ('AdamW', 'Adam'), ('RMSprop', 'Adam'), ('other', 'nothing in common'),
])  # fmt: skip
@pytest.mark.parametrize('steps', [1, 30])
def test_the_likely_cause_is_named(name, cause, steps):
    net = net_of([625, 150, 150, 1])
    if name == 'other':
        before, model = net_of([625, 150, 150, 1], seed=5), train(net, steps=steps)
    else:
        before, model = net, train(net, steps=steps, lr=1e-3, optimiser=getattr(torch.optim, name))
    with pytest.raises(ValueError, match=f'likely cause: .*{cause}'):
        invert_step(before, model)
    answer = invert_step(before, model, samples=10, others=())
    assert not len(answer.found.X) and cause in answer.notes[-1]


@pytest.mark.parametrize(
    'given, true', [('relu', 'tanh'), ('relu', 'sigmoid'), ('tanh', 'relu'), ('relu', 'gelu')]
)
def test_the_activation_that_works_is_named(given, true):
    net = net_of([625, 150, 150, 1], true)
    model = train(net, 8)
    read_as = [activation_named(given)] * 2
    taken = [perceptron([(v.weight, v.bias) for v in m.layers], read_as) for m in (net, model)]
    answer = invert_step(*taken)
    assert not len(answer.found.X) and f'with `activation` {true} it works' in answer.notes[-1]


# The command line


def cli(capsys, words):
    status = main([*words.split(), '--device', 'cpu', '--json'])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else {}, err


def test_the_command_takes_any_activation_and_module(tmp_path, monkeypatch, capsys):
    "Right by name and by module; the wrong one named; a convolution refused; one hidden layer"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'own_nets.py').write_text(
        'from torch import nn\n'
        'def seq(): return nn.Sequential(nn.Linear(625, 80), nn.Tanh(), nn.Linear(80, 80), nn.Tanh(),'
        ' nn.Linear(80, 1))\n'
        'def cnn(): return nn.Sequential(nn.Unflatten(1, (1, 25, 25)), nn.Conv2d(1, 2, 3), nn.Flatten(),'
        ' nn.Linear(1058, 1))\n'
    )  # fmt: skip
    import own_nets

    torch.manual_seed(0)
    thin = net_of([625, 100, 1]).layers
    own = dict(t=own_nets.seq(), c=own_nets.cnn(), s=nn.Sequential(thin[0], nn.ReLU(), thin[1]))
    for name, net in own.items():
        torch.save(net.state_dict(), f'{name}0.pt')
        torch.save(train(net, 6).state_dict(), f'{name}1.pt')
    words = 'invert --data faces -n 6 --weights {0}1.pt --init {0}0.pt --out out '
    for more in ('--activation tanh', '--activation tanh,Tanh', '--module own_nets:seq'):
        status, record, err = cli(capsys, words.format('t') + more)
        assert status == 0 and record['found'] == 6 and record['notes'] == [], err
        assert 'tanh' in record['settings']['activation'].lower()
    status, record, _ = cli(capsys, words.format('t'))
    assert status == 0 and record['found'] == 0 and 'tanh it works' in record['notes'][0]
    status, record, err = cli(capsys, words.format('s'))
    assert status == 0 and record['found'] == 6, err
    for more, says in (
        ('--activation nosuch', '--activation='), ('--activation tanh,relu,elu', 'one name, or 2'),
        ('--activation tanh --module own_nets:seq', 'leave out one'),
    ):  # fmt: skip
        status, _, err = cli(capsys, words.format('t') + more)
        assert status == 2 and says in err and err.count('\n') == 1
    status, _, err = cli(capsys, words.format('c') + '--module own_nets:cnn --shape 625')
    assert status == 2 and 'convolution' in err and err.count('\n') == 1
