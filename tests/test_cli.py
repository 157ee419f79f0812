"The command line, run as a user runs it"

import json, os, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest

SMALL = ['--n', '4', '--k', '2', '--width', '20', '--steps', '60', '--splits', '2', '--device', 'cpu']


def samplesplit(*words, **kw):
    command = [
        sys.executable,
        '-c',
        'import sys; from samplesplit_nb.cli import main; sys.exit(main())',
        *words,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **kw)


def test_the_installed_command_explains_itself():
    script = Path(sys.executable).with_name('samplesplit')
    top, demo = (
        subprocess.run([script, *words, '--help'], capture_output=True, text=True, timeout=60)
        for words in ([], ['demo'])
    )
    assert top.returncode == demo.returncode == 0 and 'demo' in top.stdout
    for option in (
        '--n',
        '--k',
        '--width',
        '--steps',
        '--splits',
        '--seed',
        '--device',
        '--out',
        '--controls',
    ):
        assert option in demo.stdout
    assert 'default 4000' in ' '.join(demo.stdout.split())


def test_demo_writes_everything_and_repeats_itself(tmp_path):
    results = []
    for name in ('a', 'b'):
        done = samplesplit('demo', *SMALL, '--seed', '3', '--out', str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        assert 'baseline: nearest other' in done.stdout
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == [
            'loss.png',
            'metrics.json',
            'reconstruction.npz',
            'reconstructions.png',
        ]
        results.append(
            (
                json.loads((tmp_path / name / 'metrics.json').read_text()),
                dict(np.load(tmp_path / name / 'reconstruction.npz')),
            )
        )
    (a, arrays), (b, same) = results
    for r in (a, b):
        r.pop('digest of all above')  # of the seconds too
        for run in r['runs'].values():
            run.pop('timing')
    assert a == b
    for key in arrays:
        assert np.array_equal(arrays[key], same[key]), key
    assert (
        a['config']['seed'] == a['config']['data_seed'] == 3
        and a['environment']['torch']
        and len(a['runs']['split']['splits']) == 2
    )
    assert (
        arrays['x_plain'].shape == (2, 625)
        and arrays['X'].shape == (4, 625)
        and len(arrays['x_split']) == len(arrays['lam_split']) >= 2
    )


def test_controls_split_as_often_as_the_run_they_explain(tmp_path):
    done = samplesplit('demo', *SMALL, '--k', '4', '--controls', '--out', str(tmp_path))
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / 'metrics.json').read_text())['runs']
    counts = [s['split'] for s in runs['split']['splits']]
    for name in ('random direction', 'random choice', 'random both'):
        assert [s['split'] for s in runs[name]['splits']] == counts
    assert {
        'plain, final k at start',
        'plain, k = n',
        'plain, k = 2n',
        'plain, one lr cycle',
        'plain, equal seconds',
    } <= set(runs)


@pytest.mark.parametrize(
    'words,says',
    [
        (['--k', '0'], 'k=0'),
        (['--n', '201'], 'n=201'),
        (['--width', '0'], 'width=0'),
        (['--steps', '3'], 'splits=3'),
        (['--splits', '-1'], 'splits=-1'),
        (['--device', 'abacus'], 'device=abacus'),
        (['--device', 'cuda:99'], 'device=cuda:99'),
    ],
)
def test_mistakes_are_one_line_with_a_remedy(words, says, tmp_path, cli):
    status, _, err = cli('demo', *words, '--out', tmp_path / 'o')
    assert status == 2 and says in err and err.startswith('samplesplit: ')
    assert len(err.strip().splitlines()) == 1 and 'Traceback' not in err


def test_an_output_that_cannot_be_a_folder_is_refused_before_the_work(tmp_path, cli):
    (tmp_path / 'file').write_text('precious')
    for out in ('file', 'file/below'):
        status, said, err = cli('demo', '--out', tmp_path / out)
        assert status == 2 and len(err.strip().splitlines()) == 1 and 'Training' not in said
    assert (tmp_path / 'file').read_text() == 'precious'


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    assert samplesplit('demo', '--out', str(tmp_path / 'o')).returncode == 2


def test_no_command_and_a_wrong_option_say_what_there_is():
    for words in ([], ['demo', '--colour', 'red'], ['dance']):
        done = samplesplit(*words)
        assert done.returncode == 2 and 'usage:' in done.stderr and 'Traceback' not in done.stderr


def test_a_terminal_sees_progress_with_loss_candidates_and_time_left(tmp_path):
    pty, fcntl, termios = (pytest.importorskip(m) for m in ('pty', 'fcntl', 'termios'))
    import struct

    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 130, 0, 0))
    command = [
        sys.executable,
        '-c',
        'import sys; from samplesplit_nb.cli import main; sys.exit(main())',
        'demo',
        *SMALL,
        '--out',
        str(tmp_path),
    ]
    with subprocess.Popen(command, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal) as process:
        os.close(terminal)
        seen = b''
        while True:
            try:
                chunk = os.read(main, 4096)
            except OSError:
                break  # the other side has closed
            if not chunk:
                break
            seen += chunk
        process.stdout.read()
    os.close(main)
    assert process.returncode == 0
    last = seen.decode().replace('\r', '\n').strip().split('\n')[-1]
    assert 'split: 100%' in last and '60/60' in last and '<00:00' in last and 'k=' in last and 'loss=' in last


# one's own model: train, invert, reconstruct, evaluate, certify.
# In this process where another adds nothing: importing torch costs seconds


@pytest.fixture
def cli(capsys, monkeypatch):
    "Call the command here: (exit status, stdout, stderr)"
    monkeypatch.delenv('SAMPLESPLIT_DATA', raising=False)
    from samplesplit_nb.cli import main

    def call(*words):
        capsys.readouterr()
        try:
            status = main([str(w) for w in words])
        except SystemExit as e:
            status = e.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "The files of a small NTK network (faces, n = 6, width 60), written by the command"
    out = tmp_path_factory.mktemp('trained')
    done = samplesplit(
        'train',
        '--method',
        'ntk',
        '--data',
        'faces',
        '-n',
        '6',
        '--width',
        '60',
        '--device',
        'cpu',
        '--out',
        str(out),
    )
    assert done.returncode == 0, done.stderr
    return out


def attack(folder, *words):
    return [
        'reconstruct',
        '--weights',
        folder / 'model.safetensors',
        '--init',
        folder / 'init.safetensors',
        '--method',
        'ntk',
        '--device',
        'cpu',
        *words,
    ]


def mistake(done, *says):
    "Status 2 and one line on stderr that says so"
    status, out, err = done
    line = err.strip().splitlines()[-1]
    assert status == 2 and line.startswith('samplesplit: ') and 'Traceback' not in err, err
    for text in says:
        assert text in line, line
    return line


def test_help_answers_at_once():
    code = (
        "import sys; from samplesplit_nb.cli import main\ntry: main(['--help'])\n"
        "finally: assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in ('demo', 'figure', 'experiment', 'train', 'invert', 'reconstruct', 'evaluate', 'certify'):
        assert command in done.stdout


@pytest.mark.parametrize(
    'words', [['--help'], ['reconstruct', '--help'], ['experiment', '--help'], ['--version']]
)
def test_help_takes_less_than_a_third_of_a_second(words):
    "Best of five, because machines are shared; Python alone takes a part of it"
    command, seconds = [sys.executable, '-m', 'samplesplit_nb', *words], []
    for _ in range(5):
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        seconds.append(time.perf_counter() - begin)
        assert done.returncode == 0, done.stderr
    assert min(seconds) < 0.3


def test_the_module_is_the_command():
    "`python -m samplesplit_nb`; nbdev_export makes no `__main__`, and must leave this one"
    import samplesplit_nb

    command = [sys.executable, '-m', 'samplesplit_nb']
    done = subprocess.run([*command, '--version'], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f'samplesplit {samplesplit_nb.__version__}\n')
    done = subprocess.run([*command, 'dance'], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and 'usage: `samplesplit' in done.stderr


def test_every_default_and_every_help_stands_in_the_options(cli):
    "Nothing is said twice: parser and classes agree, for every option of every command"
    from dataclasses import MISSING, fields
    from samplesplit_nb.options import OPTIONS, docments

    for command, options in OPTIONS.items():
        help = ' '.join(cli(command, '--help')[1].split())
        for f in fields(options):
            assert docments(options)[f.name] in help, (command, f.name)
            if f.default not in (MISSING, None, False):
                assert f'{docments(options)[f.name]} (default {f.default})' in help


def test_python_can_do_what_the_command_line_does(trained, tmp_path, cli, capsys):
    "One import; the same record, the same text, the same files"
    from samplesplit_nb import commands

    own = dict(weights=str(trained / 'model.safetensors'), n=6, data='faces', device='cpu')
    line = f"--weights {own['weights']} -n 6 --data faces --device cpu".split()
    answer = commands.certify_file(**own)
    assert cli('certify', *line) == (0, f'{answer}\n', '')
    assert json.loads(cli('certify', *line, '--json')[1]) == answer.record
    init = str(trained / 'init.safetensors')
    a, b = tmp_path / 'a', tmp_path / 'b'
    answer = commands.reconstruct_file(
        **own, init=init, method='ntk', k=6, steps=20, chunk_size=3, out=str(a)
    )
    line += f'--init {init} --method ntk -k 6 --steps 20 --chunk-size 3 --out {b}'.split()
    status, out, _ = cli('reconstruct', *line)
    assert status == 0 and out == f'{answer}\n'.replace(str(a), str(b))
    assert [p.name for p in answer.files] == [
        'reconstruction.npz',
        'reconstruction.json',
        'reconstructions.png',
        'candidates.png',
    ]
    found = [np.load(folder / 'reconstruction.npz') for folder in (a, b)]
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0].files)
    assert np.array_equal(answer.found.x.numpy(), found[0]['x'])


def test_messages_name_arguments_to_python_and_options_to_a_shell(trained, cli):
    from samplesplit_nb import commands

    weights = str(trained / 'model.safetensors')
    with pytest.raises(
        ValueError, match='^init=None: init must be .*; give `init` FILE, or use `method` kkt'
    ):
        commands.reconstruct_file(weights=weights, method='ntk', device='cpu')
    line = mistake(cli('reconstruct', '--weights', weights, '--method', 'ntk', '--device', 'cpu'))
    assert line.startswith('samplesplit: --init=None: --init must be ') and 'use --method kkt' in line
    for command in commands.COMMANDS.values():
        with pytest.raises(TypeError, match='colour'):
            command(colour='red')


def evaluated(folder):
    "The rows, by name, of `samplesplit evaluate` on six faces, a process of its own"
    found = str(folder / 'reconstruction.npz')
    done = samplesplit('evaluate', '--reconstruction', found, '--data', 'faces', '-n', '6', '--json')
    assert done.returncode == 0, done.stderr
    return {r['name']: r for r in json.loads(done.stdout)['scores']}


def test_train_reconstruct_evaluate_from_files_alone(trained, tmp_path):
    "The whole way, each command a process of its own"
    words = attack(trained, '-k', '12', '--steps', '400', '--out', tmp_path)
    done = samplesplit(*map(str, words))
    assert done.returncode == 0, done.stderr
    assert '625 -> 60 -> 60 -> 1, biases in all layers' in done.stdout and 'step 100: split' in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'candidates.png',
        'reconstruction.json',
        'reconstruction.npz',
    ]
    rows = evaluated(tmp_path)
    control = rows.pop('control: reconstruction, unseen images')
    assert set(rows) == {'reconstruction', 'baseline: mean image', 'baseline: nearest other'}
    assert rows['reconstruction']['beat_nearest_other'] >= 5 and rows['reconstruction']['beat_both'] >= 4
    assert rows['reconstruction']['mean_l2'] < 0.7 * rows['baseline: nearest other']['mean_l2']
    assert (
        control['mean_l2'] > 1.4 * rows['reconstruction']['mean_l2']
    )  # negative control: faces that it never saw


def test_json_is_one_object_and_repeats_itself(trained, tmp_path, cli):
    records = []
    for name in 'ab':
        status, out, _ = cli(
            *attack(trained, '-k', '6', '--steps', '60', '--seed', '4', '--json', '--out', tmp_path / name)
        )
        assert status == 0
        record = json.loads(out)
        assert record == json.loads((tmp_path / name / 'reconstruction.json').read_text())
        record['history'].pop('seconds')
        records.append((record, dict(np.load(tmp_path / name / 'reconstruction.npz'))))
    (a, arrays), (b, same) = records
    assert a == b and all(np.array_equal(arrays[k], same[k]) for k in arrays)
    assert set(arrays) == {'x', 'lam', 'origins', 'shape', 'about'}
    assert len(arrays['x']) == a['candidates'] == len(arrays['origins'])
    assert [s['step'] for s in a['splits']] == [15, 30, 45] and a['history']['step'][-1] == 60
    status, out, _ = cli(
        *attack(trained, '-k', '6', '--steps', '60', '--no-split', '--json', '--out', tmp_path / 'plain')
    )
    assert json.loads(out)['splits'] == [] and json.loads(out)['candidates'] == 6


def test_a_checkpoint_resumes_and_refuses_another_run(trained, tmp_path, cli, monkeypatch):
    from samplesplit_nb import attacks, storage

    words = lambda out, *more: attack(trained, '-k', '6', '--steps', '80', '--out', out, *more)
    assert cli(*words(tmp_path / 'whole'))[0] == 0

    def at_every_step(path):
        return Checkpoint(path, every_steps=1, every_seconds=None)

    Checkpoint, save = storage.Checkpoint, storage.save_state
    monkeypatch.setattr(attacks, 'Checkpoint', at_every_step)

    def interrupted(path, state):
        save(path, state)
        if state['step'] == 50:
            raise KeyboardInterrupt

    monkeypatch.setattr(storage, 'save_state', interrupted)
    status, _, err = cli(*words(tmp_path / 'cut', '--checkpoint'))
    said = err.strip().splitlines()[-1]
    assert status == 130 and said.startswith('samplesplit: interrupted; what was found until step ')
    assert said.endswith('; the same command goes on from there')
    assert {'state.safetensors', 'reconstruction.npz'} <= {p.name for p in (tmp_path / 'cut').iterdir()}
    monkeypatch.setattr(storage, 'save_state', save)
    assert cli(*words(tmp_path / 'cut', '--checkpoint'))[0] == 0
    a, b = (np.load(tmp_path / name / 'reconstruction.npz') for name in ('whole', 'cut'))
    assert all(np.array_equal(a[k], b[k]) for k in a.files)
    mistake(cli(*words(tmp_path / 'cut', '--checkpoint', '--seed', '1')), 'checkpoint=', 'start')


def test_a_published_checkpoint_is_attacked_as_it_is(tmp_path, cli):
    "Binary KKT, 500 MNIST-sized inputs or not: keys, nesting and the bias pattern of the published code"
    import torch
    from samplesplit_nb.networks import MLP

    net = MLP([784, 30, 30, 1], bias='first', init='pytorch', dtype=torch.float64)
    torch.save({'batch': None, 'epoch': 9, 'state_dict': net.state_dict()}, tmp_path / 'weights.pth')
    status, out, _ = cli(
        'reconstruct',
        '--weights',
        tmp_path / 'weights.pth',
        '--preset',
        'haim-mnist-1',
        '-k',
        '8',
        '--steps',
        '40',
        '--json',
        '--device',
        'cpu',
        '--out',
        tmp_path,
    )
    record = json.loads(out)
    assert status == 0 and record['method'] == 'kkt' and record['network']['dtype'] == 'float64'
    assert record['network']['widths'] == [784, 30, 30, 1] and record['network']['bias'] == 'first'
    assert (record['settings']['lr'], record['settings']['lr_multipliers']) == (0.030524, 1e-4)
    arrays = np.load(tmp_path / 'reconstruction.npz')
    assert sorted(arrays['labels'][:8]) == [-1] * 4 + [1] * 4 and arrays['x'].shape[1] == 784


@pytest.mark.parametrize('preset', ['loo-ntk', 'buzaglo-multiclass'])
def test_the_other_presets_run(trained, tmp_path, cli, preset):
    from samplesplit_nb.networks import MLP
    from samplesplit_nb.weights import save_weights

    save_weights(tmp_path / 'ten.safetensors', MLP([20, 15, 10], bias='first', init='pytorch'))
    where = attack(trained)[1:5] if preset == 'loo-ntk' else ['--weights', tmp_path / 'ten.safetensors']
    status, out, err = cli(
        'reconstruct',
        *where,
        '--preset',
        preset,
        '-k',
        '20',
        '--steps',
        '8',
        '--json',
        '--device',
        'cpu',
        '--out',
        tmp_path,
    )
    assert status == 0 and json.loads(out)['preset'] == preset, err
    arrays = np.load(tmp_path / 'reconstruction.npz')
    if preset != 'loo-ntk':
        assert sorted(arrays['labels'][:20]) == sorted([*range(10)] * 2)


MODULE = '''
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = torch.nn.Conv2d(1, 4, 5, stride=5), torch.nn.Linear(100, 1)
    def forward(self, x): return self.out(torch.relu(self.conv(x)).flatten(1))
def small(): return Net()
def broken(): raise RuntimeError('no such size')
not_callable = 3
'''


def test_a_module_of_ones_own(tmp_path, cli, monkeypatch):
    import torch

    (tmp_path / 'own_net_for_test.py').write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    import importlib

    importlib.invalidate_caches()
    words = [
        'reconstruct',
        '--weights',
        'w.pt',
        '--method',
        'kkt',
        '-k',
        '4',
        '--steps',
        '8',
        '--device',
        'cpu',
        '--out',
        'o',
    ]
    own = ['--module', 'own_net_for_test:small']
    torch.save(torch.nn.Linear(2, 1).state_dict(), 'w.pt')
    mistake(cli(*words, *own, '--shape', '1', '25', '25'), '--weights=', 'conv.weight missing', '--module')
    import own_net_for_test

    torch.manual_seed(0)
    torch.save(own_net_for_test.small().state_dict(), 'w.pt')
    mistake(cli(*words), 'conv.weight (4, 1, 5, 5)', '--module pkg:factory')
    mistake(cli(*words, *own), '--shape=None')
    mistake(cli(*words, *own, '--shape', '1', '20', '20'), '--shape=(1, 20, 20)')
    for name, says in (
        ('own_net_for_test:absent', 'AttributeError'),
        ('own_net_for_test:broken', 'no such size'),
        ('own_net_for_test:not_callable', 'TypeError'),
        ('own_net_for_test', 'PKG:FACTORY'),
    ):
        mistake(cli(*words, '--module', name, '--shape', '1', '25', '25'), f'--module={name}', says)
    status, out, err = cli(*words, *own, '--shape', '1', '25', '25', '--data', 'faces', '-n', '4')
    assert status == 0 and 'network: Net; 205 parameters' in out, err
    status, out, _ = cli(
        'certify', '--weights', 'w.pt', *own, '--shape', '1', '25', '25', '--json', '--device', 'cpu'
    )
    assert (
        status == 0 and json.loads(out)['network']['homogeneous'] is None and 'margins' not in json.loads(out)
    )
    status, out, err = cli(
        'certify',
        '--weights',
        'w.pt',
        *own,
        '--shape',
        '1',
        '25',
        '25',
        '--data',
        'faces',
        '-n',
        '4',
        '--json',
        '--device',
        'cpu',
    )
    record = json.loads(out)
    from samplesplit_nb.data import load_data

    faces, net = load_data('faces', 4), own_net_for_test.small()
    net.load_state_dict(torch.load('w.pt', weights_only=True))
    X = faces.X.float().view(4, 1, 25, 25).requires_grad_(False)
    margins = faces.y.float() * net(X)[:, 0]
    assert abs(record['margins']['least'] - margins.min().item()) < 1e-6 and record['margins'][
        'right'
    ] == int((margins > 0).sum())
    grads = torch.stack(
        [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(m, list(net.parameters()), retain_graph=True)]
            )
            for m in margins
        ]
    ).double()
    theta = torch.cat([p.detach().flatten() for p in net.parameters()]).double()
    from scipy.optimize import nnls  # by hand: the distance of theta from the cone of the margins' gradients

    assert (
        abs(
            record['stationarity']['residual'] - nnls(grads.T.numpy(), theta.numpy())[1] / theta.norm().item()
        )
        < 1e-5
    )


def test_what_is_wrong_with_a_file(tmp_path, cli):
    import torch

    words = lambda name: [
        'reconstruct',
        '--weights',
        tmp_path / name,
        '--method',
        'kkt',
        '--device',
        'cpu',
        '--out',
        tmp_path / 'o',
    ]
    (tmp_path / 'text.pth').write_text('hello')
    (tmp_path / 'empty.pth').write_bytes(b'')
    torch.save({'theta': torch.zeros(3)}, tmp_path / 'keys.pth')
    torch.save({'0.weight': torch.tensor([[1.0, torch.nan]])}, tmp_path / 'nan.pth')
    for name, says in (
        ('absent.pth', 'not found'),
        ('text.pth', 'a checkpoint'),
        ('empty.pth', 'a checkpoint'),
        ('keys.pth', 'theta'),
        ('nan.pth', 'nan or inf in 0.weight'),
    ):
        for first in (words(name), ['certify', *words(name)[1:3]]):
            mistake(cli(*first), says)
    code = (
        "import os, pickle\nclass Evil:\n"
        f"    def __reduce__(self): return os.system, ('touch {tmp_path}/owned',)\n"
        f"open('{tmp_path}/evil.pt', 'wb').write(pickle.dumps(Evil()))"
    )
    exec(code, {})
    done = samplesplit(*map(str, words('evil.pt')))  # as a user would, to the last byte of stderr
    assert (
        done.returncode == 2
        and len(done.stderr.strip().splitlines()) == 1
        and not (tmp_path / 'owned').exists()
    )


def test_what_does_not_go_together(trained, tmp_path, cli):
    from samplesplit_nb.networks import MLP
    from samplesplit_nb.weights import save_weights

    save_weights(tmp_path / 'other.safetensors', MLP([625, 50, 50, 1]))
    save_weights(tmp_path / 'ten.safetensors', MLP([625, 20, 10], bias='first'))
    save_weights(tmp_path / 'short.safetensors', MLP([9, 5, 1]))
    own, here = ['--weights', trained / 'model.safetensors'], ['--device', 'cpu', '--out', tmp_path / 'o']
    for words, says in (
        ([*own, '--method', 'ntk'], '--init FILE'),
        ([*own, '--method', 'ntk', '--init', tmp_path / 'other.safetensors'], 'of the same shapes'),
        ([*own, '--method', 'ntk', '--init', 'nowhere.pt'], 'nowhere.pt not found'),
        ([*own, '--method', 'kkt', '--init', trained / 'init.safetensors'], 'use one of these'),
        ([*own, '--method', 'multiclass'], 'use --method kkt'),
        (['--weights', tmp_path / 'ten.safetensors', '--method', 'kkt'], 'use --method multiclass'),
        (
            ['--weights', tmp_path / 'short.safetensors', '--method', 'kkt', '--data', 'faces'],
            'of 9 numbers an image',
        ),
        ([*own, '--method', 'kkt', '--shape', '28', '28'], 'of 625 numbers'),
        ([*own, '--preset', 'nope'], '--preset='),
        ([*own], '--method=None'),
        ([*own, '--preset', 'haim-mnist-1', '--method', 'ntk'], 'choose another preset'),
        ([*own, '--preset', 'buzaglo-regression-1'], 'choose another preset'),
        ([*own, '--method', 'kkt', '-k', '0'], '-k=0'),
        ([*own, '--method', 'kkt', '--chunk-size', '0'], '--chunk-size=0'),
        ([*own, '--method', 'kkt', '--lr', 'nan'], '--lr=nan'),
        ([*own, '--method', 'kkt', '--steps', '-3'], '--steps=-3'),
        ([*own, '--method', 'kkt', '--device', 'cuda:99'], '--device auto'),
        ([*own, '--method', 'kkt', '--data', 'mnist'], 'SAMPLESPLIT_DATA'),
        ([*own, '--method', 'kkt', '--data', 'cats'], "one of"),
    ):
        mistake(cli('reconstruct', *words, *([] if '--device' in words else here[:2]), *here[2:]), says)
    mistake(cli('train', '--method', 'ntk', '--data', 'faces', '--steps', '5', *here), '--steps=5')
    mistake(cli('train', '--method', 'multiclass', '--data', 'mnist', *here), 'SAMPLESPLIT_DATA')
    mistake(cli('train', '--method', 'multiclass', '--data', 'faces', '-n', '1', *here), 'n=1')
    mistake(cli('train', '--method', 'kkt', '--data', 'faces', '--width', '0', *here), '--width=0')
    mistake(cli('certify', *own, '--degree', '3', '--device', 'cpu'), '--degree=3')
    (tmp_path / 'x.npz').write_text('no')
    np.savez(tmp_path / 'y.npz', z=np.eye(2))
    np.savez(tmp_path / 'z.npz', x=np.eye(2))
    for name, says in (
        ('w.npz', 'not found'),
        ('x.npz', 'an .npz file'),
        ('y.npz', 'an .npz file'),
        ('z.npz', 'of 2 numbers an image'),
    ):
        mistake(cli('evaluate', '--reconstruction', tmp_path / name, '--data', 'faces'), says)


def test_no_room_no_permission_no_memory(trained, tmp_path, cli, monkeypatch):
    import torch
    from samplesplit_nb import attacks

    short = attack(trained, '-k', '8', '--steps', '8')
    (tmp_path / 'file').write_text('precious')
    for out in ('file', 'file/below'):
        mistake(cli(*short, '--out', tmp_path / out), 'choose another')
    if os.path.isdir('/proc'):
        mistake(cli(*short, '--out', '/proc/samplesplit'), '/proc/samplesplit')

    def fails(error):
        def call(*_, **__):
            raise error

        return call

    for error in (OSError(28, 'No space left on device'), OSError(27, 'File too large')):
        with monkeypatch.context() as m:
            m.setattr(os, 'replace', fails(error))
            mistake(cli(*short, '--out', tmp_path / 'o'), 'no room left', '--out')
    assert not list((tmp_path / 'o').iterdir())
    for error in (
        torch.OutOfMemoryError('CUDA out of memory'),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        for chunk, says in (
            ([], '--chunk-size 4'),
            (['--chunk-size', '4'], '--chunk-size 2'),
            (['--chunk-size', '1'], '--device cpu'),
        ):
            with monkeypatch.context() as m:
                m.setattr(attacks, 'reconstruct', fails(error))
                mistake(cli(*short, *chunk, '--out', tmp_path / 'o'), 'out of memory', says)
    with monkeypatch.context() as m:  # a bug of ours is no mistake of the user's: it keeps its traceback
        m.setattr(attacks, 'reconstruct', fails(ZeroDivisionError()))
        with pytest.raises(ZeroDivisionError):
            cli(*short, '--out', tmp_path / 'o')


def test_a_full_disk_by_the_kernel(trained, tmp_path):
    "A limit on the size of files fails the write itself, in safetensors' own code"
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from samplesplit_nb.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); sys.exit(main())"
    )
    pytest.importorskip('resource')
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            code,
            'train',
            '--method',
            'ntk',
            '--data',
            'faces',
            '-n',
            '4',
            '--width',
            '30',
            '--device',
            'cpu',
            '--out',
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (
        done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and 'no room left' in done.stderr
    ), done.stderr
    assert not list(tmp_path.iterdir())


def test_a_module_with_colours_and_with_classes(tmp_path, cli, monkeypatch):
    "C H W inputs get the images turned round; labels beyond the outputs are refused"
    import torch
    from samplesplit_nb import given, data as source

    (tmp_path / 'own_colours.py').write_text(
        "import torch\ndef three(): return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8, stride=8), "
        "torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    images = torch.rand(12, 32, 32, 3, generator=torch.Generator().manual_seed(0)).double()
    three = source.ImageData(
        images.flatten(1), torch.arange(12) % 3, torch.zeros(3072).double(), (32, 32, 3), 'cifar10'
    )
    import own_colours

    net = own_colours.three()
    torch.save(net.state_dict(), 'w.pt')
    words = [
        'certify',
        '--weights',
        'w.pt',
        '--module',
        'own_colours:three',
        '--shape',
        '3',
        '32',
        '32',
        '--data',
        'cifar10',
        '-n',
        '12',
        '--json',
        '--device',
        'cpu',
    ]
    monkeypatch.setattr(given, 'unseen_images', lambda *_: None)
    monkeypatch.setattr(given, 'load_collection', lambda *_, **__: three)
    status, out, err = cli(*words)
    assert status == 0, err
    logits = net(images.permute(0, 3, 1, 2).float())
    assert json.loads(out)['margins']['right'] == int((logits.argmax(1) == three.y).sum())
    import dataclasses

    monkeypatch.setattr(
        given, 'load_collection', lambda *_, **__: dataclasses.replace(three, y=torch.arange(12) % 4)
    )
    mistake(cli(*words), 'at most 3 classes')


def test_two_classes_of_faces_stand_in_for_ten(tmp_path, cli):
    few = ['--data', 'faces', '-n', '6', '--device', 'cpu']
    status, out, err = cli(
        'train',
        '--method',
        'multiclass',
        *few,
        '--width',
        '30',
        '--steps',
        '100',
        '--json',
        '--out',
        tmp_path,
    )
    assert status == 0 and json.loads(out)['network']['widths'][-1] == 2, err
    own = ['--weights', tmp_path / 'model.safetensors']
    assert json.loads(cli('certify', *own, *few, '--json')[1])['margins']['right'] == 6
    status, out, err = cli(
        'reconstruct',
        *own,
        '--method',
        'multiclass',
        '-k',
        '6',
        '--steps',
        '8',
        *few,
        '--json',
        '--out',
        tmp_path,
    )
    assert (
        status == 0 and sorted(np.load(tmp_path / 'reconstruction.npz')['labels'][:6]) == [0] * 3 + [1] * 3
    ), err
    again = json.loads(
        cli('evaluate', '--reconstruction', tmp_path / 'reconstruction.npz', *few[:4], '--json')[1]
    )
    assert again['scores'] == json.loads(out)['scores'] and len(again['scores']) == 4


def test_a_diverged_run_keeps_what_it_had(trained, tmp_path, cli):
    status, _, err = cli(*attack(trained, '-k', '6', '--steps', '40', '--lr', '1e30', '--out', tmp_path))
    assert (
        status == 3 and 'smaller --lr (now 1e+30)' in err.strip().splitlines()[-1] and 'Traceback' not in err
    )
    assert np.isfinite(np.load(tmp_path / 'reconstruction.npz')['x']).all()
    assert 'diverged' in json.loads((tmp_path / 'reconstruction.json').read_text())['result']


def test_chunks_give_the_same_answer(trained, tmp_path, cli):
    found = []
    for name, chunk in (('all', []), ('three', ['--chunk-size', '3'])):
        assert (
            cli(*attack(trained, '-k', '8', '--steps', '12', '--no-split', *chunk, '--out', tmp_path / name))[
                0
            ]
            == 0
        )
        found.append(np.load(tmp_path / name / 'reconstruction.npz')['x'])
    np.testing.assert_allclose(*found, atol=1e-3)


def test_kkt_from_training_to_certificate(tmp_path, cli):
    status, out, err = cli(
        'train',
        '--method',
        'kkt',
        '--data',
        'faces',
        '-n',
        '6',
        '--width',
        '60',
        '--steps',
        '200',
        '--json',
        '--device',
        'cpu',
        '--out',
        tmp_path,
    )
    certificate = json.loads(out)['certificate']
    assert 'train: 100%' in err and '200/200' in err
    assert status == 0 and json.loads(out) == json.loads((tmp_path / 'training.json').read_text())
    own = ['--weights', tmp_path / 'model.safetensors']
    status, out, _ = cli('certify', *own, '--data', 'faces', '-n', '6', '--json', '--device', 'cpu')
    record = json.loads(out)
    assert status == 0 and record['network']['homogeneous'] and record['margins']['right'] == 6
    assert (
        abs(record['margins']['least'] - 1) < 1e-4
        and abs(record['stationarity']['residual'] - certificate['stationarity']) < 1e-4
    )
    assert (
        record['counting']['unknowns'] == 6 * 626
        and record['counting']['equations'] == 625 * 60 + 60 + 60 * 60 + 60
    )
    status, out, _ = cli(
        'certify', *own, '--data', 'faces', '-n', '6', '--data-seed', '1', '--json', '--device', 'cpu'
    )
    assert (
        json.loads(out)['stationarity']['residual'] > 1.5 * certificate['stationarity']
    )  # negative control: other faces
    status, out, _ = cli(
        'reconstruct',
        *own,
        '--method',
        'kkt',
        '-k',
        '12',
        '--steps',
        '20',
        '--device',
        'cpu',
        '--out',
        tmp_path,
    )
    assert (
        status == 0
        and 'half' not in out
        and sorted(np.load(tmp_path / 'reconstruction.npz')['labels'][:12]) == [-1] * 6 + [1] * 6
    )


# the step between two checkpoints


def invert(folder, *words):
    return [
        'invert',
        '--weights',
        folder / 'model.safetensors',
        '--init',
        folder / 'init.safetensors',
        '--device',
        'cpu',
        *words,
    ]


def a_step(tmp_path, widths, y, dtype=None, **of_the_network):
    "Files of a network before and after one gradient step on faces, and the faces"
    import torch
    from samplesplit_nb.data import load_data
    from samplesplit_nb.networks import MLP
    from samplesplit_nb.weights import save_weights

    net = MLP(widths, dtype=dtype or torch.float64, **of_the_network)
    X = load_data('faces', len(y), mean='collection').X
    save_weights(tmp_path / 'init.safetensors', net)
    out = net(X.to(next(net.parameters())))
    loss = (
        torch.nn.functional.softplus(-y * out[:, 0]).mean()
        if out.shape[1] == 1
        else torch.nn.functional.cross_entropy(out, y)
    )
    loss.backward()
    with torch.no_grad():
        for p in net.parameters():
            p -= p.grad
    save_weights(tmp_path / 'model.safetensors', net)
    return X


def test_inversion_reads_the_samples_off_linearised_training(trained, tmp_path):
    "A process of its own; the samples without data, then scored by another command"
    done = samplesplit(*map(str, invert(trained, '--out', tmp_path)))
    assert done.returncode == 0 and done.stderr == '', done.stderr
    for text in (
        '625 -> 60 -> 60 -> 1, biases in all layers',
        'result: all 6 samples: they explain',
        '6 found, 6 counted',
        'ReLU, assumed',
    ):
        assert text in done.stdout
    assert max(map(len, done.stdout.replace(str(tmp_path), '').splitlines())) <= 100
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'candidates.png',
        'reconstruction.json',
        'reconstruction.npz',
    ]
    rows = evaluated(tmp_path)
    assert rows['reconstruction']['beat_both'] == 6 and max(rows['reconstruction']['l2']) <= 1e-3
    assert rows['control: reconstruction, unseen images']['mean_l2'] > 1


def test_inversion_as_json_repeats_itself(trained, tmp_path, cli):
    records = []
    for name in 'ab':
        status, out, err = cli(
            *invert(
                trained,
                '--seed',
                '4',
                '--rounds',
                '9',
                '--samples',
                '6',
                '--directions',
                '6',
                '--data',
                'faces',
                '-n',
                '6',
                '--json',
                '--out',
                tmp_path / name,
            )
        )
        assert status == 0 and err == '', err
        record = json.loads(out)
        assert (
            record == json.loads((tmp_path / name / 'reconstruction.json').read_text())
            and 0 <= record.pop('seconds') < 60
        )
        records.append((record, dict(np.load(tmp_path / name / 'reconstruction.npz'))))
    (a, arrays), (b, same) = records
    assert (
        a == b
        and arrays.keys() == same.keys() == {'x', 'lam', 'distance', 'shape', 'about', 'mean', 'std'}
        and all(np.array_equal(arrays[k], same[k]) for k in arrays)
    )
    assert set(a) == {
        'command',
        'weights',
        'init',
        'network',
        'seed',
        'settings',
        'sentence',
        'found',
        'counted',
        'complete',
        'remainder',
        'decay',
        'notes',
        'data',
        'fit',
        'preprocessing',
        'scores',
    }
    assert a['settings'] == dict(samples=6, directions=6, rounds=9, activation='relu') and (
        a['seed'],
        a['command'],
        a['network']['widths'],
    ) == (4, 'invert', [625, 60, 60, 1])
    assert (
        a['complete']
        and (a['found'], a['counted']) == (6, 6)
        and 0 < a['remainder'] < 1e-5
        and a['sentence'].startswith('all 6 samples')
    )
    assert (
        arrays['x'].shape == (6, 625)
        and arrays['lam'].shape == arrays['distance'].shape == (6,)
        and tuple(arrays['shape']) == (25, 25)
    )
    assert (
        (tmp_path / 'a' / 'reconstructions.png').read_bytes()[:4]
        == (tmp_path / 'a' / 'candidates.png').read_bytes()[:4]
        == b'\x89PNG'
    )


def test_inversion_of_one_step_has_the_labels_too(tmp_path, cli):
    """Two classes: the sign of the multiplier. Three: the output that the step raises.

    First biases only, and more layers"""
    import torch

    for name, y, of in (
        ('two', torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1]), dict(widths=[625, 70, 60, 1])),
        ('three', torch.arange(8) % 3, dict(widths=[625, 80, 70, 60, 3], bias='first', seed=2)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        X = a_step(folder, of.pop('widths'), y, **of)
        status, out, err = cli(*invert(folder, '--json', '--out', folder))
        assert status == 0 and json.loads(out)['complete'], err
        arrays = np.load(folder / 'reconstruction.npz')
        place = np.linalg.norm(X.numpy()[:, None] - arrays['x'][None], axis=2)
        assert place.min(1).max() < 1e-6 and sorted(place.argmin(1)) == [*range(8)]
        if name == 'two':
            assert (np.sign(arrays['lam'][place.argmin(1)]) == y.numpy()).all()
        else:
            assert (
                arrays['lam'].shape == (8, 3)
                and (arrays['labels'][place.argmin(1)] == y.numpy()).all()
                and arrays['labels'].dtype.kind == 'i'
            )


def test_inversion_from_other_weights_finds_nothing(trained, tmp_path, cli):
    from samplesplit_nb.networks import MLP
    from samplesplit_nb.weights import save_weights

    save_weights(tmp_path / 'other.safetensors', MLP([625, 60, 60, 1], seed=1))
    words = [
        'invert',
        '--weights',
        trained / 'model.safetensors',
        '--init',
        tmp_path / 'other.safetensors',
        '--device',
        'cpu',
        '--out',
        tmp_path / 'o',
    ]
    assert 'check that --init is this network before training' in mistake(
        cli(*words), '--init=<no samples to be counted', 'nothing in common'
    )
    status, out, err = cli(*words, '--samples', '6', '--data', 'faces', '-n', '6', '--json')
    record = json.loads(out)
    assert (
        status == 0
        and (record['found'], record['counted'], record['complete']) == (0, 6, False)
        and record['remainder'] > 0.9
        and 'scores' not in record
    ), err
    assert sorted(p.name for p in (tmp_path / 'o').iterdir()) == [
        'reconstruction.json',
        'reconstruction.npz',
    ]  # nothing to draw
    mistake(
        cli(
            'evaluate',
            '--reconstruction',
            tmp_path / 'o' / 'reconstruction.npz',
            '--data',
            'faces',
            '-n',
            '6',
        ),
        'k at least 1',
    )


def test_inversion_with_an_activation_of_ones_own(tmp_path, cli, monkeypatch):
    "A module that makes a perceptron of this package, or any chain of dense layers"
    import torch
    from samplesplit_nb.networks import Polynomial

    (tmp_path / 'own_cubic.py').write_text(
        'import torch\nfrom samplesplit_nb.networks import MLP, Polynomial\n'
        'def make(): return MLP([625, 80, 80, 1], Polynomial((0., 1., .5)))\n'
        'def other(): return torch.nn.Sequential(*make().layers)\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    X = a_step(
        tmp_path,
        [625, 80, 80, 1],
        torch.tensor([1.0, 1, 1, -1, -1, -1]),
        activation=Polynomial((0.0, 1.0, 0.5)),
    )
    status, out, err = cli(*invert(tmp_path, '--module', 'own_cubic:make', '--out', tmp_path))
    assert (
        status == 0
        and 'result: all 6 samples' in out
        and 'assumed' not in out
        and (tmp_path / 'candidates.png').exists()
    ), err
    x = np.load(tmp_path / 'reconstruction.npz')['x']
    assert np.linalg.norm(X.numpy()[:, None] - x[None], axis=2).min(1).max() < 1e-5
    assert (
        'all 6' not in cli(*invert(tmp_path, '--samples', '6', '--out', tmp_path / 'relu'))[1]
    )  # negative control: not a ReLU network
    from samplesplit_nb.weights import load_weights

    for name in ('init', 'model'):
        torch.save(
            {k.removeprefix('layers.'): v for k, v in load_weights(tmp_path / f'{name}.safetensors').items()},
            tmp_path / f'{name}.pt',
        )
    # dense layers with nothing between them: a linear network, which shows one mean
    words = 'invert --weights model.pt --init init.pt --module own_cubic:other --device cpu --json --out o'
    status, out, err = cli(*words.split())
    assert status == 0 and json.loads(out)['settings']['activation'] == 'identity', err


def test_what_cannot_be_inverted(trained, tmp_path, cli):
    from samplesplit_nb.networks import MLP
    from samplesplit_nb.weights import save_weights

    for name, widths, bias in (
        ('thin', [625, 20, 1], 'first'),
        ('bare', [625, 60, 60, 1], 'none'),
        ('narrow', [625, 50, 50, 1], 'all'),
    ):
        for seed in (0, 1):
            save_weights(tmp_path / f'{name}{seed}.safetensors', MLP(widths, bias=bias, seed=seed))
    own = lambda name: [tmp_path / f'{name}1.safetensors', '--init', tmp_path / f'{name}0.safetensors']
    after, both = (
        trained / 'model.safetensors',
        [trained / 'model.safetensors', '--init', trained / 'init.safetensors'],
    )
    (tmp_path / 'file').write_text('precious')
    for words, says in (
        ([after], ('--init=None', 'the weights before training', 'needs none')),
        ([after, '--init', 'nowhere.pt'], ('nowhere.pt not found',)),
        (['nowhere.pt', '--init', after], ('nowhere.pt not found',)),
        ([after, '--init', tmp_path / 'narrow0.safetensors'], ('of the same shapes',)),
        ([after, '--init', tmp_path / 'bare0.safetensors'], ('of the same shapes',)),
        ([after, '--init', after], ('gradient=<all zero>',)),
        (own('bare'), ("bias='none'", 'add a first bias')),
        ([*both, '--directions', '60'], ('--directions=60', 'fewer directions')),
        ([*both, '--samples', '0'], ('--samples=0',)),
        ([*both, '--directions', '-1'], ('--directions=-1',)),
        ([*both, '--rounds', '0'], ('--rounds=0',)),
        ([*both, '--shape', '28', '28'], ('of 625 numbers',)),
        ([*both, '--device', 'abacus'], ('device=abacus',)),
        ([*both, '--data', 'mnist'], ('SAMPLESPLIT_DATA',)),
        ([*both, '--out', tmp_path / 'file'], ('choose another',)),
    ):
        mistake(
            cli(
                'invert',
                '--weights',
                *words,
                *([] if '--device' in words else ['--device', 'cpu']),
                *([] if '--out' in words else ['--out', tmp_path / 'o']),
            ),
            *says,
        )
    assert cli('invert')[0] == cli('invert', '--weights', *both, '--samples', 'few')[0] == 2
    assert (tmp_path / 'file').read_text() == 'precious' and not list((tmp_path / 'o').iterdir())


def test_inversion_without_memory_or_room(trained, tmp_path, cli, monkeypatch):
    from samplesplit_nb import attacks

    def fails(error):
        def call(*_, **__):
            raise error

        return call

    with monkeypatch.context() as m:
        m.setattr(attacks, 'invert_step', fails(MemoryError()))
        mistake(cli(*invert(trained, '--out', tmp_path / 'o')), 'out of memory; use --device cpu')
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', fails(OSError(28, 'No space left on device')))
        mistake(cli(*invert(trained, '--out', tmp_path / 'o')), 'no room left', '--out')
    assert not list((tmp_path / 'o').iterdir())


# the paper's experiments, at scale smoke


def smoke(folder):
    return ['--scale', 'smoke', '--results', folder / 'results', '--cache', folder / 'cache']


def test_a_figure_from_nothing_then_from_its_files(tmp_path):
    "Each a process of its own"
    words = list(
        map(str, ['figure', '1', *smoke(tmp_path), '--out', tmp_path / 'figures', '--device', 'cpu'])
    )
    done = samplesplit(*words)
    assert done.returncode == 0, done.stderr
    assert (
        'the paper: most of the top 25 improve (21 of 25 = 0.84 (both))' in done.stdout
        and 'figure01/cifar10' in done.stdout
    )
    assert 'plain: 100%' in done.stderr and 'split: 100%' in done.stderr
    picture = (tmp_path / 'figures' / 'figure01-smoke.png').read_bytes()
    assert picture[:4] == b'\x89PNG'
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'results').rglob('*')}
    assert sorted(p.name for p in before if p.is_file()) == [
        'cifar10-seed0.json',
        'cifar10-seed0.npz',
        'mnist-seed0.json',
        'mnist-seed0.npz',
    ]
    done = samplesplit(*words, '--no-run')
    assert done.returncode == 0 and done.stderr == '' and 'Running' not in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / 'results').rglob('*')}
    assert (tmp_path / 'figures' / 'figure01-smoke.png').read_bytes() == picture


def test_a_figure_as_json(tmp_path, cli):
    words = ['figure', '3', *smoke(tmp_path), '--out', tmp_path, '--json', '--device', 'cpu']
    status, out, err = cli(*words)
    assert status == 0, err
    found = json.loads(out)
    assert (found['command'], found['figure'], found['scale'], Path(found['path'])) == (
        'figure',
        3,
        'smoke',
        tmp_path / 'figure03-smoke.png',
    )
    made = [r for r in found['findings'] if 'seeds' in r]
    assert len(made) == 6 and {r['figure'] for r in found['findings']} == {3}
    # what the picture does not show is not run for it, and is said to be missing
    assert [r['panel'] for r in found['findings'] if r not in made] == 2 * [
        'long-kkt/mnist-1n',
        'long-kkt/mnist-2n',
    ]
    for row in made:
        assert (
            row['seeds'] == 1
            and len(row['ours']) == 3
            and row['ours'][1:] == [None, None]  # one seed has no interval, and no verdict
            and (row['reproduced'], row['why']) == ('open', '1 of 5 seeds')
        )
    status, out, err = cli(*words, '--no-run')
    assert (status, json.loads(out), err) == (0, found, '')


def test_a_study_with_its_controls(tmp_path, cli):
    status, out, err = cli('experiment', 'controls', *smoke(tmp_path), '--device', 'cpu')
    assert status == 0, err
    for words in (
        'half, L2: without splitting',
        'few, L2: with splitting',
        'half, L2: random direction',
        'half, L2: plain, equal seconds',
    ):
        assert words in out
    assert (
        f"2 files in {tmp_path / 'results' / 'controls' / 'smoke'}" in out
        and max(map(len, out.splitlines()[:-1])) <= 100
    )
    status, out, err = cli('experiment', 'controls', *smoke(tmp_path), '--no-run', '--json')
    found = json.loads(out)
    assert status == 0 and err == '' and [e['label'] for e in found['experiments']] == ['half', 'few']
    saved = json.loads(Path(found['files'][0]).read_text())['runs']
    for name, run in found['experiments'][0]['runs'].items():
        scores, plain = (np.array(saved[n]['scores']['L2']) for n in (name, 'plain'))
        assert abs(run['means'][0] - scores.mean()) < 1e-9
        if name != 'plain':
            assert abs(run['mean'] - (plain - scores).mean()) < 1e-6
            assert run['low'] is None and run['high'] is None  # one seed has no interval
    one = json.loads(cli('experiment', 'figure11', *smoke(tmp_path), '--json', '--device', 'cpu')[1])
    assert len(one['files']) == 4 and all(Path(f).with_suffix('.npz').exists() for f in one['files'])


def test_the_device_asked_for_is_the_one_that_runs(tmp_path, cli, monkeypatch):
    from samplesplit_nb import problems

    seen, pick = [], problems.pick_device
    monkeypatch.setattr(problems, 'pick_device', lambda name: seen.append(name) or pick('cpu'))
    assert cli('experiment', 'figure09', *smoke(tmp_path), '--device', 'cuda:7')[0] == 0
    assert cli('figure', '9', *smoke(tmp_path), '--device', 'cuda:8', '--out', tmp_path)[0] == 0
    assert seen == ['cuda:7', 'cuda:8']  # figure 9 shows one experiment more than figure09 holds
    monkeypatch.setattr(problems, 'pick_device', pick)
    assert (
        cli('experiment', 'figure09', *smoke(tmp_path), '--device', 'cuda:99')[0] == 0
    )  # nothing to compute
    for words in (['figure', '3', '--out', tmp_path], ['experiment', 'figure03']):
        mistake(cli(*words, *smoke(tmp_path), '--device', 'cuda:99'), 'device=cuda:99', '--device auto')


def test_a_killed_study_goes_on(tmp_path, cli, monkeypatch):
    from samplesplit_nb import runs
    from samplesplit_nb.records import Record

    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    assert cli('experiment', 'figure03', *smoke(whole), '--device', 'cpu')[0] == 0
    attack = runs.attack

    def interrupted(problem, name, *more, **kw):
        if name == 'split' and problem.experiment.k == 18:
            raise KeyboardInterrupt
        return attack(problem, name, *more, **kw)

    monkeypatch.setattr(runs, 'attack', interrupted)
    status, _, err = cli('experiment', 'figure03', *smoke(cut), '--device', 'cpu')
    assert (
        status == 130
        and err.strip().splitlines()[-1] == 'samplesplit: interrupted; the same command goes on from there'
    )
    assert [p.name for p in (cut / 'results').rglob('*.json')] == ['mnist-1n-seed0.json']
    monkeypatch.setattr(runs, 'attack', attack)
    assert cli('experiment', 'figure03', *smoke(cut), '--device', 'cpu')[0] == 0
    for name in ('mnist-1n-seed0.json', 'mnist-3n-seed0.json'):
        a, b = (Record.load(f / 'results' / 'figure03' / 'smoke' / name).data for f in (whole, cut))
        for record in (a, b):
            for run in record['runs'].values():
                run.pop('timing')
        assert a == b


def test_mistakes_about_figures_and_studies(tmp_path, cli, monkeypatch):
    import torch
    from samplesplit_nb import runs

    (tmp_path / 'file').write_text('precious')
    own, out = smoke(tmp_path), ['--out', tmp_path / 'figures']
    for words, says in (
        (['figure', '0', *own], ('figure=0', '1 to 14')),
        (['figure', '15', *own], ('figure=15',)),
        (['figure', '3', *own, '--scale', 'huge'], ("scale='huge'", 'smoke')),
        (['experiment', 'figure02', *own], ("study='figure02'", 'figure01')),
        (['experiment', 'controls', *own, '--scale', 'paper'], ("scale='paper'", "'small'")),
        (['figure', '1', *own, '--no-run'], ('cifar10-seed0.json is missing', 'samplesplit experiment')),
        (
            ['experiment', 'controls', *own, '--no-run'],
            ('half-seed0.json is missing', 'samplesplit experiment'),
        ),
    ):
        mistake(cli(*words, *(out if words[0] == 'figure' else [])), *says)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['file']  # a mistake leaves nothing behind
    for words, says in (
        (['figure', '1', '--scale', 'small'], 'SAMPLESPLIT_DATA'),
        (['experiment', 'figure01', '--scale', 'paper'], 'mnist.npz'),
    ):
        monkeypatch.setenv('SAMPLESPLIT_DATA', str(tmp_path))
        mistake(
            cli(*words, *own[2:], '--device', 'cpu', *(out if words[0] == 'figure' else [])),
            says,
            'not found: put',
            'SAMPLESPLIT_DATA',
        )
    for words in (
        ['figure', '3', *own, '--out', tmp_path / 'file'],
        ['figure', '3', *own, *out, '--results', tmp_path / 'file'],
        ['figure', '3', *own, *out, '--cache', tmp_path / 'file'],
        ['experiment', 'figure03', *own, '--results', tmp_path / 'file' / 'below'],
        ['experiment', 'figure03', *own, '--cache', tmp_path / 'file'],
    ):
        mistake(cli(*words, '--device', 'cpu'), 'file', 'choose another')
    if os.path.isdir('/proc'):
        for option in ('--results', '--cache'):
            mistake(
                cli('experiment', 'figure03', *own, option, '/proc/samplesplit', '--device', 'cpu'),
                '/proc/samplesplit',
            )
    assert (tmp_path / 'file').read_text() == 'precious' and not list((tmp_path / 'results').rglob('*.json'))

    def fails(error):
        def call(*_, **__):
            raise error

        return call

    for words in (['figure', '3', *own, *out], ['experiment', 'figure03', *own]):
        words = [*words, '--device', 'cpu']
        with monkeypatch.context() as m:
            m.setattr(os, 'replace', fails(OSError(28, 'No space left on device')))
            mistake(cli(*words), 'no room left', '--results', '--cache')
        for error in (torch.OutOfMemoryError('CUDA out of memory'), MemoryError()):
            with monkeypatch.context() as m:
                m.setattr(runs, 'attack', fails(error))
                mistake(cli(*words), 'out of memory', '--device cpu', '--scale')
    for words in (['figure'], ['figure', 'one'], ['experiment'], ['figure', '1', '--scales', 'smoke']):
        assert cli(*words)[0] == 2


def test_each_study_has_a_line_of_help(cli):
    from samplesplit_nb.studies import STUDIES

    status, out, _ = cli('experiment', '--help')
    assert status == 0
    for name in STUDIES:
        assert f'\n  {name} ' in out
