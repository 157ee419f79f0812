"Modules of every kind: what is fixed, noted or refused, and that the fixed ones are the same function"

import copy, random, types
import pytest, torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint
from samplesplit_nb import attacks
from samplesplit_nb.inversion import invert_gradient
from samplesplit_nb.certificates import tensor_parts
from samplesplit_nb.stationarity import kkt_stationarity
from samplesplit_nb.networks import MLP, trained_parameters
from samplesplit_nb.objectives import KKTObjective, NTKObjective
from samplesplit_nb.splitting import splitting_product
from samplesplit_nb.validator import RULES, prepared, validate
from samplesplit_nb.weights import load_network

D = 36  # inputs are 6 x 6, flattened or as one channel


class Net(nn.Module):
    "Flatten, a layer of 8, something in the middle, a last layer, something at the end"

    def __init__(self, middle=None, outputs=1, end=None, first=None):
        super().__init__()
        self.first, self.last = first or nn.Linear(D, 8), nn.Linear(8, outputs)
        self.middle, self.end = middle or nn.ReLU(), end or (lambda out: out)

    def forward(self, x):
        return self.end(self.last(self.call(self.first(x.flatten(1)))))

    def call(self, h):
        return self.middle(h)


class Fn(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


class Root(torch.autograd.Function):
    "Once differentiable"

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.abs().sqrt()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].sign()


class Counter(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer('seen', torch.zeros(()))

    def call(self, h):
        self.seen += 1
        return h.relu() * self.seen


class Checkpointed(Net):
    def call(self, h):
        return checkpoint(self.middle, h, use_reentrant=self.reentrant)

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.says = nn.Linear(6, 8), nn.Linear(8, 1)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        return self.says(self.block(self.embed(x)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind, size=5, **options):
        super().__init__()
        self.reads, self.says = kind(6, 5, batch_first=True, **options), nn.Linear(size, 1)

    def forward(self, x):
        return self.says(self.reads(x)[0][:, -1])


class Spare(Net):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(5, 5)


class Embedding(nn.Module):
    def __init__(self, whole):
        super().__init__()
        self.table, self.says, self.whole = nn.Embedding(10, 4), nn.Linear(4, 1), whole

    def forward(self, x):
        x = x.flatten(1)
        return self.says(self.table((5 * x).long().clamp(0, 9) if self.whole else x).mean(1))


class Mean(Net):
    def call(self, h):
        return h.relu() - h.mean(0)


class OneRow(nn.Linear):
    def forward(self, x):
        return super().forward(x.view(1, D))


class Single(Net):
    def forward(self, x):
        return super().forward(x.float())


class NoGrad(Net):
    def call(self, h):
        with torch.no_grad():
            return h.relu()


class Logits(Net):
    def forward(self, x):
        return types.SimpleNamespace(logits=super().forward(x), loss=None)


def conv(*middle, size=64):
    return nn.Sequential(nn.Conv2d(1, 4, 3), *middle, nn.Flatten(), nn.Linear(size, 1))


def flat(*middle):
    return nn.Sequential(nn.Flatten(), *middle)


def with_nan():
    net = Net()
    with torch.no_grad():
        net.first.weight[0, 0] = torch.nan
    return net


def lstm(**options):
    return Recurrent(nn.LSTM, **options)


normed = lambda kind: Net(first=kind(nn.Linear(D, 8)))
I, C = (6, 6), (1, 6, 6)
# name: (made by, input shape, [(fate, kind, words of the line)])
TABLE = {
    'perceptron': (Net, I, []),
    'convolution': (lambda: conv(nn.ReLU(inplace=True), nn.MaxPool2d(2), size=16), C, []),
    'linear': (lambda: flat(nn.Linear(D, 3)), I, []),
    'gelu': (lambda: Net(nn.GELU()), I, []),
    'group-norm': (lambda: conv(nn.GroupNorm(2, 4)), C, []),
    'row-branch': (
        lambda: Net(Fn(lambda h: torch.stack([r.relu() if r.sum() > 0 else r for r in h]))),
        I,
        [],
    ),
    'weight-norm': (
        lambda: normed(parametrizations.weight_norm),
        I,
        [('fixed', 'weight norm', 'first.weight')],
    ),
    'old-weight-norm': (lambda: normed(weight_norm), I, [('fixed', 'weight norm', 'first.weight')]),
    'spectral-norm': (
        lambda: normed(parametrizations.spectral_norm),
        I,
        [('noted', 'scale', 'length of first.')],
    ),
    'attention': (
        Attention,
        I,
        [('fixed', 'training', 'block.dropout'), ('fixed', 'derivatives', 'layer block')],
    ),
    'lstm': (lstm, I, [('fixed', 'derivatives', 'layer reads: ')]),
    'lstm-bidirectional': (
        lambda: lstm(size=10, bidirectional=True, num_layers=2),
        I,
        [('fixed', 'derivatives', 'layer reads: '), ('noted', 'unused', 'weight_hh_l1_reverse')],
    ),
    'gru': (lambda: Recurrent(nn.GRU), I, []),
    'layer-norm': (lambda: Net(nn.LayerNorm(8)), I, [('fixed', 'derivatives', 'plain arithmetic')]),
    'instance-norm': (
        lambda: conv(nn.InstanceNorm2d(4, affine=True), nn.ReLU()),
        C,
        [
            ('fixed', 'derivatives', 'plain arithmetic'),
            ('noted', 'unused', '0.bias'),
            ('noted', 'scale', 'length of 0.weight'),
        ],
    ),
    'batch-norm': (lambda: conv(nn.BatchNorm2d(4)), C, [('fixed', 'training', 'layer 1: BatchNorm')]),
    'batch-norm-without': (
        lambda: conv(nn.BatchNorm2d(4, track_running_stats=False)),
        C,
        [('refused', 'rows', 'layer 1: the output for a row depends on the other rows')],
    ),
    'batch-norm-1d-without': (
        lambda: Net(nn.BatchNorm1d(8, track_running_stats=False)),
        I,
        [('refused', 'rows', 'layer middle: it does not take one row alone')],
    ),
    'minus-the-mean': (Mean, I, [('refused', 'rows', 'depends on the other rows')]),
    'one-row': (lambda: OneRow(D, 1), I, [('refused', 'rows', 'takes one row only')]),
    'dropout': (lambda: Net(nn.Dropout(0.5)), I, [('fixed', 'training', 'layer middle: Dropout')]),
    'dropout-function': (lambda: Net(Fn(F.dropout)), I, [('refused', 'chance', 'layer middle: the output')]),
    'dropout-at-the-end': (lambda: Net(end=F.dropout), I, [('refused', 'chance', 'by chance')]),
    'drop-path': (
        lambda: Net(Fn(lambda h: h.relu() if random.random() < 0.5 else h)),
        I,
        [('refused', 'chance', 'layer middle')],
    ),
    'counter': (Counter, I, [('refused', 'state', 'earlier calls')]),
    'tuple': (lambda: Net(end=lambda o: (o, o)), I, [('refused', 'output', 'a tuple; wrap it')]),
    'dict-of-logits': (
        lambda: Net(end=lambda o: dict(logits=o)),
        I,
        [('fixed', 'output', 'logits are taken')],
    ),
    'dict-of-other': (lambda: Net(end=lambda o: dict(out=o)), I, [('refused', 'output', 'a dict; wrap')]),
    'object-with-logits': (Logits, I, [('fixed', 'output', 'logits are taken')]),
    'nothing': (lambda: Net(end=lambda o: None), I, [('refused', 'output', 'a NoneType')]),
    'vector': (lambda: Net(end=lambda o: o[:, 0]), I, [('fixed', 'output', 'returns (3,) for 3 inputs')]),
    'squeezed': (lambda: Net(outputs=3, end=torch.squeeze), I, [('fixed', 'output', '(3,) for one input')]),
    'one-by-one': (lambda: Net(end=lambda o: o[:, :, None, None]), I, [('fixed', 'output', '(k, 1)')]),
    'sequence': (
        lambda: Net(outputs=4, end=lambda o: o.view(-1, 2, 2)),
        I,
        [('refused', 'output', '(3, 2, 2)')],
    ),
    'loss': (lambda: Net(end=torch.mean), I, [('refused', 'output', '() for 3 inputs')]),
    'no-output': (lambda: Net(end=lambda o: o[:, :0]), I, [('refused', 'output', 'no outputs')]),
    'argmax': (lambda: Net(outputs=3, end=lambda o: o.argmax(1)), I, [('refused', 'output', 'int64')]),
    'complex-output': (lambda: Net(end=lambda o: o.cfloat()), I, [('refused', 'output', 'complex64')]),
    'nan': (with_nan, I, [('refused', 'output', 'layer first: nan or inf')]),
    'rounded': (lambda: Net(end=torch.round), I, [('refused', 'constant', 'no derivative in the input')]),
    'rounded-input': (
        lambda: flat(Fn(torch.round), nn.Linear(D, 1)),
        I,
        [('refused', 'constant', 'no deriv')],
    ),
    'no-grad': (NoGrad, I, [('refused', 'constant', 'no derivative in the input')]),
    'own-function': (
        lambda: Net(Fn(Root.apply)),
        I,
        [('refused', 'derivatives', 'layer middle: In order to use an autograd.Function')],
    ),
    'checkpointed': (lambda: Checkpointed(False), I, [('refused', 'derivatives', 'leave it out')]),
    'checkpointed-again': (lambda: Checkpointed(True), I, [('refused', 'derivatives', 'leave it out')]),
    'grid-sample': (
        lambda: conv(Fn(lambda z: F.grid_sample(z, torch.zeros(len(z), 4, 4, 2).to(z), align_corners=False))),
        C,
        [('refused', 'derivatives', 'layer 1: ')],
    ),
    'unused': (Spare, I, [('noted', 'unused', 'spare.weight, spare.bias')]),
    'compiled': (lambda: torch.compile(Net()), I, [('fixed', 'compiled', 'module inside')]),
    'data-parallel': (lambda: nn.DataParallel(Net()), I, [('fixed', 'compiled', 'module inside')]),
    'scripted': (
        lambda: torch.jit.script(flat(nn.Linear(D, 1))),
        I,
        [('refused', 'derivatives', 'torch.jit')],
    ),
    'lazy': (lambda: flat(nn.LazyLinear(1)), I, [('refused', 'weights', '1.weight has no shape yet')]),
    'complex': (
        lambda: Net().to(torch.complex64),
        I,
        [('refused', 'weights', 'first.weight is torch.compl')],
    ),
    'mixed': (
        lambda: flat(nn.Linear(D, 2), nn.Linear(2, 1).double()),
        I,
        [('refused', 'weights', 'float64')],
    ),
    'meta': (lambda: Net().to('meta'), I, [('refused', 'weights', 'only shapes')]),
    'no-weights': (nn.Flatten, I, [('refused', 'weights', 'no parameters')]),
    'embedding': (lambda: Embedding(False), I, [('refused', 'runs', 'layer table: ')]),
    'embedding-whole': (lambda: Embedding(True), I, [('refused', 'constant', 'no derivative in the input')]),
    'float32-only': (Single, I, [('noted', 'double', 'layer first: float64 fails')]),
    'wrong-shape': (Net, (5, 5), [('refused', 'runs', 'layer first: torch says: mat1')]),
    'raises': (lambda: Net(Fn(lambda h: 1 / 0)), I, [('refused', 'runs', 'layer middle')]),
    'exits': (lambda: Net(Fn(lambda h: exit(3))), I, [('refused', 'runs', 'layer middle')]),
}


def make(name):
    torch.manual_seed(0)
    return TABLE[name][0]()


def inputs(shape, k=3):
    return torch.randn(k, *shape, generator=torch.Generator().manual_seed(5)) / 2


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', TABLE)
def test_a_module_is_fixed_noted_or_refused(name):
    "One line each; `prepared` refuses in one line what `validate` refuses, and gives the same function else"
    _, shape, wanted = TABLE[name]
    model = make(name)
    found = validate(model, shape)
    assert [(f.fate, f.kind) for f in found] == [w[:2] for w in wanted], found
    for f, (_, _, words) in zip(found, wanted):
        assert words in str(f) and '\n' not in str(f) and len(str(f)) < 400
    if found and found[-1].fate == 'refused':
        assert found[-1].kind in RULES or found[-1].kind == 'runs'
        with pytest.raises(ValueError, match='module must be|shape must be') as e:
            prepared(model, shape)
        assert '\n' not in str(e.value)
        return
    plain, again = prepared(model, shape)
    assert again == found
    x = inputs(shape)
    with torch.no_grad():
        theirs, ours = model.eval()(x), plain(x)
    if not torch.is_tensor(theirs):
        theirs = theirs['logits'] if isinstance(theirs, dict) else theirs.logits
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    'name', ['weight-norm', 'old-weight-norm', 'attention', 'lstm', 'layer-norm', 'vector']
)
def test_what_was_fixed_can_be_attacked(name):
    "Value, gradients and curvature of the attack, against finite differences in float64"
    model = make(name).double()
    if isinstance(getattr(model, 'middle', None), nn.ReLU):
        model.middle = nn.Tanh()  # value and gradients of a softened ReLU are of different functions
    plain = prepared(model, I).model
    objective = KKTObjective(plain, torch.tensor([1.0, -1.0, 1.0]), shape=I, sharpness=10.0)
    x, lam = inputs(I).double().flatten(1), torch.tensor([0.5, 0.3, 0.2]).double()
    _, grad_x, grad_lam = objective.value_and_grad(x, lam)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    rate = lambda f, h=1e-5: (f(h) - f(-h)) / (2 * h)
    torch.testing.assert_close(
        (grad_x * v).sum(), rate(lambda h: objective(x + h * v, lam)), rtol=1e-5, atol=1e-7
    )
    torch.testing.assert_close(
        grad_lam[0], rate(lambda h: objective(x, lam + h * torch.eye(3).double()[0])), rtol=1e-5, atol=1e-7
    )
    r = [t.detach() for t in objective.residual(x, lam)]
    product = splitting_product(objective, x, lam, r)(v)

    def slope(h):
        z = (x + h * v).requires_grad_()
        return -2 * torch.autograd.grad((objective.inner(r, z) * lam).sum(), z)[0]

    torch.testing.assert_close(product, rate(slope), rtol=1e-4, atol=1e-6)
    assert torch.isfinite(objective.multipliers(x)).all()


def test_a_step_is_read_in_what_was_trained_and_stationarity_in_the_folded_weights():
    "Weight norm: g and v for the step between checkpoints, w for theta itself"
    for kind in (parametrizations.weight_norm, weight_norm):
        torch.manual_seed(0)
        net = normed(kind).double()
        theta, step = (prepared(net, I, step=s).model for s in (False, True))
        assert len(trained_parameters(theta)) == 4 and len(trained_parameters(step)) == 5
        # one step of gradient descent on (g, v) is a sum of gradients there, and none of the folded ones
        x, later = inputs(I, 2).double(), copy.deepcopy(step).requires_grad_()
        later(x).sum().backward()
        with torch.no_grad():
            for p in later.parameters():
                p -= 1e-3 * p.grad
        ntk = NTKObjective(later, step, None, shape=I)
        lam = torch.full((2,), -1e-3).double()
        assert ntk.loss(x.flatten(1), lam) < 1e-12 * sum(t.square().sum() for t in ntk.target)


def test_the_numbers_of_the_caller_and_the_module_stay(name='attention'):
    model = make(name)
    state, training, rng = copy.deepcopy(model.state_dict()), model.training, torch.get_rng_state()
    names, chance = [n for n, _ in model.named_parameters()], random.getstate()
    prepared(model, I)
    assert all(torch.equal(state[n], p) for n, p in model.state_dict().items())
    assert model.training == training and [n for n, _ in model.named_parameters()] == names
    assert torch.equal(torch.get_rng_state(), rng) and random.getstate() == chance


def head(frozen=('1.weight',), seed=0):
    torch.manual_seed(seed)
    net = flat(
        nn.Linear(D, 7, bias=False), nn.ReLU(), nn.Linear(7, 5, bias=False), nn.ReLU(), nn.Linear(5, 1)
    )
    for n, p in net.named_parameters():
        p.requires_grad_(n not in frozen)
    return net


def test_frozen_layers_are_constants_of_every_attack():
    "Targets, gradients and certificates are of the others alone, as written out by autograd"
    net = head().double()
    x, y = inputs(I, 4).double(), torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    own = [p for p in net.parameters() if p.requires_grad]
    rows = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(s * net(x[i : i + 1])[0, 0], own)])
            for i, s in enumerate(y)
        ]
    )
    theta = torch.cat([p.detach().flatten() for p in own])
    objective = KKTObjective(net, y, None, shape=I)
    lam = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    torch.testing.assert_close(objective.loss(x.flatten(1), lam), (theta - lam @ rows).square().sum())
    assert len(objective.target) == 3
    x = x.flatten(1)
    r, best = kkt_stationarity(net, x, y)
    torch.testing.assert_close((theta - best @ rows).norm() / theta.norm(), torch.tensor(r).double())
    assert [p.name for p in tensor_parts(net, x, y, best)] == ['3.weight', '5.weight', '5.bias']
    assert r != kkt_stationarity(copy.deepcopy(net).requires_grad_(False), x, y)[0]  # all trained


def test_a_frozen_perceptron_agrees_with_the_same_module():
    own = MLP([D, 7, 5, 1], dtype=torch.float64)
    own.layers[0].requires_grad_(False)
    x, y = inputs((D,), 4).double(), torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    one, two = KKTObjective(own, y), KKTObjective(nn.Sequential(own), y, shape=(D,))
    lam = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    for a, b in zip(one.value_and_grad(x, lam), two.value_and_grad(x, lam)):
        torch.testing.assert_close(a, b)
    assert len(one.target) == 4 and one.activation is not None


def test_a_frozen_layer_that_moved_was_not_frozen():
    with pytest.raises(ValueError, match='init=<1.weight>: init must be equal to the trained'):
        NTKObjective(head(), head(seed=1), shape=I)
    with pytest.raises(ValueError, match='init=<1.weight>'):
        NTKObjective(head(), head(frozen=()), shape=I)
    later = head()
    with torch.no_grad():
        later[3].weight += 0.1
    assert [len(t) for t in NTKObjective(later, head(), shape=I).target] == [5, 1, 1]


def test_flags_of_a_module_survive_the_file(tmp_path):
    path = tmp_path / 'w.pt'
    torch.save(head().state_dict(), path)
    flags = lambda make: [p.requires_grad for p in load_network(path, make).parameters()]
    assert flags(head) == [False, True, True, True]
    assert flags(lambda: head(frozen=())) == [False] * 4  # all were trained: as ever
    with pytest.raises(ValueError, match='all its parameters are frozen'):
        flags(lambda: head().requires_grad_(False))


def test_commands_say_what_was_found(tmp_path, monkeypatch):
    "One line on the terminal and an entry in the record; refused before anything is written"
    monkeypatch.chdir(tmp_path)
    torch.save(make('layer-norm').state_dict(), 'w.pt')
    said = []
    answer = attacks.certify_file(
        hear=said.append, weights='w.pt', module=lambda: make('layer-norm'), shape=I, n=3, device='cpu'
    )
    line = (
        'fixed: layer middle: no sound second derivative in the usual kernels; computed in plain arithmetic'
    )
    assert any(' '.join(text.split()) == line for text in said), said
    assert answer.record['findings'][0]['kind'] == 'derivatives'
    found = attacks.reconstruct_file(
        weights='w.pt',
        module=lambda: make('layer-norm'),
        shape=I,
        k=2,
        steps=3,
        method='kkt',
        out='o',
        device='cpu',
    )
    assert found.record['findings'][0]['where'] == 'middle'
    with pytest.raises(ValueError, match='it returns a tuple'):
        attacks.reconstruct_file(
            weights='w.pt',
            module=lambda: Net(nn.LayerNorm(8), end=lambda o: (o, o)),
            shape=I,
            k=2,
            method='kkt',
            out='p',
        )


def test_inversion_leaves_frozen_layers_out_of_what_is_explained():
    "A frozen last layer is no part of the step; a frozen first one leaves nothing to read"
    net = MLP([6, 200, 60, 1], bias='all', seed=1, dtype=torch.float64)
    net.layers[2].requires_grad_(False)
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).double()
    own = list(trained_parameters(net).values())
    step = [
        *torch.autograd.grad(net(x).sum(), own),
        *(torch.zeros_like(p) for p in net.layers[2].parameters()),
    ]
    found = invert_gradient(net, step)
    assert found.complete and found.remainder < 1e-6
    net.requires_grad_(True).layers[0].requires_grad_(False)
    step = [torch.zeros_like(p) if i < 2 else p for i, p in enumerate(step)]
    with pytest.raises(ValueError, match='network=<layers.0.weight, layers.0.bias frozen>'):
        invert_gradient(net, step)
