"""Give saved results their digest where they have none: python tools/seal.py [results]

What the files hold stays as it is. To seal a file is to vouch for it: do so only for files that you made."""

import argparse
from pathlib import Path
from samplesplit_nb.storage import _NONE, _broken_seal, _read_json, _sealed, atomic_path, save_json

# nothing reads it but a test, which draws anew
OPEN = ('draws.json',)


def seal(path):
    "Was there a digest to add? ValueError for a file that was changed after it was saved"
    if path.suffix == '.json':
        value, whole = _read_json(path)
        if not whole:
            save_json(path, value, sealed=True)
        return not whole
    data = path.read_bytes()
    wrong = _broken_seal(data)
    if wrong not in ('', _NONE):
        raise ValueError(f'{path} {wrong}')
    if wrong:
        with atomic_path(path) as p:
            p.write_bytes(_sealed(data))
    return bool(wrong)


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('folder', nargs='?', default='results')
    files = [f for kind in ('json', 'npz') for f in Path(p.parse_args().folder).rglob(f'*.{kind}')]
    done = [seal(f) for f in files if f.name not in OPEN]
    print(f'{sum(done)} of {len(done)} files sealed')


if __name__ == '__main__':
    main()
