"""Own files: a flipped bit is noticed, a kill leaves nothing behind, two processes share a folder

The processes are forked by one server, so that torch is imported once."""

import errno, json, os, random, subprocess, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest, torch
from samplesplit_nb import problems, runs, storage
from samplesplit_nb.cli import main
from samplesplit_nb.descent import Descent, ReconstructionError, Running
from samplesplit_nb.objectives import NTKObjective
from samplesplit_nb.networks import MLP
from samplesplit_nb.records import Record
from samplesplit_nb.runs import DamagedResult, Evaluations, MissingResult, load_or_run
from samplesplit_nb.search import random_search
from samplesplit_nb.settings import Experiment
from samplesplit_nb.splitting import reconstruct
from samplesplit_nb.storage import Checkpoint, Damaged, atomic_path, load_arrays, load_json, load_state
from samplesplit_nb.storage import locked, save_arrays, save_json, save_state, sweep
from samplesplit_nb.studies import get_study
from samplesplit_nb.weights import save_weights

TINY = Experiment(n=4, k=4, width=10, steps=12, splits=1, evaluations=3, device='cpu', num_matvecs=3)
RESULTS = Path(__file__).parent.parent / 'results'
inside = lambda folder: sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A record with its images, the cached network, and the state of a run; copied, never changed"
    folder = tmp_path_factory.mktemp('made')
    record = load_or_run(TINY, folder / 'r.json', images=True, cache=folder / 'cache')
    (network,) = (folder / 'cache').glob('training-*')
    problem = problems.prepare(TINY, folder / 'cache')
    runs.attack(problem, 'plain', folder=folder / 'states')
    trials = folder / 'trials.json'
    random_search(TINY, dict(lr=(1e-3, 1e-2)), 1, path=trials)
    return dict(
        record=folder / 'r.json',
        images=folder / 'r.npz',
        network=network,
        state=folder / 'states/plain.safetensors',
        scores=folder / 'states/plain-scores.json',
        trials=trials,
        known=record,
    )


READERS = dict(
    record=Record.load,
    images=lambda path: load_arrays(path, sealed=True),
    network=load_state,
    state=load_state,
    scores=lambda path: load_json(path, sealed=True),
    trials=lambda path: load_json(path, sealed=True),
)


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize('kind', READERS)
def test_sixty_flipped_bits_are_all_noticed(made, tmp_path, kind):
    "Anywhere in the file: header, numbers, white space, the digest itself"
    whole, path, draw = made[kind].read_bytes(), tmp_path / made[kind].name, random.Random(kind)
    path.write_bytes(whole)
    READERS[kind](path)
    for bit in [*draw.sample(range(8 * len(whole)), 60), 0, 8 * len(whole) - 1]:
        path.write_bytes(whole)
        flip(path, bit)
        with pytest.raises(ValueError) as refused:
            READERS[kind](path)
        assert str(path) in str(refused.value), bit
        assert '\n' not in str(refused.value)


@pytest.mark.parametrize('kind', READERS)
def test_a_cut_or_lengthened_file_is_noticed(made, tmp_path, kind):
    whole, path = made[kind].read_bytes(), tmp_path / made[kind].name
    for data in (b'', whole[: len(whole) // 2], whole[:-2], whole + b'0', whole[1:]):
        path.write_bytes(data)
        with pytest.raises(ValueError):
            READERS[kind](path)


def test_a_file_whose_digest_was_taken_away_is_refused(made, tmp_path):
    "Else a change by hand would only have to delete a line"
    for kind in ('record', 'scores', 'trials'):
        path = tmp_path / f'{kind}.json'
        data = json.loads(made[kind].read_text())
        assert list(data)[-1] == 'digest of all above'
        del data['digest of all above']
        path.write_text(json.dumps(data))
        with pytest.raises(Damaged, match='has no digest'):
            READERS[kind](path)
    np.savez_compressed(tmp_path / 'r.npz', **np.load(made['images']))
    with pytest.raises(ValueError, match='has no digest'):
        load_arrays(tmp_path / 'r.npz', sealed=True)
    assert load_arrays(tmp_path / 'r.npz')  # somebody else's, where that is allowed
    bare = tmp_path / 'n.safetensors'
    bare.write_bytes(made['network'].read_bytes().replace(b'"checksum"', b'"checksun"'))
    with pytest.raises(Damaged, match='no checksum'):
        load_state(bare)
    mine = tmp_path / 'record.json'
    Record.load(mine, sealed=False).save(mine)  # vouched for, and sealed
    assert Record.load(mine) == made['known']


def test_layout_does_not_count_but_anything_else_does(made, tmp_path):
    path, text = tmp_path / 'r.json', made['record'].read_text()
    data = json.loads(text)
    for indent in (None, 0, 7):
        path.write_text(json.dumps(data, indent=indent).replace('[', '[ \r\n\t'))
        assert Record.load(path) == made['known']
    scores = made['known'].data['runs']['plain']['scores']['L2'][0]
    first = next(iter(data))
    for other in (
        text.replace(str(scores), str(scores - 1), 1),
        text.replace('"plain"', '"plane"', 1),
        json.dumps({k: data[k] for k in sorted(data, reverse=True)}),  # the digest not at the end
        json.dumps({first: data[first], 'digest of all above': data['digest of all above']}),
    ):
        path.write_text(other)
        with pytest.raises(ValueError, match='changed after it was saved|file of a record'):
            Record.load(path)


@pytest.mark.parametrize(
    'value',
    [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, 2**70, 'é\u2028"\\', [], {}, [[None, True]], 1e22],
    ids=str,
)
def test_json_comes_back_bit_by_bit(tmp_path, value):
    save_json(tmp_path / 'v.json', dict(value=value), sealed=True)
    back = load_json(tmp_path / 'v.json', sealed=True)
    assert repr(back) == repr(dict(value=value))


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')], ids=str)
def test_no_number_that_is_none_is_written_or_read(tmp_path, bad):
    path = tmp_path / 'v.json'
    save_json(path, dict(a=1), sealed=True)
    with pytest.raises(ValueError, match='v.json: value/runs/0/loss is .*: value must be of finite numbers'):
        save_json(path, dict(runs=[dict(loss=bad)]), sealed=True)
    assert load_json(path, sealed=True) == dict(a=1)
    path.write_text(json.dumps(dict(a=bad)))
    with pytest.raises(ValueError, match='is no number'):
        load_json(path)


def test_every_saved_result_has_its_digest():
    "python tools/seal.py adds it"
    files = [p for kind in ('json', 'npz') for p in RESULTS.rglob(f'*.{kind}') if p.name != 'draws.json']
    assert len(files) > 350
    for path in files:
        if path.suffix == '.npz':
            load_arrays(path, sealed=True)
        else:
            load_json(path, sealed=True)


def test_sealing_results_changes_nothing_else_and_is_done_once(made, tmp_path):
    sys.path.insert(0, str(RESULTS.parent / 'tools'))
    import seal

    (tmp_path / 'r.json').write_text(json.dumps(made['known'].data))
    np.savez_compressed(tmp_path / 'r.npz', x=np.eye(3))
    for path in (tmp_path / 'r.json', tmp_path / 'r.npz'):
        assert seal.seal(path) and not seal.seal(path)
    assert Record.load(tmp_path / 'r.json') == made['known']
    assert np.array_equal(load_arrays(tmp_path / 'r.npz', sealed=True)['x'], np.eye(3))
    for path in (tmp_path / 'r.json', tmp_path / 'r.npz'):
        flip(path, 200)
        with pytest.raises(ValueError):
            seal.seal(path)


# what becomes of a damaged file


def test_a_damaged_network_is_trained_anew_to_the_same_bits(tmp_path, made, caplog):
    cache, draw = tmp_path / 'cache', random.Random(0)
    problems.prepare(TINY, cache)
    (file,) = cache.iterdir()
    whole = load_state(file)
    for _ in range(3):
        flip(file, draw.randrange(8 * file.stat().st_size))
        p = problems.prepare(TINY, cache)
        assert file.name in caplog.text and 'trained anew' in caplog.text
        for name, value in p.trained.model.state_dict().items():
            assert torch.equal(value, whole['model'][name]), name
        assert load_state(file).keys() == whole.keys() and inside(cache) == [file.name]
        caplog.clear()


@pytest.mark.parametrize('which', ['plain.safetensors', 'plain-scores.json'])
@pytest.mark.parametrize('lost', [False, True], ids=['damaged', 'lost'])
def test_a_run_whose_state_or_scores_were_damaged_starts_anew(tmp_path, monkeypatch, caplog, which, lost):
    "Never without the looks before the kill"
    problem = problems.prepare(TINY)
    whole = runs.attack(problem, 'plain', folder=tmp_path / 'whole')
    monkeypatch.setattr(
        runs, 'Checkpoint', lambda path, **kw: Checkpoint(path, every_steps=2, anew=kw['anew'])
    )
    report, folder = Evaluations.report, tmp_path / 'cut'

    def stumble(self, step, *more):
        if step >= 8:
            raise KeyboardInterrupt
        report(self, step, *more)

    with monkeypatch.context() as m:
        m.setattr(Evaluations, 'report', stumble)
        with pytest.raises(KeyboardInterrupt):
            runs.attack(problem, 'plain', folder=folder)
    assert load_state(folder / 'plain.safetensors')['step'] == 8
    if lost:
        (folder / which).unlink()
    else:
        flip(folder / which, 8 * 60 + 3)
    again = runs.attack(problem, 'plain', folder=folder)
    assert again.evaluations == whole.evaluations and len(again.evaluations[0]) > 3
    assert torch.equal(again.reconstruction.x, whole.reconstruction.x)
    assert lost or 'starts anew' in caplog.text


def test_a_checkpoint_of_ones_own_is_refused_when_damaged(tmp_path):
    "Whoever named the file decides; in the cache it is made anew"
    net = MLP([5, 12, 1], bias='all', dtype=torch.float64)
    objective = NTKObjective(net, MLP([5, 12, 1], bias='all', seed=1, dtype=torch.float64))
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    at = Checkpoint(tmp_path / 'run.safetensors', every_steps=3)
    go = lambda at: reconstruct(objective, x, x[:, 0], Descent(9), running=Running(checkpoint=at))
    whole = go(at)
    flip(at.path, 8 * 900)
    with pytest.raises(Damaged, match='damaged: .* name another file, or delete this one to start anew'):
        go(at)
    assert torch.equal(go(replace(at, anew=True)).x, whole.x)
    with pytest.raises(ValueError, match="anew='yes'"):
        Checkpoint('f', anew='yes')


def test_a_changed_record_is_set_aside_and_made_anew(tmp_path, caplog):
    path, cache = tmp_path / 'r.json', tmp_path / 'cache'
    first = load_or_run(TINY, path, images=True, cache=cache)
    text = path.read_text()
    best = str(first.data['runs']['split']['scores']['L2'][0])
    for changed, says in (
        (text.replace(best, '0.0001', 1), 'was changed after it was saved'),
        (text[: text.index('"digest of')].rstrip()[:-1] + '}', 'has no digest'),
        (text[: len(text) // 2], 'is no record'),
    ):
        path.write_text(changed)
        with pytest.raises(DamagedResult, match=f'r.json {says}.*: move it away, or make it by `sampl'):
            load_or_run(TINY, path, run_missing=False)
        again = load_or_run(TINY, path, images=True, cache=cache)
        assert again.data['runs']['split']['scores'] == first.data['runs']['split']['scores']
        assert (tmp_path / 'r.json.old').read_text() == changed
        assert f'r.json {says}' in caplog.text and 'r.json is r.json.old now' in caplog.text
        for old in tmp_path.glob('*.old'):
            old.unlink()
        caplog.clear()
    flip(path.with_suffix('.npz'), 3000)
    with pytest.raises(MissingResult, match='has damaged images beside it'):
        load_or_run(TINY, path, images=True, run_missing=False)
    assert load_or_run(TINY, path, run_missing=False)  # whoever wants no images needs none
    load_or_run(TINY, path, images=True, cache=cache)
    assert len(load_arrays(path.with_suffix('.npz'), sealed=True)['samples']) == 4
    assert inside(tmp_path)[-3:] == ['r.json', 'r.npz', 'r.npz.old'] and len(inside(tmp_path)) == 4


def test_a_verdict_is_not_given_without_a_record_that_was_changed(tmp_path):
    "Left out without a word it could be another verdict"
    study = get_study('figure11', 'small')
    source = study.path('mnist-0.6n', 0, RESULTS)
    path = study.path('mnist-0.6n', 0, tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(source.read_text())
    assert len(study.saved('mnist-0.6n', tmp_path)) == 1
    path.write_text(source.read_text().replace('"k_end": ', '"k_end": 1', 1))
    with pytest.raises(DamagedResult, match='mnist-0.6n-seed0.json was changed after it was saved'):
        study.saved('mnist-0.6n', tmp_path)


def test_the_command_line_names_a_changed_record(tmp_path, capsys):
    words = ['experiment', 'figure09', '--scale', 'smoke', '--results', str(tmp_path / 'r')]
    words += ['--cache', str(tmp_path / 'c'), '--device', 'cpu']
    assert main(words) == 0
    (file,) = (tmp_path / 'r').rglob('*.json')
    text = file.read_text()
    file.write_text(text.replace('"splitting": 0.', '"splitting": 9.', 1))
    assert main([*words, '--no-run']) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith(f'samplesplit: {file} was changed after it was saved: move it away')
    assert main(words) == 0 and Record.load(file)
    assert {p.name.replace(file.stem, '') for p in file.parent.iterdir()} == {
        '.json',
        '.npz',
        '.json.old',
        '.npz.old',
    }


def test_a_changed_search_is_set_aside(tmp_path, caplog):
    path, ranges = tmp_path / 't.json', dict(lr=(1e-3, 1e-2))
    whole = random_search(TINY, ranges, 2, path=path)
    path.write_text(path.read_text().replace('"recovered": ', '"recovered": 9', 1))
    with pytest.raises(MissingResult, match='changed after it was saved: it lacks 2 of 2'):
        random_search(TINY, ranges, 2, path=path, run_missing=False)
    assert random_search(TINY, ranges, 2, path=path) == whole
    assert inside(tmp_path) == ['t.json', 't.json.old'] and 't.json.old now' in caplog.text
    random_search(TINY, ranges, 1, seed=5, path=path)  # another search under the same name
    assert inside(tmp_path) == ['t.json', 't.json.old', 't.json.old1']


def test_a_run_that_diverges_leaves_no_record(tmp_path):
    path = tmp_path / 'r.json'
    with pytest.raises(ReconstructionError):
        load_or_run(replace(TINY, lr=1e30), path, cache=tmp_path / 'cache')
    assert not path.exists() and not list(tmp_path.rglob('.samplesplit-*'))


# disks


SAVES = dict(
    json=lambda path, v: save_json(path, dict(v=v), sealed=True),
    npz=lambda path, v: save_arrays(path, v=v),
    safetensors=lambda path, v: save_state(path, dict(v=v)),
    png=lambda path, v: storage.save_figure(path, _figure(v)),
    weights=lambda path, v: save_weights(path, MLP([2, v, 1])),
)


def _figure(v):
    from matplotlib.figure import Figure

    fig = Figure(figsize=(v, 1))
    fig.subplots()
    return fig


@pytest.mark.parametrize('kind', SAVES)
@pytest.mark.parametrize('call', ['fsync', 'replace', 'chmod'])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, kind, call):
    path = tmp_path / f'file.{kind if kind != "weights" else "safetensors"}'
    SAVES[kind](path, 1)
    old = path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as m:
        m.setattr(os, call, full)
        with pytest.raises(OSError, match='No space left'):
            SAVES[kind](path, 2)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == [path.name]
    SAVES[kind](path, 2)
    assert path.read_bytes() != old


def test_a_long_name_can_be_saved(tmp_path):
    path = tmp_path / f'{"n" * 250}.json'
    save_json(path, dict(a=1))
    with locked(path):
        assert load_json(path) == dict(a=1)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_whole_is_read_without_a_lock(tmp_path, monkeypatch):
    "So a folder that may only be read will do"
    path, cache = tmp_path / 'r.json', tmp_path / 'cache'
    record = load_or_run(TINY, path, images=True, cache=cache)

    def forbidden(*_, **__):
        raise PermissionError(13, 'Permission denied')

    for name in ('unlink', 'remove', 'mkdir', 'replace', 'rename', 'rmdir'):
        monkeypatch.setattr(os, name, forbidden)
    monkeypatch.setattr(storage, '_try', forbidden)
    monkeypatch.setattr(storage, '_hold', forbidden)
    assert load_or_run(TINY, path, images=True, run_missing=False) == record
    assert load_or_run(TINY, path, images=True, cache=cache) == record
    assert problems.prepare(TINY, cache).trained.certificate == record.data['training']


def test_without_locks_it_goes_on_and_says_so(tmp_path, monkeypatch, caplog):
    import filelock

    def none(*_, **__):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(filelock, 'lock_descriptor', none)
    load_or_run(TINY, tmp_path / 'r.json', cache=tmp_path / 'cache')
    assert 'no locks on this file system; let only one process at a time' in caplog.text
    assert [n for n in inside(tmp_path) if 'training' not in n] == ['r.json']


def test_a_folder_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, *more, **kw):
        if '.lock' in str(path):
            raise PermissionError(13, 'Permission denied', str(path))
        return real(path, *more, **kw)

    monkeypatch.setattr(os, 'open', refuse)
    with pytest.raises(PermissionError) as e:
        load_or_run(TINY, tmp_path / 'r.json')
    assert e.value.filename == str(tmp_path)


def test_a_sweep_leaves_alone_what_is_not_ours_or_in_use(tmp_path):
    for name in ('.samplesplit', 'samplesplit-x', '.r-ab12cd34.json', 'tmpabc'):
        (tmp_path / name).write_text('mine')
    with atomic_path(tmp_path / 'a.txt') as p, locked(tmp_path / 'b'):
        p.write_text('half')
        sweep(tmp_path)
        save_json(tmp_path / 'c.json', 1)
        assert p.read_text() == 'half' and len(list(tmp_path.glob('.samplesplit-*'))) == 2
    assert (tmp_path / 'a.txt').read_text() == 'half' and len(inside(tmp_path)) == 6


# kills and company, in processes of their own

SERVER = '''
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from samplesplit_nb import problems, runs, storage
from samplesplit_nb.records import Record
from samplesplit_nb.settings import Experiment
torch.set_num_threads(1)
root = Path(sys.argv[1])
os.fsync = lambda fd: None # what a killed process wrote is kept by the system
runs.code_commit = lambda: None
Checkpoint, fit = storage.Checkpoint, problems._fit
problems.Checkpoint = runs.Checkpoint = lambda path, **kw: Checkpoint(
    path, every_steps=3, every_seconds=None, anew=kw['anew'])
e = Experiment(n=4, k=4, width=10, steps=12, splits=1, evaluations=3, device='cpu', num_matvecs=3,
               training='descent', training_steps=12, training_lr=1e-3)

def go(folder):
    def counted(*args, **kw):
        with open(folder/'trained', 'a') as f: f.write('once\\n')
        return fit(*args, **kw)
    problems._fit = counted
    runs.load_or_run(e, folder/'r.json', images=True, cache=folder/'cache')

def child(folder, die_at=None):
    "The process number of one that runs it, and kills itself before that access to the disk"
    folder.mkdir(exist_ok=True)
    if pid := os.fork(): return pid
    seen = [0]
    def count(event, args):
        if event in ('open', 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir'):
            seen[0] += 1
            if seen[0] == die_at: os.kill(os.getpid(), signal.SIGKILL)
    status = 1
    try:
        sys.addaudithook(count)
        go(folder)
        status = 0
        if die_at is None: (folder/'accesses').write_text(str(seen[0]))
    except BaseException as error: print(repr(error), file=sys.stderr, flush=True)
    finally: os._exit(status)

def wait(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def found(folder):
    "The record without its seconds, images, network, and every name in the folder but ours"
    record = Record.load(folder/'r.json').data
    for run in record['runs'].values(): del run['timing']
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*'))
    network = storage.load_state(next(folder.glob('cache/training-*')))
    return dict(record=record, names=[n for n in names if n not in ('accesses', 'trained')],
                images={k: v.tolist() for k, v in storage.load_arrays(folder/'r.npz', True).items()},
                network={k: v.tolist() for k, v in network['model'].items()})

(root/'warm').mkdir()
go(root/'warm') # what is imported and read now need not be so by every child
draw, began = random.Random(0), time.monotonic()
assert wait(child(root/'alone')) == 0
seconds, alone = time.monotonic() - began, found(root/'alone')
accesses = int((root/'alone/accesses').read_text())
'''

KILLS = (
    SERVER
    + '''
kills, ends, number = 0, 0, 0
while kills < 50 or number:
    folder = root/f'killed{ends}'
    by_time = draw.random() < .5
    if kills >= 50: pid = child(folder) # the last one may end
    elif by_time:
        pid = child(folder)
        time.sleep(draw.random()*seconds)
        os.kill(pid, signal.SIGKILL)
    else: pid = child(folder, draw.randint(1, accesses))
    status = wait(pid)
    assert status in (0, -9), status
    kills, number = kills + (status == -9), number + 1
    # a chain of up to six kills, then to the end
    if status == 0 or number == 6:
        if status: assert wait(child(folder)) == 0
        assert found(folder) == alone, folder
        ends, number = ends + 1, 0
print(json.dumps(dict(kills=kills, ends=ends, names=alone['names'], accesses=accesses)))
'''
)

PAIRS = (
    SERVER
    + '''
trained, died = [], 0
for i in range(8):
    folder = root/f'pair{i}'
    pair = [child(folder), child(folder)]
    if i % 2: # one is killed while they are at it, be it the one that works or the one that waits
        time.sleep((.2 + .6*draw.random())*seconds)
        os.kill(pair[i//2 % 2], signal.SIGKILL)
    codes = [wait(pid) for pid in pair]
    died += -9 in codes
    assert codes == [0, 0] or i % 2 and sorted(codes) == [-9, 0], codes
    if -9 in codes: assert wait(child(folder)) == 0 # for what the killed one left
    assert found(folder) == alone, folder
    trained.append((folder/'trained').read_text().count('once'))
# a lock whose holder is killed
folder, (read, write) = root/'lock', os.pipe()
if not (pid := os.fork()):
    with storage.locked(folder/'a'):
        os.write(write, b'x')
        time.sleep(60)
os.read(read, 1)
with storage.locked(folder/'a', wait=False) as mine: assert not mine
os.kill(pid, signal.SIGKILL)
wait(pid)
with storage.locked(folder/'a', wait=False) as mine: assert mine
print(json.dumps(dict(trained=trained, died=died, left=[p.name for p in folder.iterdir()])))
'''
)


def serve(script, folder):
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1')
    done = subprocess.run(
        [sys.executable, '-c', script, str(folder)], capture_output=True, text=True, timeout=600, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_fifty_kills_at_random_moments_are_all_resumed_to_the_same_bits(tmp_path):
    "Half of them by the clock, half before an access to the disk; up to six in a row on one folder"
    found, said = serve(KILLS, tmp_path)
    assert found['kills'] == 50 and found['ends'] >= 8 and found['accesses'] > 100
    network = next(n for n in found['names'] if 'training' in n)
    assert found['names'] == ['cache', network, 'r.json', 'r.npz'], 'something was left behind'
    assert 'anew' not in said  # a kill damages nothing


def test_eight_pairs_of_processes_share_one_folder(tmp_path):
    "Both end well, also where one is killed; one of them trains, the other waits and says so once"
    found, said = serve(PAIRS, tmp_path)
    assert found['trained'][::2] == [1, 1, 1, 1] and max(found['trained']) <= 2
    assert found['died'] >= 1 and found['left'] == []
    lines = said.strip().splitlines()
    assert all('another process is at it; waiting until it is done' in line for line in lines), said
    assert 4 <= len(lines) == len(set(lines)), said
