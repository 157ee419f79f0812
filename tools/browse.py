"""Open every page of a built site in headless Chromium and say what a reader would stumble over.

python tools/browse.py [SITE] [SHOTS]      SITE default _site; screenshots go into SHOTS (default _shots);
exit 1 on any finding
"""

import functools, http.server, os, shutil, sys, threading, urllib.parse
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

WIDTHS = 390, 1400  # a telephone, a laptop
KINDS = 'console', 'request', 'raw', 'link', 'image', 'alt', 'wide', 'small'
REMOTE = 'colab.research.google.com', 'img.shields.io'  # badges; a page may ask nothing else of other hosts
BADGE = '<svg xmlns="http://www.w3.org/2000/svg" width="117" height="20"><rect width="117" height="20" fill="gray"/></svg>'  # noqa: E501
STRIP = 16000  # pixels; Chromium draws no picture taller than 16384

LOOK = r"""async () => {
  const RAW = /\\[a-zA-Z]+|\\[()[\]]|\$[^$\s][^$]*\$|\]\([^)\s]*[./#][^)\s]*\)/  // TeX, or a Markdown link
  const found = [], add = (kind, what) => found.push([kind, what.trim().replace(/\s+/g, ' ').slice(0, 120)])
  for (const i of document.images) {
    const name = i.src.startsWith('data:') ? 'a picture in #' + i.closest('[id]')?.id : i.src
    i.loading = 'eager'; try { await i.decode() } catch { add('image', name) }
    if (!i.alt.trim()) add('alt', name)
  }
  await document.fonts.ready
  for (const e of document.querySelectorAll('.katex-error')) add('raw', e.title || e.textContent)
  // Whether some of it cannot be brought into view: what scrolls sideways in its own box counts by the box, a drawer not at all
  const beyond = (what, node) => {
    for (let e = node.parentElement; e && e !== document.body; e = e.parentElement) {
      if (getComputedStyle(e).position === 'fixed') return false
      if (/auto|scroll/.test(getComputedStyle(e).overflowX)) { what = e; break }
    }
    return [...what.getClientRects()].some(r => r.width && (r.right > innerWidth + 1 || r.left < -1))
  }
  const shown = (e) => e.checkVisibility({ checkVisibilityCSS: true, opacityProperty: true })
  const places = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  for (let t; t = places.nextNode();) {
    const e = t.parentElement
    if (!t.data.trim() || e.closest('script, style, noscript, .katex-mathml') || !shown(e)) continue
    if (!e.closest('code, pre, .katex, .katex-error') && RAW.test(t.data)) add('raw', t.data)
    if (!e.closest('.katex, sub, sup') && parseFloat(getComputedStyle(e).fontSize) < 13.99) add('small', getComputedStyle(e).fontSize + ' ' + t.data)
    const range = document.createRange(); range.selectNodeContents(t)
    if (beyond(range, t)) add('wide', t.data)
  }
  for (const e of document.querySelectorAll('img, svg, canvas, video')) if (shown(e) && beyond(e, e)) add('wide', e.outerHTML)
  if (document.documentElement.scrollWidth > innerWidth) add('wide', `the page itself: ${document.documentElement.scrollWidth} px`)
  return {found, ids: [...document.querySelectorAll('[id], a[name]')].map(e => e.id || e.name), links: [...document.links].map(a => a.href),
          height: document.documentElement.scrollHeight}
}"""  # noqa: E501


def chromium():
    "Path of a Chromium or Chrome, None without one; the environment's CHROMIUM goes first"
    names = (
        os.environ.get('CHROMIUM'),
        'chromium',
        'chromium-browser',
        'google-chrome',
        'google-chrome-stable',
    )
    return next(filter(None, (shutil.which(n) for n in names if n)), None)


@contextmanager
def serve(folder):
    "A server of `folder` on this machine; gives its address"

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Quiet, directory=folder)
    ) as server:
        server.handle_error = lambda *_: None  # a page closed before its last picture came
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f'http://127.0.0.1:{server.server_port}/'
        finally:
            server.shutdown()


@contextmanager
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        b = p.chromium.launch(
            executable_path=chromium(),
            args=['--disable-background-networking', '--disable-component-update', '--disable-gpu'],
        )
        try:
            yield b
        finally:
            b.close()


@contextmanager
def tab(b, base, found):
    """A page of the browser that reaches only `base`; appends what goes wrong while it loads to `found`, as
    (kind, what)"""
    page = b.new_page(viewport=dict(width=max(WIDTHS), height=900), color_scheme='light')
    page.set_default_timeout(90_000)  # Playwright's 30 s is short for a busy machine

    def route(r):
        host = urllib.parse.urlsplit(r.request.url).hostname
        if r.request.url.startswith((base, 'data:')):
            r.continue_()
        elif host in REMOTE:
            r.fulfill(body=BADGE, content_type='image/svg+xml')  # as it looks with a network
        else:
            found.append(('request', 'another host: ' + r.request.url))
            r.abort()

    page.route('**/*', route)
    page.on('console', lambda m: m.type == 'error' and found.append(('console', m.text)))
    page.on('pageerror', lambda e: found.append(('console', str(e))))
    page.on('response', lambda r: r.status >= 400 and found.append(('request', f'{r.status} {r.url}')))
    page.on(
        'requestfailed',
        lambda r: r.url.startswith(base) and found.append(('request', f'{r.failure} {r.url}')),
    )
    try:
        yield page
    finally:
        page.close()


def shoot(page, height, stem):
    "Screenshots of the whole page, from the top down in strips"
    from playwright.sync_api import Error

    stem.parent.mkdir(parents=True, exist_ok=True)
    for i, y in enumerate(range(0, height, STRIP)):
        take = functools.partial(
            page.screenshot,
            path=f'{stem}_{i}.jpg',
            type='jpeg',
            quality=60,
            full_page=True,
            clip=dict(x=0, y=y, width=page.viewport_size['width'], height=min(STRIP, height - y)),
        )
        try:
            take()
        except Error:
            page.wait_for_timeout(1000)
            take()  # "Unable to capture screenshot", seen once on a busy machine


def broken_links(pages, base, folder):
    """Links to files or anchors that the site in `folder`, served at `base`, lacks; `pages` maps addresses to
    `ids` and `links`"""
    for page, seen in pages.items():
        for link in dict.fromkeys(seen['links']):
            url, _, anchor = link.partition('#')
            if not url.startswith(base):
                continue
            if url.endswith('/'):
                url += 'index.html'
            if not (folder / urllib.parse.unquote(url[len(base) :])).is_file():
                yield page, link
            elif anchor and url in pages and urllib.parse.unquote(anchor) not in pages[url]['ids']:
                yield page, link


def visit(b, folder, shots=None):
    "Every page of the site in `folder`, at every width: {kind: [what was found, with its page]}"
    folder, out, pages = (
        Path(folder),
        defaultdict(dict),
        {},
    )  # dicts as ordered sets: most findings come at each width
    with serve(folder) as base:
        for f in sorted(folder.rglob('*.html')):
            name = f.relative_to(folder).as_posix()
            found = []
            with tab(b, base, found) as page:
                page.goto(base + name)
                for width in WIDTHS:
                    page.set_viewport_size(dict(width=width, height=900))
                    seen = page.evaluate(LOOK)
                    found += [
                        (kind, f'{what} at {width} px' if kind in ('wide', 'small') else what)
                        for kind, what in seen['found']
                    ]
                    if shots:
                        shoot(page, seen['height'], Path(shots) / str(width) / name.removesuffix('.html'))
            pages[base + name] = seen
            for kind, what in found:
                out[kind][f'{name}: {what}'] = None
        for page, link in broken_links(pages, base, folder):
            out['link'][f'{page[len(base) :]}: {link[len(base) :]}'] = None
    return {kind: list(found) for kind, found in out.items()}


def search(b, folder, words, patience=10):
    "Pages that the site's search box offers for `words`, best first; waits `patience` seconds for the first"
    with serve(folder) as base, tab(b, base, []) as page:
        page.goto(base)
        page.locator('input[type=search]').fill(words)
        page.locator('a[class*=search-result]').first.wait_for(timeout=1000 * patience)
        return [
            h.removeprefix(base).partition('#')[0]
            for h in page.locator('a[class*=search-result]').evaluate_all('all => all.map(a => a.href)')
        ]


def themes(b, folder, name='index.html'):
    "Brightness, 0 to 255, of page and text before and after the theme is switched"
    pixel = """() => ['backgroundColor', 'color'].map(k => getComputedStyle(document.body)[k].match(/[\\d.]+/g).slice(0, 3).reduce((a, c) => a + c / 3, 0))"""  # noqa: E501
    with serve(folder) as base, tab(b, base, []) as page:
        page.goto(base + name)
        before = page.evaluate(pixel)
        page.locator('.quarto-color-scheme-toggle').locator('visible=true').first.click()
        page.wait_for_timeout(500)
        return before, page.evaluate(pixel)


def main():
    site, shots = (sys.argv[1:] + ['_site', '_shots'][len(sys.argv) - 1 :])[:2]
    if not chromium():
        sys.exit('no Chromium found; name one in the environment as CHROMIUM')
    with browser() as b:
        found = visit(b, site, shots)
        print('search for "splitting matrix":', *search(b, site, 'splitting matrix'))
        print('brightness of page and text, before and after the switch:', *themes(b, site))
    for kind, what in found.items():
        print(f'\n{kind}: {len(what)}', *what, sep='\n  ')
    sys.exit(any(found.values()))


if __name__ == '__main__':
    main()
