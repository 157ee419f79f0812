"What a network was given instead of pixels: stated, checked against the network, undone for every score"

import json, sys
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from samplesplit_nb.attacks import evaluate
from samplesplit_nb.cli import main
from samplesplit_nb.data import SOURCES
from samplesplit_nb.given import known_images, usual_ways
from samplesplit_nb.metrics import nearest_l2
from samplesplit_nb.networks import MLP
from samplesplit_nb.options import KnownImages
from samplesplit_nb.preprocessing import from_function, stated
from samplesplit_nb.weights import InputShape, input_shape

CPU = dict(device='cpu')


@pytest.fixture
def cli(capsys):
    "A command line that is called here"

    def call(*words):
        try:
            status = main([str(w) for w in words])
        except SystemExit as e:
            status = e.code
        out, err = capsys.readouterr()
        return status, out, err

    return call


def collection(shape, count=120, seed=0):
    "Smooth images of random blobs in [0, 1], as bytes"
    g = np.random.default_rng(seed)
    h, w = shape[:2]
    rows, cols = np.mgrid[:h, :w]
    images = np.zeros((count, h, w, shape[2] if len(shape) == 3 else 1))
    for image in images:
        for _ in range(3):
            r, c, size = g.uniform(0, h), g.uniform(0, w), g.uniform(1, h / 4)
            blob = np.exp(-((rows - r) ** 2 + (cols - c) ** 2) / (2 * size**2))
            image += blob[..., None] * g.uniform(0, 1, image.shape[-1])
    images = (255 * images.clip(0, 1)).astype(np.uint8)
    return images if len(shape) == 3 else images[..., 0]


def digits(n):
    "The first n/2 odd and even digits, as `--data mnist` takes them: pixels (n, 784), labels (n,)"
    images, labels = SOURCES['mnist'](None)
    odd = np.flatnonzero(labels % 2)[: n // 2], np.flatnonzero(labels % 2 == 0)[: n // 2]
    pixels = torch.from_numpy(images[np.concatenate(odd)] / 255.0).reshape(n, -1)
    return pixels, torch.tensor([1.0] * (n // 2) + [-1.0] * (n // 2))


def own(folder, images, labels):
    np.savez(folder / 'own.npz', images=images, labels=labels)
    return folder / 'own.npz'


def mlp(d, outputs=1, width=200):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(d, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


def steps(folder, net, X, y, count=1, rate=0.1, loss='mse'):
    "Train a network by plain gradient descent; files before and after"
    torch.save(net.state_dict(), folder / 'before.pt')
    X = X.float()
    for _ in range(count):
        net.zero_grad()
        out = net(X)
        if loss == 'mse':
            value = ((out[:, 0] - y) ** 2).mean()
        elif loss == 'logistic':
            value = nn.functional.softplus(-y * out[:, 0]).mean()
        else:
            value = cross_entropy(out, y)
        value.backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= rate * p.grad
    torch.save(net.state_dict(), folder / 'after.pt')
    return ['--weights', folder / 'after.pt', '--init', folder / 'before.pt', '--device', 'cpu']


WAYS = {
    'raw': (lambda P: P, ['--mean', '0', '--std', '1']),
    'normalised': (lambda P: (P - 0.1307) / 0.3081, ['--mean', '0.1307', '--std', '0.3081']),
    'own mean': (lambda P: P - P.mean(0), ['--mean', 'train']),
}


@pytest.mark.parametrize('way', WAYS)
def test_sixty_digits_are_found_and_reported_as_found(way, tmp_path, cli):
    """One step on 60 digits: 44 or more come back, and the table says so.

    The distances are the true ones in pixels, measured here without the package's scores"""
    make, option = WAYS[way]
    P, y = digits(60)
    files = steps(tmp_path, mlp(784, width=400), make(P), y)
    words = [*files, '--data', 'mnist', '-n', '60', '--out', tmp_path / 'o', '--json']
    status, out, err = cli('invert', *words, *option)
    assert status == 0, err
    record = json.loads(out)
    assert record['fit']['verdict'] == 'fits'
    scores = record['scores'][0]
    found = torch.from_numpy(np.load(tmp_path / 'o/reconstruction.npz')['x']).double()
    away = torch.cdist(make(P), found).min(1).values
    if way == 'normalised':
        away = away * 0.3081
    assert scores['beat_both'] >= 44 and int((away < 1).sum()) >= 44
    np.testing.assert_allclose(scores['l2'], away.numpy(), atol=2e-4)
    status, out, err = cli(
        'evaluate', '--reconstruction', tmp_path / 'o/reconstruction.npz', '--data', 'mnist', '--json'
    )
    again = json.loads(out)
    assert status == 0 and again['scores'] == record['scores'] and again['notes'] == [], err


@pytest.mark.parametrize('true', ['raw', 'normalised', 'own mean'])
@pytest.mark.parametrize('said', ['raw', 'normalised', 'own mean'])
def test_what_was_not_given_to_the_network_is_named(true, said, tmp_path, cli):
    "Nine pairs: on the diagonal scores; else no score, and the option that makes one, which works"
    P, y = digits(10)
    files = steps(tmp_path, mlp(784), WAYS[true][0](P), y)
    words = ['invert', *files, '--data', 'mnist', '-n', '10', '--out', tmp_path / 'o']
    status, out, err = cli(*words, '--json', *WAYS[said][1])
    record = json.loads(out)
    assert status == 0 and ('scores' in record) == (true == said), err
    if true == said:
        assert record['scores'][0]['beat_both'] == 10
        return
    fit = record['fit']
    assert fit['verdict'] == 'other' and fit['option'] in fit['sentence']
    assert sorted(p.name for p in (tmp_path / 'o').iterdir()) == [
        'candidates.png',
        'reconstruction.json',
        'reconstruction.npz',
    ]
    found = ['evaluate', '--reconstruction', tmp_path / 'o/reconstruction.npz', '--data', 'mnist', '--json']
    silent = json.loads(cli(*found)[1])
    assert 'scores' not in silent and silent['fit']['verdict'] == 'other'
    told = json.loads(cli(*found, *fit['option'].split())[1])
    assert told['scores'][0]['beat_both'] == 10 and len(told['notes']) == 1
    assert json.loads(cli(*words, '--json', *fit['option'].split())[1])['scores'][0]['beat_both'] == 10


SAYS = {
    'mean and a function': (['--mean', '0', '--preprocess', 'numpy:sqrt'], 'leave out one'),
    'no number': (['--mean', 'middle'], '--mean=middle'),
    'nan': (['--std', 'nan'], '--std=nan'),
    'negative': (['--std', '-1'], 'above 0'),
    'zero': (['--std', '0'], 'above 0'),
    'in bytes': (['--mean', '33.3'], 'divide --mean and --std by 255'),
    'two for grey': (['--std', '.1', '.2'], 'one number'),
    'no module': (['--preprocess', 'no_such_module:f'], 'PKG:FUNCTION'),
    'no function': (['--preprocess', 'math:pi'], 'PKG:FUNCTION'),
    'of one number': (['--preprocess', 'math:sqrt'], 'preprocess'),
    'exits': (['--preprocess', 'sys:exit'], 'preprocess'),
    'of the batch': (['--preprocess', 'batch_mean:less'], 'among others'),
}


@pytest.mark.parametrize('case', SAYS)
def test_a_mistake_is_one_line_before_the_attack(case, tmp_path, cli, monkeypatch):
    (tmp_path / 'batch_mean.py').write_text('def less(x): return x - x.mean(0)\n')
    monkeypatch.syspath_prepend(tmp_path)
    words, says = SAYS[case]
    images, labels = collection((8, 8), 12), np.arange(12) % 2
    X = torch.from_numpy(images / 255.0).reshape(12, -1)
    files = steps(tmp_path, mlp(64, width=60), X[:4], torch.tensor([1.0, 1, -1, -1]))
    status, out, err = cli(
        'invert', *files, '--data', own(tmp_path, images, labels), '-n', '4', '--out', tmp_path / 'o', *words
    )
    assert status == 2 and says in err and len(err.strip().splitlines()) == 1, (status, err)
    assert 'result' not in out


def test_every_spelling_of_a_mean():
    for value in ('train', 'training', ('train',), ['training']):
        assert stated('mean', value) == 'training'
    for value in ('.1 .2 .3', '.1,.2,.3', ('.1', '.2', '.3'), (0.1, 0.2, 0.3), np.array([0.1, 0.2, 0.3])):
        assert stated('mean', value) == (0.1, 0.2, 0.3)


FUNCTIONS = {
    'numpy': (lambda x: (x - 0.5) / 0.25, True),
    'torch, channels first': (lambda x: ((x - 0.1) * 3).permute(0, 3, 1, 2), True),
    'numpy, channels first': (lambda x: x.transpose(0, 3, 1, 2), True),
    'blue first': (lambda x: x[..., ::-1] if isinstance(x, np.ndarray) else x.flip(-1), True),
    'inverted': (lambda x: 1 - x, True),
    'float32': (lambda x: x.astype(np.float32) * 2 - 1, True),
    'upside down': (lambda x: x[:, ::-1], True),
    'by channel': (lambda x: (x - np.array([0.1, 0.2, 0.3])) / np.array([0.4, 0.5, 0.6]), True),
    'gamma': (lambda x: x**0.5, False),
    'blurred': (lambda x: (x + x.mean((1, 2), keepdims=True)) / 2, False),
    'grey': (lambda x: x.mean(-1), False),
    'padded': (lambda x: np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), False),
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_a_function_is_the_formula_or_has_no_way_back(name):
    function, invertible = FUNCTIONS[name]
    P = torch.from_numpy(collection((6, 5, 3), 7) / 255.0).reshape(7, -1)
    way = from_function(function, (6, 5, 3), 'x', P)
    assert way.invertible == invertible
    given = P.reshape(7, 6, 5, 3)
    try:
        wanted = torch.as_tensor(np.ascontiguousarray(function(given.numpy()))).double().reshape(7, -1)
    except (TypeError, AttributeError):
        wanted = function(given).reshape(7, -1)
    x = way(P) if way.order is None else way(P)[:, way.order]
    torch.testing.assert_close(x, wanted, rtol=0, atol=1e-6)
    if invertible:
        torch.testing.assert_close(way.pixels(way(P)), P, rtol=0, atol=1e-6)
        lower, upper = way.box
        assert (way(P) >= lower - 1e-6).all() and (way(P) <= upper + 1e-6).all()
    else:
        assert way.box is None


def test_a_function_of_ones_own_on_the_command_line(tmp_path, cli, monkeypatch):
    "A formula with the channels moved: scored in pixels. No formula: in the network's numbers, without SSIM"
    (tmp_path / 'own_ways.py').write_text(
        'import numpy as np\n'
        'def chw(x): return ((x - .5)/.25).transpose(0, 3, 1, 2)\n'
        'def gamma(x): return np.sqrt(x)\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    images, labels = collection((8, 8, 3), 24), np.repeat([0, 1], 12)
    path = own(tmp_path, images, labels)
    import own_ways

    index = [12, 13, 14, 0, 1, 2]  # class 1 is the positive one, and comes first
    y = torch.tensor([1.0, 1, 1, -1, -1, -1])
    for name in ('chw', 'gamma'):
        X = torch.from_numpy(getattr(own_ways, name)(images[index] / 255.0)).reshape(6, -1)
        files = steps(tmp_path, mlp(192), X, y)
        words = [*files, '--data', path, '-n', '6', '--out', tmp_path / name]
        status, out, err = cli('invert', *words, '--preprocess', f'own_ways:{name}', '--json')
        record = json.loads(out)
        assert status == 0 and record['fit']['verdict'] == 'fits', err
        first = record['scores'][0]
        found = torch.from_numpy(np.load(tmp_path / name / 'reconstruction.npz')['x']).double()
        away = torch.cdist(X.double(), found).min(1).values * (0.25 if name == 'chw' else 1)
        np.testing.assert_allclose(first['l2'], away.numpy(), atol=1e-3)
        assert (first['mean_ssim'] is None) == (name == 'gamma') and first['beat_both'] == 6
        assert (tmp_path / name / 'reconstructions.png').exists() == (name == 'chw')
    found = ['evaluate', '--data', path, '--json', '--reconstruction']
    again = json.loads(cli(*found, tmp_path / 'chw/reconstruction.npz')[1])
    assert again['scores'][0]['mean_l2'] < 0.01  # the formula is in the file
    status, out, err = cli(*found, tmp_path / 'gamma/reconstruction.npz')
    assert status == 2 and 'nothing that a file names is run' in err
    again = json.loads(
        cli(*found, tmp_path / 'gamma/reconstruction.npz', '--preprocess', 'own_ways:gamma')[1]
    )
    assert again['scores'][0]['beat_both'] == 6


def test_a_file_cannot_name_code_to_run(tmp_path, cli):
    "A stranger's file that names a function: refused, and the module is not even imported"
    about = dict(preprocessing='--preprocess antigravity:geohash', selection=dict(n=4))
    np.savez(tmp_path / 'r.npz', x=np.zeros((2, 625)), about=np.array(json.dumps(about)))
    status, _, err = cli('evaluate', '--reconstruction', tmp_path / 'r.npz', '--data', 'faces')
    assert status == 2 and len(err.strip().splitlines()) == 1 and 'antigravity' not in sys.modules


BROKEN = {
    'mean': dict(mean=np.zeros(3)),
    'std': dict(mean=np.zeros(625), std=np.zeros(625)),
    'nan': dict(mean=np.full(625, np.nan)),
    'order': dict(mean=np.zeros(625), order=np.zeros(625, dtype=int)),
    'about': dict(about=np.array('{')),
    'list': dict(about=np.array('[1]')),
    'words': dict(mean=np.array(['a'] * 625)),
    'stored mean': dict(about=np.array(json.dumps(dict(preprocessing='--mean x --std y')))),
    'stored n': dict(about=np.array(json.dumps(dict(selection=dict(n='many'))))),
    'stored size': dict(about=np.array(json.dumps(dict(selection=dict(size=[[1]]))))),
    'data': dict(about=np.array(json.dumps(dict(data=[1])))),
}


@pytest.mark.parametrize('what', BROKEN)
def test_a_damaged_reconstruction_is_one_line(what, tmp_path, cli):
    np.savez(tmp_path / 'r.npz', x=np.zeros((2, 625)), **BROKEN[what])
    status, _, err = cli('evaluate', '--reconstruction', tmp_path / 'r.npz', '--data', 'faces')
    assert status == 2 and len(err.strip().splitlines()) == 1 and 'Traceback' not in err, err


def test_channels_first_is_found_out_by_the_network(tmp_path, cli):
    "Flattened colour images, C H W, and no --shape: what fits is taken and said; H W C is the control"
    images, labels = collection((8, 8, 3), 60), np.repeat([0, 1], 30)
    path = own(tmp_path, images, labels)
    index = [*range(30, 42), *range(12)]
    P = torch.from_numpy(images[index] / 255.0)
    y = torch.tensor([1.0] * 12 + [-1.0] * 12)
    for first, X in ((True, P.permute(0, 3, 1, 2)), (False, P)):
        files = steps(tmp_path, mlp(192, width=300), X.reshape(24, -1), y)
        status, out, err = cli(
            'invert', *files, '--data', path, '-n', '24', '--mean', '0', '--out', tmp_path / 'o', '--json'
        )
        record, arrays = json.loads(out), np.load(tmp_path / 'o/reconstruction.npz')
        assert status == 0 and record['fit']['verdict'] == 'fits', err
        assert arrays['shape'].tolist() == ([3, 8, 8] if first else [8, 8, 3])
        away = nearest_l2(X.reshape(24, -1), torch.from_numpy(arrays['x'])).scores
        np.testing.assert_allclose(record['scores'][0]['l2'], away.numpy(), atol=1e-3)
        again = json.loads(
            cli(
                'evaluate',
                '--reconstruction',
                tmp_path / 'o/reconstruction.npz',
                '--data',
                path,
                '--json',
            )[1]
        )
        assert again['scores'] == record['scores']
        wrong = cli(
            'invert',
            *files,
            '--data',
            path,
            '-n',
            '24',
            '--mean',
            '0',
            '--out',
            tmp_path / 'o',
            '--shape',
            *('8 8 3' if first else '3 8 8').split(),
        )
        assert wrong[0] == 0 and 'no scores' in wrong[1] and 'beat both' not in wrong[1]


@pytest.mark.parametrize('attack', ['ntk', 'invert'])
def test_outputs_decide_which_images_are_meant(attack, tmp_path, cli):
    "Ten outputs: the ten classes, for either attack and for `evaluate`; the task is stored"
    images, labels = SOURCES['mnist'](None)
    index = [int(np.flatnonzero(labels == c)[0]) for c in range(10)]
    P = torch.from_numpy(images[index] / 255.0).reshape(10, -1)
    files = steps(tmp_path, mlp(784, 10), P - P.mean(0), torch.arange(10), loss='cross-entropy')
    few = ['-k', '10', '--steps', '12', '--method', 'ntk'] if attack == 'ntk' else []
    command = 'reconstruct' if attack == 'ntk' else 'invert'
    words = [command, *files, *few, '--data', 'mnist', '-n', '10', '--out', tmp_path / 'o', '--json']
    status, out, err = cli(*words)
    record = json.loads(out)
    assert status == 0 and record['data']['index'] == index and record['data']['task'] == 'multiclass', err
    assert record['fit']['verdict'] == 'fits'
    found = ['evaluate', '--reconstruction', tmp_path / 'o/reconstruction.npz', '--data', 'mnist']
    again = json.loads(cli(*found, '--json')[1])
    assert again['data']['index'] == index and again['scores'] == record['scores']


def test_another_selection_is_noticed(tmp_path, cli):
    "Other images of the same collection: no score. At `evaluate`: said, and scored as a control"
    P, y = digits(20)
    files = steps(tmp_path, mlp(784), P - P.mean(0), y, count=60)
    words = ['invert', *files, '--data', 'mnist', '--out', tmp_path / 'o']
    right = json.loads(cli(*words, '-n', '20', '--json')[1])
    assert right['fit']['verdict'] == 'fits'
    found = ['evaluate', '--reconstruction', tmp_path / 'o/reconstruction.npz', '--data', 'mnist', '--json']
    other = json.loads(cli(*found, '--data-seed', '3')[1])
    assert len(other['notes']) == 1 and 'other images' in other['notes'][0]
    assert other['scores'][0]['beat_both'] < right['scores'][0]['beat_both']
    status, out, err = cli(*words, '-n', '20', '--data-seed', '3', '--json')
    wrong = json.loads(out)
    assert status == 0 and wrong['fit']['verdict'] == 'none' and 'scores' not in wrong, err


def test_shuffled_labels_and_an_untrained_network_are_noticed(tmp_path, cli):
    "Without the weights before training: accuracy and margins tell"
    images, labels = collection((10, 10), 200), np.repeat([0, 1], 100)
    images[100:, :5] //= 4  # something to learn
    shuffled = np.random.default_rng(0).permutation(labels)
    net = MLP([100, 80, 80, 1], bias='first')
    index = [*range(100, 110), *range(10)]
    X = torch.from_numpy(images[index] / 255.0).reshape(20, -1)
    y = torch.tensor([1.0] * 10 + [-1.0] * 10)
    o = KnownImages(data=str(own(tmp_path, images, labels)), n=20)
    assert known_images(o, net, input_shape(net)).fit.verdict == 'none'  # untrained
    steps(tmp_path, net, X - X.mean(0), y, 400, 0.3, 'logistic')
    assert known_images(o, net, input_shape(net)).fit.verdict == 'fits'
    np.savez(tmp_path / 'wrong.npz', images=images, labels=shuffled)
    wrong = KnownImages(data=str(tmp_path / 'wrong.npz'), n=20)
    assert known_images(wrong, net, input_shape(net)).fit.verdict == 'none'


CONSTANTS = {
    'training': (None, '--mean training --std 1'),
    'raw': ((0.0, 1.0), '--mean 0 --std 1'),
    'bytes': ((0.0, 1 / 255), '--mean 0 --std 0.00392157'),
    'half': ((0.5, 0.5), '--mean 0.5 --std 0.5'),
    'mnist': ((0.1307, 0.3081), '--mean 0.1307 --std 0.3081'),
    'imagenet': (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), '--mean 0.485 0.456 0.406'),
    'cifar': (((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)), '--mean 0.4914 0.4822 0.4465'),
}


@pytest.mark.parametrize('first', [True, False], ids=['C H W', 'H W C'])
@pytest.mark.parametrize('count', [1, 80], ids=['one step', 'many steps'])
def test_numbers_that_nobody_tries_are_read_off_the_step(first, count, tmp_path):
    "A mean and a deviation of one's own for each channel; shuffled weights before training as control"
    images, labels = collection((8, 8, 3), 40), np.repeat([0, 1], 20)
    P = torch.from_numpy(images[[*range(20, 26), *range(6)]] / 255.0)
    X = (P - torch.tensor([0.11, 0.07, 0.19])) / torch.tensor([0.31, 0.27, 0.23])
    X = X.permute(0, 3, 1, 2) if first else X
    y = torch.tensor([1.0] * 6 + [-1.0] * 6)
    net, before = mlp(192, width=80), mlp(192, width=80)
    steps(tmp_path, net, X.reshape(12, -1), y, count)
    o = KnownImages(data=str(own(tmp_path, images, labels)), n=12)
    known = known_images(o, net, InputShape(192, None, True), before)
    fit = known.fit
    assert fit.verdict == 'other' and fit.option.startswith('--mean 0.11 0.07 0.19 --std 0.31 0.27 0.23')
    assert ('--shape 3 8 8' in fit.option or known.takes.shape == (3, 8, 8)) == first
    with torch.no_grad():
        before[0].weight.copy_(before[0].weight.flip(0))
    control = known_images(o, net, InputShape(192, None, True), before).fit
    assert control.verdict != 'other' or '0.11' not in control.option


@pytest.mark.parametrize('name', CONSTANTS)
def test_usual_preprocessings_are_told_apart_by_one_step(name, tmp_path):
    "Stated as none of them, named as what it was"
    numbers, option = CONSTANTS[name]
    images, labels = collection((8, 8, 3), 40), np.repeat([0, 1], 20)
    P = torch.from_numpy(images[[*range(20, 26), *range(6)]] / 255.0)
    mean, std = (P.mean(0), 1.0) if numbers is None else (torch.tensor(v).double() for v in numbers)
    y = torch.tensor([1.0] * 6 + [-1.0] * 6)
    net, before = mlp(192, width=80), mlp(192, width=80)
    steps(tmp_path, net, ((P - mean) / std).reshape(12, -1), y, rate=0.01 if name == 'bytes' else 0.1)
    o = KnownImages(data=str(own(tmp_path, images, labels)), n=12, mean=0.9, std=0.7)
    fit = known_images(o, net, InputShape(192, None, True), before).fit
    assert fit.verdict == 'other' and fit.option.startswith(option), fit.sentence


def test_a_convolution_is_asked_by_the_cosine_of_its_step(tmp_path):
    "No first matrix to look at: one step still tells the preprocessing, and the labels"
    images, labels = collection((8, 8), 40), np.repeat([0, 1], 20)

    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 1))

    P = torch.from_numpy(images[[*range(20, 24), *range(4)]] / 255.0).unsqueeze(1)
    y = torch.tensor([1.0] * 4 + [-1.0] * 4)
    net = make()
    steps(tmp_path, net, P, y)
    takes = input_shape(net, (1, 8, 8))
    ask = lambda **how: known_images(
        KnownImages(data=str(own(tmp_path, images, labels)), n=8, **how), net, takes, make()
    ).fit
    right, wrong = ask(mean=0), ask(mean=0.5, std=0.5)
    assert right.verdict == 'fits' and right.given.cosine > 0.999
    assert wrong.verdict == 'other' and wrong.option == '--mean 0 --std 1'


def test_candidates_stay_among_the_values_of_pixels(tmp_path):
    "The box of the attack follows from what is stated"
    X = torch.from_numpy(collection((8, 8), 4) / 255.0).reshape(4, -1)
    files = steps(tmp_path, mlp(64, width=40), X, torch.tensor([1.0, -1, 1, -1]), count=3)
    from samplesplit_nb.attacks import _prepare
    from samplesplit_nb.options import ReconstructOptions

    def box(**how):
        ready = _prepare(
            ReconstructOptions(
                weights=str(files[1]), init=str(files[3]), method='ntk', k=2, steps=4, **CPU, **how
            )
        )
        return None if ready.objective.box is None else [v.flatten()[0].item() for v in ready.objective.box]

    assert box() == [-1, 1] and box(mean=0) == [0, 1] and box(std=0.5) == [-2, 2]
    assert box(mean=0.5, std=0.25) == [-2, 2] and box(std='training') is None


def test_numbers_do_not_depend_on_the_deviation(tmp_path):
    "The same reconstruction in other units has the same scores, to the last digit shown"
    images, labels = collection((8, 8), 40), np.repeat([0, 1], 20)
    path = own(tmp_path, images, labels)
    P = torch.from_numpy(images[[*range(20, 24), *range(4)]] / 255.0).reshape(8, -1)
    noisy = (P + 0.1 * torch.randn(8, 64, generator=torch.Generator().manual_seed(0))).numpy()
    rows = []
    for mean, std in ((0, 1), (0.5, 0.25), (0.1, 3)):
        np.savez(tmp_path / 'r.npz', x=(noisy - mean) / std, shape=np.array([8, 8]))
        rows.append(
            evaluate(reconstruction=str(tmp_path / 'r.npz'), data=str(path), n=8, mean=mean, std=std).found
        )
    for other in rows[1:]:
        for a, b in zip(rows[0], other):
            np.testing.assert_allclose(a['l2'], b['l2'], atol=1e-4)
            assert abs(a['mean_ssim'] - b['mean_ssim']) < 1e-9


def test_the_ways_that_are_tried():
    P = torch.rand(3, 48).double()
    assert len(usual_ways(P, (4, 4, 3))) == 8 and len(usual_ways(P, (6, 8))) == 5
    assert '--mean collection --std 1' in usual_ways(P, (6, 8), P[0])


def test_training_takes_the_same_words(tmp_path, cli):
    "A network trained here on normalised pixels is attacked with the same two options"
    words = ['--data', 'faces', '-n', '4', '--mean', '.5', '--std', '.25', '--device', 'cpu']
    status, out, err = cli('train', '--method', 'ntk', '--width', '60', *words, '--out', tmp_path, '--json')
    record = json.loads(out)
    assert status == 0 and record['data']['preprocessing'] == '--mean 0.5 --std 0.25', err
    files = ['--weights', tmp_path / 'model.safetensors', '--init', tmp_path / 'init.safetensors']
    found = json.loads(cli('invert', *files, *words, '--out', tmp_path, '--json')[1])
    assert found['scores'][0]['beat_both'] == 4 and found['scores'][0]['mean_l2'] < 0.01
    said = cli('certify', *files[:2], *words)[1]
    assert 'fit: the network fits these images' in said
