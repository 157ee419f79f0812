"""The built site in a real browser, by tools/browse.py; and that what it looks for, it finds"""

import importlib.util, subprocess, sys
from pathlib import Path
import pytest, yaml

ROOT = Path(__file__).resolve().parents[1]


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


browse, offline = tool('browse'), tool('offline')


def test_sidebar_names_every_notebook():
    "And nothing else; each page once"

    def pages(contents):
        for c in contents:
            if isinstance(c, str):
                yield c
            else:
                yield from pages(c['contents']) if 'contents' in c else [c['href']]

    listed = list(pages(yaml.safe_load((ROOT / '_quarto.yml').read_text())['website']['sidebar']['contents']))
    assert sorted(listed) == sorted(
        p.relative_to(ROOT / 'nbs').as_posix()
        for p in (ROOT / 'nbs').rglob('*.ipynb')
        if '.ipynb_checkpoints' not in p.parts
    )


def test_links_to_the_repository_are_those_of_settings():
    "_quarto.yml cannot read settings.ini"
    from nbdev.config import get_config

    text, url = (ROOT / '_quarto.yml').read_text(), get_config(path=ROOT).git_url
    assert text.count('https://github.com/') == text.count(url) > 0


def test_offline(tmp_path, monkeypatch):
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'site' / 'a').mkdir(parents=True)
    monkeypatch.setattr(offline, 'CACHE', tmp_path / 'cache')
    page, style = tmp_path / 'site' / 'a' / 'p.html', tmp_path / 'site' / 's.css'
    remote = '<script src="https://cdn.jsdelivr.net/npm/katex@latest/dist/katex.min.js"></script>'
    page.write_text(remote)
    style.write_text('@import url(https://fonts.googleapis.com/css2?a:wght@3;4&display=swap);p{margin:0}')
    monkeypatch.setenv('PATH', '')  # no npm
    offline.localise(tmp_path / 'site')
    assert page.read_text() == remote and style.read_text() == 'p{margin:0}'
    (tmp_path / 'cache' / f'katex-{offline.VERSION}.tgz').write_bytes(b'something else')
    with pytest.raises(SystemExit, match='is not the KaTeX'):
        offline.localise(tmp_path / 'site')


@pytest.fixture(scope='module')
def browser():
    pytest.importorskip('playwright')
    if not browse.chromium():
        pytest.skip('no Chromium or Chrome on this machine (apt-get install chromium)')
    with browse.browser() as b:
        yield b


@pytest.fixture(scope='module')
def site():
    "The built site, built now if `make test` has not just done it"
    page, newest = (
        ROOT / '_site' / 'index.html',
        max(
            f.stat().st_mtime
            for d in ('nbs', 'samplesplit_nb', '_quarto.yml', 'tools/site.py', 'tools/offline.py')
            for f in [ROOT / d, *(ROOT / d).rglob('*.*')]
            if f.is_file() and f.name != 'nbdev.yml' and f.suffix != '.pyc'
        ),
    )
    if not page.exists() or page.stat().st_mtime < newest:
        subprocess.run([sys.executable, 'tools/site.py'], cwd=ROOT, check=True)
    if 'cdn.jsdelivr.net' in (ROOT / '_site' / 'splitting.html').read_text():
        pytest.skip('no npm, so the maths needs the network (tools/offline.py)')
    return ROOT / '_site'


@pytest.fixture(scope='module')
def found(browser, site):
    return browse.visit(browser, site)  # without pictures, which only a person looks at


@pytest.mark.parametrize('kind', browse.KINDS)
def test_site(found, kind):
    assert not found.get(kind, []), '\n'.join(['', *found[kind]])


def test_search(browser, site):
    assert browse.search(browser, site, 'splitting matrix')[0] == 'splitting.html'


def test_themes(browser, site):
    for name in 'index.html', 'splitting.html':
        (page, text), (page_after, text_after) = browse.themes(browser, site, name)
        assert page - text > 120 and text_after - page_after > 120


# One mistake per page: what is wrong, and the kind of finding it must be
MISTAKES = [
    ('console', '<script>console.error("a mistake")</script>'),
    ('console', '<script>undefined_name()</script>'),
    ('request', '<script src="missing.js"></script>'),
    ('request', '<script src="https://example.org/tracker.js"></script>'),
    ('raw', r'<p>the loss \(L(x)\)</p>'),
    ('raw', r'<p>with \lambda unrendered</p>'),
    ('raw', '<p>the price $x^2$ of maths</p>'),
    ('raw', '<p>a link in a link: [<a href="#">x</a>](../objectives.ipynb)</p>'),
    ('raw', '<span class="katex-error" title="ParseError">x</span>'),
    ('link', '<a href="nowhere.html">x</a>'),
    ('link', '<a href="#nowhere">x</a>'),
    ('link', '<a href="good.html#nowhere">x</a>'),
    ('image', '<img src="missing.png" alt="a face">'),
    ('image', '<img src="data:image/png;base64,AAAA" alt="a face">'),
    ('alt', '<img src="dot.svg">'),
    ('alt', '<img src="dot.svg" alt=" ">'),
    ('wide', '<table><tr><td style="min-width: 800px; text-align: right">x</td></tr></table>'),
    ('wide', '<div style="overflow: hidden"><p style="width: 800px; text-align: right">cut off</p></div>'),
    ('wide', '<div style="overflow: clip"><img src="dot.svg" alt="a dot" style="width: 800px"></div>'),
    (
        'wide',
        '<div style="width: 600px"><div style="overflow-x: auto">a box that is itself too wide</div></div>',
    ),
    ('small', '<p style="font-size: 13px">x</p>'),
]
GOOD = r'''<p id="here">text <code>\frac $x$</code> costs $5, a[i](x) is no link</p><pre>$x$ \lambda</pre><a href="#here">x</a><a href="./">x</a><a href="https://example.org/">x</a>
<img src="dot.svg" alt="a dot"><img src="https://img.shields.io/a.svg" alt="a badge"><div style="overflow-x: auto"><p style="width: 2000px">scrolls</p></div>
<sup style="font-size: 9px">2</sup><p style="display: none; width: 2000px">\frac</p>'''  # noqa: E501


def test_what_it_finds(browser, tmp_path):
    (tmp_path / 'dot.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    pages = dict(index=GOOD, good=GOOD) | {f'bad{i:02}': html for i, (_, html) in enumerate(MISTAKES)}
    for name, html in pages.items():
        (tmp_path / f'{name}.html').write_text(
            '<!doctype html><style>code, pre { font-size: 14px }</style><link rel="icon" href="dot.svg"><meta name="viewport" content="width=device-width">'  # noqa: E501
            + html
        )
    found = browse.visit(browser, tmp_path, tmp_path / 'shots')
    kinds = {
        name: {k for k, lines in found.items() for l in lines if l.startswith(f'{name}.html: ')}
        for name in pages
    }
    assert not kinds['index'] | kinds['good']
    for i, (kind, html) in enumerate(MISTAKES):
        assert kind in kinds[f'bad{i:02}'], html
    for kind in ('wide', 'small'):
        assert any(l.endswith('at 390 px') for l in found[kind])
    assert not any(l.startswith('bad16') and l.endswith('1400 px') for l in found['wide'])  # 800 px fit there
    assert all(
        (tmp_path / 'shots' / str(w) / f'{name}_0.jpg').stat().st_size
        for w in browse.WIDTHS
        for name in pages
    )


def test_a_screenshot_is_tried_twice(browser, tmp_path):
    from playwright.sync_api import Error

    class Page:
        viewport_size, wait_for_timeout = dict(width=390), lambda self, ms: None

        def __init__(self, failures):
            self.failures = failures

        def screenshot(self, path, **options):
            self.failures -= 1
            if self.failures >= 0:
                raise Error('Unable to capture screenshot')
            Path(path).touch()

    browse.shoot(Page(1), 20_000, tmp_path / 'a' / 'page')
    assert sorted(f.name for f in (tmp_path / 'a').iterdir()) == ['page_0.jpg', 'page_1.jpg']
    with pytest.raises(Error):
        browse.shoot(Page(2), 900, tmp_path / 'a' / 'page')


def test_search_and_themes_fail(browser, tmp_path):
    "Where the search offers nothing, and where the switch does nothing"
    (tmp_path / 'index.html').write_text(
        '<a class="quarto-color-scheme-toggle" href="#">dark</a><input type="search"><a href="splitting.html">no result</a>'  # noqa: E501
    )
    with pytest.raises(Exception, match='Timeout'):
        browse.search(browser, tmp_path, 'splitting matrix', patience=1)
    before, after = browse.themes(browser, tmp_path)
    assert before == after
