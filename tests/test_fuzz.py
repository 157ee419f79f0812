"""Random command lines and random calls: whatever is given, an answer or one line

Seeded. FUZZ=3000 FUZZ_SEED=7 looks at more of them, others. An answer is status 0 without nan or inf; a
mistake is status 2, a numerical failure status 3, each with one line on stderr.

Left out, and why: settings that are valid and take long (many steps, wide networks, thousands of candidates),
`demo --controls`, `experiment` and `figure` with anything to run (minutes each, tests/test_cli.py runs them),
devices that are there beside the CPU, and `--help`, which tests/test_cli.py reads.
"""

import contextlib, io, json, math, os, random, re, signal, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
import torch
from samplesplit_nb.networks import MLP
from samplesplit_nb.weights import save_weights

COUNT, SEED = int(os.environ.get('FUZZ', 300)), int(os.environ.get('FUZZ_SEED', 0))
BATCHES = 10  # tests, each with a tenth
SECONDS = 30  # for one line or call; most take milliseconds
NUMBER = re.compile(r'(?<![A-Za-z0-9_.])[-+]?(?:nan|inf|NaN|Infinity)(?![A-Za-z0-9_])')


@contextlib.contextmanager
def limited(what):
    "AssertionError where the block takes too long"

    def ring(*_):
        raise AssertionError(f'more than {SECONDS} seconds: {what}')

    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


# files: three networks of 64 inputs, sound and broken ones, images, and what is no file of ours


def _trained(init, factor):
    "The network some way off"
    model = MLP(init.widths, seed=7, bias=init.bias)
    with torch.no_grad():
        for p, q in zip(model.parameters(), init.parameters()):
            p.copy_(q + factor * p)
    return model


def _scaled(model, factor):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    return model


def _network(bias, outputs=1, seed=1):
    return MLP([64, 20, 20, outputs], bias=bias, seed=seed)


def _alive():
    "A network of one neuron in each layer, which is on for half of all images"
    net = MLP([64, 1, 1, 1], bias='first', seed=1)
    with torch.no_grad():
        for layer in net.layers[1:]:
            layer.weight.abs_()
    return net


def write_networks(folder):
    init, first, ten = _network('all'), _network('first'), _network('first', 3)
    dead = _network('first')
    with torch.no_grad():
        dead.layers[0].bias.fill_(-100.0)
    named = dict(
        init=init,
        model=_trained(init, 0.1),
        kkt=first,
        ten=ten,
        dead=dead,
        zero=_scaled(_network('first'), 0),
        tiny=_scaled(_network('first'), 1e-12),
        tiniest=_scaled(_network('first'), 1e-30),
        huge=_scaled(_network('first'), 1e12),
        hugest=_scaled(_network('first'), 1e30),
        far=_trained(init, 1e25),
        near=_trained(init, 1e-30),
        narrow=MLP([9, 5, 1]),
        small=_alive(),
        double=_network('first').double(),
        power=MLP([64, 20, 1], bias='none'),
    )
    for name, net in named.items():
        save_weights(folder / f'{name}.safetensors', net)
    torch.save(first.state_dict(), folder / 'kkt.pt')
    mine = torch.nn.Sequential(
        *(layer for i in (64, 20) for layer in (torch.nn.Linear(i, 20), torch.nn.ReLU()))
    )
    save_weights(folder / 'mine.safetensors', mine.append(torch.nn.Linear(20, 1)))


def write_others(folder):
    g = np.random.default_rng(0)
    np.savez(folder / 'images.npz', images=g.random((10, 8, 8)), labels=np.arange(10) % 2)
    np.savez(folder / 'three.npz', images=g.random((9, 8, 8)), labels=np.arange(9) % 3)
    np.savez(folder / 'one.npz', images=g.random((4, 8, 8)), labels=np.ones(4))
    np.savez(
        folder / 'found.npz', x=g.random((3, 64)).astype('f4'), lam=np.ones(3, 'f4'), shape=np.array([8, 8])
    )
    np.savez(folder / 'nan.npz', x=np.full((3, 64), np.nan, 'f4'), lam=np.ones(3, 'f4'))
    np.savez(folder / 'far.npz', x=np.full((3, 64), 3e38, 'f4'), lam=np.ones(3, 'f4'), shape=np.array([8, 8]))
    (folder / 'text.pt').write_text('hello')
    (folder / 'text.safetensors').write_text('hello')
    (folder / 'empty.npz').write_bytes(b'')
    (folder / 'sub').mkdir()
    os.mkfifo(folder / 'pipe')
    (folder / 'loop').symlink_to('loop')
    (folder / 'mine.py').write_text(
        'import os, sys\nfrom torch import nn\n'
        'def net(): return nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(),\n'
        '    nn.Linear(20, 1))\n'
        'def leaves(): sys.exit(0)\n'
        'def prints(): print("hello"); return net()\n'
        'def wants(x): return x\n'
        'def moves(): os.chdir("/"); return net()\n'
        'def raises(): raise BaseException("\\x1b[31mred\\nnext")\n'
        'class Late(nn.Module): pass\n'
        'number = 3\n'
    )


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fuzz')
    write_networks(folder)
    write_others(folder)
    return folder


NETWORKS = (
    'kkt kkt kkt model init ten dead zero tiny tiniest huge hugest far near narrow small double power'.split()
)
FILES = (
    [f'{name}.safetensors' for name in NETWORKS]
    + ['mine.safetensors']
    + [
        'kkt.pt',
        'text.pt',
        'text.safetensors',
        'sub',
        'pipe',
        'loop',
        'absent.pt',
        '/dev/null',
        '/dev/zero',
        'images.npz',
        'mine.py',
        '',
        ' ',
        'a\x1b[31mb',
        'x' * 5000,
        '\udcff',
        'a\u202eb',
        '~',
        '-',
        '../..',
    ]
)
IMAGES = [
    'images.npz',
    'images.npz',
    'images.npz',
    'three.npz',
    'one.npz',
    'faces',
    'mnist',
    'found.npz',
    'empty.npz',
    'sub',
    'pipe',
    'loop',
    'Faces',
    '',
    '/dev/null',
    '\x1b]0;t\x07',
    'kkt.pt',
    'y' * 5000,
]
WHOLE = [
    '0',
    '-1',
    '1',
    '2',
    '3',
    '5',
    '1',
    '2',
    '3',
    '1e3',
    '1.5',
    '',
    ' ',
    ' 3',
    '3 ',
    '+3',
    '0x3',
    '1_0',
    '\u0663',
    'nan',
    'inf',
    str(2**31),
    str(2**63 - 1),
    str(2**63),
    str(-(2**63)),
    str(10**30),
    '9' * 5000,
    'None',
    'True',
    '\x00',
    '\n',
    '3;4',
    '--',
]
NUMBERS = [
    '0.02',
    '0.1',
    '1',
    '1e-5',
    '1e-320',
    '0',
    '-0.0',
    '-1',
    '1e30',
    '1e38',
    '1e39',
    '1e308',
    '1e309',
    'nan',
    '-nan',
    'inf',
    '-inf',
    'Infinity',
    '',
    ' ',
    '1_0.5',
    '0x1p3',
    '\u0661.5',
    '1,5',
    '1e',
    'lots',
]
FOLDERS = [
    'out',
    'out',
    'out',
    'new/er',
    '.',
    '',
    ' ',
    'mine.py',
    'mine.py/below',
    '/dev/null',
    '/proc/none',
    'z' * 300,
    'z/' * 3000,
    'a\x1b[2Jb',
    '\udcff',
    'loop',
    'loop/below',
    'pipe',
    'a\nb',
    '~',
]
DEVICES = [
    'cpu',
    'cpu',
    'cpu',
    'cpu:0',
    'cpu:7',
    'meta',
    'mps',
    'xla',
    'cuda:99',
    'vulkan',
    '',
    ' ',
    'CPU',
    'cpu ',
    'abacus',
    'cuda:-1',
    'cuda:x',
    'privateuseone',
    'hpu',
    'lazy',
    'ipu',
    'fpga',
    'xpu',
    'mtia',
    'cpu:\x1b[31m',
    'q' * 5000,
]
MODULES = [
    'mine:net',
    'mine:net',
    'mine:leaves',
    'mine:prints',
    'mine:wants',
    'mine:moves',
    'mine:raises',
    'mine:Late',
    'mine:number',
    'mine:absent',
    'mine',
    'mine.py:net',
    'mine/net',
    ':',
    'a:b:c',
    '.mine:net',
    '..:net',
    'json:loads',
    'torch.nn:Identity',
    '',
    'no.such:thing',
    '\x1b[31m:net',
    'w' * 5000 + ':net',
    'mine:__name__',
    'sys:exit',
    'os:abort_not',
]
SHAPES = [
    ['64'],
    ['8', '8'],
    ['1', '8', '8'],
    ['8', '8', '1'],
    ['0'],
    ['-8', '-8'],
    [],
    ['8.0', '8'],
    ['9', '9'],
    ['4', '4', '4'],
    ['1', '1', '8', '8'],
    ['64', '1'],
    [str(2**40), str(2**40)],
    ['1000000', '1000000'],
]
SEEDS = ['0', '1', '7', str(2**32 - 1), str(2**32), str(2**64), '-1', '1.0', '', 'x', '9' * 30]
CHOICE = dict(
    device=DEVICES,
    weights=FILES,
    init=FILES,
    module=MODULES,
    data=IMAGES,
    out=FOLDERS,
    seed=SEEDS,
    data_seed=SEEDS,
    lr=NUMBERS,
    shape=SHAPES,
    mean=['collection', 'training', '', 'Mean', '\x07'],
    method=['ntk', 'kkt', 'multiclass', '', 'KKT'],
    preset=['haim-mnist-1', 'buzaglo-regression-1', '', 'nope', '\x1b', 'v' * 5000],
    reconstruction=['found.npz'] * 3 + FILES + ['nan.npz', 'far.npz'],
    scale=['smoke', 'small', '', 'tiny', '\x1b[31m'],
    results=FOLDERS,
    cache=FOLDERS,
    number=WHOLE,
    study=['figure11', '', 'nope', '\x1b', 'u' * 5000, '../..'],
)
# what every line of a command begins with: valid, and small
BASES = dict(
    demo=dict(n='4', k='2', width='10', steps='12', splits='1', device='cpu', out='out'),
    figure=dict(number='11', no_run=None, scale='smoke', results='none'),
    experiment=dict(study='figure11', no_run=None, scale='smoke', results='none'),
    train=dict(method=None, data='images.npz', n='4', width='12', steps='20', device='cpu', out='out'),
    invert=dict(weights='model.safetensors', init='init.safetensors', rounds='2', device='cpu', out='out'),
    reconstruct=dict(weights='kkt.safetensors', method='kkt', k='3', steps='8', device='cpu', out='out'),
    evaluate=dict(reconstruction='found.npz', data='images.npz', n='4'),
    certify=dict(weights='kkt.safetensors', n='4', device='cpu'),
)
MORE = dict(
    demo=['seed'],
    figure=['out', 'cache', 'device'],
    experiment=['cache', 'device'],
    train=['seed', 'data_seed', 'mean'],
    invert=['data', 'n', 'samples', 'directions', 'seed', 'shape', 'module', 'mean', 'data_seed'],
    reconstruct=[
        'data',
        'n',
        'init',
        'preset',
        'lr',
        'no_split',
        'seed',
        'chunk_size',
        'checkpoint',
        'shape',
        'module',
        'mean',
    ],
    evaluate=['data_seed', 'mean'],
    certify=['data', 'degree', 'shape', 'module', 'mean', 'data_seed'],
)
MINE = dict(weights='mine.safetensors', module='mine:net', shape=['64'])
FLAGS = 'no_run', 'no_split', 'checkpoint'
KEPT = {'figure': ('no_run',), 'experiment': ('no_run',)}  # see above: nothing is to be run here


def words_of(name, value):
    "An option as words"
    option = ('-' if len(name) == 1 else '--') + name.replace('_', '-')
    if name in ('number', 'study'):
        return [value]
    if value is None or name in FLAGS:
        return [option]
    return [option, *value] if isinstance(value, list) else [option, value]


def line(r):
    "One command line: valid words, of which some are left out, replaced or added"
    command = r.choice(list(BASES) + ['reconstruct', 'reconstruct', 'invert', 'certify', 'evaluate', 'train'])
    chosen = dict(BASES[command])
    if command == 'train':
        chosen['method'] = r.choice(['ntk', 'kkt', 'kkt', 'multiclass'])
        if chosen['method'] == 'ntk':
            chosen.pop('steps')
    if command == 'reconstruct' and r.random() < 0.5:
        chosen |= r.choice(
            [
                dict(method='ntk', weights='model.safetensors', init='init.safetensors'),
                dict(method='multiclass', weights='ten.safetensors'),
                MINE,
                MINE,
            ]
        )
    if command == 'certify' and r.random() < 0.5:
        chosen |= r.choice([MINE, dict(data='images.npz'), dict(data='images.npz')])
    for _ in range(r.choice([0, 1, 1, 1, 2, 3])):
        name = r.choice(list(chosen) + MORE[command] * 2)
        if r.random() < 0.1 and name in chosen and name not in KEPT.get(command, ()):
            chosen.pop(name)
        elif name not in FLAGS:
            chosen[name] = r.choice(CHOICE.get(name, WHOLE))
        else:
            chosen[name] = None
    options = list(chosen.items())
    r.shuffle(options)
    words = [command, *(w for name, value in options for w in words_of(name, value))]
    if r.random() < 0.1:
        words.insert(
            r.randrange(len(words)),
            r.choice(['--', '--nope', '-', '', '-x', '--out=', '--js', '\x1b[31m', '-k=3', '@x']),
        )
    return words + ['--json'] * (r.random() < 0.4)


def called(words):
    "(status, stdout, stderr) of the command in this process"
    from samplesplit_nb.cli import main

    out, err = (io.TextIOWrapper(io.BytesIO(), 'utf-8', 'backslashreplace') for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited(words):
        try:
            status = main(list(words))
        except SystemExit as e:
            status = e.code
    out.flush(), err.flush()
    return status, out.buffer.getvalue().decode('utf-8'), err.buffer.getvalue().decode('utf-8')


def complaint(text):
    "What stands on stderr after the progress bars, which write over their own line"
    own = [row for row in text.split('\n') if row and not re.search(r'\r|\d+step/s|\|', row)]
    return [row for row in own if row != 'hello']  # what mine:prints says, beside the JSON


def finite(tree):
    "Is every number in a nest of plain values one that JSON has?"
    if isinstance(tree, dict):
        return all(map(finite, tree.values()))
    if isinstance(tree, list):
        return all(map(finite, tree))
    return not isinstance(tree, float) or math.isfinite(tree)


def fault(words, status, out, err):
    "What is wrong with how a command ended; None: nothing"
    if status not in (0, 2, 3):
        return f'status {status}'
    if 'Traceback' in out + err:
        return 'a traceback'
    said = complaint(err)
    if len(said) != (status != 0):
        return f'{len(said)} lines on stderr: {said[:3]}'
    if status and not said[0].startswith('samplesplit: '):
        return f'stderr: {said[0][:200]}'
    if status and (len(said[0]) > 1500 or not all(c.isprintable() for c in said[0])):
        return f'{len(said[0])} characters, or control characters: {said[0][:200]!r}'
    if NUMBER.search(out):
        return f'not a number: {NUMBER.search(out)}'
    if not all(c.isprintable() or c == '\n' for c in out):
        return 'control characters on stdout'
    if '--json' in words and status == 0:
        if len(out.splitlines()) != 1 or not finite(json.loads(out)):
            return 'stdout is not one JSON object'
    return None


def lines(batch):
    "The lines of a batch; the same in every process"
    r = random.Random(1000 * SEED + batch)
    return [line(r) for _ in range(COUNT // BATCHES)]


@pytest.mark.parametrize('batch', range(BATCHES))
def test_random_command_lines(batch, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.delenv('SAMPLESPLIT_DATA', raising=False)
    path, bad = list(sys.path), []
    for words in lines(batch):
        try:
            wrong = fault(words, *called(words))
        except Exception as e:
            import traceback

            wrong = f'{type(e).__name__}: {str(e)[:200]} ' + ' < '.join(
                f'{f.name}:{f.lineno}' for f in reversed(traceback.extract_tb(e.__traceback__)[-5:])
            )
        if Path.cwd() != place:
            wrong = 'the working folder is another one'
            os.chdir(place)
        if wrong:
            bad.append(([w[:60] for w in words], wrong))
        for name in ('state.safetensors',):
            (place / 'out' / name).unlink(missing_ok=True)
    sys.path[:] = path
    assert not bad, '\n'.join(f'{wrong}\n    {words}' for words, wrong in bad)


def test_a_dozen_of_them_as_processes(place):
    "The same words through the shell's door: the same status, no traceback, nothing but JSON on stdout"
    program = str(Path(sys.executable).with_name('samplesplit'))
    r = random.Random(5)
    usable = [w for b in range(BATCHES) for w in lines(b) if not any('\0' in v or '\udcff' in v for v in w)]
    for words in r.sample(usable, 12):
        done = subprocess.run([program, *words], cwd=place, capture_output=True, text=True, timeout=100)
        assert fault(words, done.returncode, done.stdout, done.stderr) is None, words
