"""Write the verdicts of the saved results into the headings of 04, and into the cells that assert them"""
import json, re
from pathlib import Path
from samplesplit_nb.claims import FIGURES, heading

root = Path(__file__).parent.parent


def main():
    path, said = root / 'nbs/04_experiments.ipynb', {n: heading(n, root / 'results') for n in FIGURES}
    notebook = json.loads(path.read_text(encoding='utf-8'))
    for cell in notebook['cells']:
        text = ''.join(cell['source'])
        for number, line in said.items():
            word = line[line.rindex('(') + 1 : -1]
            if cell['cell_type'] == 'markdown':
                text = re.sub(rf'^### Figure {number}: .*$', f'### {line}', text, flags=re.M)
            else:
                text = re.sub(rf"^draw\({number}, '[a-z ]*'", f"draw({number}, '{word}'", text, flags=re.M)
        if text != ''.join(cell['source']):
            print(f'{cell["id"]}: changed; read whether its text still holds')
        cell['source'] = text.splitlines(keepends=True)
    words = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(words + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
