"""Random calls of the library: whatever is given, a finite answer or one line that names what is wrong

Seeded, as tests/test_fuzz.py. A call begins with arguments that are right; one or two of them are replaced
by what callers give by mistake. A ValueError has the four parts of `checks.require`; a TypeError is Python's
own, for a call with other names; numbers that are lost are a NumericalError.

Called are the functions and classes from which a user starts: those of `samplesplit_nb` itself, the
objectives and settings, what trains, certifies, scores, reads and decomposes, and the commands. Left out are
the parts that these are made of (tangents, penalties, Lanczos, runs, figures, claims, our own files), whose
arguments were checked before, functions of a caller's own, which raise what they raise, and counts of steps
that are right and take hours.
"""

import contextlib, copy, dataclasses, io, math, os, random, warnings
from functools import cache
from pathlib import Path
import numpy as np
import pytest
import torch
from samplesplit_nb.certificates import certify, counting, margins
from samplesplit_nb.stationarity import clarke_stationarity, kkt_stationarity, pin_to_kinks
from samplesplit_nb.checks import NumericalError
from samplesplit_nb.commands import COMMANDS
from samplesplit_nb.data import load_data, load_images
from samplesplit_nb.descent import Descent, Running
from samplesplit_nb.eigenvectors import tensor_eigenpairs
from samplesplit_nb.identifiability import (
    interpolation_rank,
    kkt_residual,
    make_kkt,
    recover,
    recover_trained,
)
from samplesplit_nb.inversion import invert_gradient, recover_from_gradient
from samplesplit_nb.metrics import (
    baselines,
    gaussian_ssim,
    mean_of_best,
    nearest_l2,
    nearest_ssim,
    recovered,
    score_candidates,
    t_interval,
)
from samplesplit_nb.networks import MLP, Polynomial, SmoothReLU, mlp_from_weights
from samplesplit_nb.objectives import (
    DecayObjective,
    KKTObjective,
    MapObjective,
    MulticlassKKTObjective,
    NTKObjective,
)
from samplesplit_nb.optimisers import optimizer
from samplesplit_nb.peeling import Peeling, Search
from samplesplit_nb.presets import preset
from samplesplit_nb.rules import PublishedRule, RandomSplits
from samplesplit_nb.settings import Experiment, published
from samplesplit_nb.splitting import (
    Every,
    Plateau,
    SmallGradient,
    SplitRule,
    Splitting,
    Stop,
    min_curvature,
    reconstruct,
    split_samples,
    splitting_matrix,
)
from samplesplit_nb.storage import Checkpoint
from samplesplit_nb.tidy import Tidy
from samplesplit_nb.training import train_gd, train_kkt, train_ntk, train_weight_decay
from samplesplit_nb.weights import input_shape, load_network, load_weights, pictures_to_rows, rows_to_pictures
from test_fuzz import BATCHES, COUNT, SEED, limited, write_networks, write_others

normal = lambda *size, seed=0, dtype=torch.float32: torch.randn(
    size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
).to(dtype)


@cache
def nets():
    "Networks by name; no call changes them"
    return dict(
        net=MLP([6, 9, 9, 1], seed=1),
        init=MLP([6, 9, 9, 1], seed=2),
        kkt=MLP([6, 9, 9, 1], bias='first', seed=3),
        ten=MLP([6, 9, 9, 3], bias='first', seed=4),
        power=MLP([6, 20, 1], bias='none', seed=5),
        smooth=MLP([6, 9, 9, 1], SmoothReLU(5.0), seed=6, dtype=torch.float64),
        other=MLP([5, 4, 1]),
        linear=torch.nn.Linear(6, 1),
    )


SIGNS, CLASSES = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([0, 1, 2, 0])
X = normal(4, 6)


def _objective():
    return NTKObjective(nets()['net'], nets()['init'], sharpness=5.0)


def _unit(n, d):
    return torch.nn.functional.normalize(normal(n, d, dtype=torch.float64), dim=1)


def _gradient():
    net = MLP([6, 9, 9, 1], seed=1)
    (net(X)[:2, 0] - 1).square().sum().backward()
    return [p.grad for p in net.parameters()]


def calls():
    "Name -> (function, right arguments)"
    n, W, a = nets(), normal(20, 4, dtype=torch.float64), normal(20, dtype=torch.float64)
    point = dict(objective=_objective(), x=normal(3, 6), lam=normal(3, seed=1))
    images = normal(4, 64).sigmoid()
    found = {
        'MLP': (MLP, dict(widths=[6, 5, 1], activation=SmoothReLU(), bias='all', seed=0, init='lecun')),
        'SmoothReLU': (SmoothReLU, dict(sharpness=5.0)),
        'Polynomial': (Polynomial, dict(coefficients=(0.0, 1.0))),
        'mlp_from_weights': (mlp_from_weights, dict(weights=n['net'].state_dict())),
        'load_data': (load_data, dict(name='faces', n=4, seed=1, task='binary', mean='training')),
        'load_images': (
            load_images,
            dict(path='images.npz', n=4, seed=1, labels=None, size=(7, 7), gray=False),
        ),
        'load_weights': (load_weights, dict(path='kkt.safetensors')),
        'load_network': (load_network, dict(path='mine.safetensors', module='mine:net')),
        'input_shape': (input_shape, dict(model=n['linear'], shape=(6,))),
        'rows_to_pictures': (rows_to_pictures, dict(x=images, shape=(8, 8))),
        'pictures_to_rows': (pictures_to_rows, dict(X=images, shape=(8, 8))),
        'NTKObjective': (
            NTKObjective,
            dict(
                model=n['net'],
                init=n['init'],
                sharpness=5.0,
                box=(-1.0, 1.0),
                box_weight=0.1,
                tangent='init',
                chunk_size=None,
                form='auto',
                scale=1.0,
            ),
        ),
        'KKTObjective': (
            KKTObjective,
            dict(model=n['kkt'], labels=SIGNS, sharpness=5.0, scale=1.0, lam_min=0.0),
        ),
        'MulticlassKKTObjective': (
            MulticlassKKTObjective,
            dict(model=n['ten'], labels=CLASSES, sharpness=5.0),
        ),
        'DecayObjective': (DecayObjective, dict(model=n['kkt'], sharpness=5.0)),
        'MapObjective': (MapObjective, dict(f=lambda x: x, target=torch.ones(2), d=2)),
        'reconstruct': (
            reconstruct,
            point
            | dict(descent=Descent(4), splitting=Splitting(SplitRule(-1e-9), Every(2)), running=Running()),
        ),
        'split_samples': (split_samples, point | dict(rule=SplitRule(-1e-9), most=2)),
        'min_curvature': (min_curvature, point | dict(num_matvecs=3, chunk_size=2)),
        'splitting_matrix': (splitting_matrix, point | dict(i=0)),
        'train_ntk': (train_ntk, dict(init=n['init'], X=X, y=SIGNS)),
        'train_kkt': (
            train_kkt,
            dict(init=n['kkt'], X=X, y=SIGNS, seconds=1e9, max_steps=30, lr=0.02, b=2.0),
        ),
        'train_gd': (
            train_gd,
            dict(init=n['net'], X=X, y=SIGNS, loss='mse', lr=0.01, steps=5, weight_decay=0.0, momentum=0.0),
        ),
        'train_weight_decay': (
            train_weight_decay,
            dict(init=n['smooth'], X=X, y=SIGNS, decay=1e-2, max_iter=9, polish=1),
        ),
        'certify': (certify, dict(model=n['kkt'], X=X, y=SIGNS, n=4, degree=None, homogeneous=None, d=None)),
        'certify of powers': (certify, dict(model=n['power'], n=4, degree=3)),
        'counting': (counting, dict(parameters=100, d=6, n=4, multipliers=1)),
        'margins': (margins, dict(model=n['kkt'], X=X, y=SIGNS)),
        'kkt_stationarity': (kkt_stationarity, dict(model=n['ten'], X=X, y=CLASSES)),
        'pin_to_kinks': (pin_to_kinks, dict(model=n['kkt'], X=X, tol=1e-3)),
        'clarke_stationarity': (
            clarke_stationarity,
            dict(model=n['kkt'], X=X, y=SIGNS, tol=None, max_iter=5),
        ),
        'invert_gradient': (
            invert_gradient,
            dict(
                network=n['net'],
                gradient=_gradient(),
                samples=2,
                directions=None,
                rounds=2,
                iterations=5,
                accept=None,
                seed=0,
            ),
        ),
        'recover_from_gradient': (
            recover_from_gradient,
            dict(
                W0=W,
                a0=a,
                dW=normal(20, 1, dtype=torch.float64) * normal(1, 4, dtype=torch.float64),
                degree=3,
                refine=True,
                r=1,
            ),
        ),
        'make_kkt': (make_kkt, dict(X=_unit(2, 3), b=torch.tensor([1.0, 2.0]).double(), degree=3)),
        'tensor_eigenpairs': (
            tensor_eigenpairs,
            dict(X=_unit(2, 3), b=torch.tensor([1.0, 2.0]).double(), degree=3),
        ),
        'recover': (recover, dict(a=a, W=W, degree=3, refine=True, r=2)),
        'recover_trained': (recover_trained, dict(a=a, W=W, degree=3, angle=1e-3)),
        'interpolation_rank': (interpolation_rank, dict(W=W, degree=3)),
        'kkt_residual': (kkt_residual, dict(a=a, W=W, X=_unit(2, 4), b=torch.ones(2).double(), degree=3)),
        'nearest_l2': (nearest_l2, dict(X=X, candidates=normal(3, 6))),
        'nearest_ssim': (
            nearest_ssim,
            dict(X=images, candidates=images[:2], mean=torch.zeros(64), shape=(8, 8)),
        ),
        'gaussian_ssim': (
            gaussian_ssim,
            dict(a=images[0].view(8, 8).numpy(), b=images[1].view(8, 8).numpy(), window=3),
        ),
        'baselines': (baselines, dict(X=X, score=nearest_l2)),
        'recovered': (
            recovered,
            dict(scores=torch.ones(3), nearest_other=torch.ones(3), ssim_scores=torch.ones(3), ssim=0.5),
        ),
        'mean_of_best': (mean_of_best, dict(scores=torch.ones(3), count=2)),
        'score_candidates': (
            score_candidates,
            dict(found={'a': images[:2]}, X=images, mean=torch.zeros(64), shape=(8, 8)),
        ),
        't_interval': (t_interval, dict(values=[1.0, 2.0, 3.0])),
        'preset': (preset, dict(name='haim-mnist-1')),
        'published': (published, dict(name='haim-mnist-1')),
        'optimizer': (optimizer, dict(name='adam')),
    }
    for settings in (
        Descent(10),
        Running(),
        Checkpoint('run.safetensors'),
        Splitting(),
        SplitRule(),
        RandomSplits(),
        PublishedRule(),
        Every(),
        SmallGradient(1.0),
        Plateau(),
        Stop(),
        Tidy(),
        Search(20),
        Peeling(),
        Experiment(),
    ):
        found[type(settings).__name__] = (
            type(settings),
            {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)},
        )
    here = dict(device='cpu', out='out')
    for name, words in dict(
        train=dict(method='kkt', data='images.npz', n=4, width=9, steps=9, **here),
        reconstruct=dict(
            weights='kkt.safetensors', method='kkt', k=2, steps=4, lr=0.02, shape=(8, 8), **here
        ),
        invert=dict(weights='model.safetensors', init='init.safetensors', rounds=1, samples=None, **here),
        evaluate=dict(reconstruction='found.npz', data='images.npz', n=4),
        certify=dict(weights='kkt.safetensors', n=4, data='images.npz', device='cpu'),
        demo=dict(n=4, k=2, width=9, steps=9, splits=1, **here),
    ).items():
        found[f'command {name}'] = (COMMANDS[name], words)
    return found


PLAIN = [
    None,
    True,
    False,
    0,
    1,
    2,
    -1,
    3,
    7,
    2**63,
    10**30,
    10**400,
    0.0,
    -0.0,
    0.5,
    1.0,
    -1.0,
    1e-320,
    1e30,
    1e39,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    1j,
    '',
    ' ',
    'x',
    'faces',
    '7',
    '0.5',
    'x' * 5000,
    'a\x1b[31m\nb',
    '\udcff',
    b'7',
    (),
    [],
    {},
    (1,),
    [1.0],
    (1.0, 2.0),
    (2.0, 1.0),
    [None],
    ['a'],
    {'a': 1},
    {1, 2},
    object(),
    int,
    len,
    print,
    np.float64(0.5),
    np.int64(3),
    np.array([1.0]),
    Path('x'),
    range(3),
    lambda *a, **k: None,
    lambda *a, **k: 3,
    torch.float64,
    Exception(),
]


def tensors_like(t):
    "Tensors that are wrong in one way each"
    flat, size = t.double(), t.shape
    cut = t[:1] if t.ndim else t
    return [
        t,
        flat,
        t.half() if t.is_floating_point() else t.int(),
        t.long(),
        t.bool(),
        t.to(torch.complex64),
        t.bfloat16(),
        torch.full_like(flat, math.nan).to(t.dtype) if t.is_floating_point() else t - 9,
        flat * math.inf,
        t * 0,
        t * 0 + 1,
        flat * 1e30,
        flat * 1e160,
        flat * 1e-30,
        flat * 1e-160,
        (flat * 1e30).float(),
        (flat * 1e-30).float(),
        (flat * 1e19).float(),
        (flat * 1e-45).float(),
        t[:0] if t.ndim else t,
        cut,
        t.unsqueeze(0),
        t.flatten(),
        t.flatten()[0],
        torch.cat([t, t]) if t.ndim else t,
        t.T if t.ndim == 2 else t,
        t.to('meta'),
        t.numpy(),
        t.tolist(),
        -t,
        t.to_sparse() if t.ndim else t,
        flat.requires_grad_(),
        torch.zeros(*size, 2),
        torch.zeros(0, 0),
        torch.zeros(7, 7),
        torch.where(torch.arange(t.numel()).view(size) == 0, math.nan, flat).to(flat),
        torch.quantize_per_tensor(flat.float(), 0.1, 0, torch.qint8),
    ]


def scaled(model, factor):
    "A copy of a network with other weights"
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    return model


def models():
    n = nets()
    return [
        *n.values(),
        None,
        torch.nn.ReLU(),
        torch.nn.Sequential(),
        MLP,
        'net',
        n['net'].state_dict(),
        n['net'].layers,
        *(
            scaled(n[k], f)
            for k in ('net', 'kkt', 'ten', 'power')
            for f in (0.0, 1e-30, 1e12, 1e30, math.nan)
        ),
        copy.deepcopy(n['net']).double(),
        MLP([6, 9, 9, 1], dtype=torch.float64),
        MLP([6, 1]),
        MLP([6, 1, 1, 1], bias='first'),
        MLP([1, 1, 1]),
        torch.nn.LSTM(6, 2),
        torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Dropout(), torch.nn.Linear(3, 1)),
        torch.nn.Sequential(torch.nn.Unflatten(1, (1, 2, 3)), torch.nn.Flatten(), torch.nn.Linear(6, 1)),
    ]


def instead(r, value):
    "Something else in the place of an argument"
    if callable(value) and not isinstance(value, (torch.nn.Module, type)):
        return r.choice(
            [v for v in PLAIN if not callable(v)]
        )  # a caller's own function raises what it raises
    if r.random() < 0.3:
        return r.choice(PLAIN)
    if torch.is_tensor(value):
        return r.choice(tensors_like(value))
    if isinstance(value, torch.nn.Module):
        return r.choice(models())
    if isinstance(value, list) and value and torch.is_tensor(value[0]):
        i, other = (
            r.randrange(len(value)),
            r.choice([value[:-1], value + value[:1], [t * 0 for t in value], value]),
        )
        other = list(other)
        if r.random() < 0.7:
            other[min(i, len(other) - 1)] = r.choice(tensors_like(value[i]))
        return other
    if isinstance(value, np.ndarray):
        return r.choice(
            [value * math.nan, value[:1], value[0], value.astype(int), value * 1e300, value.tolist()]
        )
    if isinstance(value, dict) and value and torch.is_tensor(next(iter(value.values()))):
        key = r.choice(list(value))
        return r.choice(
            [{}, value | {key: r.choice(tensors_like(value[key]))}, value | {'more': torch.ones(1)}, {1: 2}]
        )
    return r.choice(PLAIN)


def one_call(r):
    "(name, function, arguments, which of them are wrong)"
    name, (function, right) = r.choice(sorted(calls().items()))
    wrong = {
        key: instead(r, right[key])
        for key in r.sample(sorted(right), min(len(right), r.choice([1, 1, 1, 2])))
    }
    return name, function, right | wrong, wrong


def infinite(value, seen=0):
    "Where nan or inf stands in a result; '' if nowhere"
    if torch.is_tensor(value):
        return '' if not value.is_floating_point() or bool(value.isfinite().all()) else 'tensor'
    if isinstance(value, float):
        return '' if math.isfinite(value) else str(value)
    if isinstance(value, torch.nn.Module):
        return ''.join(infinite(p) for p in value.parameters())
    if isinstance(value, (list, tuple)) and len(value) < 1000:
        return ''.join(map(infinite, value))
    if isinstance(value, dict):
        return ''.join(f'{k}: {w} ' for k, v in value.items() if (w := infinite(v)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and seen < 4:
        return infinite({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    return ''


def complaint(e):
    "What is wrong with an error; None: nothing"
    text = str(e)
    if type(e) is TypeError:
        fine = 'argument' in text and ('unexpected keyword' in text or 'missing' in text)
        return None if fine else 'a TypeError of something inside'
    if not (type(e) in (ValueError, FileNotFoundError, MemoryError) or isinstance(e, NumericalError)):
        return 'an error of another kind'
    if '\n' in text or not text.isprintable() or len(text) > 1500:
        return 'not one line'
    if type(e) is ValueError and ' must be ' not in text:
        return 'it does not say what must be'
    return None


def shown(value):
    text = (
        f'{type(value).__name__} {tuple(value.shape)} {value.dtype}'
        if torch.is_tensor(value)
        else repr(value)
    )
    if (
        torch.is_tensor(value)
        and value.device.type == 'cpu'
        and not value.is_quantized
        and value.layout == torch.strided
        and value.numel()
    ):
        text += f' {value.flatten()[:2].tolist()}'
    return text[:90]


def fault(function, arguments):
    "What is wrong with how a call ended; None: nothing"
    import traceback

    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            limited(function),
        ):
            answer = function(**arguments)
    except Exception as e:
        why = complaint(e)
        at = ' < '.join(f'{f.name}:{f.lineno}' for f in reversed(traceback.extract_tb(e.__traceback__)[-6:]))
        return why and f'{why}: {type(e).__name__}: {str(e)[:200]!r}   {at}'
    if function in (rows_to_pictures, pictures_to_rows):  # they turn round what is given
        return None
    where = infinite(answer) if isinstance(answer, (dict, tuple)) or dataclasses.is_dataclass(answer) else ''
    return where and f'nan or inf in the result: {where}'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp('calls')
    write_networks(place)
    write_others(place)
    return place


@pytest.mark.parametrize('batch', range(BATCHES))
def test_random_calls(batch, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv('SAMPLESPLIT_DATA', raising=False)
    warnings.simplefilter('ignore')
    r, bad = random.Random(1000 * SEED + batch), []
    for _ in range(COUNT // BATCHES):
        name, function, arguments, wrong = one_call(r)
        why = fault(function, arguments)
        if why:
            bad.append(f'{name}({", ".join(f"{k}={shown(v)}" for k, v in wrong.items())})\n    {why}')
        os.chdir(folder)
    assert not bad, '\n'.join(bad)


def test_the_right_calls_are_right(folder, monkeypatch):
    "Control: without a mistake every one of them answers"
    monkeypatch.chdir(folder)
    assert {name: why for name, (f, right) in calls().items() if (why := fault(f, right))} == {}
