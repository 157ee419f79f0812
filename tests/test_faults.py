"""What a user's machine does to a command: streams that are closed or full, signals, odd names, odd modules,
options out of range, networks that hold nothing. Each ends in one line, quickly, with nothing lost"""

import json, os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest
import torch
from samplesplit_nb.checks import NumericalError
from samplesplit_nb.networks import MLP
from test_fuzz import called, complaint, write_networks, write_others

COMMAND = [str(Path(sys.executable).with_name('samplesplit'))]
CERTIFY = ['certify', '--weights', 'kkt.safetensors', '-n', '4', '--device', 'cpu']
KKT = 'reconstruct --weights kkt.safetensors --method kkt'
RECONSTRUCT = f'{KKT} -k 3 --steps 8 --device cpu --out out'.split()
NTK = 'reconstruct --weights model.safetensors --init init.safetensors --method ntk -k 3 --steps 8'.split()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp('faults')
    write_networks(place)
    write_others(place)
    for name in ('json', 'torch', 'numpy', 'scipy', 'matplotlib', 'safetensors', 'typing'):
        (place / f'{name}.py').write_text('raise SystemExit("not the installed one")')
    return place


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv('SAMPLESPLIT_DATA', raising=False)
    path = list(sys.path)
    yield folder
    sys.path[:] = path


def mistake(words, *says, status=2):
    "One line on stderr that says so, with that status, within ten seconds"
    began = time.monotonic()
    got, _, err = called(words)
    said = complaint(err)
    assert got == status and len(said) == 1 and said[0].startswith('samplesplit: '), (got, err)
    assert len(said[0]) < 1500 and said[0].isprintable() and 'Traceback' not in err
    assert time.monotonic() - began < 10
    for text in says:
        assert text in said[0], said[0]


# networks that hold nothing, and numbers that are lost


@pytest.mark.parametrize(
    'words,status,says',
    [
        ([*RECONSTRUCT, '--weights', 'dead.safetensors'], 2, 'the same gradient at all images tried'),
        ([*RECONSTRUCT, '--weights', 'zero.safetensors'], 2, 'the target is zero'),
        ([*NTK, '--init', 'model.safetensors'], 2, 'the target is zero'),
        ([*NTK, '--init', 'near.safetensors', '--weights', 'init.safetensors'], 2, 'the target is zero'),
        ([*RECONSTRUCT, '--weights', 'tiny.safetensors'], 3, 'too small for torch.float32'),
        ([*RECONSTRUCT, '--weights', 'tiniest.safetensors'], 3, 'out of the range of torch.float32'),
        ([*RECONSTRUCT, '--weights', 'hugest.safetensors'], 3, 'out of the range of torch.float32'),
        ([*RECONSTRUCT, '--lr', '1e19'], 3, 'use a smaller --lr (now 1e+19)'),
        ([*NTK, '--lr', '1e308'], 3, 'use a smaller --lr (now 1e+308)'),
        ([*CERTIFY, '--data', 'images.npz', '--weights', 'hugest.safetensors'], 3, 'nan or inf'),
        (['evaluate', '--reconstruction', 'nan.npz', '--data', 'images.npz', '-n', '4'], 2, 'nan or inf'),
    ],
    ids=lambda v: None if not isinstance(v, list) else f'{v[0]}-{v[-1]}',
)
def test_weights_without_traces_and_lost_numbers(here, words, status, says):
    mistake(words, says, status=status)


def test_weights_with_traces_are_attacked(here):
    "Control: small ones too, and those of one neuron"
    for name in ('kkt', 'small', 'double'):
        assert called([*RECONSTRUCT, '--weights', f'{name}.safetensors'])[0] == 0, name


def test_a_diverged_run_leaves_finite_files_and_no_nan_in_json(here):
    out = 'diverged'
    mistake([*RECONSTRUCT, '--steps', '40', '--lr', '1e19', '--out', out, '--json'], f'{out}/recon', status=3)
    numbers = [v for v in np.load(f'{out}/reconstruction.npz').values() if v.dtype.kind == 'f']
    assert len(numbers) > 1 and all(np.isfinite(v).all() for v in numbers)
    text = Path(out, 'reconstruction.json').read_text()
    assert 'NaN' not in text and 'Infinity' not in text and 'diverged' in json.loads(text)['result']


def test_one_error_for_all_and_the_last_state_with_it():
    "Trainings, certificates and inversion raise the same kind as a reconstruction, never a LinAlgError"
    from samplesplit_nb.certificates import certify, margins
    from samplesplit_nb.descent import ReconstructionError
    from samplesplit_nb.training import train_gd

    X, y = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, -1.0, 1.0, -1.0])
    net, huge = (MLP([6, 9, 9, 1], bias='first') for _ in range(2))
    with torch.no_grad():
        for p in huge.parameters():
            p.mul_(1e20)
    for call in (
        lambda: train_gd(net, X, y, loss='mse', lr=1e9, steps=50),
        lambda: margins(huge, X, y),
        lambda: certify(huge, X, y),
    ):
        with pytest.raises(NumericalError) as e:
            call()
        last = e.value.last
        assert last is None or all(bool(p.isfinite().all()) for p in last.parameters())
    assert issubclass(ReconstructionError, NumericalError) and not issubclass(NumericalError, ValueError)


def test_a_training_that_diverges_keeps_its_last_finite_checkpoint(tmp_path):
    from samplesplit_nb.storage import Checkpoint, load_state
    from samplesplit_nb.training import train_gd

    X, y = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, -1.0, 1.0, -1.0])
    at = Checkpoint(tmp_path / 'state.safetensors', every_steps=2)
    with pytest.raises(NumericalError, match='use a smaller `lr`') as e:
        train_gd(MLP([6, 9, 9, 1]), X, y, loss='mse', lr=30.0, steps=500, checkpoint=at)
    kept = load_state(at.path)['tensors']
    assert all(bool(t.isfinite().all()) for t in kept) and e.value.last is not None


# options


@pytest.mark.parametrize('value', ['1e3', '3.0', ' 3', '1_0', '\u0663', '', '9' * 5000, '0x3', '--3'])
def test_a_whole_number_is_typed_as_one(here, value):
    mistake([*RECONSTRUCT, f'--k={value}'], '-k')


@pytest.mark.parametrize('option', ['-k', '--steps', '--seed', '-n', '--chunk-size'])
@pytest.mark.parametrize('value', [str(2**63), '1' + '0' * 29, '-1'])
def test_numbers_that_no_machine_counts_to(here, option, value):
    mistake([*RECONSTRUCT, '--data', 'images.npz', '-n', '4', option, value], option)


def test_candidates_that_do_not_fit_are_counted_first(here):
    mistake([*RECONSTRUCT, '-k', str(10**12)], 'take at least', 'GB are free', 'use a smaller -k')
    wide = ['train', '--method', 'kkt', '--data', 'images.npz', '-n', '4', '--device', 'cpu', '--out', 'out']
    mistake([*wide, '--width', '1000000'], 'take at least', 'width')
    assert called([*RECONSTRUCT, '--chunk-size', '1000000'])[0] == 0  # control: larger than k, all at once


@pytest.mark.parametrize('device', ['meta', 'mps', 'xla', 'cuda:99', 'vulkan', '', 'abacus', 'lazy', 'cpu:x'])
def test_odd_devices(here, device):
    if device == 'mps' and torch.backends.mps.is_available():
        pytest.skip('it is there')
    mistake([*CERTIFY, '--device', device], '--device')


@pytest.mark.parametrize(
    'out',
    ['', 'kkt.pt', 'kkt.pt/below', '/dev/null', 'z' * 300, 'z/' * 3000, 'a\0b', 'loop', 'pipe', '/proc/no'],
)
def test_odd_folders(here, out):
    mistake([*RECONSTRUCT, '--out', out], '--out')


@pytest.mark.parametrize(
    'name', ['pipe', 'loop', 'sub', '/dev/zero', '/dev/null', 'a\x1b[31mb\u202e', 'x' * 10**6], ids=range(7)
)
@pytest.mark.parametrize('option', ['--weights', '--data', '--reconstruction'])
def test_special_files_and_names(here, option, name):
    base = CERTIFY if option != '--reconstruction' else ['evaluate', '--data', 'images.npz']
    mistake([*base, option, name])


@pytest.mark.parametrize(
    'module,says',
    [
        ('mine:leaves', 'SystemExit'),
        ('mine:raises', 'BaseException'),
        ('mine:wants', 'TypeError'),
        ('mine:Late', '--module'),
        ('mine:number', 'TypeError'),
        ('mine:absent', 'no absent in'),
        ('mine.py:net', '--module mine:net'),
        ('sub/mine:net', 'sub.mine:net'),
        ('.mine:net', '--module'),
        ('mine', 'PKG:FACTORY'),
    ],
)
def test_modules_that_cannot_be_used(here, module, says):
    mistake([*CERTIFY, '--module', module], says)


def test_a_module_may_print_and_move_and_stays_behind_what_is_installed(here):
    "The working folder has a json.py, a torch.py and others, which end the process where they are imported"
    own = 'certify --weights mine.safetensors -n 4 --shape 64 --device cpu --json --module'.split()
    for module in ('mine:moves', 'mine:prints'):
        done = subprocess.run([*COMMAND, *own, module], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)['network']['parameters'] == 1741


# streams


def started(words, **kw):
    return subprocess.run([*COMMAND, *words], stderr=subprocess.PIPE, text=True, timeout=100, **kw)


def one_line(done, status=2, says=''):
    said = complaint(done.stderr)
    assert done.returncode == status and 'Traceback' not in done.stderr, done.stderr
    assert len(said) == (status != 0) and says in done.stderr, done.stderr


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux has a full device')
def test_a_full_or_closed_stdout_is_said_and_loses_no_file(here):
    for i, words in enumerate((CERTIFY, [*CERTIFY, '--json'], [*RECONSTRUCT, '--out', 'full'], ['--help'])):
        with open('/dev/full', 'w') as full:
            done = started(words, stdout=full)
        assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
        assert complaint(done.stderr)[0].startswith('samplesplit: standard output is closed or full'), i
    assert Path('full/reconstruction.json').is_file()
    one_line(started(CERTIFY, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.close(1)), says='output')


def test_a_reader_that_has_gone_and_other_streams(here):
    read, write = os.pipe()
    os.close(read)
    one_line(started([*RECONSTRUCT, '--out', 'piped'], stdout=write), status=0)
    os.close(write)
    assert Path('piped/reconstruction.npz').is_file()
    one_line(started(CERTIFY, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.close(0)), status=0)
    with open('/dev/full', 'w') as full:  # the progress bar cannot be written
        for stderr in (full, None):
            close = None if stderr else (lambda: os.close(2))
            done = subprocess.run(
                [*COMMAND, *RECONSTRUCT], stdout=subprocess.PIPE, stderr=stderr, preexec_fn=close, timeout=100
            )
            assert done.returncode == 0 and b'result:' in done.stdout


@pytest.mark.parametrize('letters', ['ascii', 'cp1252'])
def test_narrow_encodings(here, letters):
    env = os.environ | dict(PYTHONIOENCODING=letters, LC_ALL='C', PYTHONUTF8='0')
    env.pop('HOME', None)
    for words in (['reconstruct', '--help'], [*RECONSTRUCT, '--out', '日本']):
        done = subprocess.run([*COMMAND, *words], capture_output=True, timeout=100, env=env)
        assert done.returncode == 0 and b'Traceback' not in done.stderr, done.stderr
    assert Path('日本/reconstruction.npz').is_file()


# signals


@pytest.mark.parametrize('name,status', [('SIGINT', 130), ('SIGTERM', 143)])
def test_a_signal_ends_it_with_what_was_found(here, name, status):
    out = f'stopped-{name}'
    words = [*RECONSTRUCT, '--steps', '1000000', '--out', out]
    # a shell's background jobs start with Ctrl-C ignored, and their children inherit that
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen([*COMMAND, *words], preexec_fn=heed, **pipes) as p:
        seen = ''
        while 'reconstruct:' not in seen or '| 0/' in seen[-200:]:
            seen += os.read(p.stderr.fileno(), 4096).decode()
            assert p.poll() is None
        time.sleep(0.3)
        p.send_signal(getattr(signal, name))
        _, err = p.communicate(timeout=60)
    assert p.returncode == status and 'Traceback' not in err
    assert 'what was found until step' in err and f'{out}/reconstruction.npz' in err
    assert np.isfinite(np.load(f'{out}/reconstruction.npz')['x']).all()
    assert json.loads(Path(out, 'reconstruction.json').read_text())['result'] == 'interrupted'


# small things


@pytest.mark.parametrize(
    'words',
    [
        [*RECONSTRUCT, '--steps', '1'],
        [*RECONSTRUCT, '-k', '1', '--chunk-size', '7'],
        [*RECONSTRUCT, '--weights', 'small.safetensors'],
        ['train', '--method', 'ntk', '--data', 'images.npz', '-n', '2', '--width', '4', '--out', 'out'],
        ['certify', '--weights', 'narrow.safetensors', '-n', '1', '--device', 'cpu'],
    ],
    ids=['one-step', 'one-candidate', 'one-neuron', 'two-images', 'one-sample'],
)
def test_the_smallest_of_everything_works(here, words):
    status, out, err = called(words)
    assert status == 0 and 'nan' not in out, err


def test_a_control_character_in_a_name_never_reaches_the_terminal(here):
    status, out, err = called([*RECONSTRUCT, '--out', 'a\x1b[2Jb'])
    assert status == 0 and '\x1b' not in out + err and 'wrote a\\x1b[2Jb/reconstruction.npz' in out
    assert Path('a\x1b[2Jb/reconstruction.npz').is_file()  # the file has its own name


@pytest.mark.parametrize('shape', [['a'], [2.0, 3], [0], [], [True, 6], [None]])
def test_a_shape_of_anything_but_counts(shape):
    from samplesplit_nb.weights import input_shape

    with pytest.raises(ValueError, match='^shape=.*shape must be of positive whole numbers'):
        input_shape(torch.nn.Linear(6, 1), shape)
    assert input_shape(torch.nn.Linear(6, 1), [6]).d == 6
