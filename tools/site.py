"""Check or build the site without Quarto: nbdev's own processing, then smalldocs.

python tools/site.py [OUT]      renders into OUT (default _site) and checks links; exit 1 on a broken one
"""

import json, re, shutil, subprocess, sys
from pathlib import Path, PurePosixPath
import yaml
from offline import localise
from nbdev.config import get_config
from nbdev.doclinks import _nbpath2html
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs


def page_name(nb):
    """The notebook's path with nbdev's name for its page (its `output-file`): `support/00_Nets.ipynb` ->
    `support/nets.ipynb`"""
    return str(_nbpath2html(PurePosixPath(nb)).with_suffix('.ipynb'))


QUARTO_ONLY = (
    'respect-user-color-scheme',
    'html-math-method',
    'code-tools',
    'grid',
)  # smalldocs does the first two anyway
FENCE, LINK = (
    re.compile('```.*?```', re.S),
    re.compile(r'\[(`[^`]+`)\]\([^)]*\)'),
)  # nbdev links symbols in code too, where it shows


def main():
    cfg = get_config()
    refresh_quarto_yml()  # nbs/nbdev.yml from settings.ini
    cache = proc_nbs(n_workers=2, force=True)  # what `nbdev_docs` renders, without installing Quarto
    out = Path(sys.argv[1] if len(sys.argv) > 1 else cfg.config_path / '_site').absolute()
    src = out.with_name(out.name + '_src')
    shutil.rmtree(src, ignore_errors=True)
    shutil.copytree(cache, src)
    base = cfg.doc_host + cfg.doc_baseurl + '/'
    source = {}  # page -> notebook
    for p in sorted(src.rglob('*.ipynb')):
        nb = json.loads(p.read_text(encoding='utf-8'))
        if nb['cells'][0]['cell_type'] == 'raw':  # front matter; smalldocs knows no `output-file`
            nb['cells'][0]['source'] = re.sub(
                r'^output-file:.*\n', '', ''.join(nb['cells'][0]['source']), flags=re.M
            )
        for data in (
            o['data']
            for c in nb['cells']
            for o in c.get('outputs', [])
            if 'text/markdown' in o.get('data', {})
        ):
            data['text/markdown'] = FENCE.sub(lambda m: LINK.sub(r'\1', m[0]), ''.join(data['text/markdown']))
        up = '../' * (len(p.relative_to(src).parts) - 1)
        s = json.dumps(nb).replace(base, up)  # nbdev's links to symbols, made relative
        s = re.sub(r'(?<=\]\()[^)\s:#"]*\.ipynb', lambda m: page_name(m[0]), s)
        nb = p.relative_to(src).as_posix()
        source[page_name(nb)] = nb
        p.unlink()
        (src / page_name(nb)).write_text(s, encoding='utf-8')
    q = yaml.safe_load(re.sub(r'\S+\.ipynb', lambda m: page_name(m[0]), (src / '_quarto.yml').read_text()))
    q.pop('execute', None)
    for k in QUARTO_ONLY:
        q['format']['html'].pop(k)
    n = yaml.safe_load((src / 'nbdev.yml').read_text())
    n['project']['output-dir'] = str(out)
    q['project'] |= n['project']
    q['website'] |= n['website']
    q.pop('metadata-files', None)
    (src / '_quarto.yml').write_text(yaml.safe_dump(q, sort_keys=False))
    shutil.rmtree(out, ignore_errors=True)
    for cmd in ('render', 'check'):
        r = subprocess.run([sys.executable, '-m', 'smalldocs.cli', cmd, str(src)])
        if r.returncode:
            sys.exit(r.returncode)
    for p in out.rglob('*.html'):  # the links to the notebooks on GitHub, which keep their numbers
        p.write_text(
            re.sub(
                r'(/blob/[^/"]+/nbs/)([^"]+\.ipynb)',
                lambda m: m[1] + source.get(m[2], m[2]),
                p.read_text(encoding='utf-8'),
            ),
            encoding='utf-8',
        )
    localise(out)


if __name__ == '__main__':
    main()
