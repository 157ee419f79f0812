"The tree itself: exported files, saved outputs, runtime requirements, saved results"

import ast, json, re, subprocess, sys
from pathlib import Path
from statistics import median
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
import measure  # noqa: E402

NOTEBOOKS = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
cells = lambda path: json.loads(path.read_text())['cells']
source = lambda cell: ''.join(cell['source'])


def test_every_module_has_its_notebook_and_none_is_left_over():
    exported = {
        m.group(1)
        for p in NOTEBOOKS
        for c in cells(p)
        for m in [re.search(r'^#\| *default_exp +(\w+)', source(c), re.M)]
        if m
    }
    modules = {p.stem for p in (ROOT / 'samplesplit_nb').glob('*.py') if not p.stem.startswith('_')}
    assert exported == modules


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_was_executed_and_shows_no_error(path):
    code = [c for c in cells(path) if c['cell_type'] == 'code']
    assert not any(o['output_type'] == 'error' for c in code for o in c['outputs'])
    if path.parent.name == 'nbs':
        assert any(c['outputs'] for c in code), 'run tools/execute_nbs.py'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_imports_stand_alone_in_their_cell(path):
    "The site's builder runs every cell that holds an import; one mixed with other code would fail there"
    for cell in cells(path):
        if cell['cell_type'] != 'code':
            continue
        imports = [
            isinstance(node, (ast.Import, ast.ImportFrom))
            for node in ast.parse(TransformerManager().transform_cell(source(cell))).body
        ]  # `!` and `%` too
        assert all(imports) or not any(imports), source(cell)


def test_the_package_imports_with_little():
    "On a bare GPU machine there are torch, numpy, scikit-image and matplotlib, but neither nbdev nor tqdm"
    modules = [p.stem for p in (ROOT / 'samplesplit_nb').glob('*.py') if not p.stem.startswith('_')]
    absent = [
        'nbdev',
        'fastcore',
        'execnb',
        'tqdm',
        'safetensors',
        'filelock',
        'torchvision',
        'ipywidgets',
        'IPython',
        'pandas',
    ]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); " + '; '.join(
        f'import samplesplit_nb.{m}' for m in modules
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_runtime_requirements_are_few_and_open_above():
    settings = (ROOT / 'settings.ini').read_text()
    requirements = re.search(r'^requirements *= *(.+)$', settings, re.M).group(1)
    assert '<' not in requirements and '==' not in requirements and len(requirements.split()) <= 8


def test_layers_call_downwards_only():
    "Who may import whom: the picture in CONTRIBUTING.md"
    floor = (
        'checks', 'tables', 'networks', 'optimisers', 'storage',
        'preprocessing', 'arrayfiles', 'data', 'metrics',
    )  # fmt: skip
    below = {
        **{name: ['checks'] for name in floor},
        'checks': [],
        'folders': ['checks', 'arrayfiles'],
        'data': ['checks', 'arrayfiles', 'folders', 'preprocessing'],
        'metrics': ['checks', 'tables'],
        'fit': ['checks'],
        'tangents': ['checks', 'networks'],
        'plain': ['networks'],
        'validator': ['checks', 'networks', 'plain', 'tangents'],
        'decomposition': ['checks'],
        'eigenvectors': ['checks'],
        'identifiability': ['checks', 'decomposition', 'eigenvectors', 'networks'],
        'objectives': ['checks', 'networks', 'penalties', 'tangents'],
        'penalties': ['checks'],
        'presets': ['checks'],
        'descent': ['checks', 'objectives', 'optimisers', 'storage', 'tables'],
        'lanczos': ['checks'],
        'tidy': ['checks', 'descent', 'objectives'],
        'rules': ['checks', 'descent', 'lanczos', 'objectives', 'splitting'],
        'splitting': [
            'checks',
            'descent',
            'lanczos',
            'tidy',
            'objectives',
            'optimisers',
            'storage',
            'tables',
        ],
        'convergence': ['checks', 'descent', 'lanczos', 'networks', 'objectives', 'splitting', 'tangents'],
        'perceptrons': ['checks', 'networks'],
        'inversion': ['checks', 'decomposition', 'identifiability', 'networks', 'perceptrons'],
        'shallow': ['checks', 'inversion', 'networks', 'perceptrons'],
        'inactive': ['checks', 'inversion', 'networks'],
        'steps': ['checks', 'fit', 'inactive', 'inversion', 'networks', 'perceptrons', 'shallow'],
        'peeling': ['checks', 'rules', 'descent', 'objectives', 'optimisers', 'splitting', 'storage'],
        'layers': ['checks', 'objectives', 'penalties', 'tangents'],
        'spans': ['checks', 'inversion', 'objectives', 'penalties', 'perceptrons', 'tangents'],
        'simulation': ['checks', 'networks', 'tangents'],
        'simulated': ['checks', 'networks', 'objectives', 'penalties', 'simulation', 'spans', 'tangents'],
        'stationarity': ['checks', 'networks', 'tangents'],
        'certificates': ['checks', 'identifiability', 'networks', 'stationarity'],
    }
    below['training'] = [*floor, 'stationarity', 'objectives', 'tangents']
    below['settings'] = ['checks', 'rules', 'optimisers', 'presets', 'splitting', 'storage']
    below['records'] = ['checks', 'rules', 'metrics', 'settings', 'splitting', 'descent', 'storage', 'tables']
    below['figures'] = ['checks', 'metrics', 'records']
    theory = 'tangents', 'rules', 'identifiability', 'objectives', 'descent', 'splitting', 'presets'
    simulating = 'spans', 'simulation', 'simulated'
    below['problems'] = [*floor, *theory, 'training', 'settings', 'layers', *simulating]
    below['runs'] = [*below['problems'], 'problems', 'records', 'inversion', 'peeling']
    for lower, upper in (('runs', 'search'), ('search', 'studies'), ('studies', 'claims')):
        below[upper] = [*below[lower], lower, 'figures']
    below['experiments'] = [*below['claims'], 'claims']
    below['checkpoints'] = ['checks', 'storage']
    below['weights'] = ['checks', 'networks', 'checkpoints']
    below['options'] = ['checks']
    below['answers'] = ['checks', 'options', 'storage']
    below['recipes'] = [*simulating, 'checks', 'objectives', 'options', 'presets', 'problems', 'settings']
    below['given'] = [*floor, 'problems', 'weights', 'fit']
    files = 'figures', 'certificates', 'weights', 'options', 'answers'
    inverting = 'inversion', 'perceptrons', 'steps', 'validator'
    below['attacks'] = [*below['problems'], 'problems', 'records', *inverting, *files, 'given', 'recipes']
    below['leaks'] = ['checks', 'metrics']
    below['audit'] = [*below['problems'], 'problems', 'fit', 'leaks', 'perceptrons', 'steps', 'weights']
    below['reports'] = ['checks', 'records', 'storage']
    auditing = 'audit', 'attacks', 'reports'
    asked = 'given', 'problems', 'recipes', 'options', 'answers', 'weights'
    below['auditfiles'] = [*floor, *auditing, *asked, *inverting]
    below['commands'] = [*below['experiments'], 'experiments', *files, 'given', 'attacks', 'auditfiles']
    below['cli'] = ['checks', 'tables', 'options', 'answers', 'commands', 'storage']
    found = set()
    for path in (ROOT / 'samplesplit_nb').glob('*.py'):
        if path.stem.startswith('_'):
            continue
        imported = set(re.findall(r'(?:from|import) (?:samplesplit_nb)?\.(\w+)', path.read_text()))
        found |= imported
        assert imported <= set(below[path.stem]), path.stem
    assert {'checks', 'objectives', 'experiments'} <= found  # the pattern sees them


# How readable the house is: `python tools/measure.py` prints all of these


def test_export_cells_are_short_and_each_is_checked_in_sight():
    every = [n for path in measure.notebooks() for n in measure.exports(path)]
    assert median(every) <= 12 and max(every) <= 40
    assert {p.stem: n for p in measure.notebooks() if (n := measure.longest_run(p)) > 2} == {}


def test_no_module_is_over_600_lines_and_no_function_over_45():
    assert {name: n for name, n in measure.modules().items() if n > 600} == {}
    assert {name: n for name, n in measure.functions().items() if n > 45} == {}


def test_the_experiments_are_at_most_90_cells_and_2_5_megabytes():
    path = ROOT / 'nbs/04_experiments.ipynb'
    assert len(cells(path)) <= 90 and path.stat().st_size <= 2.5e6


def test_every_folder_of_results_names_its_command():
    text = (ROOT / 'results/README.md').read_text()
    for folder in (ROOT / 'results').glob('*/*'):
        name = folder.relative_to(ROOT / 'results').as_posix()
        kind = f'{folder.parent.name}/*{folder.suffix}'
        assert name in text or folder.name in text or kind in text, name
