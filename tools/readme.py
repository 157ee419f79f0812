"""README.md from nbs/index.ipynb without Quarto (`nbdev_readme` needs it): python tools/readme.py"""

import base64, os, re, shutil
import yaml
from execnb.nbio import read_nb
from nbdev.config import get_config
from nbdev.processors import FilterDefaults


def out_md(o, i, j, files, alt):
    if o.output_type == 'stream':
        txt = ''.join(o.text)
    else:
        d = o.get('data', {})
        if 'image/png' in d:
            f = files / f'output_{i}_{j}.png'
            files.mkdir(exist_ok=True)
            f.write_bytes(base64.b64decode(''.join(d['image/png'])))
            return f'![{alt}]({files.name}/{f.name})'
        if 'text/markdown' in d:
            return ''.join(d['text/markdown'])
        txt = ''.join(d.get('text/plain', ''))
    return '\n'.join(('    ' + l).rstrip() for l in txt.rstrip().splitlines())


def main():
    cfg = get_config()
    os.environ['IN_TEST'] = '1'  # as when nbdev builds the docs
    nb = read_nb(cfg.nbs_path / cfg.readme_nb)
    FilterDefaults()(nb)
    files, parts = cfg.config_path / 'index_files', []
    shutil.rmtree(files, ignore_errors=True)
    for i, c in enumerate(nb.cells):
        if c.get('id') == 'colab-badge' and cfg.user == 'OWNER':
            continue  # nobody's repository: the link would be dead
        s = c.source.strip() if c.get('source') else ''
        if c.cell_type == 'raw':
            parts.append('# ' + yaml.safe_load(s.strip('- \n'))['title'])
        elif c.cell_type == 'markdown':  # links to notebooks and pictures, seen from the top folder
            parts.append(re.sub(r'(?<=\]\()(?=[^)\s:#]+\.(?:ipynb|png|svg)\b)', cfg.nbs_path.name + '/', s))
        else:
            if s and not re.search(r'#\| *echo: *false', s):
                code = '\n'.join(l for l in s.splitlines() if not l.startswith('#|'))
                parts.append(f'``` python\n{code}\n```')
            alt = re.search(r'^#\| *fig-alt: *"?(.*?)"?$', s, re.M)
            parts += [
                out_md(o, i, j, files, alt[1] if alt else '') for j, o in enumerate(c.get('outputs') or [])
            ]
    (cfg.config_path / 'README.md').write_text('\n\n'.join(p for p in parts if p) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
