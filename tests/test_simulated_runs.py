"The attack 'simulated' and candidates in a span: experiments, the command line, what is refused"

import json, signal, subprocess, sys, time
from dataclasses import replace
import numpy as np
import pytest, torch
from samplesplit_nb.cli import main
from samplesplit_nb.commands import reconstruct_file
from samplesplit_nb.data import load_data
from samplesplit_nb.networks import MLP
from samplesplit_nb.optimisers import OPTIMIZERS, UnitAdam, adam, inherit_state
from samplesplit_nb.problems import has_classes, images_in, make_descent, prepare, recipe_of, unit_of
from samplesplit_nb.records import Record
from samplesplit_nb.runs import attack, run, snapshots
from samplesplit_nb.settings import OURS, Experiment, config, fingerprint, from_config
from samplesplit_nb.simulated import SimulatedTraining
from samplesplit_nb.spans import SpannedObjective
from samplesplit_nb.storage import load_arrays
from samplesplit_nb.training import train_gd

SMALL = dict(n=4, k=4, width=20, training_steps=100, steps=16, evaluations=2, device='cpu', num_matvecs=3)
TINY = Experiment(**OURS['simulated'] | SMALL)
SPANNED = {
    'simulated': TINY,
    'ntk': Experiment(**SMALL | dict(training_steps=0, span='first', splits=1)),
    'kkt': Experiment(**OURS['kkt'] | SMALL | dict(span='first', splits=1)),
}


@pytest.mark.parametrize('method', SPANNED)
def test_runs_of_a_span_score_show_and_save_images(method):
    e = SPANNED[method]
    result = run(e, ('plain', 'split'))
    problem = result.problem
    objective = problem.objective(4)
    assert isinstance(objective, SpannedObjective) and objective.d < 625
    span = objective.span
    for name, r in result.runs.items():
        x = r.reconstruction.x.to(problem.data.X)
        assert x.shape[1] == 625 and span.outside(x).max() < 1e-4
        distance = torch.cdist(problem.data.X, x).min(1).values
        assert torch.allclose(r.scores['L2'].double(), distance.double(), atol=1e-4)
        assert r.evaluations[1][-1] == pytest.approx(r.scores['L2'].tolist(), abs=1e-4), name
        assert result.record.scores(name, 'L2').tolist() == pytest.approx(distance.tolist(), abs=1e-4)
    shown = snapshots(problem, result.runs)
    assert shown['images']['split'].shape[1:] == (4, 25, 25)
    # control: without a span the candidates are elsewhere
    free = attack(prepare(replace(e, span='none')), 'plain').reconstruction.x
    assert span.outside(free).min() > 0.1


def test_rates_and_starts_are_those_of_pixels_times_the_unit():
    problem = prepare(replace(TINY, k=300, n=4))
    objective = problem.objective(300)
    x, lam = problem.start(objective, 300)
    assert objective.d == 3 and unit_of(objective) == pytest.approx((625 / 3) ** 0.5)
    assert x.std().item() == pytest.approx(0.16 * unit_of(objective), rel=0.1)
    assert images_in(objective, x).std().item() == pytest.approx(0.16, rel=0.1)  # as without a span
    assert torch.equal(lam, torch.full_like(lam, 1 / 300))
    free = prepare(replace(TINY, span='none')).objective(4)
    assert unit_of(free) == 1 and images_in(free, x) is x


def test_weights_are_fixed_where_k_is_n_and_learned_elsewhere():
    known, other = (make_descent(TINY, k).lr_multipliers for k in (4, 5))
    assert (known, other) == (0, 0.01 / 5)
    assert make_descent(replace(TINY, lr_multipliers=0.1), 4).lr_multipliers == pytest.approx(0.1 / 4)
    fixed = attack(prepare(TINY), 'plain').reconstruction
    assert torch.equal(fixed.lam, torch.full_like(fixed.lam, 1 / 4))
    few = run(replace(TINY, k=2, splits=2, steps=30), ('plain', 'split', 'plain, k = 2n'))
    lam = few.runs['plain'].reconstruction.lam
    assert (lam > 0).all() and (lam != 1 / 2).all()
    assert few.record.k('split').start == 2 and few.record.k('plain, k = 2n').start == 8
    history = few.runs['plain'].reconstruction.history.loss
    assert history[-1] < history[0]


def test_what_the_attacker_knows_is_what_trained_the_network():
    r = recipe_of(TINY)
    assert (r.lr, r.steps, r.loss, r.momentum, r.smooth) == (0.1, 100, 'logistic', 0, True)
    squared = prepare(replace(TINY, training_loss='mse', training_lr=0.05)).objective(4).objective
    assert isinstance(squared, SimulatedTraining) and squared.recipe.loss == 'mse'
    assert squared.labels.tolist() == [-1, 1, -1, 1]
    many = replace(TINY, training_loss='cross-entropy')
    assert has_classes(many) and not has_classes(TINY)
    problem = prepare(many)
    assert problem.trained.model.widths[-1] == 2
    assert problem.objective(4).labels.tolist() == [0, 1, 0, 1]
    end = attack(problem, 'plain').reconstruction.history.loss
    assert end[-1] < end[0]


def test_the_truth_is_nearly_a_zero_and_other_images_are_not():
    problem = prepare(replace(TINY, tolerance=0.01, dtype='float64', sharpness=(100.0, 1000.0)))
    objective = problem.objective(4)
    order = torch.stack([(problem.data.y == sign).nonzero()[:, 0] for sign in (-1, 1)], 1).flatten()
    X = problem.data.X[order]  # as the labels are, in turn
    assert problem.data.y[order].tolist() == objective.labels.tolist()
    lam = torch.full((4,), 0.25, dtype=torch.float64)
    true = objective.loss(objective.coordinates(X), lam).item()
    wrong = objective.loss(objective.coordinates(X[[1, 0, 3, 2]]), lam).item()  # labels changed
    assert true < 1e-3 < 1 < wrong


SCRIPT = '''
import sys, torch
from pathlib import Path
from samplesplit_nb import problems, runs
from samplesplit_nb.settings import OURS, Experiment
torch.set_num_threads(1)
Checkpoint, folder = runs.Checkpoint, Path(sys.argv[1])
problems.Checkpoint = runs.Checkpoint = lambda path, **_: Checkpoint(path, every_steps=3, every_seconds=None)
e = Experiment(**OURS['simulated'] | dict(n=4, k=3, width=20, training_steps=100, steps=60, splits=2,
               evaluations=6, device='cpu', num_matvecs=3))
runs.load_or_run(e, folder/'here.json', images=True, cache=folder/'cache')
'''


def same(folder):
    "The record and its pictures, without what depends on the hour"
    record = Record.load(folder / 'here.json').data
    del record['environment']
    for r in record['runs'].values():
        del r['timing']
    return record, {k: v.tolist() for k, v in load_arrays(folder / 'here.npz').items()}


def test_killed_and_resumed_it_is_the_same_to_the_bit(tmp_path):
    alone, killed = tmp_path / 'alone', tmp_path / 'killed'
    alone.mkdir()
    killed.mkdir()
    start = lambda folder: subprocess.Popen([sys.executable, '-c', SCRIPT, str(folder)])
    assert start(alone).wait(timeout=300) == 0
    for moment in ('plain', 'split'):
        process = start(killed)
        while process.poll() is None and not list(killed.glob(f'cache/runs-*/{moment}.safetensors')):
            time.sleep(0.002)
        assert process.poll() is None, f'{moment} was not seen before the end'
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(killed).wait(timeout=300) == 0
    assert same(killed) == same(alone)


def test_settings_that_came_with_it_are_left_out_of_old_fingerprints():
    new = 'sharpened', 'span', 'tolerance', 'simulated_steps'
    assert not set(new) & set(config(Experiment()))
    assert from_config(config(TINY)) == TINY
    seen = {
        fingerprint(e) for e in (TINY, *(replace(TINY, **{n: v}) for n, v in zip(new, (1.0, 'none', 0.2, 9))))
    }
    assert len(seen) == 5
    early, late = (make_descent(replace(TINY, sharpened=part), 4).sharpen for part in (0.5, 1.0))
    assert early(8) == early(15) == 30 > late(8) and early(0) == late(0) == 10


def test_what_it_cannot_do_is_refused_in_a_line():
    problem = prepare(TINY)
    for name, says in (('peel', "method='simulated'"), ('invert', "method 'simulated'")):
        with pytest.raises(ValueError, match=says) as told:
            attack(problem, name)
        assert '\n' not in str(told.value)
    with pytest.raises(ValueError, match='layers=.*all layers are trained at once'):
        replace(TINY, layers=(-1,))
    with pytest.raises(ValueError, match="training='exact'"):
        replace(TINY, training='exact', start_layers=None)
    with pytest.raises(ValueError, match='a number here'):
        problem.objective(4).multipliers(problem.start(problem.objective(4), 4).x)


def test_the_optimiser_looks_at_directions_alone():
    g = torch.Generator().manual_seed(0)
    slopes = torch.randn(20, 5, 3, generator=g)
    sizes = 10 ** (4 * torch.rand(20, generator=g) - 2)

    def path(make, scaled):
        p = torch.zeros(5, 3)
        opt = make([dict(params=[p], lr=0.1)])
        for slope, size in zip(slopes, sizes):
            p.grad = slope * size if scaled else slope.clone()
            opt.step()
        return p

    assert OPTIMIZERS['unit-adam'] is UnitAdam
    assert torch.allclose(path(UnitAdam, True), path(UnitAdam, False), atol=1e-5)
    assert not torch.allclose(path(adam, True), path(adam, False), atol=1e-2)  # control
    p, q = torch.zeros(2, 3), torch.zeros(3, 3)
    old, new = UnitAdam([p], lr=0.1), UnitAdam([q], lr=0.1)
    p.grad = torch.randn(2, 3, generator=g)
    old.step()
    inherit_state(old, new, torch.tensor([0, 1, 1]))
    for name in ('exp_avg', 'exp_avg_sq'):
        assert torch.equal(new.state[q][name], old.state[p][name][[0, 1, 1]])
    assert new.state[q]['step'] == 1


# The command line


@pytest.fixture(scope='module')
def victim(tmp_path_factory):
    "Folder with model.safetensors, init.safetensors"
    folder = tmp_path_factory.mktemp('victim')
    words = '--method simulated --data faces -n 4 --width 40 --steps 300 --device cpu'
    assert main(['train', *words.split(), '--out', str(folder)]) == 0
    return folder


def words(folder, *more, init='init.safetensors'):
    own = ['reconstruct', '--method', 'simulated', '--weights', str(folder / 'model.safetensors')]
    if init:
        own += ['--init', str(folder / init)]
    return [*own, '-k', '4', '--steps', '12', '--device', 'cpu', *map(str, more)]


TOLD = '--training-lr', '0.1', '--training-steps', '300'


def test_the_command_line_trains_reconstructs_and_evaluates(victim, tmp_path, capsys):
    record = json.loads((victim / 'training.json').read_text())
    assert record['training'] == dict(lr=0.1, steps=300) and record['certificate']['loss'] < 0.1
    capsys.readouterr()
    known = '--data', 'faces', '-n', '4'
    assert main(words(victim, *TOLD, *known, '--out', tmp_path / 'a', '--json')) == 0
    said = json.loads(capsys.readouterr().out)
    assert said['settings']['training']['steps'] == 300 and said['settings']['span'] == 'first'
    assert said['settings']['lr_multipliers'] == 0 and said['settings']['directions'] == 3
    found = np.load(tmp_path / 'a/reconstruction.npz')
    assert found['x'].shape == (4, 625) and set(found['labels']) == {-1.0, 1.0}
    assert found['lam'].tolist() == [0.25] * 4
    distance = torch.cdist(load_data(n=4).X.double(), torch.from_numpy(found['x']).double()).min(1).values
    assert said['scores'][0]['mean_l2'] == pytest.approx(distance.mean().item(), rel=1e-5)
    assert said['history']['loss'][-1] < said['history']['loss'][0]
    assert (
        main(['evaluate', '--reconstruction', str(tmp_path / 'a/reconstruction.npz'), '--data', 'faces']) == 0
    )
    out = capsys.readouterr().out
    assert 'reconstruction' in out


def test_the_command_line_says_the_span_and_the_simulation(victim, tmp_path, capsys):
    assert main(words(victim, *TOLD, '--out', tmp_path)) == 0
    out = capsys.readouterr().out
    assert 'span: 3 directions of 625' in out and 'simulated steps stand for 300' in out
    assert main(words(victim, *TOLD, '--span', 'none', '--simulated-steps', '3', '--out', tmp_path)) == 0
    out = ' '.join(capsys.readouterr().out.split())
    assert 'span:' not in out and 'allow more' in out
    for method, more in (('kkt', ()), ('ntk', ('--init', victim / 'init.safetensors'))):
        line = [
            'reconstruct',
            '--method',
            method,
            '--weights',
            victim / 'model.safetensors',
            '--span',
            'first',
            *more,
        ]
        assert (
            main([*map(str, line), '-k', '4', '--steps', '12', '--device', 'cpu', '--out', str(tmp_path)])
            == 0
        )
        assert ('3' if method == 'ntk' else '40') + ' directions of 625' in capsys.readouterr().out
        assert np.load(tmp_path / 'reconstruction.npz')['x'].shape[1] == 625


def test_a_checkpoint_of_the_command_line_goes_on(victim, tmp_path):
    told = dict(
        weights=victim / 'model.safetensors', init=victim / 'init.safetensors', method='simulated', k=4,
        steps=12, training_lr=0.1, training_steps=300, device='cpu', checkpoint=True,
    )  # fmt: skip
    a = reconstruct_file(**told, out=tmp_path / 'a')
    again = reconstruct_file(**told, out=tmp_path / 'a')  # it is at its end
    assert torch.equal(a.found.x, again.found.x) and a.found.x.shape == (4, 625)
    with pytest.raises(ValueError, match='another'):
        reconstruct_file(**told | dict(training_lr=0.2), out=tmp_path / 'a')


@pytest.mark.parametrize(
    'more, says',
    [
        ((), '--training-lr=None'),
        (('--training-lr', 0.1), '--training-steps=None'),
        (('--training-lr', 0.1, '--training-steps', 0), '--training-steps=0'),
        (('--training-lr', 0, '--training-steps', 9), '--training-lr=0.0'),
        ((*TOLD, '--training-loss', 'cross-entropy'), '--training-loss'),
        ((*TOLD, '--momentum', 0.9), 'which is --simulated-steps'),
        ((*TOLD, '--batches', 2), 'which is --simulated-steps'),
        ((*TOLD, '--tolerance', 0), 'which is --simulated-steps'),
        ((*TOLD, '--momentum', 1), '--momentum=1'),
        ((*TOLD, '--samples', 2), 'which 2 samples do not give'),
        ((*TOLD, '--samples', 0), '--samples=0'),
    ],
)
def test_mistakes_are_a_line(victim, tmp_path, capsys, more, says):
    assert main(words(victim, *more, '--out', tmp_path)) == 2
    err = capsys.readouterr().err.strip()
    assert says in err and '\n' not in err


def test_other_weights_before_training_are_noticed(victim, tmp_path, capsys):
    from samplesplit_nb.weights import save_weights

    def mistake(init, *more):
        status = main(words(victim, *(more or TOLD), '--out', tmp_path, init=init))
        err = capsys.readouterr().err.strip()
        assert '\n' not in err
        return status, err

    save_weights(victim / 'other.safetensors', MLP([625, 40, 40, 1], bias='first', init=(0.03, 0.03), seed=9,
                                                  dtype=torch.float64))  # fmt: skip
    save_weights(victim / 'small.safetensors', MLP([625, 30, 40, 1], bias='first', dtype=torch.float64))
    assert 'the weights before this training' in mistake('other.safetensors')[1]
    assert 'of the same shapes' in mistake('small.safetensors')[1]
    assert '<theta = theta_0>' in mistake('model.safetensors')[1]
    assert '--init=None' in mistake(None)[1]
    status, err = mistake(
        'init.safetensors', '--training-lr', 500, '--training-steps', 300, '--training-loss', 'mse'
    )
    assert status == 3 and 'diverges' in err
    with pytest.raises(SystemExit):
        main(words(victim, *TOLD, '--training-loss', 'hinge'))
    assert 'invalid choice' in capsys.readouterr().err
    line = [
        'reconstruct',
        '--method',
        'kkt',
        '--weights',
        str(victim / 'model.safetensors'),
        '--training-lr',
        '1',
    ]
    assert main(line) == 2 and 'unless the method is simulated' in capsys.readouterr().err


MODULES = '''
import torch
def conv(): return torch.nn.Sequential(torch.nn.Conv2d(1, 3, 5, 4), torch.nn.ReLU(), torch.nn.Flatten(),
                                       torch.nn.Linear(108, 1))
def dense(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(625, 20), torch.nn.ReLU(),
                                        torch.nn.Linear(20, 3))
'''


@pytest.mark.parametrize('name, loss', [('conv', 'logistic'), ('dense', 'cross-entropy')])
def test_modules_of_ones_own(name, loss, tmp_path, monkeypatch, capsys):
    (tmp_path / 'simulated_modules.py').write_text(MODULES)
    monkeypatch.syspath_prepend(tmp_path)
    import simulated_modules

    torch.manual_seed(0)
    before = getattr(simulated_modules, name)()
    rows = torch.nn.Sequential(torch.nn.Unflatten(1, (1, 25, 25)), before)
    d = load_data(n=4)
    y = d.y.float() if loss == 'logistic' else torch.arange(4) % 3
    after = train_gd(rows, d.X.float(), y, loss=loss, lr=0.05, steps=40).model
    torch.save(before.state_dict(), tmp_path / 'init.safetensors')
    (tmp_path / 'init.safetensors').rename(tmp_path / 'init.pt')
    torch.save(after[1].state_dict(), tmp_path / 'model.pt')
    line = [
        'reconstruct',
        '--method',
        'simulated',
        '--weights',
        tmp_path / 'model.pt',
        '--init',
        tmp_path / 'init.pt',
    ]
    line += ['--module', f'simulated_modules:{name}', '--shape', 1, 25, 25, '--training-lr', 0.05]
    line += [
        '--training-steps',
        40,
        '-k',
        4,
        '--steps',
        6,
        '--device',
        'cpu',
        '--out',
        tmp_path / 'out',
        '--json',
    ]
    assert main([*map(str, line)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record['settings']['training']['loss'] == loss and 'span' not in record['settings']
    assert record['history']['loss'][-1] < record['history']['loss'][0]
    momentum = main([*map(str, line), '--momentum', '0.5'])  # forty real steps
    assert momentum == 0
    capsys.readouterr()
    status = main([*map(str, line), '--span', 'first'])
    said = capsys.readouterr()
    if name == 'conv':
        assert status == 2 and 'convolution' in said.err and '\n' not in said.err.strip()
    else:
        assert status == 0 and json.loads(said.out)['settings']['directions'] <= 4
