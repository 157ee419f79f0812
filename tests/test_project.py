"The tree itself: exported files, saved outputs, runtime requirements, saved results"
import ast, json, re, subprocess, sys
from pathlib import Path
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
cells = lambda path: json.loads(path.read_text())['cells']
source = lambda cell: ''.join(cell['source'])


def test_every_module_has_its_notebook_and_none_is_left_over():
    exported = {m.group(1) for p in NOTEBOOKS for c in cells(p) for m in [re.search(r'^#\| *default_exp +(\w+)', source(c), re.M)] if m}
    modules = {p.stem for p in (ROOT/'samplesplit_nb').glob('*.py') if not p.stem.startswith('_')}
    assert exported == modules


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_was_executed_and_shows_no_error(path):
    code = [c for c in cells(path) if c['cell_type'] == 'code']
    assert not any(o['output_type'] == 'error' for c in code for o in c['outputs'])
    if path.parent.name == 'nbs': assert any(c['outputs'] for c in code), 'run tools/execute_nbs.py'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_imports_stand_alone_in_their_cell(path):
    "The site's builder runs every cell that holds an import; one mixed with other code would fail there"
    for cell in cells(path):
        if cell['cell_type'] != 'code': continue
        imports = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(TransformerManager().transform_cell(source(cell))).body] # `!` and `%` too
        assert all(imports) or not any(imports), source(cell)


def test_the_package_imports_with_little():
    "On a bare GPU machine there are torch, numpy, scikit-image and matplotlib, but neither nbdev nor tqdm"
    modules = [p.stem for p in (ROOT/'samplesplit_nb').glob('*.py') if not p.stem.startswith('_')]
    absent = ['nbdev', 'fastcore', 'execnb', 'tqdm', 'safetensors', 'torchvision', 'ipywidgets', 'IPython', 'pandas']
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); " + '; '.join(f'import samplesplit_nb.{m}' for m in modules)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_runtime_requirements_are_few_and_open_above():
    settings = (ROOT/'settings.ini').read_text()
    requirements = re.search(r'^requirements *= *(.+)$', settings, re.M).group(1)
    assert '<' not in requirements and '==' not in requirements and len(requirements.split()) <= 7


def test_layers_call_downwards_only():
    "Who may import whom: the picture in CONTRIBUTING.md"
    below = {'checks': [], 'identifiability': ['checks', 'networks'], 'networks': ['checks'], 'objectives': ['checks', 'networks'], 'optimisers': ['checks'], 'convergence': ['checks', 'networks', 'objectives', 'splitting'], 'splitting': ['checks', 'objectives', 'optimisers', 'storage'], 'training': ['checks', 'networks', 'objectives', 'optimisers', 'storage'],
             'data': ['checks'], 'metrics': ['checks'], 'storage': ['checks'], 'figures': ['checks'],
             'runs': ['checks', 'data', 'identifiability', 'metrics', 'networks', 'objectives', 'optimisers', 'splitting', 'storage', 'training'],
             'experiments': ['checks', 'figures', 'metrics', 'runs', 'storage'], 'cli': ['checks', 'data', 'experiments', 'runs', 'figures', 'identifiability', 'metrics', 'networks', 'objectives', 'optimisers', 'splitting', 'storage', 'training']}
    found = set()
    for path in (ROOT/'samplesplit_nb').glob('*.py'):
        if path.stem.startswith('_'): continue
        imported = set(re.findall(r'(?:from|import) (?:samplesplit_nb)?\.(\w+)', path.read_text()))
        found |= imported
        assert imported <= set(below[path.stem]), path.stem
    assert {'checks', 'objectives', 'experiments'} <= found  # the pattern sees them
