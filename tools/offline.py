"""Let the pages of a built site ask nothing of other hosts: python tools/offline.py SITE

Quarto and smalldocs write pages that load KaTeX from a CDN, and themes that load fonts from Google. This puts
KaTeX's npm package
(kept in .katex/ after the first download) among the pages and points them at it, and leaves the fonts to the
reader's system.
Without npm or its registry the maths stays on the CDN, and it says so.
"""

import base64, hashlib, os, re, subprocess, sys, tarfile
from pathlib import Path

VERSION = '0.16.11'
# npm's, base64
SHA512 = 'RQrI8rlHY92OLf3rho/Ts8i/XvjgguEjOkO1BEXcU3N8BqPpSzBNwV/G0Ukr+P/l3ivvJUE/Fa/CwbS6HesGNQ=='
CACHE = Path(__file__).resolve().parents[1] / '.katex'
CDN = re.compile(r'https://cdn\.jsdelivr\.net/npm/katex@[^/"]+/dist/')
FILES = re.compile(
    r'package/(?:dist/(katex\.min\.(?:js|css)|contrib/auto-render\.min\.js|fonts/[^/]+\.woff2)|(LICENSE))'
)
FONTS = re.compile(r'@import url\(["\']?https://fonts\.googleapis\.com/[^)]*\);?')


def package():
    """KaTeX's npm package, from the cache or from npm; None where there is no npm or it cannot reach the
    registry"""
    tgz = CACHE / f'katex-{VERSION}.tgz'
    if not tgz.exists():
        CACHE.mkdir(exist_ok=True)
        try:
            subprocess.run(
                ['npm', 'pack', '--silent', f'katex@{VERSION}'],
                cwd=CACHE,
                check=True,
                timeout=120,
                stdout=subprocess.DEVNULL,
            )
        except (OSError, subprocess.SubprocessError) as e:
            return print(f'KaTeX stays on its CDN: {e}', file=sys.stderr)
    if base64.b64encode(hashlib.sha512(tgz.read_bytes()).digest()).decode() != SHA512:
        raise SystemExit(f'{tgz} is not the KaTeX {VERSION} of npm; delete it')
    return tgz


def replace(files, pattern, new):
    "Put `new(file)` where `pattern` matches in each file"
    for f in files:
        text = f.read_text(encoding='utf-8')
        if (own := pattern.sub(new(f), text)) != text:
            f.write_text(own, encoding='utf-8')


def localise(site):
    "Make the pages under `site` load maths from there and no fonts from Google"
    site = Path(site)
    replace(site.rglob('*.css'), FONTS, lambda f: '')
    if not (tgz := package()):
        return
    to = site / 'site_libs' / 'katex'
    with tarfile.open(tgz) as tar:
        for member in tar:
            if m := FILES.fullmatch(member.name):
                f = to / (m[1] or m[2])
                f.parent.mkdir(parents=True, exist_ok=True)
                f.write_bytes(tar.extractfile(member).read())
    replace(site.rglob('*.html'), CDN, lambda f: os.path.relpath(to, f.parent).replace(os.sep, '/') + '/')


if __name__ == '__main__':
    localise(sys.argv[1])
