"""Notebooks on Colab: their badge and first cell, and all cells from a fresh kernel where only the runtime
requirements are installed

A plain environment stands in for Colab: what `requirements` in settings.ini names, ipykernel, and the package
as the first cell installs it. They are linked from the environment that runs the tests. The tests of a
file run in one worker (`--dist loadfile`), so these share one such environment.
"""

import json, os, re, shlex, subprocess, sys
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(
    p.relative_to(ROOT) for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts
)
CONFIG = ConfigParser(delimiters=['='])
CONFIG.read(ROOT / 'settings.ini', encoding='utf-8')
SETTINGS = CONFIG['DEFAULT']
SKIPPED = re.compile(r'^#\| *(slow|cuda|notest)\b|^#\| *eval: *false', re.M)
MARKS = '#| slow', '#| cuda', '#| notest', '#| eval: false'
REMEDY = 'run: python tools/colab.py && nbdev_clean && python tools/readme.py'
each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
source = lambda cell: ''.join(cell['source'])
load = lambda path: json.loads((ROOT / path).read_text(encoding='utf-8'))


def code_cells(path):
    "[id, source] of each cell that a reader without a GPU runs"
    return [
        [c['id'], source(c)]
        for c in load(path)['cells']
        if c['cell_type'] == 'code' and not SKIPPED.search(source(c))
    ]


def setup_cell(path):
    "The first code cell that is more than nbdev's comments"
    return next(
        cell for cell in code_cells(path) if cell[1].strip() and not re.fullmatch(r'(#\|.*\s*)+', cell[1])
    )


# What is written


@each_notebook
def test_the_badge_below_the_title_opens_this_notebook(path):
    text = [source(c) for c in load(path)['cells'] if c['cell_type'] == 'markdown']
    assert (
        text[0].startswith('# ') and 'colab' not in text[0]
    )  # the site makes its header of this cell, and drops the rest of it
    url = f"https://colab.research.google.com/github/{SETTINGS['user']}/{SETTINGS['repo']}/blob/v{SETTINGS['version']}/{path.as_posix()}"
    assert (
        text[1] == f'[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({url})'
    ), REMEDY
    if path.stem == 'index':
        readme = (ROOT / 'README.md').read_text(encoding='utf-8')
        named = SETTINGS['user'] != 'OWNER'  # else the link would be dead
        assert (text[1] in readme.splitlines()[:8]) == named and 'OWNER' not in readme, REMEDY


@each_notebook
def test_the_first_cell_fetches_the_version_of_the_settings(path):
    name, cell = setup_cell(path)
    assert cell.startswith('#| hide\n') and "if 'google.colab' in str(get_ipython()):" in cell, REMEDY
    assert f"--branch v{SETTINGS['version']} {SETTINGS['git_url']} /content/{SETTINGS['repo']}\n" in cell, (
        REMEDY
    )
    assert f"    %cd -q /content/{SETTINGS['repo']}/{path.parent.as_posix()}\n" in cell, REMEDY
    skipped = next(line for line in cell.splitlines() if 'line.startswith' in line)
    assert all(f"'{mark}'" in skipped for mark in MARKS), REMEDY


@each_notebook
def test_marks_are_spelled_as_the_first_cell_reads_them(path):
    for cell in load(path)['cells']:
        if cell['cell_type'] == 'code' and SKIPPED.search(source(cell)):
            assert any(line.startswith(MARKS) for line in source(cell).splitlines()), source(cell)


def test_only_the_experiments_ask_for_a_gpu():
    asking = {
        path.stem: {k: load(path)['metadata'].get(k) for k in ('accelerator', 'colab')} for path in NOTEBOOKS
    }
    assert asking.pop('04_experiments') == {'accelerator': 'GPU', 'colab': {'gpuType': 'T4'}}
    assert all(wish == {'accelerator': None, 'colab': None} for wish in asking.values())


# What runs


def call(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f'{shlex.join(map(str, command))}\n{done.stdout}\n{done.stderr}'
    return done.stdout


def needed(wanted):
    "The installed distributions that these requirements need, themselves included"
    found, todo = {}, [Requirement(word) for word in wanted]
    while todo:
        requirement = todo.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({'extra': ''}):
            continue
        one = distribution(requirement.name)
        if one.metadata['Name'] not in found:
            found[one.metadata['Name']] = one
            todo += map(Requirement, one.requires or [])
    return found.values()


@pytest.fixture(scope='session')
def requirements(tmp_path_factory):
    "A folder with links to the runtime requirements, ipykernel, and what they need, and to nothing else"
    folder = tmp_path_factory.mktemp('requirements')
    for one in needed([*shlex.split(SETTINGS['requirements']), 'ipykernel']):
        for name in {file.parts[0] for file in one.files if file.parts[0] not in ('..', '__pycache__')}:
            there = Path(one.locate_file(name)).absolute()
            if not (folder / name).exists():
                (folder / name).symlink_to(there)
    return folder


class Colab:
    "A plain environment in which `google.colab` can be had, and a folder for /content"

    def __init__(self, folder, requirements):
        self.folder, self.content, self.python = (
            folder,
            folder / 'content',
            folder / 'venv' / 'bin' / 'python',
        )
        self.content.mkdir(parents=True)
        call(sys.executable, '-m', 'venv', folder / 'venv')
        call(
            self.python, '-m', 'pip', 'uninstall', '-q', '-y', 'setuptools'
        )  # Python 3.11's own is older than torch wants
        site = next((folder / 'venv' / 'lib').glob('*/site-packages'))
        (site / 'requirements.pth').write_text(f'{requirements}\n')
        package = folder / 'fake' / 'google' / 'colab'
        package.mkdir(parents=True)
        (package / '_kernel.py').write_text('''
from ipykernel.ipkernel import IPythonKernel
from ipykernel.zmqshell import ZMQInteractiveShell
class Shell(ZMQInteractiveShell): "Its name is how notebooks know that they are on Colab"
Shell.__module__ = 'google.colab._shell'
class Kernel(IPythonKernel): shell_class = Shell
''')

    def kernel(self, cells, cwd, fake=False, **more):
        "The first failure of these cells in a fresh kernel, or None"
        hidden = ('PYTHON', 'MPLBACKEND', 'IPYTHON', 'JUPYTER', 'IN_TEST', 'SAMPLESPLIT', 'VIRTUAL_ENV')
        env = {k: v for k, v in os.environ.items() if not k.startswith(hidden)} | more
        env |= dict(
            PATH=f"{self.python.parent}:{os.environ['PATH']}",
            OMP_NUM_THREADS='1',
            IPYTHONDIR=str(self.folder / 'ipython'),
        )
        if fake:
            env['PYTHONPATH'] = str(self.folder / 'fake')
        options = ['--IPKernelApp.kernel_class=google.colab._kernel.Kernel'] * fake
        out = call(
            self.python,
            ROOT / 'tests' / 'run_in_kernel.py',
            *options,
            input=json.dumps(cells),
            cwd=cwd,
            env=env,
            timeout=1200,
        )
        return json.loads(out.splitlines()[-1])

    def set_up(self, path, repository, more=()):
        """The first cell of a notebook and more cells, with a local repository for the one on GitHub: the
        first failure, or None"""
        name, cell = setup_cell(path)
        git = dict(
            GIT_CONFIG_COUNT='1',
            GIT_CONFIG_KEY_0=f'url.file://{repository}.insteadOf',
            GIT_CONFIG_VALUE_0=SETTINGS['git_url'],
        )
        there = f"import os; assert os.getcwd() == os.path.realpath('/content/{SETTINGS['repo']}/{path.parent.as_posix()}')"  # noqa: E501
        cells = [
            [i, s.replace('/content', str(self.content))]
            for i, s in ((name, cell), ('where the cell leads', there), *more)
        ]
        return self.kernel(cells, self.content, fake=True, **git)

    def packages(self):
        "Name -> version of all that is installed"
        return dict(
            line.split('==')
            for line in call(self.python, '-m', 'pip', 'list', '--format', 'freeze').splitlines()
            if '==' in line
        )


def publish(folder, **changes):
    """This working tree, with changes to settings.ini, as a repository with the tag that the first cell asks
    for"""
    call('git', 'init', '-q', folder)
    git = 'git', '-C', folder, '-c', 'user.name=test', '-c', 'user.email=test@localhost'
    call(*git, '--git-dir', folder / '.git', '--work-tree', ROOT, 'add', '-A', cwd=ROOT)
    call(*git, 'commit', '-q', '--no-gpg-sign', '-m', 'the working tree')
    call(*git, 'reset', '-q', '--hard')
    for old, new in changes.items():
        text = (folder / 'settings.ini').read_text(encoding='utf-8')
        assert old in text
        (folder / 'settings.ini').write_text(text.replace(old, new), encoding='utf-8')
        call(*git, 'commit', '-q', '--no-gpg-sign', '-a', '-m', f'{old} is now {new}')
    call(*git, 'tag', '--no-sign', f"v{SETTINGS['version']}")
    return folder


@pytest.fixture(scope='session')
def colab(requirements, tmp_path_factory):
    "Colab after the first cell of 04"
    folder = tmp_path_factory.mktemp('colab')
    colab = Colab(folder, requirements)
    colab.before = colab.packages()
    failure = colab.set_up(Path('nbs/04_experiments.ipynb'), publish(folder / 'github'))
    assert failure is None, report(failure)
    return colab


def report(failure):
    "What a reader needs to find the mistake"
    return f"cell {failure['cell']}:\n{failure['source']}\n\n{failure['traceback']}\n\nprinted before:\n{failure['printed']}"  # noqa: E501


def test_the_plain_environment_has_nothing_for_developers(colab):
    absent = {'nbdev', 'fastcore', 'execnb', 'ipywidgets', 'pytest', 'hypothesis', 'smalldocs'}
    code = f'from importlib.util import find_spec; print([m for m in {sorted(absent)} if find_spec(m)])'
    assert call(colab.python, '-c', code).strip() == '[]'
    assert not absent & colab.packages().keys()


def test_the_first_cell_adds_the_package_and_changes_nothing_else(colab):
    after = colab.packages()
    assert after.pop('samplesplit_nb') == SETTINGS['version']
    assert after == colab.before and 'torch' in after


def test_the_first_cell_runs_twice_and_goes_to_the_folder_of_its_notebook(colab):
    failure = colab.set_up(Path('nbs/support/checks.ipynb'), '/nowhere')  # there already: nothing is fetched
    assert failure is None, report(failure)


def test_after_the_first_cell_marked_cells_are_skipped_and_others_run(colab):
    marked = [['marked', f'#| fig-alt: a picture\n{mark}\nraise SystemError'] for mark in MARKS]
    others = [['kept', "#| hide\nran = '#| slow' # not a mark"], ['it ran', "assert ran == '#| slow'"]]
    failure = colab.set_up(Path('nbs/index.ipynb'), '/nowhere', marked + others)
    assert failure is None, report(failure)
    failure = colab.set_up(Path('nbs/index.ipynb'), '/nowhere', [['unmarked', 'raise SystemError']])
    assert failure['cell'] == 'unmarked' and 'SystemError' in failure['traceback']


def test_the_first_cell_keeps_a_torch_that_is_too_old_and_says_so(requirements, tmp_path):
    colab = Colab(tmp_path / 'old', requirements)
    before = colab.packages()
    failure = colab.set_up(
        Path('nbs/index.ipynb'),
        publish(tmp_path / 'github', **{'torch>=2.4': f"torch>{before['torch'].split('+')[0]}"}),
    )
    assert (
        'samplesplit_nb was not installed' in failure['traceback']
        and 'conflicting dependencies' in failure['printed']
    )
    assert colab.packages() == before


def test_the_first_cell_says_when_there_is_nothing_to_fetch(requirements, tmp_path):
    colab = Colab(tmp_path / 'off', requirements)
    assert (
        'samplesplit_nb was not installed'
        in colab.set_up(Path('nbs/index.ipynb'), tmp_path / 'none')['traceback']
    )


@each_notebook
def test_notebook_runs_from_a_fresh_kernel(path, colab):
    clone = colab.content / SETTINGS['repo']
    failure = colab.kernel(code_cells(path), (clone / path).parent)
    assert failure is None, f'{path}, {report(failure)}'
