"Boundaries of the data module: which files are official, downloads, and images of one's own"

import os, sys, tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from samplesplit_nb import data as D
from samplesplit_nb.data import CHECKSUMS, NO_MEAN, load_data, load_images

has_files = pytest.mark.skipif(
    not os.environ.get('SAMPLESPLIT_DATA'), reason='SAMPLESPLIT_DATA names no folder'
)


def made(count=40, shape=(28, 28), seed=0):
    g = np.random.default_rng(seed)
    return dict(x_train=g.integers(0, 256, (count, *shape), dtype=np.uint8), y_train=np.arange(count) % 10)


def save_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


# official files


@has_files
@pytest.mark.parametrize('name', ['mnist', 'cifar10'])
def test_official_prefix_is_accepted_at_1000_images_and_longer(name, tmp_path):
    with np.load(Path(os.environ['SAMPLESPLIT_DATA']) / f'{name}.npz') as f:
        x, y = f['x_train'], f['y_train']
    for count in (1000, 1001, len(x)):
        np.savez(tmp_path / f'{name}.npz', x_train=x[:count], y_train=y[:count].astype(np.int64))
        assert load_data(name, 4, root=tmp_path, mean='training').X.shape == (4, x[0].size)
    other = x.copy()
    other[999, 0, 0] ^= 1  # the last image that counts, one bit
    for images, labels in ((x[:999], y[:999]), (other, y), (x[::-1], y[::-1]), (x, (y + 1) % 10)):
        np.savez(tmp_path / f'{name}.npz', x_train=images, y_train=labels)
        with pytest.raises(ValueError, match=f'{name}.npz:sha256=.* official training file.*load_images'):
            load_data(name, 4, root=tmp_path)
        assert load_images(tmp_path / f'{name}.npz', 10).X.shape == (10, x[0].size)  # as the message says


@pytest.mark.parametrize(
    'change, says',
    [
        (dict(x_train=np.zeros((40, 28, 28))), 'x_train=<float64'),
        (
            dict(x_train=np.zeros((0, 28, 28), np.uint8), y_train=np.zeros(0, int)),
            r'x_train=<uint8 \(0, 28, 28\)>',
        ),
        (dict(y_train=np.arange(40)), 'y_train=<int'),
        (dict(y_train=np.zeros(39, int)), r'y_train=<int.* \(39,\)>'),
        (dict(y_train=np.zeros(40)), 'y_train=<float64'),
    ],
)
def test_official_files_of_another_form_are_refused(change, says, tmp_path):
    np.savez(tmp_path / 'mnist.npz', **{**made(), **change})
    with pytest.raises(ValueError, match=says):
        load_data('mnist', root=tmp_path)


def test_official_file_that_cannot_be_read_is_named(tmp_path):
    file = tmp_path / 'mnist.npz'
    for content in (b'', b'PK\x03\x04 cut off', b'\x93NUMPY'):
        file.write_bytes(content)
        with pytest.raises(ValueError, match='mnist.npz: '):
            load_data('mnist', root=tmp_path)
    np.savez(file, x_train=made()['x_train'])
    with pytest.raises(ValueError, match='with x_train and y_train'):
        load_data('mnist', root=tmp_path)


def test_nothing_is_ever_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'exploded'),)

    for name, load in (
        ('mnist.npz', lambda: load_data('mnist', root=tmp_path)),
        ('own.npz', lambda: load_images(tmp_path / 'own.npz')),
    ):
        np.savez(
            tmp_path / name, x_train=np.array([Bomb()]), y_train=np.zeros(1, int)
        )
        with pytest.raises(ValueError, match='Object arrays'):
            load()
    assert not (tmp_path / 'exploded').exists()


def test_mean_and_pixels_agree_with_float_arithmetic(tmp_path):
    file = made(50, (32, 32, 3))
    np.savez(tmp_path / 'cifar10.npz', **file)
    known = dict(cifar10=D._checksum(**dict(zip(('images', 'labels'), file.values()))))
    with patch.dict(CHECKSUMS, known), patch.dict(D.POOL, cifar10=50):
        d = load_data('cifar10', 8, root=tmp_path, mean='collection')
    np.testing.assert_allclose(d.mean, (file['x_train'] / 255).mean(0).ravel(), rtol=0, atol=1e-15)
    assert d.X.dtype == d.mean.dtype == torch.float64 and d.classes == ()


# where a file is looked for, and the download


def torchvision(**kinds):
    return patch.dict(sys.modules, torchvision=SimpleNamespace(datasets=SimpleNamespace(**kinds)))


def deliver(file, as_torch=True):
    def kind(root, train, download):
        (Path(root) / 'raw').mkdir()
        convert = torch.from_numpy if as_torch else lambda v: v
        labels = file['y_train'] if as_torch else file['y_train'].tolist()  # as MNIST, as CIFAR10
        return SimpleNamespace(data=convert(file['x_train']), targets=labels)

    return kind


def fails(error):
    def kind(root, train, download):
        (Path(root) / 'half').write_text('of a file')
        raise error

    return kind


@pytest.mark.parametrize(
    'name, kind, shape', [('mnist', 'MNIST', (28, 28)), ('cifar10', 'CIFAR10', (32, 32, 3))]
)
def test_download_makes_the_file_where_it_is_looked_for(name, kind, shape, tmp_path, monkeypatch):
    monkeypatch.setattr(D, 'POOL', {})  # a file of forty images will do
    file = made(40, shape)
    named, home = tmp_path / 'named', tmp_path / 'home'
    named.mkdir()
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.setitem(CHECKSUMS, name, D._checksum(*file.values()))
    with torchvision(**{kind: deliver(file, name == 'mnist')}):
        got = [load_data(name, 6, root=named)]
        monkeypatch.setenv('SAMPLESPLIT_DATA', str(named))
        got += [load_data(name, 6)]
        monkeypatch.delenv('SAMPLESPLIT_DATA')
        got += [load_data(name, 6)]
    assert os.listdir(named) == [f'{name}.npz'] == os.listdir(home / '.cache/samplesplit_nb')
    with patch.dict(sys.modules, torchvision=None):
        got += [load_data(name, 6)]  # from the cache
    assert all(torch.equal(got[0].X, d.X) for d in got)


@pytest.mark.parametrize(
    'error', [OSError('no network'), RuntimeError('Error downloading\nthe file'), RuntimeError('')]
)
def test_failed_download_leaves_nothing_and_says_what_was_tried(error, tmp_path):
    with torchvision(MNIST=fails(error)), pytest.raises(FileNotFoundError) as e:
        load_data('mnist', root=tmp_path)
    for says in (
        f'{tmp_path}/mnist.npz not found',
        '(N, 28, 28)',
        'SAMPLESPLIT_DATA',
        ' '.join(str(error).split()),
    ):
        assert says in str(e.value)
    assert '\n' not in str(e.value) and os.listdir(tmp_path) == []


def test_wrong_download_is_not_kept(tmp_path):
    with torchvision(MNIST=deliver(made())), pytest.raises(ValueError, match='<torchvision mnist>:sha256'):
        load_data('mnist', root=tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_named_folder_that_does_not_exist_is_not_made(tmp_path):
    with (
        torchvision(MNIST=deliver(made())),
        pytest.raises(FileNotFoundError, match='typo/mnist.npz not found'),
    ):
        load_data('mnist', root=tmp_path / 'typo')
    assert not (tmp_path / 'typo').exists()


def test_a_mistake_inside_torchvision_is_not_hidden(tmp_path):
    with torchvision(MNIST=fails(TypeError('a bug'))), pytest.raises(TypeError, match='a bug'):
        load_data('mnist', root=tmp_path)


def test_torchvision_built_for_another_torch_is_imported_after_declaring_its_operators(tmp_path, monkeypatch):
    "A stand-in that, like torchvision, registers for an operator at import and fails if nobody declared it"
    (tmp_path / 'torchvision').mkdir()
    (tmp_path / 'torchvision/__init__.py').write_text(
        "import torch\nfrom . import datasets\n"
        "try: torch.ops.torchvision.nms\n"
        "except AttributeError: raise RuntimeError('operator torchvision::nms does not exist') from None\n"
    )
    (tmp_path / 'torchvision/datasets.py').write_text('MNIST = "found"')
    for m in [m for m in sys.modules if m.split('.')[0] == 'torchvision']:
        monkeypatch.delitem(sys.modules, m)
    monkeypatch.syspath_prepend(tmp_path)
    if not D._OPERATORS and not hasattr(torch.ops.torchvision, 'nms'):
        with pytest.raises(RuntimeError, match='nms'):
            __import__('torchvision')
    assert D._torchvision_datasets().MNIST == 'found'
    for m in ('torchvision', 'torchvision.datasets'):
        sys.modules.pop(m, None)


# images of one's own


@given(
    arrays(
        np.uint8, st.tuples(st.integers(2, 4), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]))
    )
)
def test_every_byte_array_comes_back_to_the_byte(images):
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f'{folder}/a.npz', images=images)
        d = load_images(f'{folder}/a.npz', labels=1)
    want = images[..., 0] if images.shape[-1] == 1 else images
    assert d.shape == want.shape[1:] and (np.round(255 * d.pixels(d.X)) == want).all()
    if NO_MEAN not in d.notes:  # they are not all the same
        np.testing.assert_allclose(d.X.mean(0), 0, atol=1e-15)


def test_order_of_classes_and_draws(tmp_path):
    for kind, value in (('zebra', 1), ('ant', 2), ('cow', 3)):
        for i in range(4):
            save_png(tmp_path / kind / f'{i}.png', np.full((3, 2), 10 * value + i, np.uint8))
    (tmp_path / 'notes.txt').write_text('passed over')
    save_png(tmp_path / '.hidden' / 'x.png', np.zeros((9, 9), np.uint8))
    (tmp_path / 'cow' / '._0.png').write_bytes(b'what macOS leaves')
    values = lambda d: np.round(255 * d.pixels(d.X))[:, 0, 0].astype(int).tolist()
    d = load_images(tmp_path)
    assert (
        d.classes == ('ant', 'cow', 'zebra')
        and d.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        and d.y.dtype == torch.int64
    )
    assert (
        values(d) == [20, 21, 22, 23, 30, 31, 32, 33, 10, 11, 12, 13]
        and d.name == tmp_path.stem
        and d.shape == (3, 2)
    )
    six = load_images(tmp_path, 6)
    assert values(six) == [20, 21, 30, 31, 10, 11] and not torch.equal(six.mean, d.mean)
    assert torch.equal(load_images(tmp_path, 6, mean='collection').mean, d.mean)
    assert values(load_images(tmp_path, 6, seed=1)) == values(load_images(tmp_path, 6, seed=1))
    assert len({tuple(values(load_images(tmp_path, 6, seed=s))) for s in range(9)}) > 1
    assert load_images(tmp_path, 4, labels=['b'] * 2 + ['a'] * 10).y.tolist() == [
        1,
        1,
        -1,
        -1,
    ]  # instead of the sub-folders
    for n in (5, 15, 2):
        with pytest.raises(ValueError, match=f'n={n}: n must be a multiple of 3 from 3 to 12'):
            load_images(tmp_path, n)
    one = load_images(tmp_path, 2, labels=-1)
    assert one.y.tolist() == [-1, -1]
    with pytest.raises(ValueError, match='n=13: n must be a whole number from 1 to 12'):
        load_images(tmp_path, 13, labels=1)


def test_two_classes_are_minus_and_plus_one_positive_first(tmp_path):
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1)
    np.savez(tmp_path / 'a.npz', images=images, labels=np.array([4, 9, 4, 9, 4, 4]))
    d = load_images(tmp_path / 'a.npz', 3)
    assert d.y.tolist() == [1, 1, -1] and np.round(255 * d.pixels(d.X)).ravel().tolist() == [1, 3, 0]
    assert d.y.dtype == torch.float64 and d.classes == ('4', '9')
    assert load_images(tmp_path / 'a.npz', labels=torch.tensor([0, 1, 2, 0, 1, 2])).y.tolist() == [
        0,
        1,
        2,
        0,
        1,
        2,
    ]


def test_grey_and_size_make_images_alike(tmp_path):
    save_png(tmp_path / 'a.png', np.full((8, 8), 51, np.uint8))
    save_png(tmp_path / 'b.jpg', np.full((4, 6, 3), 51, np.uint8))
    for kw in ({}, dict(size=4), dict(gray=True)):
        with pytest.raises(ValueError, match='1 of .*, 1 of .*give `size`'):
            load_images(tmp_path, labels=1, **kw)
    d = load_images(tmp_path, labels=1, gray=True, size=(4, 5))
    assert d.shape == (4, 5)
    np.testing.assert_allclose(d.pixels(d.X), 0.2, atol=0.005)
    for wrong in (0, (4,), (4, 5, 3), (4, 2.5), (-1, 4)):
        with pytest.raises(ValueError, match='size='):
            load_images(tmp_path, labels=1, size=wrong)


@pytest.mark.parametrize(
    'images, says',
    [
        (np.zeros((2, 2, 8, 8), np.uint8), '1, 3 or 4 channels'),
        (np.zeros((2, 4), np.uint8), r'shape \(2, 4\)'),
        (np.zeros((0, 4, 4), np.uint8), r'shape \(0, 4, 4\)'),
        (np.full((2, 4, 4), 255.0), 'float64, 255.0 to 255.0'),
        (np.full((2, 4, 4), -0.1), '-0.1 to'),
        (np.full((2, 4, 4), np.nan), '32 of 32 pixels nan'),
        (np.zeros((2, 4, 4), int), 'int64, 0 to 0'),
        (np.zeros((2, 4, 4), complex), 'no numbers'),
    ],
)
def test_arrays_that_are_no_images_are_refused(images, says, tmp_path):
    np.savez(tmp_path / 'a.npz', images=images)
    for kw in ({}, dict(size=3, gray=True)):
        with pytest.raises(ValueError, match=says):
            load_images(tmp_path / 'a.npz', labels=1, **kw)


def test_folders_that_do_not_say_what_they_hold_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='gone not found'):
        load_images(tmp_path / 'gone')
    with pytest.raises(ValueError, match='a folder with images'):
        load_images(tmp_path)
    save_png(tmp_path / 'a.png', np.zeros((3, 3), np.uint8))
    assert load_images(tmp_path).classes == (tmp_path.stem,)  # no sub-folders: one class
    with pytest.raises(ValueError, match=r'labels=<int64 \(2,\)>'):
        load_images(tmp_path, labels=[1, 2])
    (tmp_path / 'b.png').write_bytes(b'not an image')
    with pytest.raises(ValueError, match='b.png: UnidentifiedImageError'):
        load_images(tmp_path, labels=1)
    (tmp_path / 'b.png').unlink()
    save_png(tmp_path / 'sub' / 'c.png', np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match='1 of 2 images lie in no sub-folder'):
        load_images(tmp_path)
    np.savez(tmp_path / 'empty.npz', pictures=np.zeros(3))
    with pytest.raises(ValueError, match='with one of images, x_train'):
        load_images(tmp_path / 'empty.npz')


def test_labels_must_be_finite(tmp_path):
    np.savez(tmp_path / 'a.npz', images=np.zeros((2, 3, 3)), labels=[1.0, np.nan])
    with pytest.raises(ValueError, match='labels=<nan or inf>'):
        load_images(tmp_path / 'a.npz')


# which images are drawn: the same whatever the file holds beyond them


def official_part(name, count, folder, more=0):
    "The first images of the real file, and as many made up ones behind them as asked for"
    with np.load(Path(os.environ['SAMPLESPLIT_DATA']) / f'{name}.npz') as f:
        x, y = f['x_train'][:count], f['y_train'][:count].astype(np.int64)
    other = made(more, x.shape[1:], seed=7)
    folder.mkdir()
    np.savez(
        folder / f'{name}.npz',
        x_train=np.concatenate([x, other['x_train']]),
        y_train=np.concatenate([y, other['y_train']]),
    )
    return str(folder)


@has_files
@pytest.mark.parametrize('name,short', [('mnist', 3000), ('cifar10', 1500)])
def test_draws_and_means_do_not_depend_on_the_length_of_the_file(name, short, tmp_path):
    size = D.POOL[name]
    fewer = official_part(name, short, tmp_path / 'fewer')
    whole = official_part(name, size, tmp_path / 'whole')
    longer = official_part(name, size, tmp_path / 'longer', more=500)
    for task, n in (('binary', 30), ('multiclass', 30)):
        for seed in (None, 0, 3):
            for mean in D.MEANS:
                a, b = (load_data(name, n, seed, root, task, mean) for root in (whole, longer))
                assert torch.equal(a.X, b.X) and torch.equal(a.mean, b.mean) and torch.equal(a.index, b.index)
                if seed is None and mean == 'training':
                    c = load_data(name, n, seed, fewer, task, mean)
                    assert torch.equal(a.X, c.X) and torch.equal(a.mean, c.mean)
                else:  # another image, or another mean, is never taken instead
                    with pytest.raises(ValueError, match=f'a file with the first {size} images of {name}'):
                        load_data(name, n, seed, fewer, task, mean)
    first, second = (load_data(name, 30, seed, whole) for seed in (0, 1))
    assert not torch.equal(first.X, second.X)  # control: seeds do draw


@has_files
def test_the_committed_draws_are_those_of_the_code():
    import json

    draws = json.loads((Path(__file__).parent.parent / 'results/draws.json').read_text())
    assert len(draws) >= 20
    for words, index in draws.items():
        name, n, task, seed = (part.split()[-1] for part in words.split(', '))
        data = load_data(name, int(n), int(seed), task=task)
        assert data.index.tolist() == index, words
