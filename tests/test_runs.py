"""Experiments: killed at any moment and run again, the record is the same

Saved files are trusted only if they are of that very experiment."""

import json, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest, torch
from scipy.stats import ttest_1samp
from samplesplit_nb.claims import (
    CLAIMS,
    FIGURES,
    LEAST_SEEDS,
    OverSeeds,
    _finding,
    changes,
    changes_table,
    findings,
    findings_table,
    over_seeds,
    panels,
    paper_figure,
    verdict,
)
from samplesplit_nb.figures import representative, top_by_rule
from samplesplit_nb.optimisers import OPTIMIZERS
from samplesplit_nb.problems import ATTACKS, TRAININGS, make_descent, prepare
from samplesplit_nb.records import Record
from samplesplit_nb.runs import PEELINGS, RUNS, MissingResult, Plain, attack, load_or_run, run
from samplesplit_nb.settings import Experiment, config, fingerprint, from_config, published
from samplesplit_nb.rules import RandomSplits
from samplesplit_nb.storage import digest, load_arrays
from samplesplit_nb.studies import SEEDS, STUDIES, get_study
from samplesplit_nb.tables import as_markdown

# argv: folder, method. Checkpoints often, and lingers before the record gets its name,
# so that the parent can kill it there
SCRIPT = '''
import os, sys, time, torch
from pathlib import Path
from samplesplit_nb import problems, runs
torch.set_num_threads(1)
folder, method = Path(sys.argv[1]), sys.argv[2]
Checkpoint, replace = runs.Checkpoint, os.replace
problems.Checkpoint = runs.Checkpoint = lambda path, **_: Checkpoint(path, every_steps=5, every_seconds=None)
def lingering(old, new):
    if Path(new).name == 'here.json' and len(sys.argv) > 3:
        (folder/'saving').touch()
        time.sleep(60)
    replace(old, new)
os.replace = lingering
settings = dict(n=6, k=6, width=40, steps=120, splits=2, evaluations=12, device='cpu',
                lam_min=None if method == 'ntk' else 0.)
training = dict(ntk=dict(training='descent', training_steps=400, training_lr=1e-3),
                kkt=dict(training='margin', training_steps=300))[method]
runs.load_or_run(runs.Experiment(method=method, **settings, **training), folder/'here.json',
                 ('plain', 'split', 'random both'), images=True, cache=folder/'cache')
'''


def start(folder, *words):
    return subprocess.Popen(
        [sys.executable, '-c', SCRIPT, str(folder), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


def same_everywhere(path):
    "The record without what depends on the machine and the hour"
    record = Record.load(path).data
    del record['environment']
    for r in record['runs'].values():
        del r['timing']
    return record


@pytest.mark.parametrize('method', ['ntk', 'kkt'])
def test_killed_in_training_in_reconstruction_and_in_a_save(tmp_path, method):
    "The promise of the experiment engine: the same json as an uninterrupted run, time and host fields apart"
    alone, killed = tmp_path / 'alone', tmp_path / 'killed'
    alone.mkdir()
    killed.mkdir()
    finish(start(alone, method))
    moments = [
        'cache/training-*-state.safetensors',
        'cache/runs-*/plain.safetensors',
        'cache/runs-*/split.safetensors',
        'saving',
    ]
    for moment in moments:
        process = start(killed, method, 'linger')
        while process.poll() is None and not list(killed.glob(moment)):
            time.sleep(0.002)
        assert process.poll() is None, f'{moment} was not seen before the end: {process.stderr.read()}'
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()
        assert not (killed / 'here.json').exists()
    finish(start(killed, method))
    assert same_everywhere(killed / 'here.json') == same_everywhere(alone / 'here.json')
    a, b = (load_arrays(folder / 'here.npz') for folder in (alone, killed))
    assert all(np.array_equal(a[name], b[name]) for name in a) and len(a['samples']) == 6
    left = {p.name for p in killed.rglob('*')} - {'cache', 'saving'}
    assert {name[:9] for name in left} == {'here.json', 'here.npz', 'training-'} and len(left) == 3


TINY = Experiment(n=4, k=4, width=10, steps=12, splits=1, evaluations=3, device='cpu', num_matvecs=3)


def test_a_damaged_or_foreign_record_is_not_used(tmp_path):
    path = tmp_path / 'r.json'
    whole = load_or_run(TINY, path, images=True)
    assert load_or_run(TINY, path, run_missing=False) == whole
    for text in ('', '{"config": 1', '[]', '{"fingerprint": "0"}'):
        path.write_text(text)
        with pytest.raises(MissingResult, match='is no record'):
            load_or_run(TINY, path, run_missing=False)
    again = load_or_run(TINY, path)
    assert again.data['runs']['split']['scores'] == whole.data['runs']['split']['scores']
    assert not path.with_suffix('.npz').exists()  # whose it was is not known any more
    with pytest.raises(MissingResult, match='no images'):
        load_or_run(TINY, path, images=True, run_missing=False)
    with pytest.raises(MissingResult, match='with another steps, seed'):
        load_or_run(replace(TINY, seed=3, steps=13), path, run_missing=False)


def test_every_setting_but_the_device_changes_the_fingerprint():
    other = dict(
        data='mnist',
        n=5,
        data_seed=1,
        mean='collection',
        method='kkt',
        width=11,
        training='descent',
        training_steps=7,
        training_lr=0.5,
        training_loss='mse',
        bias='first',
        start_layers=(0.1,),
        k=9,
        steps=99,
        optimizer='sgd',
        lr=0.3,
        lr_multipliers=0.1,
        cycles=2,
        warmup=3,
        hold=0.5,
        start_scale=0.4,
        start_multipliers=(0.0, 1.0),
        sharpness='loo',
        sharpened=0.5,
        span='first',
        tolerance=0.2,
        simulated_steps=7,
        tangent='both',
        layers=(-1,),
        surrogate=True,
        box='unit',
        box_weight=2.0,
        lam_min=0.1,
        lam_signed=False,
        share=True,
        over_k='f',
        splits=2,
        split_every=7,
        threshold=-0.5,
        relative=True,
        max_fraction=0.3,
        at_once=1,
        eta_max=0.2,
        num_matvecs=4,
        splitting_rule='published',
        seed=5,
        device='cuda',
        dtype='float64',
        evaluations=5,
    )
    # so that each alone is allowed
    base = Experiment(training='descent', training_steps=5, lr_multipliers=0.2, relative=False)
    assert set(other) == {f for f in Experiment.__dataclass_fields__}
    own = fingerprint(base)
    for name, value in other.items():
        if name == 'training':
            continue  # 'exact' wants training_steps=0
        assert (fingerprint(replace(base, **{name: value})) == own) == (name == 'device'), name
    assert fingerprint(Experiment()) != own


def test_a_table_by_hand():
    "Improved, beat nearest other, mean: counted on paper"
    record = Record(
        dict(
            config=dict(n=3),
            baselines={'SSIM': dict(mean_image=[0.1, 0.1, 0.1], nearest_other=[0.3, 0.3, 0.3])},
            runs={
                name: dict(
                    k_start=2,
                    k_end=k,
                    steps=5,
                    timing=dict(seconds=1.0),
                    curve=dict(loss=[2.0, 1.0]),
                    scores={'SSIM': s},
                )
                for name, k, s in (('plain', 2, [0.2, 0.4, 0.6]), ('split', 3, [0.5, 0.3, 0.7]))
            },
        )
    )
    plain, split, mean, other = record.rows()
    assert (split['improved'], split['beat_nearest_other'], plain['beat_nearest_other']) == (2, 2, 2)
    assert abs(split['mean'] - 0.5) < 1e-12 and 'improved' not in plain and 'beat_nearest_other' not in other


def record_with(before, after, name='L2'):
    return Record(
        dict(
            config=dict(n=len(before), data='faces'),
            baselines={name: {}},
            runs={
                'plain': dict(scores={name: before}, k_start=3, k_end=3),
                'split': dict(scores={name: after}),
            },
        )
    )


def test_grids_show_what_the_rule_says():
    "Of those that pass in either run the best, most improved first; the ten best where fewer than ten pass"
    before, after = (
        [9.0, 2.5] + [2.0] * 8 + [5.0, 5.0],
        [2.8, 2.05] + [1.9 - 0.1 * i for i in range(8)] + [4.0, 9.0],
    )
    samples, passing = top_by_rule(record_with(before, after), 25)
    assert passing == 10 and samples.tolist() == [0] + [9, 8, 7, 6, 1, 5, 4, 3, 2]
    assert top_by_rule(record_with(before, after), 2)[0].tolist() == [9, 8]  # the best two of them
    before[0] = after[0] = 9.0
    samples, passing = top_by_rule(record_with(before, after), 25)
    assert passing == 9 and len(samples) == 10 and 10 in samples and 11 not in samples and 0 not in samples


def test_representative_samples_are_chosen_by_rule():
    assert list(
        representative(record_with([5.0, 5.0, 5.0, 5.0, 5.0], [4.0, 6.0, 1.0, 5.0, 9.0])).values()
    ) == [2, 3, 4]
    assert representative(record_with([0.5, 0.5, 0.5], [0.4, 0.9, 0.5], 'SSIM')) == {
        'most improved': 1,
        'median': 2,
        'most harmed': 0,
    }


def test_intervals_and_verdicts():
    one = torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64)
    found = over_seeds([one, one, 1 - one])
    interval = ttest_1samp([0.8, 0.8, 0.2], 0.0).confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((0.6, interval.low, interval.high), rel=1e-12)
    assert over_seeds([torch.tensor([])]) is None
    assert over_seeds([torch.tensor([0.5]), torch.tensor([])]) == (0.5, None, None, (0.5,))
    five = [OverSeeds(m, low, high, (0.0,) * 5) for m, low, high in ((1, 0.1, 2), (-1, -2, 0.0), (1, -1, 3))]
    assert [str(verdict(v, 0.0)) for v in five] == ['yes', 'no', 'open']


@pytest.mark.parametrize('seeds', [1, 2, 3, 4, 5])
def test_a_verdict_takes_five_seeds_at_scale_small_and_three_at_larger_ones(seeds):
    "However clear they are; one seed is never enough"
    clear = over_seeds([torch.tensor([1.0 + 0.001 * i]) for i in range(seeds)])
    for scale, least in LEAST_SEEDS.items():
        said = verdict(clear, 0.0, least)
        assert said.word == ('yes' if seeds >= least else 'open'), scale
        assert said.why == ('' if seeds >= least else f'{seeds} of {least} seeds')
    assert verdict(clear, 0.0, 1).word == ('open' if seeds == 1 else 'yes')
    assert LEAST_SEEDS == dict(smoke=5, small=5, medium=3, paper=3)


def test_whatever_seeds_are_saved_count(tmp_path):
    "Copies of saved records under further seeds: the interval is over all of them, and a verdict comes"
    study = get_study('figure11', 'small')
    records = study.saved('mnist-0.6n', RESULTS)[:3]
    for seed in range(6):
        data = json.loads(json.dumps(records[seed % 3].data))
        e = study.experiment('mnist-0.6n', seed)
        data['config'], data['fingerprint'] = config(e), fingerprint(e)
        Record(data).save(study.path('mnist-0.6n', seed, tmp_path))
    row = next(r for r in findings('small', 12, tmp_path) if 'seeds' in r)
    assert (row['seeds'], row['reproduced'], row['why']) == (6, 'yes', '')
    study.path('mnist-0.6n', 1, tmp_path).unlink()  # a gap does not matter
    study.path('mnist-0.6n', 9, tmp_path).write_text('{}')  # nor a file that is none
    row = next(r for r in findings('small', 12, tmp_path) if 'seeds' in r)
    assert (row['seeds'], len(row['each']), row['reproduced']) == (5, 5, 'yes')
    study.path('mnist-0.6n', 0, tmp_path).unlink()
    row = next(r for r in findings('small', 12, tmp_path) if 'seeds' in r)
    assert (row['reproduced'], row['why']) == ('open', '4 of 5 seeds')


def test_every_changed_verdict_is_listed_with_its_reason():
    for scale in ('small', 'medium'):
        rows = changes(scale, RESULTS)
        assert rows and all(r['because'] and r['before'] != r['reproduced'] for r in rows)
        assert {r['before'] for r in rows} <= {'yes', 'no', 'open', 'not judged', 'nothing was split'}
        named = as_markdown(changes_table(rows))
        assert named.count('\n') == len(rows) + 1


def is_run_at(scale, panel):
    "The NTK attack with k = n at the two largest scales only; none of it on CIFAR-10 at scale medium"
    study, label = panel.split('/')
    if scale == 'medium':
        return study not in ('figure01', 'figure11') or label.startswith('mnist')
    return scale == 'paper' or study != 'figure11' or not label.endswith('-1n')


def test_every_figure_names_experiments_that_exist_at_every_scale():
    assert sorted(FIGURES) == list(range(1, 15))
    for figure in FIGURES.values():
        for scale in SEEDS:
            found = panels(figure.panels, scale)
            assert [f'{study.name}/{label}' for study, label in found] == [
                p for p in figure.panels if is_run_at(scale, p)
            ]
            for study, label in found:
                assert study.experiment(label, 0).steps > 0
    assert {c.figure for c in CLAIMS} == set(FIGURES)


def test_what_was_not_run_stays_empty(tmp_path):
    found = findings('paper', root=tmp_path)
    assert found and not any('ours' in row or 'reproduced' in row for row in found)
    assert all(line.endswith('|  |') for line in as_markdown(findings_table(found)).split('\n')[2:])
    with pytest.raises(MissingResult, match='is missing'):
        paper_figure(2, 'paper', tmp_path, run_missing=False)


def test_published_settings_are_those_of_the_paper():
    loo, haim = (
        Experiment(n=100, k=200, **published('loo-ntk')),
        Experiment(data='mnist', n=500, k=1000, **published('haim-mnist-1')),
    )
    assert (
        loo.steps,
        loo.period,
        loo.splits,
        loo.threshold,
        loo.relative,
        loo.eta_max,
        loo.num_matvecs,
        loo.max_fraction,
    ) == (80_000, 20_000, 3, -0.1, False, 0.02, 20, 0.5)
    assert (loo.splitting_rule, haim.splitting_rule, haim.at_once) == ('published', 'published', 150)
    assert (haim.steps, haim.splits, haim.lr, haim.lam_min, haim.sharpness, haim.optimizer) == (
        50_000,
        2,
        0.030524,
        0.44705,
        (149.866, 149.866),
        'sgd',
    )


RESULTS = Path(__file__).parent.parent / 'results'


@pytest.mark.parametrize('name', STUDIES)
def test_saved_results_are_whole_and_of_these_settings(name):
    "Everything that the notebook shows at scale small is there, and follows from its own scores"
    study = get_study(name, 'small')
    for label in study.experiments:
        for record in study.records(label, RESULTS, run_missing=False):
            for name in study.runs:
                assert all(len(s) == record.n for s in record.data['runs'][name]['scores'].values())
                # the last look is the score
                assert torch.equal(record.evaluations(name).scores[-1], record.scores(name))
                if name in ('plain', 'split', *PEELINGS):
                    # equal budgets
                    assert record.steps(name) == record.config['steps'] == record.curve(name).step[-1]


def test_settings_that_came_later_leave_saved_fingerprints_alone():
    "Every saved record, at any scale: its settings still make an experiment of that fingerprint"
    count = 0
    for path in RESULTS.glob('*/*/*.json'):
        saved = json.loads(path.read_text(encoding='utf-8'))
        if 'config' not in saved or 'fingerprint' not in saved:
            continue
        if not set(saved['config']) <= set(Experiment.__dataclass_fields__):
            continue  # a study with settings of its own
        assert fingerprint(from_config(saved['config'])) == saved['fingerprint'], path
        count += 1
    assert count > 100


def test_the_saved_controls_say_what_the_readme_says():
    "In the median of five seeds mean L2 falls by at least 40 %, and at least 17 of 20 samples improve"
    study = get_study('controls', 'small')
    tables = [
        {row['method']: row for row in r.rows()} for r in study.records('half', RESULTS, run_missing=False)
    ]
    assert len(tables) == 5
    assert (
        np.median([1 - t['split']['mean'] / t['plain']['mean'] for t in tables]) >= 0.4
        and np.median([t['split']['improved'] for t in tables]) >= 17
    )


@pytest.mark.parametrize('steps', [150, 1500, 2500, 3501])
def test_scores_are_taken_on_schedule_whatever_the_number_of_steps(steps):
    "About so many looks as asked for, the start and the end among them"
    seen = attack(prepare(replace(TINY, steps=steps, evaluations=10)), 'plain').evaluations[0]
    assert seen[0] == 0 and seen[-1] == steps and 9 <= len(seen) <= 13


def test_pictures_are_never_those_of_other_settings(tmp_path):
    path = tmp_path / 'r.json'
    load_or_run(TINY, path, images=True)
    old = load_arrays(path.with_suffix('.npz'))
    more = load_or_run(
        TINY, path, ('plain', 'split', 'random both'), images=True
    )  # only a control is missing
    assert 'random both' in more.names and np.array_equal(
        load_arrays(path.with_suffix('.npz'))['split'], old['split']
    )
    path.with_suffix('.npz').unlink()
    assert (
        'random both' in load_or_run(TINY, path, images=True).names
    )  # kept, although the pictures were made anew
    load_or_run(replace(TINY, seed=3), path)  # others under the same name, without pictures
    with pytest.raises(MissingResult, match='no images'):
        load_or_run(replace(TINY, seed=3), path, images=True, run_missing=False)


def test_an_empty_split_is_called_so(tmp_path):
    "Where no curvature lies below the threshold both runs are the same, and no claim is judged by it"
    record = record_with([1.0, 2.0], [1.0, 2.0])
    record.data['runs']['split']['splits'] = [dict(step=5, split=0)]
    study = type('Study', (), dict(name='figure01', scale='small', saved=lambda self, *a, **k: [record]))()
    found = _finding(CLAIMS[0], study, 'mnist', tmp_path)
    assert (found['reproduced'], found['why']) == ('open', 'nothing was split')


def test_a_control_with_its_own_cycles_has_them_whatever_the_experiment_holds():
    held, cycle = (make_descent(replace(TINY, hold=0.7, steps=100), 4, cycles=c).lr_factor for c in (None, 1))
    plain = make_descent(replace(TINY, steps=100), 4, cycles=1).lr_factor
    assert held(60) == 1 > cycle(60) and [cycle(s) for s in range(100)] == [plain(s) for s in range(100)]


SAVED = sorted(p for p in RESULTS.glob('*/*/*.json') if p.parent.parent.name != 'search')


def test_reading_and_saving_changes_no_file(tmp_path):
    "Files from before commits were kept know none; all know their images, and are written back byte by byte"
    assert len(SAVED) > 200
    for path in SAVED:
        record = Record.load(path)
        record.save(tmp_path / 'again.json')
        assert (tmp_path / 'again.json').read_bytes() == path.read_bytes(), path
        if 'commit' not in record.data:
            assert record.commit is None
        assert len(record.images) == 64


def test_a_new_record_says_which_code_and_which_images(tmp_path):
    record = load_or_run(TINY, tmp_path / 'r.json')
    data = prepare(TINY).data
    assert record.images == digest([data.X, data.y]) == Record.load(tmp_path / 'r.json').images
    assert record.commit is None or len(record.commit.rstrip('+')) == 40
    foreign = Record(record.data | dict(images='0' * 64))
    with pytest.raises(ValueError, match='of the same images'):
        run(TINY, ('random both',), foreign)
    assert 'random both' in run(TINY, ('random both',), record).record.names


@pytest.mark.parametrize(
    'registry, name, value, settings',
    [
        (OPTIMIZERS, 'rms', torch.optim.RMSprop, dict(optimizer='rms')),
        (ATTACKS, 'like kkt', ATTACKS['kkt'], dict(method='like kkt', training='descent', training_steps=3)),
        (TRAININGS, 'like descent', TRAININGS['descent'], dict(training='like descent', training_steps=3)),
    ],
)
def test_what_is_registered_is_known_at_once_and_runs(monkeypatch, registry, name, value, settings):
    with pytest.raises(ValueError, match=f"'{name}'"):
        replace(TINY, **settings)
    monkeypatch.setitem(registry, name, value)
    e = replace(TINY, **settings)
    assert fingerprint(e) != fingerprint(TINY)
    assert attack(prepare(e), 'plain').reconstruction.history.step[-1] == TINY.steps
    monkeypatch.delitem(registry, name)
    with pytest.raises(ValueError, match=f"'{name}'"):
        replace(TINY, **settings)


def test_a_run_of_ones_own_is_an_object(monkeypatch):
    "It is found by its name, and told what ran before it"

    class Counted(Plain):
        def attack(self, problem, watch, done):
            seen.append((watch.name, done.names))
            return super().attack(problem, watch, done)

    seen = []
    monkeypatch.setitem(RUNS, 'mine', Counted())
    record = run(TINY, ('plain', 'split', 'mine')).record
    assert seen == [('mine', ('plain', 'split'))]
    assert record.data['runs']['mine']['scores'] == record.data['runs']['plain']['scores']
    with pytest.raises(ValueError, match="runs='yours'"):
        run(TINY, ('yours',))


def test_random_controls_split_as_many_candidates_as_splitting_did(monkeypatch):
    asked = []
    propose = RandomSplits.propose

    def listening(self, *args):
        asked.append(self)
        return propose(self, *args)

    monkeypatch.setattr(RandomSplits, 'propose', listening)
    names = [name for name in RUNS if name.startswith('random')]
    record = run(replace(TINY, threshold=-1e-9), ('plain', 'split', *names)).record
    counts = tuple(s['split'] for s in record.splits('split'))
    assert len(names) == 3 and sum(counts) > 0
    assert {rule.counts for rule in asked} == {counts}
    assert {(rule.direction, rule.selection) for rule in asked} == {
        ('random', 'curvature'),
        ('curvature', 'random'),
        ('random', 'random'),
    }
    for name in names:
        assert tuple(s['split'] for s in record.splits(name)) == counts


def test_a_record_names_what_it_does_not_hold(tmp_path):
    record = Record.load(Path(__file__).parent.parent / 'results/figure11/small/mnist-0.3n-seed0.json')
    for ask in (lambda: record.scores('split', 'L3'), lambda: record.gain(score='L3')):
        with pytest.raises(ValueError, match="score='L3': score must be one of"):
            ask()
    with pytest.raises(ValueError, match="name='mine': name must be one of"):
        record.baseline('mine')
    (tmp_path / 'torn.json').write_text('{"config": ')
    with pytest.raises(ValueError, match='must be the file of a record'):
        Record.load(tmp_path / 'torn.json')
