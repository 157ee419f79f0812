"""How readable is the house? Length of export cells, modules and functions, and cells without a check.

python tools/measure.py      prints a line per notebook and one for all;
tests/test_project.py has the limits
"""

import ast, json, re
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
EXPORT = re.compile(r'^#\| *exports?\b', re.M)


def notebooks():
    "Every notebook"
    return sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


def code(path):
    "The sources of a notebook's code cells"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == 'code']


def exports(path):
    "Lines of each export cell"
    return [len(s.splitlines()) for s in code(path) if EXPORT.search(s)]


def longest_run(path):
    "The most export cells in a row without a visible cell that is not exported"
    run = most = 0
    for s in code(path):
        if EXPORT.search(s):
            run += 1
        elif not s.startswith('#| hide'):
            run = 0
        most = max(most, run)
    return most


def modules():
    "Module -> lines, but the index that nbdev writes"
    files = sorted((ROOT / 'samplesplit_nb').glob('*.py'))
    return {p.stem: len(p.read_text().splitlines()) for p in files if p.stem != '_modidx'}


def functions():
    "`module.function` -> lines, methods included"
    found = {}
    for name in modules():
        for node in ast.walk(ast.parse((ROOT / 'samplesplit_nb' / f'{name}.py').read_text())):
            if isinstance(node, ast.FunctionDef):
                found[f'{name}.{node.name}:{node.lineno}'] = node.end_lineno - node.lineno + 1
    return found


def main():
    print(f'{"notebook":36}cells  MB    export cells: number, median lines, most lines, most in a row')
    for path in notebooks():
        lines, cells = exports(path), json.loads(path.read_text(encoding='utf-8'))['cells']
        numbers = f'{len(lines):22}{median(lines):14g}{max(lines):12}{longest_run(path):17}' if lines else ''
        size = path.stat().st_size / 1e6
        print(f'{path.relative_to(ROOT / "nbs")!s:36}{len(cells):5}{size:6.2f}{numbers}')
    every = [n for path in notebooks() for n in exports(path)]
    print(f'all export cells: {len(every)}, median {median(every):g} lines, longest {max(every)}')
    for what, sizes in (('module', modules()), ('function', functions())):
        longest = max(sizes, key=sizes.get)
        print(f'longest {what}: {longest}, {sizes[longest]} lines')


if __name__ == '__main__':
    main()
