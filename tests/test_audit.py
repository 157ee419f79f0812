"The audit: its counts, its schedule, its report, its command"

import copy, json, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest, torch
from torch import nn
from samplesplit_nb import audit as module
from samplesplit_nb.audit import AUDIT_ATTACKS, AuditAttack, Candidates, Clock, audit, audit_record
from samplesplit_nb.auditfiles import audit_files
from samplesplit_nb.cli import main
from samplesplit_nb.commands import train_victim
from samplesplit_nb.data import load_data
from samplesplit_nb.leaks import clopper_pearson, leaks
from samplesplit_nb.networks import MLP
from samplesplit_nb.reports import report_html, save_report
from samplesplit_nb.simulation import TrainingRecipe
from samplesplit_nb.storage import load_arrays, load_json
from samplesplit_nb.training import train_ntk
from samplesplit_nb.weights import save_weights

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / 'samplesplit_nb/audit.schema.json').read_text())
KINDS = dict(string=str, integer=int, number=(int, float), boolean=bool, object=dict, array=list)


def misfits(value, schema, where='audit'):
    "Where a value is not as the schema says; for the words that ours uses"
    kinds = schema.get('type')
    if kinds is not None:
        kinds = [kinds] if isinstance(kinds, str) else kinds
        fits = any(
            value is None if k == 'null' else isinstance(value, KINDS[k]) and
            (k == 'boolean' or not isinstance(value, bool)) for k in kinds
        )  # fmt: skip
        if not fits:
            yield f'{where}: {value!r} is no {kinds}'
            return
    if 'const' in schema and value != schema['const'] or 'enum' in schema and value not in schema['enum']:
        yield f'{where}: {value!r}'
    if 'minimum' in schema and value < schema['minimum']:
        yield f'{where}: {value} is too small'
    if isinstance(value, dict):
        yield from (f'{where}: no {name}' for name in schema.get('required', ()) if name not in value)
        for name, own in schema.get('properties', {}).items():
            if name in value:
                yield from misfits(value[name], own, f'{where}.{name}')
    if isinstance(value, list):
        if not schema.get('minItems', 0) <= len(value) <= schema.get('maxItems', len(value)):
            yield f'{where}: {len(value)} entries'
        for i, v in enumerate(value):
            yield from misfits(v, schema.get('items', {}), f'{where}.{i}')


def check_schema(record):
    assert list(misfits(record, SCHEMA)) == []
    try:
        import jsonschema
    except ImportError:
        return
    jsonschema.validate(record, SCHEMA)


@pytest.fixture(scope='module')
def faces():
    "(model, init, X trained on, y, held out)"
    data = load_data('faces', n=60, mean='collection')
    init = MLP([625, 100, 100, 1], seed=0)
    own = slice(0, 60, 6)
    model = train_ntk(init, data.X[own], data.y[own]).model
    rest = [i for i in range(60) if i % 6]
    return model, init, data.X[own], data.y[own], data.X[rest]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "A folder with a victim, its start and another start"
    folder = tmp_path_factory.mktemp('victim')
    train_victim(method='ntk', data='faces', n=20, width=100, device='cpu', out=folder)
    save_weights(folder / 'other.safetensors', MLP([625, 100, 100, 1], seed=9))
    return folder


def words(files, out, *more, init=True):
    start = ('--init', files / 'init.safetensors') if init else ()
    return [
        str(w)
        for w in ('audit', '--weights', files / 'model.safetensors', *start, '--data', 'faces', '-n', 20,
                  '--budget', '0.4', '--device', 'cpu', '--out', out, *more)
    ]  # fmt: skip


def test_the_count_is_that_of_loops(faces):
    model, init, X, y, held = faces
    report = audit(model, X, y, init=init, holdout=held, budget=0.5)
    a, c, h = (t.double().numpy() for t in (X, report.x, held))
    far = lambda p, q: np.sqrt(((p - q) ** 2).sum())
    unseen = [min(far(u, v) for v in c) for u in h]
    count = 0
    for i, r in enumerate(a):
        d, other = min(far(r, v) for v in c), min(far(r, s) for j, s in enumerate(a) if j != i)
        count += d < other / 2 and (1 + sum(u <= d for u in unseen)) / (len(unseen) + 1) <= 0.05
    assert report.leaks.count == count == 10 and report.light == 'red'
    assert [s.outcome for s in report.stages] == ['run', 'not needed', 'not needed', 'impossible']
    check_schema(audit_record(report))


def test_nothing_leaks_where_nothing_was_trained_on(faces):
    model, init, X, y, held = faces
    report = audit(model, held[:10], init=init, holdout=held[10:], budget=0.5, doubt='no fit')
    assert report.leaks.count == 0 and report.light == 'amber'  # other data
    assert report.verdict.startswith('None of the 10') and 'no all-clear' in report.verdict
    untrained = audit(init, X, holdout=held, budget=0.1)
    assert untrained.leaks.count == 0 and untrained.light == 'amber'
    wrong = audit(model, X, init=MLP([625, 100, 100, 1], seed=4), holdout=held, budget=0.1)
    assert wrong.leaks.count == 0 and wrong.light == 'amber'
    assert wrong.stages[0].outcome == 'failed' and 'nothing in common' in wrong.stages[0].why


def descent(init, X, y, steps=400, optimiser=torch.optim.SGD, lr=0.1, **how):
    "A network that was really trained, not linearised"
    net = copy.deepcopy(init).requires_grad_(True)
    made = optimiser(net.parameters(), lr, **how)
    for _ in range(steps):
        made.zero_grad()
        torch.nn.functional.softplus(-y.float() * net(X.float())[:, 0]).mean().backward()
        made.step()
    return net


def rounded(net, dtype=torch.bfloat16):
    net = copy.deepcopy(net).requires_grad_(False)
    for p in net.parameters():
        p.copy_(p.to(dtype).to(p.dtype))
    return net


@pytest.mark.parametrize('kind', ['final', 'bfloat16', 'wrong start', 'adam', 'decay', 'pixels', 'cnn'])
def test_a_network_that_the_attacks_do_not_fit_gets_no_all_clear(faces, kind):
    "Even where whoever calls has no doubt: nothing found by an attack that does not fit is no evidence"
    _, init, X, y, held = faces
    start, how = init, {}
    order = torch.randperm(625, generator=torch.Generator().manual_seed(0))
    if kind == 'cnn':
        torch.manual_seed(0)
        parts = nn.Unflatten(1, (1, 25, 25)), nn.Conv2d(1, 3, 7), nn.ReLU(), nn.Flatten(), nn.Linear(1083, 1)
        start, how = nn.Sequential(*parts), dict(shape=(625,))
    optimiser = dict(optimiser=torch.optim.Adam, lr=1e-3) if kind == 'adam' else {}
    decay = dict(weight_decay=0.05) if kind == 'decay' else {}
    net = descent(start, X[:, order] if kind == 'pixels' else X, y, **optimiser, **decay)
    if kind == 'bfloat16':
        net = rounded(net)
    if kind == 'wrong start':
        start = MLP([625, 100, 100, 1], seed=9)
    known = None if kind in ('final', 'bfloat16') else start
    for doubt in ('', None):
        report = audit(net, X, y, init=known, holdout=held, budget=0.05, doubt=doubt, **how)
        assert report.light != 'green', report
        if not report.leaks.count:
            assert report.open and 'no all-clear' in report.verdict


def test_what_other_records_explain_is_said(faces):
    "The weights are explained to the last digit, but not by the records as they are given"
    model, init, X, y, held = faces
    order = torch.randperm(625, generator=torch.Generator().manual_seed(0))
    report = audit(model, X[:, order], y, init=init, holdout=held[:, order], budget=0.5, doubt='')
    assert report.stages[0].complete and report.light == 'amber'
    assert report.open[0].short == 'the training was explained by other records'


def test_held_out_records_that_were_trained_on_are_no_all_clear(faces):
    model, init, X, y, held = faces
    report = audit(model, held[:10], y, init=init, holdout=X, budget=0.5, doubt='')
    assert report.light == 'amber' and any('held-out' in p.short for p in report.open)


def test_green_needs_an_attack_that_fits(faces, monkeypatch):
    model, init, X, y, held = faces
    for left, light in ((0.01, 'green'), (0.5, 'amber'), (None, 'amber')):
        found = Candidates(torch.full((3, 625), 9.0), torch.ones(3), 'none', 'told', unexplained=left)
        mine = AuditAttack('Mine', 'nothing', lambda k: '', lambda k, clock, path, found=found: found)
        monkeypatch.setattr(module, 'AUDIT_ATTACKS', dict(mine=mine))
        report = audit(model, X, y, init=init, holdout=held)
        assert report.light == light, (left, report)
        check_schema(audit_record(report))
        assert ('no all-clear' in report.verdict) == (light == 'amber')


def test_a_search_that_was_cut_says_so_with_its_steps(faces):
    model, init, X, y, held = faces
    report = audit(descent(init, X, y, 50), X, y, holdout=held, budget=0.03)
    margin = report.stages[2]
    assert margin.outcome in ('cut', 'no time') and ' 0.0 minutes' not in margin.why
    if margin.outcome == 'cut':
        assert 'of 800 steps, the time was up (all take about' in margin.why
    assert 'not every attack came to its end' in ' '.join(p.short for p in report.open)


def test_inversion_searches_once(faces, monkeypatch):
    "And asks for the time after each round"
    _, init, X, y, held = faces
    calls, net = [], descent(init, X, y, 800)
    once = module.invert_step
    monkeypatch.setattr(module, 'invert_step', lambda *a, **k: calls.append(1) or once(*a, **k))
    k = module.Knowledge(net, init, module.input_shape(net), 10)
    found = AUDIT_ATTACKS['inversion'].run(k, Clock(1e-6), None)
    assert len(calls) == 1 and (found.complete or found.cut and 'the time was up' in found.sentence)


def test_without_held_out_records_the_weaker_rule_is_named(faces):
    model, init, X, *_ = faces
    record = audit_record(audit(model, X, init=init, budget=0.5))
    assert record['held_out'] is None and 'weaker' in record['rule']
    assert record['records'][0]['p'] is None
    check_schema(record)


def test_an_attack_of_ones_own_is_asked_and_an_early_success_ends_it(faces, monkeypatch):
    model, init, X, _, held = faces
    told = lambda k, clock, path: Candidates(X, torch.ones(len(X)), 'none', 'told')
    mine = {'mine': AuditAttack('Mine', 'nothing', lambda k: '', told)}
    monkeypatch.setattr(module, 'AUDIT_ATTACKS', mine | AUDIT_ATTACKS)
    report = audit(model, X, init=init, holdout=held, budget=0.5)
    assert [s.name for s in report.stages][:2] == ['mine', 'inversion']
    assert report.stages[1].outcome == 'not needed' and 'had leaked already' in report.stages[1].why
    assert report.stages[0].calibration.true == 10 and report.stages[0].calibration.auroc is None


def test_no_time_is_said_and_is_amber(faces):
    model, _, X, _, held = faces
    report = audit(model, X, holdout=held, budget=1e-4)
    assert [s.outcome for s in report.stages] == ['impossible', 'impossible', 'no time', 'impossible']
    assert report.light == 'amber' and report.leaks.count == 0 and len(report.x) == 0
    check_schema(audit_record(report))
    page = report_html(audit_record(report))
    assert 'no time' in page and 'None of the 10' in page


def test_finished_stages_are_kept_for_the_same_question_only(faces, tmp_path, monkeypatch):
    model, init, X, _, held = faces
    ask = lambda **more: audit(model, X, holdout=held, state=tmp_path, **dict(init=init, budget=0.5) | more)
    first = ask()

    def forbidden(*_):
        raise AssertionError('was run again')

    again = replace(AUDIT_ATTACKS['inversion'], run=forbidden)
    monkeypatch.setitem(AUDIT_ATTACKS, 'inversion', again)
    second = ask()
    same = lambda r: [s.record() for s in r.stages]
    assert same(first) == same(second) and torch.equal(first.x, second.x)
    for other in (dict(budget=0.6), dict(seed=1)):
        with pytest.raises(AssertionError):
            ask(**other)
    for path in tmp_path.glob('*.stage.npz'):  # a damaged one is run anew
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(AssertionError):
        ask()


def test_a_failure_of_an_attack_does_not_end_the_audit(faces, monkeypatch):
    model, init, X, _, held = faces
    def lost(*_):
        raise ValueError('init=<x>: bad; likely cause: it rains')  # fmt: skip

    monkeypatch.setitem(AUDIT_ATTACKS, 'inversion', replace(AUDIT_ATTACKS['inversion'], run=lost))
    report = audit(model, X, init=init, holdout=held, budget=0.005)
    assert (report.stages[0].outcome, report.stages[0].why) == ('failed', 'it rains')
    assert report.light == 'amber' and report.stages[2].outcome in ('run', 'cut', 'no time')
    assert any('it rains' in p.more for p in report.open)


@pytest.mark.parametrize(
    'change, says',
    [
        (dict(X=torch.zeros(3)), 'X.shape'),
        (dict(holdout=torch.zeros(2, 5)), 'holdout.shape'),
        (dict(y=torch.ones(3)), 'y='),
        (dict(budget=-1.0), 'budget'),
        (dict(alpha=0.0), 'alpha'),
        (dict(X=torch.full((3, 625), torch.nan)), 'X'),
        (dict(seed=-1), 'seed'),
    ],
)
def test_mistakes(faces, change, says):
    with pytest.raises(ValueError, match=says):
        audit(faces[0], **dict(X=faces[2]) | change)


def test_copies_of_a_record_do_not_hide_it():
    X = torch.tensor([[0.0], [0.0], [10.0]])
    assert leaks(X, torch.tensor([[0.1]])).leaked.tolist() == [True, True, False]
    alone = leaks(X[:1], torch.tensor([[0.1]]))  # no other record at all
    assert alone.count == 1 and alone.interval == clopper_pearson(1, 1)


def test_recipes_open_the_simulation(faces):
    model, init, X, *_ = faces
    k = module.Knowledge(model, init, module.input_shape(model), 10, recipe=TrainingRecipe(0.1, 100))
    assert AUDIT_ATTACKS['simulated'].why_not(k) == ''
    assert 'cannot be simulated' in AUDIT_ATTACKS['simulated'].why_not(
        replace(k, recipe=TrainingRecipe(0.1, 100, batches=2))
    )


def test_the_command(files, tmp_path, capsys):
    assert main(words(files, tmp_path / 'a', '--fail-above', '19')) == 4
    out, err = capsys.readouterr()
    assert err.strip().splitlines()[-1].endswith('20 records leak; --fail-above allows 19')
    assert 'verdict: red. 20 of 20 training records can be read off' in out
    record = load_json(tmp_path / 'a/audit.json')
    check_schema(record)
    assert record['leaked'] == 20 and record['held_out']['false_alarms'] <= 1
    assert record['records'][0]['name'].startswith('faces ')
    page = (tmp_path / 'a/report.html').read_text()
    assert page.count('<figure>') == 12 and '20 of 20 training records' in page
    assert '://' not in page and '<script' not in page and 'prefers-color-scheme: dark' in page
    assert len(load_arrays(tmp_path / 'a/candidates.npz')['x']) == 20
    assert main(words(files, tmp_path / 'a', '--fail-above', '20')) == 0  # kept, and within what is allowed
    capsys.readouterr()


def test_the_command_says_json(files, tmp_path, capsys):
    assert main(words(files, tmp_path, '--json')) == 0
    check_schema(json.loads(capsys.readouterr().out))


def test_a_wrong_start_finds_nothing_and_another_preprocessing_is_a_mistake(files, tmp_path, capsys):
    wrong = [str(files / 'other.safetensors') if w.endswith('init.safetensors') else w
             for w in words(files, tmp_path)]  # fmt: skip
    wrong[wrong.index('--budget') + 1] = '0.05'
    assert main(wrong) == 0
    record = load_json(tmp_path / 'audit.json')
    assert (record['leaked'], record['light']) == (0, 'amber') and record['settings']['doubt']
    assert 'What has to be settled' in (tmp_path / 'report.html').read_text()
    capsys.readouterr()
    assert main(words(files, tmp_path / 'b', '--mean', '0.5', '--std', '0.25')) == 2
    assert '--mean training' in capsys.readouterr().err and not (tmp_path / 'b/audit.json').exists()


@pytest.mark.parametrize(
    'more, says',
    [
        (('--holdout', 'nowhere'), '--holdout'),
        (('--budget', '0'), '--budget'),
        (('--fail-above', '-1'), '--fail-above'),
        (('--training-lr', '0.1'), '--training-steps'),
        (('--alpha', '2'), '--alpha'),
        (('--momentum', '0.9'), '--momentum'),
    ],
)
def test_mistakes_of_the_command_are_a_line(files, tmp_path, capsys, more, says):
    assert main(words(files, tmp_path, *more)) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith('samplesplit: ') and says in err, err


def test_without_jinja2_the_numbers_are_written_and_a_line_says_what_is_missing(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'jinja2', None)
    answer = audit_files(
        weights=files / 'model.safetensors', init=files / 'init.safetensors', data='faces', n=20,
        budget=0.4, device='cpu', out=tmp_path,
    )  # fmt: skip
    assert "pip install 'samplesplit_nb[audit]'" in answer.text
    assert load_json(tmp_path / 'audit.json')['leaked'] == 20 and not (tmp_path / 'report.html').exists()


def test_a_killed_audit_goes_on(files, tmp_path):
    line = [sys.executable, '-m', 'samplesplit_nb', *words(files, tmp_path, init=False)]
    running = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    end = time.monotonic() + 120
    while not list((tmp_path / 'state').glob('margin-*.npz')) and time.monotonic() < end:
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    plan = load_arrays(next((tmp_path / 'state').glob('margin-*.npz')))['steps']
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    after = [p for p in (tmp_path / 'state').glob('margin-*.npz') if 'stage' not in p.name]
    assert len(after) == 1 and load_arrays(after[0])['steps'] == plan
    assert load_json(tmp_path / 'audit.json')['attacks'][2]['outcome'] in ('run', 'cut')


def test_names_from_outside_are_escaped_and_html_needs_nothing_else(faces, tmp_path):
    model, init, X, _, held = faces
    names = tuple(f'<img src=x onerror=alert({i})>' for i in range(10))
    record = audit_record(audit(model, X, init=init, holdout=held, budget=0.5, names=names))
    paths, why = save_report(tmp_path, record)
    page = paths[1].read_text()
    assert why == '' and '<img src=x' not in page and '&lt;img src=x' in page
    assert not any(w in page for w in ('http', '<link', '@import', '<script'))


def test_the_page_in_a_browser(files, tmp_path):
    "At the widths of a telephone and of a laptop, in both colours: nothing too wide, too small or missing"
    pytest.importorskip('playwright')
    sys.path.insert(0, str(ROOT / 'tools'))
    import browse

    if not browse.chromium():
        pytest.skip('no Chromium or Chrome on this machine (apt-get install chromium)')
    assert main(words(files, tmp_path)) == 0
    with browse.browser() as b:
        for width in browse.WIDTHS:
            for scheme in 'light', 'dark':
                page = b.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
                page.goto((tmp_path / 'report.html').as_uri())
                assert page.evaluate(browse.LOOK)['found'] == []
                paint = page.evaluate('getComputedStyle(document.body).backgroundColor')
                assert (paint == 'rgb(255, 255, 255)') == (scheme == 'light')
        pdf = page.pdf(format='A4')
    assert pdf.startswith(b'%PDF') and len(pdf) > 20_000


def test_mutated_records_do_not_fit_the_schema(faces):
    "The control of the schema, and of the check of it"
    model, init, X, _, held = faces
    record = audit_record(audit(model, X, init=init, holdout=held, budget=0.5))
    for change in (dict(light='blue'), dict(leaked='2'), dict(interval=[0.1]), dict(n=0), dict(records=[{}]),
                   dict(held_out=3), dict(schema=2)):  # fmt: skip
        assert list(misfits(record | change, SCHEMA)), change
    for name in SCHEMA['required']:
        assert list(misfits({k: v for k, v in record.items() if k != name}, SCHEMA)), name


