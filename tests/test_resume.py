"A process killed by SIGKILL at any moment and started again ends bit-identical to one left alone"

import copy, os, signal, subprocess, sys, time
from dataclasses import replace
from functools import partial
from pathlib import Path
import pytest, torch
from problems import random_problem
from samplesplit_nb.descent import Descent, Running
from samplesplit_nb.networks import MLP
from samplesplit_nb.optimisers import LazyAdam
from samplesplit_nb.rules import PublishedRule, RandomSplits
from samplesplit_nb.splitting import Every, Proposal, SplitRule, Splitting, Stop, reconstruct
from samplesplit_nb.storage import Checkpoint, load_state, save_state
from samplesplit_nb.tidy import Tidy
from samplesplit_nb.training import train_gd, train_kkt

# argv: checkpoint file, result file, optimiser, attack.
# Prints its step at every report, so that the parent can choose its moment
SCRIPT = '''
import sys
from functools import partial
import torch
sys.path.insert(0, {tests!r})
from problems import random_problem
from samplesplit_nb.networks import MLP
from samplesplit_nb.objectives import KKTObjective
from samplesplit_nb.optimisers import adam, geometric, warm_restarts
from samplesplit_nb.descent import *
from samplesplit_nb.splitting import *
from samplesplit_nb.tidy import Tidy
from samplesplit_nb.storage import Checkpoint, save_state
path, out, optimiser, attack = sys.argv[1:]
torch.set_num_threads(1)
objective, x, lam = random_problem((8, 40, 40, 1), k=6, seed=3)
net = MLP([8, 40, 40, 1], bias='first', seed=1, dtype=torch.float64)
labels = torch.tensor([1., -1, 1, 1, -1, -1]).double()
if attack == 'kkt': objective = KKTObjective(net, labels, sharpness=5.)
make = dict(adam=adam, sgd=partial(torch.optim.SGD, momentum=.9))[optimiser]
descent = Descent(150, lr=1e-4 if optimiser == 'sgd' else 1e-2, optimizer=make,
                  lr_multipliers=None if attack == 'ntk' else 1e-4,
                  lr_factor=warm_restarts(40), sharpen=geometric(5., 10., 150))
splitting = Splitting(SplitRule(threshold=-1e-9, eta_max=.1, at_once=2), Every(40), tidy=Tidy(merge=1e-3))
at = None if path == 'none' else Checkpoint(path, every_steps=3, every_seconds=None)
running = Running(report_every=5, checkpoint=at, callbacks=[lambda step, *_: print(step, flush=True)])
r = reconstruct(objective, x, lam, descent, splitting, running)
save_state(out, dict(x=r.x, lam=r.lam, origins=r.origins, loss=r.history.loss,
                     step=r.history.step, result=r.result, splits=[s.step for s in r.splits]))
'''


# argv: checkpoint file, result file, function
TRAINING = '''
import sys
import torch
from samplesplit_nb.networks import MLP
from samplesplit_nb.storage import Checkpoint, save_state
from samplesplit_nb.training import train_gd, train_kkt
path, out, name = sys.argv[1:]
torch.set_num_threads(1)
X = torch.randn(8, 20, generator=torch.Generator().manual_seed(0)).double()
y = torch.tensor([1., -1.]*4).double()
init = MLP([20, 40, 40, 1], bias='first', seed=1, dtype=torch.float64, init='pytorch')
how = dict(lr=.01, steps=3000, momentum=.9) if name == 'train_gd' else dict(seconds=1e5, max_steps=1000)
at = None if path == 'none' else Checkpoint(path, every_steps=7, every_seconds=None)
k = globals()[name](init, X, y, checkpoint=at, **how)
networks = {n: list(v.parameters()) for n, v in vars(k).items() if isinstance(v, MLP)}
save_state(out, {n: v for n, v in {**vars(k), **networks}.items() if n != 'seconds'})
'''


def start(path, out, *which, script=SCRIPT.format(tests=str(Path(__file__).parent))):
    return subprocess.Popen(
        [sys.executable, '-c', script, str(path), str(out), *which],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


@pytest.mark.parametrize('which', [('adam', 'ntk'), ('sgd', 'kkt')], ids='-'.join)
def test_killed_and_resumed_is_bit_identical(tmp_path, which):
    alone = start('none', tmp_path / 'alone', *which)
    path, kills, delays = tmp_path / 'run.safetensors', 0, torch.Generator().manual_seed(0)
    for at in (5, 45, 120):  # before the first split, just after it, after the third
        process = start(path, tmp_path / 'resumed', *which)
        for line in process.stdout:
            if int(line) >= at:
                break
        time.sleep(0.02 * torch.rand((), generator=delays).item())  # anywhere, also while saving
        if process.poll() is None:
            kills += 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()
        assert path.exists() and 'optimiser' in load_state(path)  # whole, whenever the kill came
    finish(start(path, tmp_path / 'resumed', *which))
    finish(alone)
    a, b = load_state(tmp_path / 'alone'), load_state(tmp_path / 'resumed')
    assert kills >= 2, 'the runs were too fast to be killed'
    for name in ('x', 'lam', 'origins'):
        assert torch.equal(a[name], b[name]), name
    for name in ('loss', 'step', 'result', 'splits'):
        assert a[name] == b[name], name
    assert len(a['splits']) == 3 and len(a['x']) > 6


@pytest.mark.parametrize('name', ['train_gd', 'train_kkt'])
def test_a_killed_training_is_bit_identical(tmp_path, name):
    "Networks, multipliers, certificates, counts; the checkpoint tells the parent how far its child is"
    go = partial(start, script=TRAINING)
    alone, path, kills, delays = (
        go('none', tmp_path / 'alone', name),
        tmp_path / 'run',
        0,
        torch.Generator().manual_seed(1),
    )
    for at in (
        20,
        600,
        850,
    ):  # for train_kkt: before, and twice after, the first candidates for the best network
        process = go(path, tmp_path / 'resumed', name)
        while process.poll() is None and not (path.exists() and load_state(path).get('step', at) >= at):
            time.sleep(0.01)
        time.sleep(0.02 * torch.rand((), generator=delays).item())
        if process.poll() is None:
            kills += 1
        process.kill()
        process.communicate()
        assert at <= load_state(path)['step'] < 3000
    finish(go(path, tmp_path / 'resumed', name))
    assert 'step' not in load_state(path)  # but the result, for the next call
    finish(alone)
    a, b = load_state(tmp_path / 'alone'), load_state(tmp_path / 'resumed')
    assert kills >= 2, 'the trainings were too fast to be killed'
    assert a.keys() == b.keys() and a['steps'] == (3000 if name == 'train_gd' else 1000)
    for key, value in a.items():
        same = (
            torch.equal(value, b[key])
            if torch.is_tensor(value)
            else value == b[key]
            if not isinstance(value, list)
            else all(map(torch.equal, value, b[key]))
        )
        assert same, key


def break_after(net, calls):
    "The same network; its forward pass raises after so many calls"
    net, seen = copy.deepcopy(net), []

    def stumble(*_):
        seen.append(1)
        if len(seen) > calls:
            raise KeyboardInterrupt

    net.register_forward_hook(stumble)
    return net


def small(seed=0, **kw):
    X = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)).double()
    return dict(
        init=MLP([5, 12, 1], bias='first', dtype=torch.float64, init='pytorch'),
        X=X,
        y=torch.tensor([1.0, -1.0] * 3).double(),
        **kw,
    )


@pytest.mark.parametrize(
    'train,kw', [(train_gd, dict(steps=40, momentum=0.5)), (train_kkt, dict(max_steps=200))]
)
def test_the_checkpoint_of_another_training_is_refused(tmp_path, train, kw):
    at, given = Checkpoint(tmp_path / 'run', every_steps=5), small(**kw)
    for finished in (False, True):
        if finished:
            train(**given, checkpoint=at)
        else:
            with pytest.raises(KeyboardInterrupt):
                train(**{**given, 'init': break_after(given['init'], 30)}, checkpoint=at)
        other = MLP([5, 12, 1], bias='first', seed=1, dtype=torch.float64, init='pytorch')
        for change, says in (
            (dict(lr=0.05), 'lr'),
            (dict(X=given['X'].flip(0)), 'X'),
            (dict(y=-given['y']), 'y'),
            (dict(init=other), 'weights'),
        ):
            with pytest.raises(ValueError, match=f'of this very run, but it was made with another {says};'):
                train(**{**given, **change}, checkpoint=at)
        with pytest.raises(ValueError, match='another training, '):
            (train_kkt if train is train_gd else train_gd)(**small(), checkpoint=at)
    objective, x, lam = random_problem((8, 30, 30, 1), k=5, seed=3)
    with pytest.raises(ValueError, match='another start, target, '):
        reconstruct(objective, x, lam, Descent(5), running=Running(checkpoint=at))


def test_running_averages_are_part_of_the_state(tmp_path):
    "Batch normalisation in training mode changes its buffers in every forward pass"
    given = small(steps=40, loss='mse', momentum=0.9)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        given['init'] = torch.nn.Sequential(
            torch.nn.Unflatten(1, (1, 5)),
            torch.nn.Conv1d(1, 4, 2),
            torch.nn.BatchNorm1d(4),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(16, 1),
        ).double()
    at = Checkpoint(tmp_path / 'run', every_steps=3)
    with pytest.raises(KeyboardInterrupt):
        train_gd(**{**given, 'init': break_after(given['init'], 30)}, checkpoint=at)
    whole, resumed, loaded = (
        train_gd(**given),
        train_gd(**given, checkpoint=at),
        train_gd(**given, checkpoint=at),
    )
    for k in (resumed, loaded):
        for (name, value), other in zip(whole.model.state_dict().items(), k.model.state_dict().values()):
            assert torch.equal(value, other), name
        assert (k.loss, k.steps, k.stationarity) == (whole.loss, whole.steps, whole.stationarity)


def test_time_before_a_kill_counts(tmp_path):
    at, given = Checkpoint(tmp_path / 'run', every_steps=5), small(max_steps=200, seconds=1e4)
    with pytest.raises(KeyboardInterrupt):
        train_kkt(**{**given, 'init': break_after(given['init'], 200)}, checkpoint=at)
    state = load_state(at.path)
    assert state['step'] > 100 and state['best'] is not None
    save_state(at.path, dict(state, seconds=1e4))  # as if all of it had been spent
    k = train_kkt(**given, checkpoint=at)
    assert k.steps == state['step'] and k.seconds >= 1e4


def test_a_save_that_is_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
    "The rename is the last thing that happens; whatever fails before it changes nothing"
    from samplesplit_nb import storage

    path = tmp_path / 'run.safetensors'
    storage.save_state(path, dict(step=1))
    monkeypatch.setattr(os, 'replace', lambda *_: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'):
        storage.save_state(path, dict(step=2))
    monkeypatch.undo()
    assert load_state(path) == dict(step=1) and [p.name for p in tmp_path.iterdir()] == ['run.safetensors']


@pytest.mark.parametrize(
    'make',
    [
        torch.optim.Adam,
        LazyAdam,
        partial(torch.optim.SGD, momentum=0.9),
        torch.optim.RMSprop,
        torch.optim.Adagrad,
        partial(torch.optim.LBFGS, max_iter=3),
    ],
    ids=lambda m: getattr(m, '__name__', m.func.__name__ if isinstance(m, partial) else '?'),
)
def test_every_optimiser_resumes_to_the_bit(tmp_path, make):
    objective, x, lam = random_problem((8, 30, 30, 1), k=5, seed=3)
    descent = Descent(45, 1e-3, optimizer=make)
    splitting = Splitting(SplitRule(threshold=-1e-9, eta_max=0.1), Every(15))
    go = lambda **kw: reconstruct(objective, x, lam, descent, splitting, Running(report_every=4, **kw))

    def stumble(step, *_):
        if step >= 36:
            raise KeyboardInterrupt

    at = Checkpoint(tmp_path / 'run', every_steps=7)
    with pytest.raises(KeyboardInterrupt):
        go(callbacks=[stumble], checkpoint=at)
    whole, resumed = go(), go(checkpoint=at)
    assert torch.equal(whole.x, resumed.x) and whole.history.loss == resumed.history.loss and len(whole.x) > 5


class Rule:
    "A rule of one's own: no dataclass, no repr; its field is all that tells two of them apart"

    def __init__(self, count):
        self.count = count

    def propose(self, objective, x, lam, event):
        return Proposal(torch.arange(self.count), torch.nn.functional.normalize(x[: self.count]))


class When:
    "A trigger of one's own"

    def __init__(self, every):
        self.every = every

    def due(self, step, since, history):
        return step > 0 and step % self.every == 0


def test_the_checkpoint_notices_every_setting_that_changes_the_run(tmp_path):
    "Ours and one's own: rules, triggers, ends, housekeeping, descent; what only watches may change"
    objective, x, lam = random_problem((8, 30, 30, 1), k=5, seed=3)
    at, base = Checkpoint(tmp_path / 'run', every_steps=7), SplitRule(threshold=-1e-9, eta_max=0.1)
    descent, splitting = Descent(20, 1e-3), Splitting(Rule(2), When(8))
    go = lambda descent=descent, splitting=splitting, **kw: reconstruct(
        objective, x, lam, descent, splitting, Running(**kw, checkpoint=at)
    )
    whole = go()
    assert [s.step for s in whole.splits] == [s.step for s in go().splits] == [8, 16]
    with_ = lambda **kw: dict(splitting=replace(splitting, **kw))
    for how, says in (
        (with_(rule=Rule(3)), 'rule'),
        (with_(rule=None), 'rule'),
        (with_(rule=base), 'rule'),
        (with_(rule=PublishedRule()), 'rule'),
        (with_(rule=RandomSplits(base)), 'rule'),
        (with_(when=When(9)), 'when'),
        (with_(when=Every(8)), 'when'),
        (with_(stop=Stop(events=2)), 'stop'),
        (with_(tidy=Tidy(merge=1e-3)), 'tidy'),
        (dict(descent=replace(descent, steps=21)), 'steps'),
        (dict(descent=replace(descent, optimizer='sgd')), 'optimizer'),
        (dict(descent=replace(descent, sharpen=lambda step: 5.0)), 'sharpen'),
        (dict(seed=1), 'seed'),
    ):
        with pytest.raises(ValueError, match=f'made with another {says};'):
            go(**how)
    seen = []
    again = go(callbacks=[lambda *report: seen.append(report)], progress=False)
    assert torch.equal(again.x, whole.x) and seen == []  # a finished run is read back, not run


@pytest.mark.parametrize(
    'kw,says',
    [
        (dict(every_steps=0), 'every_steps=0'),
        (dict(every_seconds=-1.0), 'every_seconds=-1.0'),
        (dict(every_seconds=None), 'every_steps=None'),
    ],
)
def test_bad_intervals_are_named(kw, says):
    with pytest.raises(ValueError, match=says):
        Checkpoint('f', **kw)
