"""What a user's own data and files make the commands say: classes in another order, few steps, decay, swapped
files, damage, names that cannot be imported, images given twice, tiny weights, forecasts, costs, warnings"""

import json, re, shutil, time
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, softplus
from samplesplit_nb.inversion import invert_gradient
from samplesplit_nb.networks import MLP
from samplesplit_nb.storage import progress_bar
from samplesplit_nb.studies import MINUTES, SCALES, STUDIES, scales_of
from samplesplit_nb.training import train_ntk
from test_preprocessing import cli, collection, digits, mlp  # noqa: F401

ROOT = Path(__file__).parents[1]
DEVICE = ['--device', 'cpu']


def write_folder(folder, images, names, labels):
    "A folder with a sub-folder for each class"
    for i, (image, label) in enumerate(zip(images, labels)):
        place = folder / names[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f'{i:03}.png')
    return folder


def trained(net, X, y, steps, rate, loss, decay=0.0, adam=False):
    "Train by descent on all samples"
    X = X.float()
    opt = (torch.optim.Adam if adam else torch.optim.SGD)(net.parameters(), rate, weight_decay=decay)
    for _ in range(steps):
        opt.zero_grad()
        loss(net(X), y).backward()
        opt.step()
    return net


def logistic(out, y):
    return softplus(-y * out[:, 0]).mean()


def square(out, y):
    return (out[:, 0] - y).square().mean()


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "Twenty images of two classes, a network trained with dog = -1 and cat = +1: not as folders are counted"
    place = tmp_path_factory.mktemp('two')
    images, labels = collection((12, 12), 20), np.repeat([0, 1], 10)
    images[10:, :4] //= 3
    X = torch.from_numpy(images / 255.0).reshape(20, -1)
    X = X - X.mean(0)
    y = torch.tensor([1.0] * 10 + [-1.0] * 10)  # cat sorts first, which makes it -1
    write_folder(place / 'own', images, ('cat', 'dog'), labels)
    net = mlp(144)
    torch.save(net.state_dict(), place / 'before.pt')
    torch.save(trained(net, X, y, 300, 0.3, logistic).state_dict(), place / 'after.pt')
    once = trained(mlp(144), X, y, 1, 0.1, square)
    torch.save(once.state_dict(), place / 'once.pt')
    return place


# the order of the classes


def test_two_classes_in_another_order_are_named_and_not_used(two, cli):  # noqa: F811
    words = ['certify', '--weights', two / 'after.pt', *DEVICE]
    _, out, _ = cli(*words, '--data', two / 'own', '--json')
    fit = json.loads(out)['fit']
    assert fit['verdict'] == 'order' and fit['given']['accuracy'] == 0 and fit['instead']['accuracy'] == 1
    assert 'in the order dog, cat' in fit['sentence'] and '0-dog, 1-cat' in fit['sentence']


def test_evaluate_says_that_the_classes_are_in_another_order(two, cli, tmp_path):  # noqa: F811
    out = tmp_path / 'out'
    words = ['invert', '--weights', two / 'once.pt', '--init', two / 'before.pt', '--out', out, *DEVICE]
    status, text, err = cli(*words, '--data', two / 'own', '--json')
    fit = json.loads(text)['fit']
    assert status == 0 and fit['verdict'] == 'fits', err
    assert 'classes in the order dog, cat' in fit['sentence']
    renamed = tmp_path / 'renamed'
    for old, new in (('dog', '0-dog'), ('cat', '1-cat')):
        shutil.copytree(two / 'own' / old, renamed / new)
    _, text, _ = cli('evaluate', '--reconstruction', out / 'reconstruction.npz', '--data', renamed, '--json')
    (note,) = json.loads(text)['notes']
    assert 'same images' in note and 'were cat, dog, now they are 0-dog, 1-cat' in note
    right = json.loads(cli(*words, '--data', renamed, '--json')[1])['fit']
    assert right['verdict'] == 'fits' and 'order' not in right['sentence'] and right['given']['cosine'] > 0.99
    for path in (two / 'own').glob('dog/*.png'):  # negative control: other images
        (tmp_path / 'other/dog').mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - np.asarray(Image.open(path))).save(tmp_path / 'other/dog' / path.name)
    shutil.copytree(two / 'own/cat', tmp_path / 'other/cat')
    _, text, _ = cli(
        'evaluate', '--reconstruction', out / 'reconstruction.npz', '--data', tmp_path / 'other', '--json'
    )
    assert 'other images' in json.loads(text)['notes'][0]


@pytest.mark.parametrize('order', [[2, 0, 1, 3], [1, 0, 2, 3], [3, 2, 1, 0]], ids=str)
def test_the_order_of_several_classes_is_found_also_where_two_of_them_are_right(order, tmp_path, cli):  # noqa: F811
    names, labels = ('ant', 'bee', 'cow', 'dog'), np.repeat(range(4), 8)
    images = collection((10, 10), 32)
    for label in range(4):
        images[labels == label, 2 * label : 2 * label + 2] = 250
    X = torch.from_numpy(images / 255.0).reshape(32, -1)
    y = torch.tensor(order)[torch.from_numpy(labels)]  # the output of each
    net = trained(mlp(100, 4), X - X.mean(0), y, 300, 0.3, cross_entropy)
    torch.save(net.state_dict(), tmp_path / 'net.pt')
    write_folder(tmp_path / 'own', images, names, labels)
    words = ['certify', '--weights', tmp_path / 'net.pt', '--data', tmp_path / 'own', '--json', *DEVICE]
    fit = json.loads(cli(*words)[1])['fit']
    by_output = ', '.join(names[order.index(i)] for i in range(4))
    assert fit['verdict'] == 'order' and f'in the order {by_output} ' in fit['sentence']
    net = trained(mlp(100, 4), X - X.mean(0), torch.from_numpy(labels), 300, 0.3, cross_entropy)
    torch.save(net.state_dict(), tmp_path / 'net.pt')  # negative control: as the folders are counted
    assert json.loads(cli(*words)[1])['fit']['verdict'] in ('fits', 'unknown')


def test_shuffled_labels_are_no_order(two, cli, tmp_path):  # noqa: F811
    files = sorted((two / 'own').glob('*/*.png'))
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1], 10))
    write_folder(tmp_path / 'own', [np.asarray(Image.open(p)) for p in files], ('cat', 'dog'), labels)
    words = ['certify', '--weights', two / 'after.pt', '--data', tmp_path / 'own', '--json', *DEVICE]
    assert json.loads(cli(*words)[1])['fit']['verdict'] == 'none'


# what a step or a few of them leave


def test_few_steps_decay_and_swapped_files_are_told(tmp_path, cli):  # noqa: F811
    "Digits: stopped after 12 steps, decayed, given the wrong way round"
    pixels, y = digits(20)
    X = pixels - pixels.mean(0)
    start = mlp(784)
    torch.save(start.state_dict(), tmp_path / 'start.pt')
    nets = dict(
        early=trained(mlp(784), X, y, 12, 0.05, logistic),
        decayed=trained(mlp(784), X, y, 100, 0.1, logistic, decay=0.01),
        once=trained(mlp(784), X, y, 1, 0.1, square),
        long=trained(mlp(784), X, y, 200, 0.1, logistic),
    )
    for name, net in nets.items():
        torch.save(net.state_dict(), tmp_path / f'{name}.pt')

    def fit(after, before=None, seed=None):
        words = ['--weights', tmp_path / f'{after}.pt', '--data', 'mnist', '-n', '20', '--json', *DEVICE]
        if seed is not None:
            words += ['--data-seed', seed]
        if before is None:
            return json.loads(cli('certify', *words)[1])['fit']
        words += ['--init', tmp_path / f'{before}.pt', '--rounds', '1', '--out', tmp_path / 'out']
        status, out, err = cli('invert', *words, '--samples', '20')  # not counted: that is another matter
        assert status == 0, err
        return json.loads(out)['fit']

    early = fit('early')
    assert early['verdict'] == 'unknown' and 'as after few steps' in early['sentence'], early
    assert fit('early', seed='7')['verdict'] != 'fits'  # other digits
    decayed, other = fit('decayed', 'start'), fit('decayed', 'start', '7')
    assert decayed['verdict'] == 'fits' and decayed['given']['unexplained'] < 1e-6
    assert other['verdict'] in ('none', 'other') and other['given']['unexplained'] > 0.05
    for after in ('once', 'long'):
        swapped = fit('start', after)
        assert swapped['verdict'] == 'none' and 'look swapped' in swapped['sentence'], swapped
        assert fit(after, 'start')['verdict'] == 'fits'


def test_of_adam_the_cause_is_the_result_and_no_samples_are_asked_for(tmp_path, cli):  # noqa: F811
    pixels, y = digits(20)
    torch.save(mlp(784).state_dict(), tmp_path / 'start.pt')
    torch.save(trained(mlp(784), pixels, y, 30, 1e-3, logistic, adam=True).state_dict(), tmp_path / 'adam.pt')
    words = ['invert', '--weights', tmp_path / 'adam.pt', '--init', tmp_path / 'start.pt', '--rounds', '1']
    words += ['--data', 'mnist', '-n', '20', '--mean', '0', '--out', tmp_path / 'out', *DEVICE]
    status, out, err = cli(*words)
    assert status == 2 and 'pass --samples' not in err and 'would not help' in err and 'Adam' in err
    status, out, err = cli(*words, '--samples', '20')
    result = re.search(r'^result: (.*?)^\d+ found', out, re.M | re.S)[1]
    assert status == 0 and 'Adam' in result and 'note:' not in out and out.count('another optimiser') == 0


# files and names


def flip(path, to, at=0.5):
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 64
    to.write_bytes(data)


def test_a_flipped_bit_is_named_with_the_option_it_came_by(two, tmp_path, cli, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    out, words = tmp_path / 'out', ['--data', two / 'own', *DEVICE]
    assert cli('train', '--method', 'ntk', '--width', '60', '--out', out, *words)[0] == 0
    ntk = ['reconstruct', '--method', 'ntk', '--weights', out / 'model.safetensors', '--init']
    ntk += [out / 'init.safetensors', '-k', '4', '--steps', '12', '--checkpoint', '--out', out, *words]
    assert cli(*ntk)[0] == 0
    for at in (0.3, 0.5, 0.8):
        flip(out / 'reconstruction.npz', tmp_path / 'bad.npz', at)
        status, _, err = cli('evaluate', '--reconstruction', tmp_path / 'bad.npz', '--data', two / 'own')
        assert status == 2 and f'--reconstruction={tmp_path}/bad.npz' in err and 'damaged' in err
        flip(out / 'model.safetensors', tmp_path / 'bad.safetensors', at)
        status, _, err = cli('certify', '--weights', tmp_path / 'bad.safetensors', *DEVICE)
        assert status == 2 and 'bad.safetensors' in err, err
    flip(out / 'state.safetensors', out / 'state.safetensors')
    status, _, err = cli(*ntk)
    assert status == 2 and f'--checkpoint=<{out}/state.safetensors: damaged' in err.splitlines()[-1]


UNNAMEABLE = 'my-nets:net', '2nets:net', 'nets:my-net', 'a b:net', 'class:net', 'my-nets.py:net'


@pytest.mark.parametrize('name', UNNAMEABLE)
def test_a_name_that_cannot_be_imported_is_not_advised_again(name, two, cli):  # noqa: F811
    status, _, err = cli('certify', '--weights', two / 'after.pt', '--module', name, '--shape', '12', '12')
    remedy = err.strip().rpartition('; ')[2]
    assert status == 2 and name not in remedy, err
    module, factory = re.search(r'--module ([^ ,]+):([^ ,]+)', remedy).groups()
    assert module.isidentifier() and factory.isidentifier()


# one's own images


def test_one_image_five_classes_and_images_given_twice(two, tmp_path, cli):  # noqa: F811
    files = sorted((two / 'own').glob('*/*.png'))
    images = [np.asarray(Image.open(p)) for p in files]
    write_folder(tmp_path / 'one', images[:1], 'a', [0])
    train = ['train', '--width', '60', '--out', tmp_path / 'out', *DEVICE, '--method']
    for method in ('ntk', 'kkt', 'multiclass'):
        status, _, err = cli(*train, method, '--data', tmp_path / 'one')
        assert status == 2 and 'ntk' not in err.rpartition('it has')[2], err
    write_folder(tmp_path / 'five', images, 'abcde', [i % 5 for i in range(20)])
    status, out, err = cli(*train, 'ntk', '--data', tmp_path / 'five')
    assert status == 0 and 'one output; its targets are the numbers 0 for a, 1 for b' in out, err
    assert 'one output' not in cli(*train, 'ntk', '--data', two / 'own')[1]
    status, _, err = cli(*train, 'kkt', '--data', tmp_path / 'five')
    assert status == 2 and 'use --method multiclass' in err and 'y=' not in err
    shutil.copytree(two / 'own', tmp_path / 'twice')
    (first,) = sorted((tmp_path / 'twice/cat').iterdir())[:1]
    shutil.copy(first, tmp_path / 'twice/dog/copy.png')
    out = cli('certify', '--weights', two / 'after.pt', '--data', tmp_path / 'twice', *DEVICE)[1]
    assert f'the same image in two classes, which no network can fit: cat/{first.name} = dog/copy.png' in (
        ' '.join(out.split())
    )


def test_scores_without_unseen_images_say_so(two, tmp_path, cli):  # noqa: F811
    words = ['invert', '--weights', two / 'once.pt', '--init', two / 'before.pt', *DEVICE, '--out', tmp_path]
    _, out, _ = cli(*words, '--data', two / 'own')
    assert 'no unseen images beside these scores' in out
    evaluate = ['evaluate', '--reconstruction', tmp_path / 'reconstruction.npz', '--data', two / 'own']
    assert 'no unseen images' in cli(*evaluate)[1]
    kept_back = cli(*evaluate, '-n', '10')[1]
    assert 'no unseen images' not in kept_back and 'control: ' in kept_back


def test_tiny_weights_are_not_called_zero(two, tmp_path, cli):  # noqa: F811
    for size in (1e-200, 1e-160):
        for name in ('before', 'after'):
            state = torch.load(two / f'{name}.pt')
            torch.save({k: size * v.double() for k, v in state.items()}, tmp_path / f'{name}.pt')
        kkt = ['--weights', tmp_path / 'after.pt', *DEVICE]
        attack = ['-k', '3', '--steps', '4', '--out', tmp_path / 'o', '--method']
        for words in (
            ['certify', *kkt, '--data', two / 'own'],
            ['reconstruct', *kkt, *attack, 'kkt'],
            ['reconstruct', *kkt, *attack, 'ntk', '--init', tmp_path / 'before.pt'],
        ):
            status, _, err = cli(*words)
            assert status == 3 and 'their squares are' in err and re.search(r'\de-(1[56]|20|19)', err), err


# scale, time, help, warnings


@pytest.mark.parametrize('n,dtype', [(8, torch.float64), (20, torch.float64), (20, torch.float32)])
def test_the_scale_of_images_less_their_own_mean_is_read_off_the_bias(n, dtype):
    "A linearised training from a first bias of zeros; without the step of the bias it is refused"
    pixels, y = digits(n)
    X = pixels - pixels.mean(0)
    init = MLP([784, 300, 300, 1], bias='first', seed=1, dtype=dtype)
    after = train_ntk(init, X, y).model
    step = [q.detach().double() - p.detach().double() for p, q in zip(init.parameters(), after.parameters())]
    found = invert_gradient(init, step)
    far = torch.cdist(X, found.X).amin(1)
    assert len(found.X) == n and far.max() < (1e-9 if dtype == torch.float64 else 0.05), far
    assert found.complete or dtype == torch.float32
    with pytest.raises(ValueError, match='determined up to its scale only'):
        invert_gradient(init, [step[0], 0 * step[1], *step[2:]])


def test_a_long_run_is_forecast_once_on_stderr_and_a_short_one_is_not(capsys, monkeypatch):
    for seconds, says in ((0.5, True), (1e-3, False)):
        clock = iter(np.arange(1000) * seconds)
        monkeypatch.setattr(time, 'monotonic', lambda: next(clock))
        with progress_bar('my run', 400, 'run') as tick:
            for step in range(1, 200):
                tick(step, 0.1) if step % 50 == 0 else tick(step)
        out, err = capsys.readouterr()
        assert err.count('more steps at') == says and out == ''
        if says:
            assert re.search(r'39\d more steps at 0.5 seconds each: about 3 minutes', err)


def test_a_real_convolution_is_forecast(tmp_path, cli, monkeypatch):  # noqa: F811
    (tmp_path / 'slownet.py').write_text(
        'import time\nfrom torch import nn\nclass Net(nn.Module):\n'
        '    def __init__(self):\n        super().__init__()\n        self.c = nn.Conv2d(1, 3, 3)\n'
        '        self.o = nn.Linear(192, 1)\n'
        '    def forward(self, x):\n        time.sleep(.05)\n'
        '        return self.o(self.c(x).relu().flatten(1))\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    from slownet import Net

    for name, seed in (('a', 0), ('b', 1)):
        torch.manual_seed(seed)
        torch.save(Net().state_dict(), f'{name}.pt')
    asked = []
    from tqdm.auto import tqdm

    def write(text, file=None, **_):
        asked.append(text)
        raise KeyboardInterrupt

    monkeypatch.setattr(tqdm, 'write', staticmethod(write))
    words = '--module slownet:Net --shape 1 10 10 --method kkt -k 3 --steps 5000 --device cpu --out o'
    status, _, _ = cli('reconstruct', '--weights', 'a.pt', *words.split())
    assert status == 130 and 'more steps at' in asked[0] and 'minutes' in asked[0]


def test_the_help_has_scales_and_costs_of_every_study(cli):  # noqa: F811
    _, text, _ = cli('experiment', '--help')
    for name in STUDIES:
        said = re.search(rf'^  {name}\b.*\n +(.*)$', text, re.M)[1]
        assert [w.split()[0] for w in said.split(', ')] == list(scales_of(name))
        for scale in SCALES[1:]:
            minutes = MINUTES.get(name, {}).get(scale)
            assert minutes is None or f'{scale} {minutes} min' in said
    rows = re.findall(
        r'^\| `([\w-]+)/(\w+)` \| `samplesplit experiment [^|]*\| \d+ \| (\d+) \|',
        (ROOT / 'results/README.md').read_text(),
        re.M,
    )
    assert {(s, scale): int(m) for s, scale, m in rows} == {
        (s, scale): m for s, of in MINUTES.items() for scale, m in of.items()
    }


def test_warnings_of_torch_are_dropped_and_those_of_ones_own_file_are_not(
    tmp_path,
    cli,  # noqa: F811
    monkeypatch,
):
    (tmp_path / 'warned.py').write_text(
        'import warnings, torch\nfrom torch import nn\n'
        'class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n'
        '        self.f = nn.Linear(144, 20)\n        self.o = nn.Linear(20, 1)\n'
        '    def forward(self, x):\n        x = x.flatten(1)\n'
        '        return self.o(torch.tril(self.f(x)[:, None] *\n'
        '            torch.ones(20, 1, dtype=x.dtype))[:, -1].relu())\n'
        'class Old(Net):\n    def __init__(self):\n        super().__init__()\n'
        '        warnings.warn("an old class")\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import warned

    torch.manual_seed(0)
    torch.save(warned.Net().state_dict(), 'net.pt')
    words = ['certify', '--weights', 'net.pt', '--shape', '12', '12', *DEVICE, '--module']
    status, _, err = cli(*words, 'warned:Net')
    assert status == 0 and err == '', err
    status, _, err = cli(*words, 'warned:Old')
    assert status == 0
    assert re.fullmatch(r'samplesplit: .*warned.py:\d+: UserWarning: an old class\n', err), err


# preprocessing that the step hardly shows, or not at all


@pytest.fixture(scope='module')
def dozen(tmp_path_factory):
    "Twelve images, and networks after one step, of (p - 0.5)/0.25 and (p - own mean)/0.5; also in bfloat16"
    place = tmp_path_factory.mktemp('dozen')
    images, labels = collection((20, 20), 12), np.repeat([0, 1], 6)
    P, y = torch.from_numpy(images / 255.0).reshape(12, -1), torch.tensor([-1.0] * 6 + [1.0] * 6)
    np.savez(place / 'own.npz', images=images, labels=labels)
    np.savez(place / 'dark.npz', images=255 - images, labels=labels)
    (place / 'jpeg').mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(place / f'jpeg/{i:02}.jpg', quality=90)
    for name, X in (('norm', (P - 0.5) / 0.25), ('own', (P - P.mean(0)) / 0.5)):
        net = mlp(400)
        torch.save(net.state_dict(), place / f'{name}-before.pt')
        trained(net, X, y, 1, 0.1, square)
        torch.save(net.state_dict(), place / f'{name}-after.pt')
        for when in ('before', 'after'):
            half = {k: v.bfloat16() for k, v in torch.load(place / f'{name}-{when}.pt').items()}
            torch.save(half, place / f'half {name}-{when}.pt')
    return place


@pytest.mark.parametrize(
    'net,data,told,says',
    [
        ('own', 'own.npz', '', '--mean training --std 0.5'),  # any deviation explains this step
        ('own', 'own.npz', '--mean training --std 0.25', '--mean training --std 0.5'),
        ('norm', 'own.npz', '--mean 0.5 --std 0.249', '--mean 0.5 --std 0.25'),
        ('norm', 'jpeg', '--mean 0.5 --std 0.5', ''),  # bias and matrix contradict each other
        ('norm', 'jpeg', '', ''),
        ('norm', 'dark.npz', '--mean 0.5 --std 0.25', ''),
        ('norm', 'dark.npz', '--mean 0 --std 0.00392157', ''),
    ],
)
def test_no_score_where_the_units_are_not_as_stated(net, data, told, says, dozen, tmp_path, cli):  # noqa: F811
    "Little of the step is unexplained in all of these; the sentence names what is right, or nothing"
    files = ['--weights', dozen / f'{net}-after.pt', '--init', dozen / f'{net}-before.pt', *DEVICE]
    words = [*files, '--data', dozen / data, *told.split(), '--out', tmp_path / 'o', '--json']
    status, out, err = cli('invert', *words)
    record = json.loads(out)
    assert status == 0 and record['found'] == 12 and not record.get('scores'), record.get('fit')
    told_what = record.get('units') or record['fit']['sentence']
    options = re.findall(r'--mean \S+ --std [\d.e-]*\d', told_what)
    right = '--mean training --std 0.5' if net == 'own' else '--mean 0.5 --std 0.25'
    assert set(options) <= {right} and (not says or options), told_what
    if record.get('units'):  # the same where only the candidates are asked
        found = ['--reconstruction', tmp_path / 'o/reconstruction.npz', '--data', dozen / data]
        again = json.loads(cli('evaluate', *found, '--json')[1])
        assert again['units'] == told_what and not again.get('scores'), again


@pytest.mark.parametrize('net', ['norm', 'own', 'half norm', 'half own'])
def test_what_is_stated_rightly_is_not_doubted(net, dozen, tmp_path, cli):  # noqa: F811
    "Rounding to 8 bits leaves a thousandth unexplained: no reason to advise other numbers"
    files = ['--weights', dozen / f'{net}-after.pt', '--init', dozen / f'{net}-before.pt', *DEVICE]
    told = ['--mean', *('training --std 0.5' if 'own' in net else '0.5 --std 0.25').split()]
    words = [*files, '--samples', '12', '--data', dozen / 'own.npz', *told, '--out', tmp_path / 'o', '--json']
    status, out, err = cli('invert', *words)
    record = json.loads(out)
    assert status == 0 and 'with --mean' not in record['fit']['sentence'], record['fit']
    assert 'half' in net or record['fit']['verdict'] == 'fits' and record['scores'][0]['beat_both'] == 12


def test_a_file_of_no_use_is_named_with_its_option(dozen, tmp_path, cli):  # noqa: F811
    "`weights` are whole; the file given as `init` is an archive of arrays, empty, cut, or of a convolution"
    whole = (dozen / 'norm-before.pt').read_bytes()
    (tmp_path / 'empty.pt').write_bytes(b'')
    (tmp_path / 'cut.pt').write_bytes(whole[: len(whole) // 2])
    torch.save({'0.weight': torch.ones(4, 1, 5, 5)}, tmp_path / 'conv.pt')
    for file in (dozen / 'own.npz', *(tmp_path / f'{name}.pt' for name in ('empty', 'cut', 'conv'))):
        status, _, err = cli('invert', '--weights', dozen / 'norm-after.pt', '--init', file, *DEVICE)
        assert status == 2 and '--init=<' in err and '--weights' not in err.split(';')[0], err


def test_nothing_is_said_of_a_mean_that_is_stated_for_one_image(dozen, tmp_path, cli):  # noqa: F811
    images = np.load(dozen / 'own.npz')['images'][:1]
    np.savez(tmp_path / 'one.npz', images=images)
    words = ['certify', '--weights', dozen / 'norm-after.pt', '--data', tmp_path / 'one.npz', *DEVICE]
    assert 'no mean is subtracted' in cli(*words)[1]
    assert 'no mean is subtracted' not in cli(*words, '--mean', '0.5', '--std', '0.25')[1]
