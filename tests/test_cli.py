"The command line, run as a user runs it"
import json, os, subprocess, sys
from pathlib import Path
import numpy as np
import pytest

SMALL = ['--n', '4', '--k', '2', '--width', '20', '--steps', '60', '--splits', '2', '--device', 'cpu']


def samplesplit(*words, **kw):
    command = [sys.executable, '-c', 'import sys; from samplesplit_nb.cli import main; sys.exit(main())', *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **kw)


def test_the_installed_command_explains_itself():
    script = Path(sys.executable).with_name('samplesplit')
    top, demo = (subprocess.run([script, *words, '--help'], capture_output=True, text=True, timeout=60) for words in ([], ['demo']))
    assert top.returncode == demo.returncode == 0 and 'demo' in top.stdout
    for option in ('--n', '--k', '--width', '--steps', '--splits', '--seed', '--device', '--out', '--controls'): assert option in demo.stdout
    assert 'default 4000' in ' '.join(demo.stdout.split())


def test_demo_writes_everything_and_repeats_itself(tmp_path):
    results = []
    for name in ('a', 'b'):
        done = samplesplit('demo', *SMALL, '--seed', '3', '--out', str(tmp_path/name))
        assert done.returncode == 0, done.stderr
        assert 'baseline: nearest other' in done.stdout
        assert sorted(p.name for p in (tmp_path/name).iterdir()) == ['loss.png', 'metrics.json', 'reconstruction.npz', 'reconstructions.png']
        results.append((json.loads((tmp_path/name/'metrics.json').read_text()), dict(np.load(tmp_path/name/'reconstruction.npz'))))
    (a, arrays), (b, same) = results
    for r in (a, b):
        for row in r['table']: row.pop('seconds', None)
        for run in r['runs'].values(): run['curve'].pop('seconds')
    assert a == b
    for key in arrays: assert np.array_equal(arrays[key], same[key]), key
    assert a['config']['seed'] == 3 and a['environment']['torch'] and len(a['runs']['split']['splits']) == 2
    assert arrays['x_plain'].shape == (2, 625) and arrays['X'].shape == (4, 625) and len(arrays['x_split']) == len(arrays['lam_split']) >= 2


def test_controls_split_as_often_as_the_run_they_explain(tmp_path):
    done = samplesplit('demo', *SMALL, '--k', '4', '--controls', '--out', str(tmp_path))
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path/'metrics.json').read_text())['runs']
    counts = [s['split'] for s in runs['split']['splits']]
    for name in ('random direction', 'random choice', 'random both'): assert [s['split'] for s in runs[name]['splits']] == counts
    assert {'plain, final k at start', 'plain, k = n', 'plain, k = 2n', 'plain, one lr cycle', 'plain, equal seconds'} <= set(runs)


@pytest.mark.parametrize('words,says', [(['--k', '0'], 'k=0'), (['--n', '201'], 'n=201'), (['--width', '0'], 'width=0'), (['--steps', '3'], 'splits=3'), (['--splits', '-1'], 'splits=-1'),
                                        (['--device', 'abacus'], 'device=abacus'), (['--device', 'cuda:99'], 'device=cuda:99')])
def test_mistakes_are_one_line_with_a_remedy(words, says, tmp_path):
    done = samplesplit('demo', *words, '--out', str(tmp_path/'o'))
    assert done.returncode == 2 and says in done.stderr and done.stderr.startswith('samplesplit: ')
    assert len(done.stderr.strip().splitlines()) == 1 and 'Traceback' not in done.stderr


def test_an_output_that_cannot_be_a_folder_is_refused_before_the_work(tmp_path):
    (tmp_path/'file').write_text('precious')
    for out in ('file', 'file/below'):
        done = samplesplit('demo', '--out', str(tmp_path/out))
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and 'Training' not in done.stdout
    assert (tmp_path/'file').read_text() == 'precious'


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    assert samplesplit('demo', '--out', str(tmp_path/'o')).returncode == 2


def test_no_command_and_a_wrong_option_say_what_there_is():
    for words in ([], ['demo', '--colour', 'red'], ['dance']):
        done = samplesplit(*words)
        assert done.returncode == 2 and 'usage:' in done.stderr and 'Traceback' not in done.stderr


def test_a_terminal_sees_progress_with_loss_candidates_and_time_left(tmp_path):
    pty, fcntl, termios = (pytest.importorskip(m) for m in ('pty', 'fcntl', 'termios'))
    import struct
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 130, 0, 0))
    command = [sys.executable, '-c', 'import sys; from samplesplit_nb.cli import main; sys.exit(main())', 'demo', *SMALL, '--out', str(tmp_path)]
    with subprocess.Popen(command, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal) as process:
        os.close(terminal)
        seen = b''
        while True:
            try: chunk = os.read(main, 4096)
            except OSError: break  # the other side has closed
            if not chunk: break
            seen += chunk
        process.stdout.read()
    os.close(main)
    assert process.returncode == 0
    last = seen.decode().replace('\r', '\n').strip().split('\n')[-1]
    assert 'split: 100%' in last and '60/60' in last and '<00:00' in last and 'k=' in last and 'loss=' in last
