"""Write the "Open in Colab" badge and the cell that sets Colab up into every notebook, from settings.ini.

python tools/colab.py      after a change of `user`, `repo` or `version` there, and for a new
or moved notebook
"""

import json
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parent.parent
BADGE, SETUP = 'colab-badge', 'colab-setup'  # the ids of the two cells


def badge(path, cfg):
    "The badge opens the notebook of the released version, which is the one that the next cell installs"
    url = f"https://colab.research.google.com/github/{cfg['user']}/{cfg['repo']}/blob/v{cfg['version']}/{path.as_posix()}"
    return f'[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({url})'


def setup(path, cfg):
    """What a notebook does first on Colab.

    pip may not replace the torch it finds: the constraint names that very version. To Colab `#| slow`
    is a comment like any other, so that "Run all" would take a day; the last lines leave such cells
    out, as nbdev_test does."""
    home = f"/content/{cfg['repo']}"
    return f'''#| hide
# On Colab: fetch this version and its results, install it beside Colab's own torch,
# go to the notebook's folder, skip slow cells
if 'google.colab' in str(get_ipython()):
    !test -d {home} || git -c advice.detachedHead=false clone -q --depth 1 \\
        --branch v{cfg['version']} {cfg['git_url']} {home}
    !pip list --format freeze | grep '^torch==' > /content/torch.txt
    !pip install -q -c /content/torch.txt {home}
    assert _exit_code == 0, ('samplesplit_nb was not installed; the lines above say why '
                             '(a conflict: this torch is older than it needs)')
    %cd -q {home}/{path.parent.as_posix()}
    get_ipython().input_transformers_cleanup.append(lambda lines: lines if not any(
        line.startswith(('#| slow', '#| cuda', '#| notest', '#| eval: false'))
        for line in lines) else [
        "print('Skipped, as its first lines say: delete that mark to run this cell.')\\n"])'''


def write(path, cfg):
    "Put both cells below the title, or bring them up to date"
    nb = json.loads(path.read_text(encoding='utf-8'))
    cells = [c for c in nb['cells'] if c['id'] not in (BADGE, SETUP)]
    title = next(
        i
        for i, c in enumerate(cells)
        if c['cell_type'] == 'markdown' and ''.join(c['source']).startswith('# ')
    )
    relative = path.relative_to(ROOT)
    lines = lambda text: text.splitlines(keepends=True)
    cells[title + 1 : title + 1] = [
        dict(cell_type='markdown', id=BADGE, metadata={}, source=lines(badge(relative, cfg))),
        dict(
            cell_type='code',
            execution_count=None,
            id=SETUP,
            metadata={},
            outputs=[],
            source=lines(setup(relative, cfg)),
        ),
    ]
    path.write_text(json.dumps(nb | dict(cells=cells), indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


def main():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT / 'settings.ini', encoding='utf-8')
    for path in (ROOT / 'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' not in path.parts:
            write(path, config['DEFAULT'])


if __name__ == '__main__':
    main()
