"""README, the how-to pages and the citation, tried as a new user would: in a clean folder, from a fresh clone

Every shell command that README.md or a page under nbs/howto shows is run, unless a cell of its page runs it
already (and so nbdev_test).
What is not run as it stands is in `reduced`, with the reason.
"""

import ast, inspect, json, os, re, shlex, shutil, subprocess, sys
from importlib import import_module
from pathlib import Path
import pytest, yaml

ROOT = Path(__file__).parent.parent
HOWTO = sorted((ROOT / 'nbs' / 'howto').glob('*.ipynb'))
BIN = Path(sys.executable).parent
FENCE = re.compile(r'^```[ {.]*(\w*)\}?\n(.*?)^```', re.M | re.S)
PROGRAMS = ('samplesplit', 'make', 'git', 'pip', 'python', 'uv')

cells = lambda path, kind: [
    ''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == kind
]
fences = lambda text, *languages: [body for language, body in FENCE.findall(text) if language in languages]
page = lambda path: path.read_text() if path.suffix == '.md' else '\n\n'.join(cells(path, 'markdown'))


def shown(text):
    """The shell commands in a page's text: the lines of its sh fences, and code spans that begin with a
    program"""
    lines = [line for block in fences(text, 'sh', 'bash', 'shell', 'console') for line in block.splitlines()]
    spans = [s for s in re.findall(r'`([^`\n]+)`', FENCE.sub('', text)) if s.split()[0] in PROGRAMS]
    words = (shlex.split(line.lstrip('$ '), comments=True) for line in lines + spans)
    return [tuple(w) for w in words if w]


def executed(path):
    "The commands that a notebook's cells give to `samplesplit(...)`, as words"
    calls = [
        node
        for cell in cells(path, 'code')
        if not re.search(r'^\s*[!%]', cell, re.M)
        for node in ast.walk(ast.parse(cell))
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'samplesplit'
    ]
    return {
        ('samplesplit', *shlex.split(ast.literal_eval(c.args[0])))
        for c in calls
        if isinstance(c.args[0], ast.Constant)
    }


def typed(path):
    """The commands that a notebook's cells type into a shell, !command; those for Colab only are for
    tests/test_kernels.py"""
    return [
        tuple(shlex.split(line))
        for cell in cells(path, 'code')
        if 'google.colab' not in cell
        for line in re.findall(r'^\s*!(.+)$', cell, re.M)
    ]


def reduced(words):
    "What is run for a command: the command itself, or less of it where that is said; None: nothing"
    make = (
        'make',
        f'BIN={BIN}',
        '-o',
        '.venv/.installed',
    )  # the recipe, in this environment rather than in one that is first installed
    if words[0] in ('git', 'pip', 'uv'):
        return None  # the clone is the fixture's; installing needs the network, CI does it first
    if words == ('make', 'test'):
        return (*make, '-n', 'test')  # it runs this very test
    if words[0] == 'make':
        return (*make, *words[1:])
    if words[0] == 'samplesplit' and len(words) < 3:
        return (*words, '--help')  # a command's name, not a command
    if '...' in words:
        return (*words[:2], '--help')  # an abbreviation: `options_of` has what it names
    if words[1] == 'demo' and '--controls' in words:
        return (*words, '--steps', '40', '--width', '30')  # ten runs: minutes
    if (
        words[1] in ('figure', 'experiment') and 'smoke' not in words
    ):  # from the saved results: with stale ones it would run for hours
        return words if '--no-run' in words else (*words, '--no-run')
    return words


def to_run():
    "Every command of README and of the how-to pages that no cell runs, each once"
    found = shown(page(ROOT / 'README.md'))
    for path in HOWTO:
        found += [w for w in shown(page(path)) + typed(path) if w not in executed(path)]
    return sorted({r for r in map(reduced, found) if r is not None})


def options_of():
    "The options that abbreviated commands (`samplesplit reconstruct ... --out DIR`) name: (command, option)"
    found = [w for path in (ROOT / 'README.md', *HOWTO) for w in shown(page(path)) if '...' in w]
    return sorted({(words[1], word) for words in found for word in words if word.startswith('-')})


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    "A fresh clone of what is committed, and the environment to use it in: (folder, variables)"
    if not (ROOT / '.git').exists() or shutil.which('git') is None:
        pytest.skip('no git checkout')
    folder = tmp_path_factory.mktemp('new') / 'samplesplit_nb'
    subprocess.run(['git', 'clone', '--quiet', str(ROOT), str(folder)], check=True, timeout=120)
    variables = {
        k: v for k, v in os.environ.items() if k not in ('SAMPLESPLIT_DATA', 'MAKEFLAGS', 'MAKELEVEL')
    }
    variables |= dict(
        PATH=f'{BIN}{os.pathsep}{os.environ["PATH"]}',
        PYTHONPATH=str(folder),
        MPLBACKEND='agg',
        PYTHONDONTWRITEBYTECODE='1',
    )
    where = subprocess.run(
        [sys.executable, '-c', 'import samplesplit_nb; print(samplesplit_nb.__file__)'],
        env=variables,
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(where.strip()).parent.parent == folder
    return folder, variables


def run(command, clone, cwd=None):
    done = subprocess.run(
        command, cwd=cwd or clone[0], env=clone[1], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f'{shlex.join(map(str, command))}\n{done.stdout}\n{done.stderr}'
    return done.stdout


@pytest.mark.parametrize(
    'words', to_run(), ids=lambda w: ' '.join(x for x in w if not x.startswith(('BIN=', '-o', '.venv')))
)
def test_a_command_that_a_page_shows_works_in_a_fresh_clone(words, clone):
    out = run(words, clone)
    if words[-1] == 'demo':  # in full: the files, and that it does what the picture promises
        written = clone[0] / 'runs' / 'demo'
        assert {p.name for p in written.iterdir()} == {
            'reconstructions.png',
            'loss.png',
            'metrics.json',
            'reconstruction.npz',
        }
        plain, split = (
            r['scores']['L2'] for r in json.loads((written / 'metrics.json').read_text())['runs'].values()
        )
        assert sum(split) < 0.75 * sum(plain)
    if words[-1] == 'test':
        assert 'bash tools/check.sh' in out and (clone[0] / 'tools' / 'check.sh').exists()


def test_an_abbreviated_command_names_options_that_there_are(clone):
    for command, option in options_of():
        assert re.search(rf'{option}\b', run(('samplesplit', command, '--help'), clone)), (
            f'{command} {option}'
        )


def test_the_commands_are_found():
    "The rule sees fences, spans and cells"
    text = 'See `samplesplit certify` and `x`.\n```sh\nmake demo   # quick\n\n$ samplesplit demo --n 3\n```\n``` python\nmake = 1\n```\n'  # noqa: E501
    assert shown(text) == [('make', 'demo'), ('samplesplit', 'demo', '--n', '3'), ('samplesplit', 'certify')]
    readme = shown(page(ROOT / 'README.md'))
    assert {('make', 'demo'), ('make', 'test'), ('samplesplit', 'figure', '3')} <= set(readme)
    pages = {path.stem: path for path in HOWTO}
    assert len(executed(pages['attack_your_model'])) >= 5 and shown(page(pages['read_the_results']))


@pytest.mark.parametrize(
    'path', [p for p in (ROOT / 'README.md', *HOWTO) if fences(page(p), 'python')], ids=lambda p: p.stem
)
def test_the_python_of_a_page_runs_in_an_empty_folder(path, clone, tmp_path):
    (tmp_path / 'page.py').write_text('\n'.join(fences(page(path), 'python')))
    out = run([sys.executable, 'page.py'], clone, tmp_path)
    said = re.findall(r'^    (finished .+? candidates)', page(path), re.M)
    assert all(line in out for line in said) and (said or path.name != 'README.md')


def notation():
    "Rows of the table: (symbol, names in code)"
    text = page(ROOT / 'nbs/support/notation.ipynb')
    rows = [line.strip('| ').split(' | ') for line in text.splitlines() if line.startswith('|')][2:]
    return [(row[0], re.findall(r'`([^`]+)`', row[2])) for row in rows]


def test_the_notation_table_names_what_is_in_the_code():
    import torch
    from samplesplit_nb.networks import MLP
    from samplesplit_nb.objectives import NTKObjective

    modules = [
        import_module(f'samplesplit_nb.{p.stem}')
        for p in (ROOT / 'samplesplit_nb').glob('*.py')
        if not p.stem.startswith('_')
    ]
    public = [getattr(m, name) for m in modules for name in m.__all__]
    names = {name for m in modules for name in m.__all__} | {'objective'}
    for thing in public:  # parameters and fields are names of the code, too
        if inspect.isfunction(thing) or inspect.isclass(thing):
            try:
                names |= set(inspect.signature(thing).parameters)
            except ValueError:
                pass
    objective = NTKObjective(MLP([3, 2, 1], seed=1), MLP([3, 2, 1]))
    rows = notation()
    assert len(rows) > 20 and torch.is_tensor(objective.target[0])
    for symbol, found in rows:
        assert found, symbol
        for name in found:
            assert name in names or (name.startswith('objective.') and hasattr(objective, name[10:])), (
                f'{symbol}: {name}'
            )


def test_the_table_of_claims_is_what_the_saved_results_say():
    "The saved output of 04 against the results as they are"
    from samplesplit_nb.experiments import verdict_table
    from samplesplit_nb.tables import as_html

    pages = json.loads((ROOT / 'nbs' / '04_experiments.ipynb').read_text())['cells']
    cell = next(c for c in pages if 'verdicts = verdict_table(' in ''.join(c['source']))
    shown = next(o['data']['text/html'] for o in cell['outputs'] if 'text/html' in o.get('data', {}))
    assert ''.join(shown) == as_html(verdict_table(ROOT / 'results')), (
        'run tools/execute_nbs.py nbs/04_experiments.ipynb'
    )


def test_the_gain_of_each_seed_is_what_the_saved_results_say():
    from samplesplit_nb.studies import get_study

    gains = []
    for record in get_study('controls').records('half', ROOT / 'results', run_missing=False):
        plain, split = (record.scores(name, 'L2').sum() for name in ('plain', 'split'))
        gains.append(f'{100 * (1 - split / plain):.0f}')
    assert f"{', '.join(gains[:-1])} and {gains[-1]} %" in page(ROOT / 'README.md')


def test_home_page_and_citation_file_say_the_same():
    """Every BibTeX entry of README and 01 has its place in CITATION.cff with the same title, year, authors,
    and the other way round"""
    bib, pages = {}, (ROOT / 'README.md', ROOT / 'nbs/01_objectives.ipynb')
    entries = '\n'.join(block for path in pages for block in fences(page(path), 'bibtex'))
    for entry in re.findall(r'^@\w+\{(.*?)^\}', entries, re.M | re.S):
        fields = dict(re.findall(r'^ +(\w+) = \{(.*)\},?$', entry, re.M))
        bib[fields['title']] = fields
    cff = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    version = re.search(r'^version = (.+)$', (ROOT / 'settings.ini').read_text(), re.M)[1]
    assert cff['version'] == version and cff['license'] in page(ROOT / 'README.md')
    assert set(bib) == {r['title'] for r in cff['references']} and len(bib) == 4
    for r in cff['references']:
        fields = bib[r['title']]
        assert fields['author'] == ' and '.join(
            f"{a['family-names']}, {a['given-names']}" for a in r['authors']
        )
        assert fields['year'] == str(r['year']) and fields.get('booktitle') == r.get('collection-title')
        assert fields.get('volume') == (str(r['volume']) if 'volume' in r else None)
        assert fields.get('pages') == (f"{r['start']}--{r['end']}" if 'start' in r else None)
