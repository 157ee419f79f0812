"""Checkpoints as users have them: each loads as the network that it was, or is refused in one line

`CASES` is the table: what is on disk, with or without a module, and what is expected of it. An expected
`SAME` means that `load_network` gives the outputs of the network that was saved. Anything else is a piece of
the line that names what does not fit.
"""

import json, os, pickle, re, resource, signal, socket, subprocess, sys, zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
import numpy as np
import pytest, torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn
from samplesplit_nb.networks import MLP, mlp_from_weights
from samplesplit_nb.weights import describe, load_network, load_weights, save_weights

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::UserWarning')
SAME = 'loads as the same function'
D = 6  # numbers in one input


def lively(layer):
    "Larger weights, so that the outputs of deep networks differ"
    with torch.no_grad():
        layer.weight.mul_(3)
    return layer


def perceptron(*widths, bias='all', dtype=torch.float32, seed=0):
    "A ReLU perceptron of torch's own layers: names 0, 2, 4, ..."
    torch.manual_seed(seed)
    has = lambda i: bias == 'all' or (bias == 'first' and i == 0)
    layers = [lively(nn.Linear(a, b, bias=has(i))) for i, (a, b) in enumerate(zip(widths, widths[1:]))]
    return nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1]).to(dtype)


def words(*names, widths=None, bias=True, seed=0):
    "A perceptron whose layers have these names"
    torch.manual_seed(seed)
    widths = widths or [D, *[5] * (len(names) - 1), 1]
    layers = OrderedDict()
    for i, name in enumerate(names):
        layers[name] = lively(nn.Linear(widths[i], widths[i + 1], bias=bias))
        layers[f'relu{i}'] = nn.ReLU() if i < len(names) - 1 else nn.Identity()
    return nn.Sequential(layers)


MLP3 = lambda: perceptron(D, 5, 5, 1)
SQUARE = lambda **kw: perceptron(D, D, D, D, **kw)


def autoencoder():
    "Without an activation between its parts: the weights do not say so"
    return nn.Sequential(OrderedDict(enc=perceptron(D, 5, 3), dec=perceptron(3, 5, D)))


def normed():
    "With a normalisation that has seen data: parameters, buffers and a count"
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(D, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    net(3 * torch.randn(20, D) + 1)
    return net


def convolution():
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)
    )


class Tied(nn.Module):
    "Two names for one weight, as the embeddings of a language model"

    def __init__(self, tie=True):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.last = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 1)
        if tie:
            self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


class Wrapped(nn.Module):
    "A Lightning module: the network under `model`, the weights of a loss beside it"

    def __init__(self, net=None):
        super().__init__()
        self.model = net or MLP3()
        self.loss_fn = nn.BCEWithLogitsLoss(pos_weight=torch.ones(1))

    def forward(self, x):
        return self.model(x)


class Masked(nn.Module):
    "With a mask of -inf among its buffers"

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.lin = nn.Linear(D, 4)
        self.register_buffer('mask', torch.full((4, 4), -torch.inf).triu(1))
        self.register_buffer('lower', torch.tensor([0.0, 0, -torch.inf, -torch.inf]))

    def forward(self, x):
        return (self.lin(x) + self.lower).exp()


class Remembers(nn.Module):
    "Keeps a number outside of its tensors"

    def __init__(self, power=2):
        super().__init__()
        torch.manual_seed(5)
        self.lin, self.power = nn.Linear(D, 1), power

    def get_extra_state(self):
        return {'power': self.power}

    def set_extra_state(self, state):
        self.power = state['power']

    def forward(self, x):
        return self.lin(x) ** self.power


def pt(d, tree, name='w.pt', **kw):
    torch.save(tree, d / name, **kw)
    return d / name


def st(d, state, name='w.safetensors', metadata=None):
    save_file({k: v.contiguous().clone() for k, v in state.items()}, d / name, metadata)
    return d / name


def raw(d, data, name='w.pt'):
    (d / name).write_bytes(data)
    return d / name


def table(d, header, data=b'', name='w.safetensors'):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return raw(d, len(text).to_bytes(8, 'little') + text + data, name)


def archive(d, parts, name='w.pt', compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(d / name, 'w', compression) as z:
        for part, data in parts.items():
            z.writestr(part, data)
    return d / name


def prefixed(state, start):
    return {start + name: value for name, value in state.items()}


def cast(state, **dtypes):
    "The same state with some entries in another dtype; `_` stands for a dot"
    return state | {
        name: state[name].to(dtype) for name, dtype in ((k.replace('_', '.'), v) for k, v in dtypes.items())
    }


def rounded(net, **dtypes):
    "The network and its state where some entries were rounded to a narrower dtype"
    state = cast(net.state_dict(), **dtypes)
    net.load_state_dict(state)
    return net, state


def sharded(d, state, parts=2, kind='safetensors'):
    "A folder as of Hugging Face, cut into parts"
    whole, save = ('model.safetensors', st) if kind == 'safetensors' else ('pytorch_model.bin', pt)
    stem, _, suffix = whole.rpartition('.')
    weight_map, names = {}, list(state)
    for i in range(parts):
        name = f'{stem}-{i + 1:05}-of-{parts:05}.{suffix}'
        save(d, {k: state[k] for k in names[i::parts]}, name)
        weight_map |= dict.fromkeys(names[i::parts], name)
    (d / f'{whole}.index.json').write_text(
        json.dumps(dict(metadata=dict(total_size=1), weight_map=weight_map))
    )
    return d


def flax(net, sep='/', start='params/'):
    "The weights of a perceptron as Flax names and keeps them"
    layers = [m for m in net if isinstance(m, nn.Linear)]
    return {
        f'{start}Dense_{i}{sep}{part}': w.detach()
        for i, m in enumerate(layers)
        for part, w in (('bias', m.bias), ('kernel', m.weight.T))
        if w is not None
    }


def lightning(net, **more):
    "What Trainer.save_checkpoint writes"
    opt = torch.optim.Adam(net.parameters())
    net(torch.randn(4, D)).sum().backward()
    opt.step()
    return {
        'epoch': 3,
        'global_step': 40,
        'pytorch-lightning_version': '2.5.0',
        'loops': {'fit_loop': {'state_dict': {}}},
        'state_dict': prefixed(net.state_dict(), 'model.'),
        'optimizer_states': [opt.state_dict()],
        'lr_schedulers': [],
        'hyper_parameters': {'width': 5, 'lr': 1e-3},
        'callbacks': {"ModelCheckpoint{'monitor': None}": {'best_model_score': torch.tensor(0.3)}},
        **more,
    }


def averaged(net):
    model = torch.optim.swa_utils.AveragedModel(net)
    model.update_parameters(net)
    model.update_parameters(net)
    return model.state_dict()


def whole_state(wrap, net=MLP3):
    "A case: the state dict of a network, wrapped up and saved by torch"

    def make(d):
        model = net()
        return pt(d, wrap(model.state_dict())), model

    return make


def of(net, save, *args, **kw):
    "A case: save(d, state dict)"

    def make(d):
        model = net()
        return save(d, model.state_dict(), *args, **kw), model

    return make


def only(save, *args, **kw):
    "A case without a network: a file that has to be refused"
    return lambda d: (save(d, *args, **kw), None)


def swapped(state, a, b):
    "The state with two layers' entries in each other's place in the order"
    names = [name.replace(f'{a}.', '*').replace(f'{b}.', f'{a}.').replace('*', f'{b}.') for name in state]
    return {name: state[name] for name in names}


def both(d, name_a='model', name_b='ema', net=MLP3):
    return pt(d, {name_a: net().state_dict(), name_b: perceptron(D, 5, 5, 1, seed=9).state_dict()}), None


def tied_model(d):
    net = Tied()
    save_model(net, d / 'w.safetensors')
    return d / 'w.safetensors', net


def tied_perceptron(d):
    layer = nn.Linear(D, D)
    net = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(D, 1))
    save_model(net, d / 'w.safetensors')
    assert '2.weight' not in load_file(d / 'w.safetensors')
    return d / 'w.safetensors', net


def expanded(d):
    net = nn.Linear(D, 4)
    with torch.no_grad():
        net.bias.fill_(0.5)
    return pt(d, {'weight': net.weight.detach().T.contiguous().T, 'bias': torch.tensor([0.5]).expand(4)}), net


def no_counts(d):
    net = normed()
    return pt(d, OrderedDict((k, v) for k, v in net.state_dict().items() if 'num_batches' not in k)), net


def rest_of(d, **entries):
    return pt(d, {**MLP3().state_dict(), **entries}), None


def jit(d):
    torch.jit.script(MLP3()).save(d / 'w.pt')
    return d / 'w.pt', None


def cut(d, keep, safe=False):
    path = (st if safe else pt)(d, MLP3().state_dict())
    data = path.read_bytes()
    return raw(d, data[: int(keep * len(data))], path.name), None


def pickled(body):
    "A torch archive around a pickle"
    return {'a/data.pkl': b'\x80\x02' + body + b'.', 'a/version': b'3\n', 'a/byteorder': b'little'}


def fifo(d):
    os.mkfifo(d / 'w.pt')
    return d / 'w.pt', None


def unix_socket(d):
    with socket.socket(socket.AF_UNIX) as s:
        old = os.getcwd()
        os.chdir(d)  # a socket's path may have 108 letters only
        try:
            s.bind('w.pt')
        finally:
            os.chdir(old)
    return d / 'w.pt', None


def loop(d):
    (d / 'w.pt').symlink_to(d / 'w.pt')
    return d / 'w.pt', None


def doubling(d, depth=60):
    "A dictionary with two to the 60 leaves"
    tree = {}
    for _ in range(depth):
        tree = {'a': tree, 'b': tree}
    return pt(d, tree), None


def nested(d, depth=20_000):
    "Dictionaries in dictionaries, written by hand: pickle itself would recurse"
    body = b''.join([b'}X\x01\x00\x00\x00a'] * depth) + b'}' + b's' * depth
    return archive(d, pickled(body)), None


LINE = dict(dtype='F32', shape=[2, 2], data_offsets=[0, 16])
OWN = MLP3  # given as --module

# id: (make, module or None, what is expected)
CASES = {
    # what torch saves
    'bare': (whole_state(dict), None, SAME),
    'bare with a module': (whole_state(dict), OWN, SAME),
    'legacy format': (of(MLP3, lambda d, s: pt(d, s, _use_new_zipfile_serialization=False)), None, SAME),
    'named otherwise': (of(MLP3, lambda d, s: pt(d, s, 'model.safetensors')), None, SAME),
    'safetensors named .pt': (of(MLP3, lambda d, s: st(d, s, 'w.pt')), None, SAME),
    'in model_state_dict with an optimiser': (
        whole_state(lambda s: {'model_state_dict': s, 'optimizer_state_dict': {'state': {0: s}}, 'epoch': 3}),
        None,
        SAME,
    ),
    'in params': (whole_state(lambda s: {'params': s}), OWN, SAME),
    'in net, with accuracy and loss curve': (
        whole_state(lambda s: {'net': s, 'acc': 93.1, 'history': {'loss': torch.ones(9)}}),
        None,
        SAME,
    ),
    'in weights': (whole_state(lambda s: {'weights': s, 'mean': torch.zeros(3)}), None, SAME),
    'twice nested': (whole_state(lambda s: {'checkpoint': {'model': {'state_dict': s}}}), None, SAME),
    'epoch beside the weights': (
        whole_state(lambda s: {**s, 'epoch': 3, 'lr': 0.1, 'name': 'net'}),
        None,
        SAME,
    ),
    'options and a NumPy number beside': (
        whole_state(lambda s: {'model': s, 'args': Namespace(lr=0.1, data='x'), 'best': np.float64(0.9)}),
        OWN,
        SAME,
    ),
    'a NumPy number among the weights': (whole_state(lambda s: {**s, 'best': np.float32(0.9)}), None, SAME),
    'epoch beside, with a module': (whole_state(lambda s: {**s, 'epoch': 3, 'args': {'lr': 0.1}}), OWN, SAME),
    'parameters that require gradients': (
        whole_state(lambda s: {k: nn.Parameter(v) for k, v in s.items()}),
        None,
        SAME,
    ),
    'not contiguous, expanded': (expanded, lambda: nn.Linear(D, 4), SAME),
    'bias in the first layer': (whole_state(dict, lambda: perceptron(D, 5, 5, 1, bias='first')), None, SAME),
    'twelve layers': (of(lambda: perceptron(*[D] * 13), st), None, SAME),
    'batch normalisation': (whole_state(dict, normed), normed, SAME),
    'batch normalisation of old torch, without counts': (no_counts, normed, SAME),
    'convolution': (whole_state(dict, convolution), convolution, SAME),
    'mask of -inf': (whole_state(dict, Masked), Masked, SAME),
    'extra state': (whole_state(dict, lambda: Remembers(3)), Remembers, SAME),
    'in double precision': (whole_state(dict, lambda: MLP3().double()), OWN, SAME),
    # words in front of the names
    'DataParallel': (whole_state(lambda s: prefixed(s, 'module.')), None, SAME),
    'torch.compile': (of(MLP3, lambda d, s: pt(d, prefixed(s, '_orig_mod.'))), OWN, SAME),
    'torch.compile within DataParallel': (whole_state(lambda s: prefixed(s, 'module._orig_mod.')), OWN, SAME),
    'a compiled part': (
        whole_state(lambda s: {k.replace('first.', 'first._orig_mod.'): v for k, v in s.items()}, Tied),
        Tied,
        SAME,
    ),
    'a compiled module': (whole_state(dict), lambda: torch.compile(MLP3(), backend='eager'), SAME),
    'Lightning': (lambda d: (pt(d, lightning(n := MLP3()), 'w.ckpt'), n), OWN, SAME),
    'Lightning without a module': (lambda d: (pt(d, lightning(n := MLP3()), 'w.ckpt'), n), None, SAME),
    'Lightning with a compiled network': (
        whole_state(lambda s: {'state_dict': prefixed(s, 'model._orig_mod.')}),
        OWN,
        SAME,
    ),
    'Lightning with weights of the loss': (
        lambda d: (pt(d, {'state_dict': (n := Wrapped()).state_dict()}), n.model),
        OWN,
        SAME,
    ),
    'Lightning, the module itself': (whole_state(dict, Wrapped), Wrapped, SAME),
    'only the inner part': (
        lambda d: (pt(d, {'state_dict': (n := MLP3()).state_dict()}), n),
        lambda: nn.Sequential(OrderedDict(net=MLP3())),
        SAME,
    ),
    'AveragedModel': (lambda d: (pt(d, averaged(n := MLP3())), n), OWN, SAME),
    'AveragedModel without a module': (lambda d: (pt(d, averaged(n := MLP3())), n), None, SAME),
    'AveragedModel as the module': (
        lambda d: (pt(d, averaged(n := MLP3())), n),
        lambda: torch.optim.swa_utils.AveragedModel(MLP3()),
        SAME,
    ),
    'DeepSpeed': (
        of(MLP3, lambda d, s: pt(d, {'module': s, 'dp_world_size': 1}, 'mp_rank_00_model_states.pt')),
        OWN,
        SAME,
    ),
    'encoder and head, saved apart': (
        lambda d: (
            pt(
                d,
                {
                    'first': {**(n := Tied(False)).first.state_dict()},
                    'second': {**n.second.state_dict()},
                    'last': {**n.last.state_dict()},
                },
            ),
            n,
        ),
        lambda: Tied(False),
        SAME,
    ),
    'the generator of two networks': (
        lambda d: (pt(d, {'gen': (n := MLP3()).state_dict(), 'dis': perceptron(D, 3, 1).state_dict()}), n),
        OWN,
        SAME,
    ),
    'weights and their average': (both, None, 'several networks: model, ema'),
    'weights and their average, with a module': (both, OWN, 'several fit the module: model, ema'),
    'average inside the state dict': (
        whole_state(lambda s: {**prefixed(s, 'model.'), **prefixed(s, 'model_ema.module.')}),
        OWN,
        'unexpected',
    ),
    'square average inside the state dict': (
        whole_state(lambda s: {**prefixed(s, 'model.'), **prefixed(s, 'ema.')}, SQUARE),
        None,
        'several networks',
    ),
    'teacher and student': (
        whole_state(lambda s: {**prefixed(s, 'student.'), **prefixed(s, 'pupil.')}, SQUARE),
        None,
        'several networks',
    ),
    'a part of the network': (whole_state(dict), lambda: nn.Linear(D, 5), '2.weight unexpected'),
    'a head beside the network': (
        whole_state(lambda s: {**prefixed(s, 'net.'), 'head.weight': torch.ones(1, 1)}),
        OWN,
        'head.weight unexpected',
    ),
    # Hugging Face
    'folder with one file': (of(MLP3, lambda d, s: st(d, s, 'model.safetensors').parent), None, SAME),
    'folder with a .bin': (of(MLP3, lambda d, s: pt(d, s, 'pytorch_model.bin').parent), OWN, SAME),
    'parts, by folder': (of(MLP3, sharded), OWN, SAME),
    'parts without a module': (of(MLP3, sharded, 3), None, SAME),
    'parts, by index': (of(MLP3, lambda d, s: sharded(d, s) / 'model.safetensors.index.json'), OWN, SAME),
    'parts of .bin': (of(MLP3, sharded, kind='bin'), OWN, SAME),
    'one part': (
        of(MLP3, lambda d, s: sharded(d, s) / 'model-00001-of-00002.safetensors'),
        OWN,
        'part 00001 of 00002',
    ),
    'the only part': (of(MLP3, lambda d, s: st(d, s, 'model-00001-of-00001.safetensors')), OWN, SAME),
    'a part is missing': (
        of(MLP3, lambda d, s: (sharded(d, s) / 'model-00002-of-00002.safetensors').unlink() or d),
        OWN,
        'model-00002-of-00002.safetensors is missing',
    ),
    'a part of another version': (
        of(
            MLP3,
            lambda d, s: st(sharded(d, s), {'x': torch.ones(1)}, 'model-00002-of-00002.safetensors').parent,
        ),
        OWN,
        'is missing in model-00002-of-00002.safetensors',
    ),
    'an index that leads outside': (
        only(
            lambda d: (
                raw(d, b'{"weight_map": {"w": "../../etc/passwd"}}', 'model.safetensors.index.json').parent
            )
        ),
        OWN,
        'outside its folder',
    ),
    'an index of nothing': (
        only(lambda d: raw(d, b'{}', 'model.safetensors.index.json').parent),
        OWN,
        'no index',
    ),
    'an empty folder': (only(lambda d: d), None, 'a folder without model.safetensors'),
    'a folder with another file': (
        of(MLP3, lambda d, s: pt(d, s, 'epoch3.ckpt').parent),
        None,
        'such as epoch3.ckpt',
    ),
    'ranks side by side': (
        of(MLP3, lambda d, s: [pt(d, s, f'rank{i}.pt') for i in (0, 1)][0]),
        None,
        'several ranks',
    ),
    'tied, left out': (tied_model, Tied, SAME),
    'tied, left out, no module': (tied_perceptron, None, SAME),
    'tied, all there': (whole_state(dict, Tied), Tied, SAME),
    'tied, without a note': (
        of(Tied, lambda d, s: st(d, {k: v for k, v in s.items() if k != 'second.weight'})),
        Tied,
        SAME,
    ),
    'not tied in the module': (
        of(Tied, lambda d, s: st(d, {k: v for k, v in s.items() if k != 'second.weight'})),
        lambda: Tied(False),
        'second.weight missing',
    ),
    'tied in the module only': (whole_state(dict, lambda: Tied(False)), Tied, 'is another after loading'),
    # the order of layers
    'words in order': (whole_state(dict, lambda: words('inp', 'mid', 'late', 'out')), None, SAME),
    'words, sorted': (of(lambda: words('inp', 'mid', 'late', 'out'), st), None, 'late.weight -> mid.weight'),
    'words, sorted, as .pt': (
        whole_state(lambda s: dict(sorted(s.items())), lambda: words('inp', 'mid', 'late', 'out')),
        None,
        ' or ',
    ),
    'words, sorted, with a module': (
        of(lambda: words('inp', 'mid', 'late', 'out'), st),
        lambda: words('inp', 'mid', 'late', 'out'),
        SAME,
    ),
    'words, sorted, one order': (of(lambda: words('z', 'b', 'a', widths=[D, 5, 4, 1]), st), None, SAME),
    'words, square, sorted': (of(lambda: words('z', 'b', 'a', widths=[D] * 4), st), None, ' -> '),
    'numbers, sorted': (of(lambda: words(*[f'fc{i}' for i in range(12)]), st), None, SAME),
    'numbers against the order': (
        whole_state(lambda s: swapped(s, '2', '4'), SQUARE),
        None,
        '0.weight -> 4.weight',
    ),
    'numbers and words, sorted': (of(lambda: words('net0', 'net2', 'head'), st), None, SAME),
    'numbers and words, square, sorted': (
        of(lambda: words('net0', 'net2', 'head', widths=[D] * 4), st),
        None,
        ' or ',
    ),
    'encoder and decoder': (whole_state(dict, autoencoder), None, 'enc, dec: several networks'),
    'encoder and decoder, with a module': (whole_state(dict, autoencoder), autoencoder, SAME),
    'body and head': (
        whole_state(
            dict,
            lambda: nn.Sequential(
                OrderedDict(body=perceptron(D, 5, 5), relu=nn.ReLU(), head=nn.Linear(5, 2))
            ),
        ),
        None,
        SAME,
    ),
    'registered out of order': (
        whole_state(lambda s: swapped(s, 'a', 'b'), lambda: words('a', 'b', widths=[D, 5, 1])),
        None,
        SAME,
    ),
    'superscript digits': (whole_state(lambda s: {k.replace('0', '²'): v for k, v in s.items()}), None, SAME),
    'a number of 5000 digits': (whole_state(lambda s: prefixed(s, '9' * 5000 + '.')), None, SAME),
    # Flax
    'flax': (lambda d: (st(d, flax(n := MLP3())), n), None, SAME),
    'flax, nested in .pt': (
        lambda d: (
            pt(
                d,
                {
                    'params': {
                        f'Dense_{i}': {'kernel': m.weight.T.detach(), 'bias': m.bias.detach()}
                        for i, m in enumerate(n[::2])
                    }
                },
            )
            if (n := MLP3())
            else 0,
            n,
        ),
        None,
        SAME,
    ),
    'flax with a square layer': (
        lambda d: (st(d, flax(n := perceptron(D, 5, 5, 1), '.', '')), n),
        None,
        SAME,
    ),
    'flax, square': (lambda d: (st(d, flax(SQUARE())), None), None, 'certain to be stored (inputs, outputs)'),
    'flax without biases': (
        lambda d: (st(d, flax(perceptron(D, 5, 1, bias='none'))), None),
        None,
        'certain to be',
    ),
    'kernels called weights': (
        whole_state(lambda s: {k: v.T.contiguous() if v.ndim == 2 else v for k, v in s.items()}),
        None,
        'transpose',
    ),
    'kernels called weights, no bias': (
        whole_state(
            lambda s: {k: v.T.contiguous() for k, v in s.items()}, lambda: perceptron(D, 5, 4, bias='none')
        ),
        None,
        'must be (m, ',
    ),
    'kernels for a module': (lambda d: (st(d, flax(MLP3())), None), OWN, '0.weight missing'),
    'flax normalisation': (
        lambda d: rest_of(d, **{'BatchNorm_0.scale': torch.ones(5)}),
        None,
        '<BatchNorm_0.scale>',
    ),
    # numbers of other kinds
    'half': (whole_state(dict, lambda: MLP3().half()), OWN, SAME),
    'bfloat16 beside float32': (
        lambda d: (lambda n, s: (pt(d, s), n))(*rounded(MLP3(), **{'2_weight': torch.bfloat16})),
        None,
        SAME,
    ),
    'bfloat16 normalisation': (
        lambda d: (lambda n, s: (pt(d, s), n))(*rounded(normed(), **{'0_weight': torch.bfloat16})),
        normed,
        SAME,
    ),
    'one double': (whole_state(lambda s: cast(s, **{'4_bias': torch.float64})), OWN, SAME),
    'float8': (
        whole_state(lambda s: cast(s, **{'2_weight': torch.float8_e4m3fn})),
        OWN,
        '2.weight: float8_e4m3fn',
    ),
    'float8 in safetensors': (
        of(MLP3, lambda d, s: st(d, cast(s, **{'2_weight': torch.float8_e5m2}))),
        None,
        '2.weight: float8_e5m2',
    ),
    'int8': (whole_state(lambda s: cast(s, **{'0_weight': torch.int8})), None, '0.weight torch.int8'),
    'int8 with a module': (
        whole_state(lambda s: cast(s, **{'0_weight': torch.int8})),
        OWN,
        '0.weight int8, not float',
    ),
    'complex': (
        whole_state(lambda s: cast(s, **{'0_weight': torch.complex64})),
        OWN,
        '0.weight complex64, not float',
    ),
    'quantised': (
        whole_state(
            lambda s: {**s, '0.weight': torch.quantize_per_tensor(s['0.weight'], 0.1, 0, torch.qint8)}
        ),
        OWN,
        '0.weight qint8, not float',
    ),
    'sparse': (whole_state(lambda s: {**s, '0.weight': s['0.weight'].to_sparse()}), OWN, '0.weight: sparse'),
    'nested tensor': (
        whole_state(lambda s: {**s, '0.weight': torch.nested.nested_tensor([torch.ones(2)])}),
        OWN,
        '0.weight: nested',
    ),
    'meta': (
        whole_state(lambda s: {**s, '0.weight': s['0.weight'].to('meta')}),
        OWN,
        '0.weight: without data',
    ),
    'nan': (lambda d: rest_of(d, **{'4.bias': torch.tensor([torch.nan])}), OWN, 'nan or inf in 4.bias'),
    'inf': (lambda d: rest_of(d, **{'4.bias': torch.tensor([torch.inf])}), None, 'nan or inf in 4.bias'),
    'a list for a bias': (lambda d: rest_of(d, **{'4.bias': [0.1]}), None, '4.bias: list'),
    'numpy for a bias': (lambda d: rest_of(d, **{'4.bias': np.zeros(1)}), None, 'numpy'),
    'empty matrix': (lambda d: rest_of(d, **{'4.weight': torch.zeros(0, 5)}), None, '4.weight=(0, 5)'),
    'a single number as bias': (lambda d: rest_of(d, **{'4.bias': torch.tensor(1.0)}), None, '<4.bias>'),
    # what does not fit
    'a parameter is missing': (
        whole_state(lambda s: {k: v for k, v in s.items() if k != '2.bias'}),
        OWN,
        '2.bias missing',
    ),
    'one too many': (lambda d: rest_of(d, extra=torch.ones(2)), OWN, 'extra unexpected'),
    'another shape': (
        lambda d: rest_of(d, **{'2.weight': torch.ones(5, 4)}),
        OWN,
        '2.weight (5, 4), not (5, 5)',
    ),
    'no chain': (
        lambda d: rest_of(d, **{'4.weight': torch.ones(1, 7)}),
        None,
        '4.weight must be (m, 5) after 2.weight (5, 5)',
    ),
    'another bias': (lambda d: rest_of(d, **{'4.bias': torch.ones(2)}), None, 'bias of 4.weight=(2,)'),
    'extra state that the module lacks': (
        whole_state(dict, Remembers),
        lambda: nn.Sequential(OrderedDict(lin=nn.Linear(D, 1))),
        '_extra_state unexpected',
    ),
    'low-rank adapter': (lambda d: rest_of(d, **{'0.lora_A.weight': torch.ones(5, 5)}), None, 'lora_A'),
    'weight norm': (lambda d: rest_of(d, **{'2.weight_g': torch.ones(5, 1)}), None, '<2.weight_g>'),
    'only an optimiser': (
        only(lambda d: pt(d, torch.optim.SGD(MLP3().parameters(), momentum=0.9).state_dict())),
        OWN,
        'no tensors',
    ),
    'a module that refuses': (whole_state(dict), lambda: refusing(), 'RuntimeError: not these'),
    'a module without memory': (whole_state(dict), lambda: MLP3().to('meta'), 'on the device meta'),
    '5,000 layers': (
        only(lambda d: pt(d, {f'{i}.weight': torch.ones(1, 1) for i in range(5_000)})),
        None,
        '5,000 names',
    ),
    '5,000 layers, with a module': (
        only(lambda d: pt(d, {f'{i}.weight': torch.ones(1, 1) for i in range(5_000)})),
        OWN,
        '0.bias missing',
    ),
    # no state dict
    'the whole module': (
        only(lambda d: pt(d, MLP3())),
        OWN,
        'wants to run torch.nn.modules.container.Sequential',
    ),
    'a global in hyper_parameters': (
        lambda d: (pt(d, lightning(MLP3(), hyper_parameters=Path('x'))), None),
        OWN,
        'wants to run pathlib',
    ),
    'a NumPy array beside': (lambda d: rest_of(d, best=np.zeros(3)), OWN, 'wants to run numpy'),
    'a list of tensors': (only(lambda d: pt(d, list(MLP3().parameters()))), None, 'a list, no dictionary'),
    'one tensor': (only(lambda d: pt(d, torch.ones(2, 2))), None, 'a Tensor, no dictionary'),
    'TorchScript': (jit, OWN, 'a TorchScript archive'),
    'torch.export': (
        only(archive, {'a/archive_format': b'pt2', 'a/models/model.json': b'{}'}),
        OWN,
        'torch.export',
    ),
    'npz': (only(lambda d: np.savez(d / 'w.npz', w=np.ones(2)) or d / 'w.npz'), OWN, 'a NumPy archive'),
    'npy': (only(lambda d: np.save(d / 'w.npy', np.ones(2)) or d / 'w.npy'), OWN, 'a NumPy array'),
    'another zip': (only(archive, {'readme.txt': b'hello'}), OWN, 'torch did not write'),
    'ONNX': (only(raw, b'\x08\x07\x12\x07pytorch', 'w.onnx'), OWN, 'an ONNX file'),
    'HDF5': (only(raw, b'\x89HDF\r\n\x1a\n' + bytes(99), 'w.h5'), OWN, 'an HDF5 file'),
    'GGUF': (only(raw, b'GGUF\x03' + bytes(99), 'w.gguf'), OWN, 'a GGUF file'),
    'MessagePack': (only(raw, b'\x81\xa6params\x80', 'w.msgpack'), OWN, 'a MessagePack file'),
    'a part of a distributed checkpoint': (only(raw, b'PK', '__0_0.distcp'), OWN, 'dcp_to_torch'),
    'a distributed checkpoint': (only(lambda d: raw(d, b'PK', '__0_0.distcp').parent), OWN, 'dcp_to_torch'),
    'git-lfs pointer': (
        only(raw, b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n', 'w.safetensors'),
        OWN,
        'git-lfs pointer',
    ),
    'web page': (only(raw, b'<!DOCTYPE html><html>404</html>'), OWN, 'a web page'),
    'JSON': (only(raw, b'{"epoch": 3, "model": "resnet", "layers": [1, 2]}'), OWN, 'a JSON file'),
    'bare pickle': (only(lambda d: raw(d, pickle.dumps({'w': [1.0]}))), OWN, 'a bare pickle'),
    'gzip': (only(raw, b'\x1f\x8b\x08' + bytes(50)), OWN, 'compressed by gzip'),
    'text': (only(raw, b'hello'), OWN, 'of no kind that is known'),
    'empty': (only(raw, b''), OWN, 'empty'),
    'zeros': (only(raw, bytes(5000)), OWN, 'nothing but zeros'),
    'empty dictionary': (only(pt, {}), OWN, 'empty'),
    'half of a .pt': (lambda d: cut(d, 0.5), OWN, 'damaged or truncated'),
    'half of a .safetensors': (lambda d: cut(d, 0.5, True), OWN, 'truncated'),
    'most of a .safetensors': (lambda d: cut(d, 0.95, True), None, 'truncated'),
    # hostile
    'a dictionary in itself': (
        only(archive, pickled(b'}q\x00X\x0a\x00\x00\x00state_dicth\x00s')),
        None,
        'no tensors in its dictionary',
    ),
    'two to the sixty dictionaries': (doubling, OWN, 'no tensors'),
    '20,000 levels': (nested, OWN, 'no tensors'),
    'a tensor larger than its file': (
        whole_state(lambda s: {**s, '0.weight': torch.ones(1, 1).expand(10**6, 10**6)}),
        None,
        'larger than its file',
    ),
    'memory without numbers': (
        only(archive, pickled(b'cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0b\x54\x02\x85R')),
        OWN,
        'builtins.bytearray',
    ),
    'a compressed archive': (
        only(archive, pickled(b'}') | {'a/data/0': bytes(10**8)}, compression=zipfile.ZIP_DEFLATED),
        OWN,
        'larger inside',
    ),
    'escapes in a name': (
        only(pt, {'\x1b]0;owned\x07': torch.ones(3), '0.weight': torch.ones(1, 3)}),
        None,
        r'\x1b]0;owned\x07',
    ),
    'escapes in a name, with a module': (only(pt, {'\x1b[31m\nx': torch.ones(3)}), OWN, '0.weight missing'),
    'a name of ten million letters': (only(pt, {'a' * 10**7: torch.ones(3)}), None, 'aaa...'),
    'a name of ten million dots': (
        only(pt, {'.' * 10**7: torch.ones(3)}),
        OWN,
        'a name of 10,000,000 characters',
    ),
    'a place of ten million letters': (
        only(pt, {'a' * 10**7: {'weight': torch.ones(1, 3, 3)}}),
        None,
        'weight (1, 3, 3)',
    ),
    'half a letter': (only(table, b'{"\\ud800": 3}'), None, r'\ud800'),
    'unknown dtype': (only(table, {'w': LINE | dict(dtype='F4')}, bytes(16)), None, 'w: dtype F4'),
    '65 dimensions': (only(table, {'w': LINE | dict(shape=[1] * 65)}, bytes(16)), None, '65 dimensions'),
    '40 dimensions in .pt': (only(lambda d: pt(d, {'w': torch.ones([1] * 40)})), OWN, 'missing'),
    'more shape than bytes': (
        only(table, {'w': LINE | dict(shape=[2**40, 2])}, bytes(16)),
        None,
        'does not agree',
    ),
    'bytes behind the end': (
        only(table, {'w': LINE | dict(data_offsets=[2**50, 2**50 + 16])}, bytes(16)),
        None,
        'truncated',
    ),
    'a name twice': (only(table, b'{"w": {}, "w": {}}'), None, 'stands there twice'),
    'a table of brackets': (only(table, b'{"w":' + b'[' * 10**6), None, 'damaged'),
    'a table without end': (
        only(raw, (2**60).to_bytes(8, 'little') + b'{', 'w.safetensors'),
        None,
        'truncated',
    ),
    'no table': (only(table, b'{"w": 1e999}'), None, 'damaged'),
    'a pipe': (fifo, None, 'a pipe, socket or device'),
    'a socket': (unix_socket, None, 'a pipe, socket or device'),
    'a device': (only(lambda d: Path('/dev/zero')), None, 'a pipe, socket or device'),
}


def refusing():
    class Refuses(nn.Sequential):
        def load_state_dict(self, *_, **__):
            raise RuntimeError('not these\nweights')

    return Refuses(*MLP3())


@pytest.fixture(autouse=True)
def _no_hang():
    "A file that is read for two minutes counts as a hang"

    def late(*_):
        raise AssertionError('this takes too long')

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_the_table_is_long_and_has_both_ends():
    loads = sum(expected == SAME for *_, expected in CASES.values())
    assert len(CASES) >= 150 and 50 <= loads <= len(CASES) - 80


@pytest.mark.parametrize('case', CASES)
def test_a_checkpoint_loads_as_it_was_or_is_refused_in_one_line(tmp_path, case):
    make, module, expected = CASES[case]
    path, net = make(tmp_path)
    if expected != SAME:
        with pytest.raises(ValueError, match=re.escape(expected)) as e:
            load_network(path, module)
        line = str(e.value)
        assert line.isprintable() and len(line) < 1000 and 'must be' in line and '; ' in line
        return
    model, x = load_network(path, module), torch.randn(50, D, dtype=torch.float64)
    wide = next(model.parameters()).dtype
    assert wide in (torch.float32, torch.float64)
    with torch.no_grad():
        got, wanted = model(x.to(wide)), net.eval().to(wide)(x.to(wide))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)
    assert wanted.std() > 1e-3  # not the constant network, which any other would match


@pytest.mark.parametrize('seed', [1, 2])
def test_the_comparison_notices_another_network(seed):
    "Negative control of the table: another network's outputs do not pass"
    x = torch.randn(50, D)
    with torch.no_grad(), pytest.raises(AssertionError):
        torch.testing.assert_close(MLP3()(x), perceptron(D, 5, 5, 1, seed=seed)(x), rtol=1e-6, atol=1e-7)


def test_every_number_is_kept_and_the_widening_is_said(tmp_path):
    "Halves beside a float64: nothing is rounded, whichever comes first"
    state = cast(
        MLP3().state_dict(),
        **{'0_weight': torch.bfloat16, '2_weight': torch.float16, '4_bias': torch.float64},
    )
    pt(tmp_path, state)
    for module in (None, OWN):
        model = load_network(tmp_path / 'w.pt', module)
        values = list(model.state_dict().values())
        assert all(torch.equal(a, b.double()) for a, b in zip(values, state.values(), strict=True))
        said = 'float64, exact (stored in bfloat16 and float16 and float32 and float64)'
        assert str(describe(model)).endswith(said)
        assert describe(model).record()['stored_in'] == 'bfloat16 and float16 and float32 and float64'
    pt(tmp_path, MLP3().state_dict())
    assert 'stored_in' not in describe(load_network(tmp_path / 'w.pt')).record()


def test_the_order_of_torch_is_kept_and_that_of_safetensors_says_nothing(tmp_path):
    net = words('inp', 'mid', 'late', 'out')
    assert list(load_weights(pt(tmp_path, net.state_dict()))) == list(net.state_dict())
    assert list(load_weights(st(tmp_path, net.state_dict()))) == sorted(net.state_dict())


@pytest.mark.parametrize('bias', ['all', 'first', 'none'])
@pytest.mark.parametrize('widths', [(D, 5, 1), (D, D, D), (D, 5, 5, 1), (D, 5, 4, 3, 1), (D, 1)])
def test_any_names_in_any_order_are_the_function_or_refused(tmp_path, widths, bias):
    "Never another function: of all the ways to name and order the layers, none is misread"
    read = 0
    spellings = 'a b c d', 'z y x w', 'fc1 fc2 fc3 fc4', 'in h1 h2 out', 'fc2 fc10 fc11 fc100', 'b d a c'
    for seed, names in enumerate(map(str.split, spellings)):
        net = perceptron(*widths, bias=bias, seed=seed)
        state = {f'{names[int(k[0]) // 2]}.{k[2:]}': v for k, v in net.state_dict().items()}
        x = torch.randn(30, D)
        for given in (state, dict(sorted(state.items()))):
            try:
                model = mlp_from_weights(given)
            except ValueError as e:
                assert ' -> ' in str(e)
                continue
            read += 1
            with torch.no_grad():
                torch.testing.assert_close(model(x), net(x), rtol=1e-6, atol=1e-7)
    assert read >= 6


def test_a_file_that_may_not_be_read_is_one_error(tmp_path, monkeypatch):
    path = pt(tmp_path, MLP3().state_dict())

    def denied(*_, **__):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr('builtins.open', denied)
    with pytest.raises(PermissionError):
        load_network(path)


def test_a_circle_of_links_is_an_error_of_the_system(tmp_path):
    with pytest.raises((OSError, ValueError)):
        load_network(loop(tmp_path)[0])


def test_nothing_in_a_file_is_run(tmp_path):
    "Code in place of notes, within a Lightning checkpoint, and in a part of a folder"

    class Evil:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/owned',)

    tree = lightning(MLP3(), callbacks=Evil())
    path = pt(tmp_path, tree)
    sharded(tmp_path, MLP3().state_dict(), kind='bin')
    pt(tmp_path, {'0.weight': Evil()}, 'pytorch_model-00001-of-00002.bin')
    for hostile in (path, tmp_path):
        with pytest.raises(ValueError, match='wants to run'):
            load_network(hostile)
    assert not (tmp_path / 'owned').exists()
    torch.load(path, weights_only=False)  # negative control
    assert (tmp_path / 'owned').exists()


COMMANDS = ['torch.compile', 'parts, by folder', 'words in order', 'Lightning without a module',
            'words, sorted', 'a dictionary in itself', 'escapes in a name', 'a name of ten million letters',
            'unknown dtype', 'the whole module', 'a part is missing']  # fmt: skip


def limited():
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))


def test_the_command_line_says_it_in_one_line(tmp_path):
    """`samplesplit certify` in one process of 8 GB: status 0 or 2, no traceback, no escape, a second each

    One process for all, so that torch is imported once."""
    calls = []
    for i, case in enumerate(COMMANDS):
        (tmp_path / str(i)).mkdir()
        path, _ = CASES[case][0](tmp_path / str(i))
        own = ['--module', 'test_checkpoints:MLP3', '--shape', str(D)] if CASES[case][1] else []
        calls.append(['certify', '-n', '2', '--device', 'cpu', '--weights', str(path), *own])
    code = (
        'import sys, json, time; from samplesplit_nb.cli import main\n'
        'for argv in json.load(open("calls.json")):\n'
        '    begun = time.monotonic(); status = main(argv)\n'
        '    print("STATUS", status, time.monotonic() - begun < 10, flush=True)\n'
        '    print("END", file=sys.stderr, flush=True)\n'
    )
    (tmp_path / 'calls.json').write_text(json.dumps(calls))
    here = str(Path(__file__).parent)
    env = os.environ | {'PYTHONPATH': os.pathsep.join([str(Path(here).parent), here])}
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        timeout=120,
        preexec_fn=limited,
    )
    errors = done.stderr.decode().split('END\n')[:-1]
    statuses = re.findall(r'STATUS (\d) True', done.stdout.decode())
    assert done.returncode == 0 and len(statuses) == len(errors) == len(COMMANDS), done.stderr[-500:]
    for case, status, error in zip(COMMANDS, statuses, errors):
        expected = CASES[case][2]
        assert (case, status) == (case, '0' if expected == SAME else '2')
        if expected != SAME:
            assert expected in error and error.rstrip('\n').isprintable() and len(error) < 1000, error


def test_our_own_files_read_back(tmp_path):
    net = MLP([D, 5, 5, 1], seed=2, init='pytorch')
    save_weights(tmp_path / 'w.safetensors', net)
    x = torch.randn(9, D)
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path / 'w.safetensors')(x), net(x))
