"The story of 04: what its headings say is what the files say, and what it no longer runs is run here"

import ast, json, re
from dataclasses import replace
from pathlib import Path
import pytest, torch
from samplesplit_nb.claims import FIGURES, findings, heading, improvement, paper_figure
from samplesplit_nb.experiments import verdict_table
from samplesplit_nb.inversion import invert_gradient
from samplesplit_nb.metrics import nearest_l2
from samplesplit_nb.problems import prepare
from samplesplit_nb.runs import MissingResult
from samplesplit_nb.settings import OURS, Experiment
from samplesplit_nb.studies import STUDIES, get_study, scales_of, study_lines
from samplesplit_nb.tables import as_markdown

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / 'results'
CELLS = json.loads((ROOT / 'nbs/04_experiments.ipynb').read_text())['cells']
source = lambda cell: ''.join(cell['source'])


def test_every_heading_says_what_the_saved_results_say():
    text = '\n'.join(source(c) for c in CELLS if c['cell_type'] == 'markdown')
    assert re.findall(r'^### (Figure .*)$', text, re.M) == [heading(n, RESULTS) for n in FIGURES]


def test_the_verdicts_on_the_page_are_those_of_the_files():
    "The saved output of the table against the table"
    cell = next(c for c in CELLS if 'verdict_table(RESULTS)' in source(c))
    assert ''.join(cell['outputs'][-1]['data']['text/html']) == verdict_table(RESULTS)._repr_html_()
    assert '| not reproduced |' in as_markdown(verdict_table(RESULTS))


def sections():
    "Title -> sources of the code cells under it"
    found, title = {}, ''
    for c in CELLS:
        if c['cell_type'] == 'markdown':
            title = (re.findall(r'^##+ (.*)$', source(c), re.M) or [title])[-1]
        elif 'google.colab' not in source(c):
            found.setdefault(title, []).append(source(c))
    return found


def bound(text):
    "Names that a cell binds: assignments, loops, definitions; not what is inside a function"
    out, stack = set(), list(ast.parse(text).body)
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            out.add(node.name)
        elif not isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                out.add(node.id)
            stack += ast.iter_child_nodes(node)
    return out


LOOPS = set('name label records r p control clear mean width words scale before'.split())


def test_no_name_is_bound_in_two_sections():
    "But those of loops, which are used in their cell only"
    first = {}
    for title, cells in sections().items():
        for name in set().union(*map(bound, cells)) - LOOPS - {'_'}:
            assert first.setdefault(name, title) == title, f'{name}: {first[name]} and {title}'


def test_bound_names_are_found():
    text = 'a, b = 1, 2\nfor c in d: e = [f for f in g]\ndef h(i): j = 1\nwith k as l: pass'
    assert bound(text) == set('abcehl')


# what takes too long for a page, or is not its story


@pytest.mark.parametrize('number', FIGURES)
def test_every_figure_runs_at_smoke_from_nothing(number, tmp_path):
    folders = dict(root=tmp_path, cache=tmp_path / 'cache')
    fig = paper_figure(number, 'smoke', **folders)
    assert fig.get_suptitle().startswith(f'Figure {number}: ')
    again = paper_figure(number, 'smoke', tmp_path, run_missing=False)  # from the files
    assert again.get_suptitle() == fig.get_suptitle()
    shown = [r for r in findings('smoke', number, tmp_path) if r['panel'] in FIGURES[number].panels]
    assert shown and all('ours' in r for r in shown)
    with pytest.raises(MissingResult, match='is missing'):
        paper_figure(number, 'paper', tmp_path, run_missing=False)


OWN = [name for name in STUDIES if not name.startswith('figure')]


@pytest.mark.parametrize('name', OWN)
def test_every_study_of_our_own_runs_at_smoke(name, tmp_path):
    study = replace(get_study(name, 'smoke'), runs=('plain', 'split', 'random both'))
    for label in study.experiments:
        for record in study.records(label, tmp_path):
            assert record.names == study.runs
            assert record.steps('plain') == study.experiments[label].steps


def test_every_study_says_in_one_line_what_it_holds():
    lines = study_lines()
    assert list(lines) == list(STUDIES) and all(20 < len(line) <= 90 for line in lines.values())
    assert all(set(scales_of(name)) >= {'smoke', 'small'} for name in STUDIES)


def test_weights_at_the_end_of_training_give_no_image_away():
    "The control of inversion: a network at the margin, whose weights before training are not known"
    e = Experiment(**OURS['kkt'] | dict(data='faces', n=10, k=20, width=200, training_steps=1000))
    margin = prepare(e)
    weights = list(margin.trained.model.parameters())
    second = torch.linalg.svdvals(weights[2].double())
    found = invert_gradient(margin.trained.model, weights, samples=10, directions=40, rounds=4)
    error = nearest_l2(margin.data.X, found.X.to(margin.data.X))[0]
    assert second[2] < 0.02 * second[0] and error.min() > 2


def test_how_well_a_digit_is_read_follows_what_it_adds_to_the_weights():
    "Neither the norm of an image nor its distance to the others tells as much"
    from scipy import stats

    kept = json.loads((RESULTS / 'peeling/shares.json').read_text())
    records = get_study('peeling', 'medium').records('mnist', RESULTS, run_missing=False)
    seen, missed = [], {}
    for record, found in zip(records, kept.values()):
        half = record.baseline('nearest_other', 'L2') / 2
        for run in ('plain', 'peel'):
            error = record.scores(run, 'L2')
            rank = lambda values, error=error: stats.spearmanr(values, error).statistic
            others = max(abs(rank(found['norms'])), abs(rank(half)))
            assert rank(found['shares']) < -0.7 and others < -rank(found['shares'])
            seen.append((rank(found['shares']), others))
            places = stats.rankdata(found['shares'])[(error >= half).numpy()]
            missed.setdefault(run, []).append(sorted(map(int, places)))
    assert -0.945 < min(r for r, _ in seen) and max(r for r, _ in seen) < -0.875
    assert max(o for _, o in seen) < 0.455
    assert missed == {'plain': [[1, 2, 3, 4, 5, 6], [1, 5, 9], [1, 2, 3]], 'peel': [[], [1], []]}


def test_what_the_page_says_of_trained_networks():
    study = get_study('inversion', 'medium')
    records = [
        r
        for label in ('mnist-descent', 'cifar10-descent')
        for r in study.records(label, RESULTS, run_missing=False)
    ]
    returned = sum(r.facts('invert')['found'] for r in records)
    right = sum(int(r.recovered('invert').sum()) for r in records)
    assert (returned, right) == (469, 467)


def test_peeling_with_rounds_and_without_are_alike_on_a_hundred_digits():
    records = get_study('peeling', 'medium').records('mnist', RESULTS, run_missing=False)
    p = improvement(records, 'L2', before='peel, no rounds', after='peel')
    assert p.low < 0 < p.high
