"Folders and files as people have them: what, what is expected, and what comes out"

import gzip, json, os, pickle, re, shutil, threading, zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from hashlib import md5
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from samplesplit_nb import data as D
from samplesplit_nb.data import load_data, load_images, summary
from samplesplit_nb.metrics import score_candidates, score_table
from samplesplit_nb.problems import load_collection, unseen_images

DOWNLOAD = D._download


def pixels(i=0, size=(6, 5), colour=False):
    "Bytes of an image that is unlike the others"
    return np.random.default_rng(i).integers(0, 256, (*size, 3) if colour else size, dtype=np.uint8)


def put(path, i=0, size=(6, 5), colour=False, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(i, size, colour)).save(path, **how)
    return path


def classes(root, **counts):
    "A folder with so many images of each class"
    for name, count in counts.items():
        for i in range(count):
            put(root / name / f'{i}.png', i)
    return root


# Each maker fills an empty folder, and returns it or what in it is to be read. Expected is the sentence
# on what there is, or a part of the one line that refuses it.


def link_to_class(root):
    classes(root / 'store', dog=2)
    classes(root / 'all', cat=3)
    (root / 'all/dog').symlink_to(root / 'store/dog')
    return root / 'all'


def links_only(root):
    classes(root / 'store', dog=2, cat=3)
    (root / 'all').mkdir()
    for name in ('cat', 'dog'):
        (root / 'all' / name).symlink_to(root / 'store' / name)
    return root / 'all'


def linked_files(root):
    put(root / 'store/a.png')
    (root / 'all/cat').mkdir(parents=True)
    (root / 'all/cat/linked.png').symlink_to(root / 'store/a.png')
    return root / 'all'


def loop(root):
    (classes(root, cat=2) / 'cat/again').symlink_to(root)


def self_link(root):
    (classes(root, cat=2) / 'cat/self').symlink_to('self')


def broken(root):
    (classes(root, cat=2) / 'cat/gone.png').symlink_to(root / 'gone')


def broken_class(root):
    (classes(root, cat=2) / 'dog').symlink_to(root / 'gone')


def pipe(root):
    os.mkfifo(classes(root, cat=2) / 'cat/pipe.png')


def litter(root):
    classes(root, cat=2, dog=2)
    hidden = '.DS_Store', 'cat/._0.png', '.git/x.png'
    for name in (*hidden, 'Thumbs.db', 'cat/desktop.ini', '__MACOSX/cat/0.png'):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_bytes(b'litter')


def other_files(root):
    classes(root, cat=2)
    for name in ('cat/notes.txt', 'cat/a.heic', 'readme.md'):
        (root / name).write_bytes(b'other')


def splits(*names, flat=False):
    def make(root):
        for name in names:
            put(root / name / '0.png') if flat else classes(root / name, cat=2, dog=2)

    return make


def nested(root):
    classes(root / 'images', cat=2, dog=2)


def same_below(root):
    for site in ('north', 'south'):
        classes(root / site, cat=2, dog=2)


def deeper(root):
    put(root / 'cat/siamese/0.png', 1)
    put(root / 'cat/siamese/kitten/1.png', 2)
    put(root / 'dog/poodle/0.png', 3)


def empty_class(root):
    (classes(root, cat=2, dog=2) / 'fox').mkdir()


def mixed_levels(root):
    put(classes(root, cat=2) / 'loose.png')


def odd_names(root):
    for name in ('ä ö/日本.PNG', 'x\x1b[31m\n/a\tb.Png', '$x_1$/{}.JPG'):
        put(root / name, len(name))


def not_utf8(root):
    folder = os.fsencode(root) + b'/\xff\xfe'
    os.mkdir(folder)
    shutil.copy(put(root / 'a.png'), folder + b'/\xe9.png')
    (root / 'a.png').unlink()


def cut(root):
    path = put(classes(root, cat=2) / 'cat/bad.png', size=(60, 60))
    path.write_bytes(path.read_bytes()[:900])


def no_image(root):
    (classes(root, cat=2) / 'cat/bad.jpg').write_text('<html>')


def program(root):
    "What Pillow would hand to ghostscript"
    (classes(root, cat=2) / 'cat/bad.png').write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n')


def deep_colours(root):
    "A PNG of 16 bits a channel, written by hand"
    rows = np.random.default_rng(0).integers(0, 65536, (4, 5, 3)).astype('>u2')
    lines = b''.join(b'\0' + row.tobytes() for row in rows)
    part = lambda kind, data: (
        len(data).to_bytes(4, 'big') + kind + data + zlib.crc32(kind + data).to_bytes(4, 'big'))  # fmt: skip
    head = (5).to_bytes(4, 'big') + (4).to_bytes(4, 'big') + bytes([16, 2, 0, 0, 0])
    parts = part(b'IHDR', head) + part(b'IDAT', zlib.compress(lines)) + part(b'IEND', b'')
    (root / 'a.png').write_bytes(b'\x89PNG\r\n\x1a\n' + parts)


def empty_file(root):
    (classes(root, cat=2) / 'cat/bad.png').touch()


def bomb(root):
    "A header that says 60,000 x 60,000"
    data = bytearray(put(classes(root, cat=1) / 'cat/bomb.png').read_bytes())
    data[16:24] = (60_000).to_bytes(4, 'big') * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, 'big')
    (root / 'cat/bomb.png').write_bytes(data)


def transparent(root):
    a = np.dstack([pixels(0, colour=True), np.full((6, 5), 128, np.uint8)])
    Image.fromarray(a).save(put(root / 'a.png'))


def opaque(root):
    a = np.dstack([pixels(0, colour=True), np.full((6, 5), 255, np.uint8)])
    Image.fromarray(a).save(put(root / 'a.png'))


def converted(mode, name='a.png'):
    def make(root):
        Image.fromarray(pixels(0, colour=True)).convert(mode).save(root / name)

    return make


def sixteen_bits(root):
    Image.fromarray(pixels().astype(np.uint16) * 257).save(root / 'a.png')
    put(root / 'b.png', 1)


def big_endian(root):
    Image.fromarray(pixels().astype('>u2') * 257).save(root / 'a.tif')


def thirty_two_bits(root):
    Image.fromarray(pixels().astype(np.int32)).save(root / 'a.tif')


def floats(scale):
    def make(root):
        Image.fromarray((pixels() / scale).astype(np.float32)).save(root / 'a.tiff')

    return make


def frames(name):
    def make(root):
        first, *rest = [Image.fromarray(pixels(i)) for i in range(3)]
        first.save(root / name, save_all=True, append_images=rest)

    return make


def rotated(root):
    exif = Image.Exif()
    exif[274] = 6
    put(root / 'a.jpg', exif=exif)


def sizes(root):
    for i, size in enumerate(((6, 5), (6, 5), (8, 9))):
        put(root / f'{i}.png', i, size, colour=i == 2)


def many_classes(root):
    for i in range(25):
        put(root / f'class{i:02}' / '0.png', i)


FOLDERS = {
    'two classes': (lambda r: classes(r, cat=3, dog=3), '6 images of 2 classes: cat 3, dog 3'),
    'unbalanced': (
        lambda r: classes(r, cat=8, dog=7, fox=8),
        '23 images of 3 classes: cat 8, dog 7, fox 8',
    ),
    'one class': (lambda r: classes(r, cat=5), '5 images of 1 class: cat 5'),
    'one class, its own folder': (lambda r: classes(r, cat=5) / 'cat', '5 images of 1 class: cat 5'),
    'one image': (lambda r: put(r / 'a.png'), '1 image of 1 class: a 1; no mean is subtracted'),
    'one image in a folder': (lambda r: classes(r, cat=1), '1 image of 1 class: cat 1; no mean'),
    'the same image twice': (
        lambda r: put(put(r / 'd/a.png').with_name('b.png')).parent,
        '2 images of 1 class: d 2; no mean is subtracted',
    ),
    'linked class': (link_to_class, '5 images of 2 classes: cat 3, dog 2'),
    'linked classes only': (links_only, '5 images of 2 classes: cat 3, dog 2'),
    'linked file': (linked_files, '1 image of 1 class: cat 1'),
    'link in a circle': (loop, 'cat/again: a link to a folder around it'),
    'link to itself': (self_link, 'cat/self: a link to nothing'),
    'broken link': (broken, 'cat/gone.png: a link to nothing'),
    'broken link for a class': (broken_class, 'dog: a link to nothing'),
    'pipe': (pipe, 'cat/pipe.png: neither file nor folder'),
    'litter': (litter, '4 images of 2 classes: cat 2, dog 2'),
    'other files': (other_files, 'passed over: cat/a.heic, cat/notes.txt, readme.md'),
    'train and val': (splits('train', 'val'), 'parts of a data set, train, val>.*as .*/train'),
    'train and test and more': (splits('Train', 'TEST', 'extra'), 'parts of a data set, TEST, Train'),
    'train alone': (splits('train'), 'parts of a data set, train>.*as .*/train'),
    'flat train and test': (splits('train', 'test', flat=True), 'parts of a data set'),
    'validation of one year': (splits('val2017', 'train2017'), 'parts of a data set'),
    'one part': (lambda r: splits('train', 'val')(r) or r / 'train', '4 images of 2 classes: cat 2, dog 2'),
    'a class called train': (splits('bus', 'train', flat=True), '2 images of 2 classes: bus 1, train 1'),
    'parts in a class': (
        lambda r: classes(r / 'cat', train=1, val=1) and None,
        'cat: parts of a data set.*as .*/cat/train',
    ),
    'one level too many': (nested, 'one folder with nothing but folders in it, images>.*as .*/images'),
    'the same classes twice': (same_below, 'folders with cat in each, north, south'),
    'folders in classes': (deeper, '3 images of 2 classes: cat 2, dog 1'),
    'empty folder': (lambda r: None, 'must be a folder with images'),
    'empty class': (empty_class, 'fox: no images'),
    'loose beside classes': (mixed_levels, '1 of 3 images lie in no sub-folder'),
    'odd names': (odd_names, r'3 images of 3 classes: \$x_1\$ 1, x\\x1b\[31m\\n 1, ä ö 1'),
    'names that are no text': (not_utf8, r'1 image of 1 class: \\udcff\\udcfe 1'),
    'cut off': (cut, 'cat/bad.png: OSError'),
    'a web page': (no_image, 'cat/bad.jpg: UnidentifiedImageError'),
    'a program': (program, 'cat/bad.png: UnidentifiedImageError'),
    '16 bits a channel': (deep_colours, 'of 16 bits a channel, of which Pillow reads 8: a.png'),
    'empty file': (empty_file, 'cat/bad.png: UnidentifiedImageError'),
    'a header of 3.6 gigapixels': (bomb, 'cat/bomb.png: .*(3600000000 pixels|decompression bomb)'),
    'transparent': (transparent, 'a.png: transparent pixels'),
    'opaque alpha': (opaque, '1 image of 1 class'),
    'palette': (converted('P'), '1 image of 1 class'),
    'grey with alpha': (converted('LA'), '1 image of 1 class'),
    'one bit': (converted('1'), '1 image of 1 class'),
    'four inks': (converted('CMYK', 'a.jpg'), '1 image of 1 class'),
    'webp': (lambda r: put(r / 'a.webp', lossless=True), '1 image of 1 class'),
    '16 bits beside 8': (sixteen_bits, '2 images of 1 class'),
    '16 bits, other order': (big_endian, '1 image of 1 class'),
    '32 bits': (thirty_two_bits, 'a.tif: 32-bit integers, \\d+ to 2\\d\\d'),
    'floats to 1': (floats(255), '1 image of 1 class'),
    'floats to 255': (floats(1), r'a.tiff: float64, \d.*divide by the value of white'),
    'animation': (frames('a.gif'), 'of several frames, the first is taken: a.gif'),
    'pages': (frames('a.tif'), 'of several frames, the first is taken: a.tif'),
    'camera held sideways': (rotated, 'turned upright as the camera noted .*: a.jpg'),
    'several sizes': (sizes, '2 of 6 x 5, 1 of 8 x 9 x 3.*give `size`.*and `gray`'),
    '25 classes': (many_classes, r'25 images of 25 classes: .*class19 1, ... \(5 more\)'),
}


def said(read):
    "The sentence on what there is, or the message of the one error that is allowed"
    try:
        found = read()
    except (ValueError, FileNotFoundError) as e:
        return ' '.join(str(e).split()) if '\n' not in str(e) else f'SEVERAL LINES {e}'
    assert torch.isfinite(found.X).all() and len(found.X) == len(found.y) == sum(found.counts.values())
    assert not found.files or len(found.files) == len(found.X)
    assert found.X.abs().max() > 0 and (found.X + found.mean).min() > -1e-12 < 1 + 1e-12
    return summary(found)


@pytest.mark.parametrize('what', FOLDERS)
def test_folders(what, tmp_path):
    make, expected = FOLDERS[what]
    root = tmp_path / 'own'
    root.mkdir()
    path = make(root) or root
    got = said(lambda: load_images(path))
    assert re.search(expected, got) and got.isprintable(), got


def test_there_are_thirty_and_both_kinds():
    refused = [e for _, e in FOLDERS.values() if not re.search(r'\d images? of|passed over|frames|noted', e)]
    assert len(FOLDERS) >= 50 and 15 <= len(refused) <= len(FOLDERS) - 20


def test_names_stay_with_their_images_and_the_order_is_that_of_imagefolder(tmp_path):
    of = {name: i for i, name in enumerate('b/2 b/10 a/x/9 10/0 Z/0 a/y'.split())}
    for name, i in of.items():
        put(tmp_path / f'{name}.png', i)
    d = load_images(tmp_path)
    assert d.classes == ('10', 'Z', 'a', 'b')  # as sorted() sorts, and so ImageFolder
    assert d.files == ('10/0.png', 'Z/0.png', 'a/x/9.png', 'a/y.png', 'b/10.png', 'b/2.png')
    for selected in (d, load_images(tmp_path, 4), load_images(tmp_path, 4, seed=1), d.rows([4, 0])):
        for name, image in zip(selected.files, selected.pixels(selected.X)):
            assert (np.round(255 * image) == pixels(of[name.removesuffix('.png')])).all()
    assert load_images(tmp_path, 4).files == ('10/0.png', 'Z/0.png', 'a/x/9.png', 'b/10.png')


def test_depth_and_colour_are_what_the_file_says(tmp_path):
    a, rgb = pixels(), pixels(1, colour=True)
    value = lambda path: load_images(path).pixels(load_images(path).X)[0]
    Image.fromarray(a.astype(np.uint16) * 256 + 7).save(tmp_path / 'a.png')
    np.testing.assert_allclose(value(tmp_path / 'a.png'), (a * 256.0 + 7) / 65535, atol=1e-12)
    Image.fromarray((a.astype('>u2') * 257)).save(tmp_path / 'b.tif')
    np.testing.assert_allclose(value(tmp_path / 'b.tif'), a / 255, atol=1e-12)
    Image.fromarray((a / 255).astype(np.float32)).save(tmp_path / 'c.tif')
    np.testing.assert_allclose(value(tmp_path / 'c.tif'), a / 255, atol=1e-6)
    palette = Image.fromarray(rgb).quantize(200)
    palette.save(tmp_path / 'd.gif')
    assert (value(tmp_path / 'd.gif') * 255 == np.asarray(palette.convert('RGB'))).all()
    Image.fromarray(rgb).convert('CMYK').save(tmp_path / 'e.tif')
    np.testing.assert_allclose(value(tmp_path / 'e.tif'), rgb / 255, atol=1e-12)
    Image.fromarray(a > 99).save(tmp_path / 'f.png')
    assert set(np.unique(value(tmp_path / 'f.png'))) == {0, 1}
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(rgb).save(tmp_path / 'g.png', exif=exif)
    np.testing.assert_allclose(value(tmp_path / 'g.png'), np.rot90(rgb, -1) / 255, atol=1e-12)
    grey = load_images(tmp_path / 'g.png', gray=True)
    np.testing.assert_allclose(
        grey.pixels(grey.X)[0], np.rot90(rgb, -1) / 255 @ [0.299, 0.587, 0.114], atol=1e-12
    )


# one file of arrays

A, RGB = np.stack([pixels(i) for i in range(4)]), np.stack([pixels(i, colour=True) for i in range(4)])
Y = np.array([7, 3, 7, 7])


def npz(**arrays):
    return lambda root: np.savez(root / 'a.npz', **arrays) or root / 'a.npz'


def npy(a):
    return lambda root: np.save(root / 'a.npy', a) or root / 'a.npy'


def pt(value, name='a.pt'):
    return lambda root: torch.save(value, root / name) or root / name


def tensors(**values):
    from safetensors.torch import save_file

    return lambda root: save_file(values, root / 'a.safetensors') or root / 'a.safetensors'


def raw(name, data):
    return lambda root: (root / name).write_bytes(data) and root / name


def idx(a):
    return bytes([0, 0, 8, a.ndim]) + b''.join(n.to_bytes(4, 'big') for n in a.shape) + a.tobytes()


def idx_pair(root):
    (root / 'train-images-idx3-ubyte.gz').write_bytes(gzip.compress(idx(A)))
    (root / 'train-labels-idx1-ubyte').write_bytes(idx(Y.astype(np.uint8)))
    return root / 'train-images-idx3-ubyte.gz'


def batch(root, **more):
    rows = np.random.default_rng(0).integers(0, 256, (4, 3072), np.uint8)
    held = dict(data=rows, labels=Y.tolist(), filenames=list('abcd')) | more
    (root / 'data_batch_1').write_bytes(pickle.dumps(held, 2))
    return root / 'data_batch_1'


def cifar100(root):
    root = root / 'cifar-100-python'
    root.mkdir()
    path = batch(root, fine_labels=[1, 2, 3, 2], coarse_labels=[0] * 4)
    return path.rename(root / 'train')


class Program:
    def __reduce__(self):
        return os.mkdir, ('a_program_ran',)


TWO, ONE = '4 images of 2 classes: 3 1, 7 3', '4 images of 1 class: a 4'
hot = np.eye(3)[[2, 0, 2, 2]]
ARRAYS = {
    'images, labels': (npz(images=A, labels=Y), TWO),
    'x, y': (npz(x=A, y=Y), TWO),
    'x_train, y_train, x_test': (npz(x_train=A, y_train=Y, x_test=A), f'{TWO}; passed over .*: x_test'),
    'data, targets': (npz(data=A, targets=Y), TWO),
    'arr_0, arr_1': (lambda r: np.savez(r / 'a.npz', A, Y) or r / 'a.npz', TWO),
    'capitals': (npz(X=A, Y=Y), TWO),
    'labels in a column': (npz(images=A, labels=Y[:, None]), TWO),
    'one-hot labels': (npz(images=A, labels=hot), '4 images of 2 classes: 0 1, 2 3'),
    'names': (npz(images=A, labels=np.where(Y == 7, 'cat', 'dog')), '4 images of 2 classes: cat 3, dog 1'),
    'names in bytes': (npz(images=A, labels=np.where(Y == 7, b'cat', b'dog')), 'cat 3, dog 1'),
    'true and false': (npz(images=A, labels=Y == 7), 'False 1, True 3'),
    'labels as floats': (npz(images=A, labels=Y * 1.0), TWO),
    'huge labels': (npz(images=A, labels=Y + 2**40), '1099511627779 1, 1099511627783 3'),
    'negative labels': (npz(images=A, labels=-Y), '-7 3, -3 1'),
    'one class': (npz(images=A, labels=[7] * 4), '4 images of 1 class: 7 4'),
    'no labels': (npz(images=A), ONE),
    'soft labels': (npz(images=A, labels=[0.1, 0.2, 0.7, 0.3]), 'labels=<0.1, 0.2, 0.3, 0.7>'),
    'two of several classes': (npz(images=A, labels=np.ones((4, 2))), r'labels=<float64 \(4, 2\)>'),
    'labels with a gap': (npz(images=A, labels=[1, np.nan, 2, 1]), 'labels=<nan or inf>'),
    'too few labels': (npz(images=A, labels=Y[:3]), r'labels=<int64 \(3,\)>'),
    'colours last': (npz(images=RGB), ONE),
    'colours first': (npz(images=RGB.transpose(0, 3, 1, 2)), ONE),
    'one channel first': (npz(images=A[:, None]), ONE),
    'alpha, opaque': (npz(images=np.concatenate([RGB, 0 * RGB[..., :1] + 255], 3)), ONE),
    'alpha, transparent': (npz(images=np.concatenate([RGB, RGB[..., :1]], 3)), 'transparent pixels'),
    'two channels': (npz(images=RGB[..., :2]), '1, 3 or 4 channels'),
    'flat rows': (npz(images=A.reshape(4, 30)), r'shape \(4, 30\), size None.*give `size`'),
    'five axes': (npz(images=A[None, None]), r'shape \(1, 1, 4, 6, 5\)'),
    'a number': (npz(images=np.uint8(3)), r'shape \(\)'),
    'no images': (npz(images=A[:0]), r'shape \(0, 6, 5\)'),
    'floats to 1': (npz(images=A / 255), ONE),
    'half floats': (npz(images=(A / 255).astype(np.float16)), ONE),
    'black and white': (npz(images=A > 99), ONE),
    'floats to 255': (npz(images=A * 1.0), 'float64, .* divide by the value of white'),
    'int64': (npz(images=A.astype(int)), 'int64, .*astype.numpy.uint8. where white is 255'),
    'uint16': (npz(images=A.astype(np.uint16)), 'uint16, .*value of white'),
    'normalised': (npz(images=A / 255 - 0.5), 'before they were normalised'),
    'a pixel nan': (npz(images=np.where(A == A[0, 0, 0], np.nan, 0.5)), r'\d of 120 pixels nan or inf'),
    'complex': (npz(images=A * 1j), 'no numbers'),
    'objects': (npz(images=np.array([Program()])), 'a.npz: ValueError: Object arrays'),
    'two images arrays': (npz(images=A, x=A), 'it holds images, x'),
    'no known name': (npz(pictures=A), 'it holds pictures'),
    'npy': (npy(A), ONE),
    'npy of objects': (npy(np.array([Program()])), 'a.npy: ValueError'),
    'cut off npz': (raw('a.npz', b'PK\x03\x04 cut'), 'a.npz: BadZipFile'),
    'a tensor': (pt(torch.from_numpy(A)), ONE),
    'a pair': (pt((torch.from_numpy(A), torch.from_numpy(Y))), TWO),
    'tensors by name': (pt(dict(data=torch.from_numpy(A), targets=torch.from_numpy(Y)), 'a.pth'), TWO),
    'bfloat16': (pt(torch.from_numpy(A / 255).bfloat16()), ONE),
    'a program': (pt(Program()), 'a.pt: UnpicklingError'),
    'safetensors': (tensors(images=torch.from_numpy(A), labels=torch.from_numpy(Y)), TWO),
    'idx, as MNIST': (idx_pair, TWO),
    'idx, cut off': (raw('x-images-idx3-ubyte', idx(A)[:-1]), '120 bytes said, 119'),
    'a batch, as CIFAR-10': (batch, TWO),
    'as CIFAR-100': (cifar100, '4 images of 3 classes: 1 1, 2 2, 3 1'),
    'a batch with a program': (lambda r: batch(r, more=Program()), 'UnpicklingError: the (instruction|name)'),
    'matlab': (raw('a.mat', b'x'), 'a file in .npz, .npy'),
    'an archive': (raw('a.zip', b'x'), 'unpack an archive'),
    'nothing there': (lambda r: r / 'gone.npz', 'gone.npz not found'),
}  # fmt: skip


@pytest.mark.parametrize('what', ARRAYS)
def test_files_of_arrays(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, expected = ARRAYS[what]
    path = make(tmp_path)
    got = said(lambda: load_images(path))
    assert re.search(expected, got) and got.isprintable(), got
    assert not Path('a_program_ran').exists()


def test_axes_and_rows_are_put_right(tmp_path):
    read = lambda a, **kw: (np.savez(tmp_path / 'a.npz', images=a), load_images(tmp_path / 'a.npz', **kw))[1]
    back = lambda d: np.round(255 * d.pixels(d.X))
    assert (back(read(RGB.transpose(0, 3, 1, 2))) == RGB).all() and (back(read(A[:, None])) == A).all()
    assert (back(read(A.reshape(4, 30), size=(6, 5))) == A).all()
    assert read(A, size=3).shape == (3, 3) and read(RGB, size=(4, 7), gray=True).shape == (4, 7)
    with pytest.raises(ValueError, match=r'shape \(4, 30\), size \(5, 5\)'):
        read(A.reshape(4, 30), size=(5, 5))


# how many


def test_all_or_balanced_or_one_line_that_says_what_is_possible(tmp_path):
    own = classes(tmp_path / 'own', cat=6, dog=4)
    assert load_images(own).counts == load_images(own, 10).counts == dict(cat=6, dog=4)
    assert load_images(own, 8).counts == dict(cat=4, dog=4)
    assert load_images(own, 5).counts == dict(cat=2, dog=3)
    for n in (9, 1, 0, 11, -2):
        with pytest.raises(ValueError, match=f'n={n}: .*from 2 to 8, the same of each class, or 10 for all.*'
                           'dog 4, cat 6'):  # fmt: skip
            load_images(own, n)
    with pytest.raises(ValueError, match='seed must be left out where all images are taken'):
        load_images(own, seed=3)
    three = classes(tmp_path / 'three', cat=8, dog=7, fox=8)
    assert load_images(three, 23).counts == load_images(three).counts == dict(cat=8, dog=7, fox=8)
    assert load_images(three, 21).counts == dict(cat=7, dog=7, fox=7)
    with pytest.raises(ValueError, match='n=22: .*multiple of 3 from 3 to 21, the same of each class, or 23'):
        load_images(three, 22)
    assert len(load_images(tmp_path / 'own/cat', 4).X) == 4
    for path, n, others in ((own, None, None), (own, 8, 2), (own, 4, 4), (three, 21, 2)):
        unseen = unseen_images(str(path), load_collection(str(path), n))
        assert (None if unseen is None else len(unseen.X)) == others
        assert unseen is None or not set(unseen.files) & set(load_collection(str(path), n).files)


def test_labels_of_a_network_with_more_outputs_than_classes(tmp_path):
    np.savez(tmp_path / 'a.npz', images=A, labels=Y)
    d = load_images(tmp_path / 'a.npz')
    assert D.class_numbers(d, 10).tolist() == Y.tolist() and D.class_numbers(d, 2).tolist() == [1, 0, 1, 1]
    assert D.class_numbers(d, 1).tolist() == [1, -1, 1, 1]
    for label, y in ((0, -1), (-1, -1), (1, 1), (7, 1)):
        assert load_images(tmp_path / 'a.npz', labels=label).y.tolist() == [y] * 4


@pytest.mark.parametrize('side, n', [(6, 4), (6, 1), (7, 4), (7, 1)])
def test_small_images_and_one_image_are_scored_as_far_as_that_goes(side, n):
    X = torch.rand(n, side * side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = score_candidates({'x': X}, X, 0 * X[0], (side, side), files=tuple('abcd'[:n]))
    assert (rows[0]['mean_ssim'] is None) == (side < 7) and (rows[0]['beat_both'] is None) == (n == 1)
    assert len(rows) == (1 if n == 1 else 3) and rows[0]['mean_l2'] == 0
    cells = score_table(rows).rows[0]
    assert (cells[3] == '-') == (side < 7) and (cells[4] == '-') == (n == 1)
    assert [f['file'] for f in rows[0]['found_files']] == ([] if n == 1 else list('abcd'))
    json.dumps(rows, allow_nan=False)


# the command line


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    from samplesplit_nb.cli import main

    monkeypatch.chdir(tmp_path)

    def call(words):
        try:
            status = main(words.split())
        except SystemExit as e:
            status = e.code
        out, err = capsys.readouterr()
        err = [line for line in re.split(r'[\r\n]+', err) if line.strip() and 'step/s' not in line]
        return status or 0, out, '\n'.join(err)

    return call


def one_step(folder, data, shape):
    "A network before and after one gradient step on the images, less their mean if there are several"
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(data.X.shape[1], 60), torch.nn.ReLU(), torch.nn.Linear(60, 60), torch.nn.ReLU(),
        torch.nn.Linear(60, 1))  # fmt: skip
    torch.save(net.state_dict(), folder / 'w0.pt')
    ((net(data.X.float())[:, 0] - data.y.float()) ** 2).mean().backward()
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.1 * p.grad
    torch.save(net.state_dict(), folder / 'w1.pt')


@pytest.mark.parametrize('what', ['unbalanced', 'one class', 'one image', 'small', 'a row'])
def test_own_images_through_the_commands(what, tmp_path, cli):
    if what in ('small', 'a row'):
        own = tmp_path / 'own.npz'
        np.savez(own, images=A if what == 'small' else A[:, :1], labels=Y)
    else:
        counts = {'unbalanced': dict(cat=3, dog=2), 'one class': dict(cat=3), 'one image': dict(cat=1)}[what]
        own = tmp_path / 'own'
        for name, count in counts.items():
            for i in range(count):
                put(own / name / f'{i}.png', 10 * i + (name == 'dog'), (8, 8))
    data = load_images(own)
    one_step(tmp_path, data, data.shape)
    words = f'--data {own} --device cpu'
    status, out, err = cli(f'invert --weights w1.pt --init w0.pt {words} --out found')
    assert status == 0 and out.count(f'data: {len(data.X)} image') == 1, err
    record = json.loads((tmp_path / 'found/reconstruction.json').read_text())
    assert record['data']['classes'] == data.counts and record['data']['files'] == list(data.files)
    assert record['data']['n'] == len(data.X) and record['scores'][0]['median_l2'] < 0.01
    assert (record['scores'][0]['mean_ssim'] is None) == (what in ('small', 'a row'))
    if what in ('unbalanced', 'one class'):  # each image by its name
        found = [f['file'] for f in record['scores'][0]['found_files']]
        assert len(found) >= len(data.files) - 1 and set(found) <= set(data.files)
        assert all(name in ' '.join(out.split()) for name in found)
    assert (tmp_path / 'found/reconstructions.png').stat().st_size > 1000
    status, out, err = cli(f'evaluate --reconstruction found/reconstruction.npz --data {own}')
    assert status == 0 and summary(data) in ' '.join(out.split()), err
    status, out, err = cli(f'certify --weights w1.pt {words} --json')
    assert status == 0 and json.loads(out)['data']['classes'] == data.counts, err


def test_training_that_needs_two_classes_says_so_first(tmp_path, cli):
    classes(tmp_path / 'own', cat=3)
    for method in ('kkt', 'multiclass'):
        status, out, err = cli(f'train --method {method} --data own --width 20 --steps 5')
        assert status == 2 and out == '', err
        assert 'of two classes; it has 3 of 1; add a class, or use --method ntk for one' in err
    classes(tmp_path / 'alone', cat=1)
    status, out, err = cli('train --method ntk --data alone --width 20')
    assert status == 2 and out == '' and 'of two images at least' in err, err
    assert not (tmp_path / 'runs').exists()
    status, out, err = cli('train --method ntk --data own --width 20 --device cpu --json')
    assert status == 0 and json.loads(out)['data']['files'] == ['cat/0.png', 'cat/1.png', 'cat/2.png'], err


def test_size_and_gray_are_words_of_the_command_line(tmp_path, cli):
    own = tmp_path / 'own'
    own.mkdir()
    sizes(own)
    words = 'train --method ntk --width 20 --device cpu --json --data'
    status, _, err = cli(f'{words} own')
    assert status == 2 and 'give --size (height and width), and --gray' in err and '\n' not in err
    status, out, err = cli(f'{words} own --size 6 --gray')
    assert status == 0 and json.loads(out)['network']['widths'][0] == 36, err
    status, out, err = cli(f'{words} own --size 4 5 --gray')
    assert status == 0 and json.loads(out)['data']['shape'] == [4, 5], err
    for wrong, says in (('own --size 0', '--size=0'), ('own --size 1 2 3', '--size=(1, 2, 3)'),
                        ('faces --size 9', 'left out, and --gray too, for faces'),
                        ('own --size 99999 99999', 'at most'), ('nowhere', "--data='nowhere'")):  # fmt: skip
        status, out, err = cli(f'{words} {wrong}')
        assert status == 2 and out == '' and says in err and len(err.splitlines()) == 1, err


# what torchvision keeps, and its own classes against a mirror on this machine


def official(name, count=40):
    g = np.random.default_rng(0)
    return g.integers(0, 256, (count, *D._SHAPES[name]), dtype=np.uint8), np.arange(count) % 10


def mnist_files(folder, images, labels, compressed=True):
    folder.mkdir(parents=True)
    for what, a in (('images-idx3', images), ('labels-idx1', labels.astype(np.uint8))):
        data = idx(a)
        path = folder / f'train-{what}-ubyte'
        if compressed:
            path.with_name(path.name + '.gz').write_bytes(gzip.compress(data))
        else:
            path.write_bytes(data)


def cifar_files(folder, images, labels):
    folder.mkdir(parents=True)
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    for i in range(5):
        part = slice(i * len(rows) // 5, (i + 1) * len(rows) // 5)
        held = dict(data=rows[part], labels=labels[part].tolist())
        (folder / f'data_batch_{i + 1}').write_bytes(pickle.dumps(held, 2))


@pytest.mark.parametrize('name, place', [
    ('mnist', 'MNIST/raw'), ('mnist', 'raw'), ('mnist', 'plain'), ('cifar10', 'cifar-10-batches-py'),
    ('cifar10', 'plain')])  # fmt: skip
def test_folders_that_torchvision_filled_are_read_as_they_are(name, place, tmp_path, monkeypatch):
    images, labels = official(name)
    monkeypatch.setitem(D.CHECKSUMS, name, D._checksum(images, labels))
    monkeypatch.setattr(D, 'POOL', {})
    monkeypatch.setattr(D, '_download', lambda *_: pytest.fail('a download was tried'))
    (mnist_files if name == 'mnist' else cifar_files)(tmp_path / place, images, labels)
    root = tmp_path / place if place == 'plain' else tmp_path
    got = load_data(name, 10, root=root, task='multiclass')
    where = got.index.numpy()
    assert (np.round(255 * got.pixels(got.X)) == images[where]).all()
    assert (got.y.numpy() == labels[where]).all()
    monkeypatch.setenv('SAMPLESPLIT_DATA', str(root))
    assert torch.equal(load_collection(name, 10, task='multiclass').X, got.X)
    monkeypatch.setitem(D.CHECKSUMS, name, '0' * 64)  # other images in the same layout
    with pytest.raises(ValueError, match='sha256=.*official training file'):
        load_data(name, 10)


@pytest.mark.skipif(not os.environ.get('SAMPLESPLIT_DATA'), reason='SAMPLESPLIT_DATA names no folder')
@pytest.mark.parametrize('name', ['mnist', 'cifar10'])
def test_the_real_images_in_torchvisions_layout_are_those_of_the_npz_file(name, tmp_path):
    with np.load(Path(os.environ['SAMPLESPLIT_DATA']) / f'{name}.npz') as f:
        images, labels = f['x_train'], f['y_train'].astype(int)
    place, write = ('MNIST/raw', partial(mnist_files, compressed=False)) if name == 'mnist' else (
        'cifar-10-batches-py', cifar_files)  # fmt: skip
    write(tmp_path / place, images, labels)
    a, b = load_data(name, 20, seed=1), load_data(name, 20, seed=1, root=tmp_path)
    assert torch.equal(a.X, b.X) and torch.equal(a.y, b.y)


@pytest.fixture
def mirror(tmp_path):
    "A folder that is served on loopback, and its address"
    folder = tmp_path / 'served'
    folder.mkdir()
    quiet = type('Quiet', (SimpleHTTPRequestHandler,), dict(log_message=lambda *_: None))
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(quiet, directory=str(folder))) as server:
        server.handle_error = lambda *_: None  # a client that hangs up
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()


def torchvision_datasets():
    try:
        return D._torchvision_datasets()
    except (ImportError, RuntimeError) as e:
        pytest.skip(f"torchvision does not import here (pip install '.[data]'): {e}")


def test_the_download_by_torchvisions_own_classes(mirror, tmp_path, monkeypatch):
    "MNIST and CIFAR-10 from a mirror, with checksums of its files; then read from our own file"
    datasets, (folder, address) = torchvision_datasets(), mirror
    for word in ('no_proxy', 'NO_PROXY'):
        monkeypatch.setenv(word, '127.0.0.1')
    monkeypatch.setattr(D, 'POOL', {})
    digest = lambda path: md5(path.read_bytes()).hexdigest()
    made = {name: official(name) for name in D.CHECKSUMS}
    for name, (images, labels) in made.items():
        monkeypatch.setitem(D.CHECKSUMS, name, D._checksum(images, labels))
    mnist_files(folder / 'mnist', *made['mnist'])
    for path in list((folder / 'mnist').iterdir()):  # torchvision fetches the test files too
        shutil.copy(path, path.with_name(path.name.replace('train', 't10k')))
    names = sorted(p.name for p in (folder / 'mnist').iterdir())
    monkeypatch.setattr(datasets.MNIST, 'mirrors', [f'{address}mnist/'])
    monkeypatch.setattr(datasets.MNIST, 'resources', [(n, digest(folder / 'mnist' / n)) for n in names])
    part = folder / 'cifar-10-batches-py'
    cifar_files(part, *made['cifar10'])
    shutil.copy(part / 'data_batch_1', part / 'test_batch')
    (part / 'batches.meta').write_bytes(pickle.dumps(dict(label_names=list('abcdefghij')), 2))
    archive = Path(shutil.make_archive(str(folder / 'cifar-10-python'), 'gztar', folder, part.name))
    cifar = datasets.CIFAR10
    monkeypatch.setattr(cifar, 'url', f'{address}{archive.name}')
    monkeypatch.setattr(cifar, 'tgz_md5', digest(archive))
    batches = [f'data_batch_{i}' for i in range(1, 6)]
    monkeypatch.setattr(cifar, 'train_list', [[b, digest(part / b)] for b in batches])
    monkeypatch.setattr(cifar, 'test_list', [['test_batch', digest(part / 'test_batch')]])
    meta = dict(filename='batches.meta', key='label_names', md5=digest(part / 'batches.meta'))
    monkeypatch.setattr(cifar, 'meta', meta)
    root = tmp_path / 'root'
    root.mkdir()
    for name, (images, _) in made.items():
        got = load_data(name, 10, root=root, task='multiclass')
        assert (np.round(255 * got.pixels(got.X)) == images[got.index.numpy()]).all()
        kind = dict(mnist='MNIST', cifar10='CIFAR10')[name]
        kept = tmp_path / f'kept-{name}'  # and what it leaves, where a user had it download
        getattr(datasets, kind)(kept, train=True, download=True)
        monkeypatch.setattr(D, '_download', lambda *_: pytest.fail('a second download'))
        for again in (root, kept):
            assert torch.equal(load_data(name, 10, root=again, task='multiclass').X, got.X)
        monkeypatch.setattr(D, '_download', DOWNLOAD)
    assert sorted(os.listdir(root)) == ['cifar10.npz', 'mnist.npz']
    print('downloaded', {name: len(images) for name, (images, _) in made.items()}, 'from', address)


def test_the_extra_is_named_where_it_is_needed():
    root = Path(__file__).parent.parent
    assert re.search(r'^data_requirements *= *torchvision$', (root / 'settings.ini').read_text(), re.M)
    assert '"data": shlex' in (root / 'setup.py').read_text() and '[data]' in (root / 'README.md').read_text()
