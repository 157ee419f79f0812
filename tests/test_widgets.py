"The interactive pieces of 02 and 04, called without a browser; and a text for whoever cannot see a picture"

import ast, dis, itertools, json, math, re, sys, types
from pathlib import Path
import ipywidgets, matplotlib.pyplot as plt, numpy as np
import pytest, torch, yaml
from samplesplit_nb import experiments, splitting
from samplesplit_nb.figures import WORDS
from samplesplit_nb.runs import run
from samplesplit_nb.settings import Experiment

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
cells = lambda path: json.loads(path.read_text())['cells']
source = lambda cell: ''.join(cell['source'])


def code(path):
    "Sources of the cells that run on a CPU in no time; Colab's setup is shell, not Python"
    return [
        source(c)
        for c in cells(path)
        if c['cell_type'] == 'code'
        and 'google.colab' not in source(c)
        and not re.search(r'^#\| *(slow|cuda|notest)', source(c), re.M)
    ]


def place(sources, text):
    return next(i for i, s in enumerate(sources) if text in s)


def is_imports(s):
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(s).body)


class Interact:
    "Stands in for `ipywidgets.interact`: keeps what it is given"

    def __call__(self, callback, **sliders):
        self.callback, self.sliders = callback, sliders


def execute(sources, names):
    "Run cells one by one; `interact` is caught"
    caught = Interact()
    for s in sources:
        exec(compile(s, '<cell>', 'exec'), names)
        if 'interact' in names and names['interact'] is not None:
            names['interact'] = caught
    return caught


@pytest.fixture(scope='module')
def toy():
    "Names of 02 after the section on the landscape, and what its sliders were given"
    sources = code(ROOT / 'nbs/02_splitting.ipynb')
    first, last = place(sources, 'samples = torch.tensor('), place(sources, 'def planted(')
    names = dict(vars(splitting), tens=lambda *v: torch.tensor(v, dtype=torch.float64))
    caught = execute([s for s in sources[:first] if is_imports(s)] + sources[first:last], names)
    plt.close('all')
    return names, caught


@pytest.fixture(scope='module')
def browser():
    "Names of 04 after its browser of one run, made here of a small run, and what its sliders were given"
    sources = code(ROOT / 'nbs/04_experiments.ipynb')
    first, last = place(sources, 'snapshots(result.problem'), place(sources, 'lines = fig.subplots(')
    small = Experiment(
        n=6, k=4, width=30, steps=400, splits=1, evaluations=4, data_seed=0, device='cpu', num_matvecs=5
    )
    names = dict(vars(experiments), result=run(small))
    caught = execute([s for s in sources[:first] if is_imports(s)] + sources[first : last + 1], names)
    return names, caught


def values(slider):
    "Both ends of a slider, where it stands, and every choice of a selection"
    return (
        [v for _, v in slider._options_full]
        if hasattr(slider, '_options_full')
        else [slider.min, slider.value, slider.max]
    )


def grid(sliders):
    for v in itertools.product(*map(values, sliders.values())):
        yield dict(zip(sliders, v))


def test_the_sliders_move_every_argument_of_their_callback(toy, browser):
    for (names, caught), function, kept in (
        (toy, 'show_split', ['eta', 'angle', 'steps']),
        (browser, 'show_snapshot', ['sample', 'step', 'method']),
    ):
        assert list(caught.sliders) == kept
        f = names[function]
        assert set(f.__code__.co_varnames[: f.__code__.co_argcount]) - {'ax'} == set(kept)
        assert all(isinstance(w, ipywidgets.Widget) for w in caught.sliders.values())


def test_every_place_of_the_sliders_of_02_draws_the_split_that_its_title_names(toy):
    names, caught = toy
    seen = 0
    for at in grid(caught.sliders):
        assert caught.callback(**at) is None  # else the axis would be printed beside the figure
        (ax,) = plt.gcf().axes
        eta, angle, steps = at['eta'], at['angle'], at['steps']
        assert (
            ax.get_title().startswith(f'η = {eta:.2f}, {angle}° from')
            and f'{steps} steps on' in ax.get_title()
        )
        lines = {line.get_label(): line.get_xydata() for line in ax.lines}
        split, stalled = lines['the split'], names['stalled'].x.numpy()
        np.testing.assert_allclose(split.mean(0), stalled[0], atol=1e-12)
        assert math.isclose(np.linalg.norm(split[0] - split[1]) / 2, eta, abs_tol=1e-12)
        if eta:
            assert math.isclose(
                abs((split[0] - split[1]) @ names['v'][0].numpy()) / 2 / eta,
                math.cos(math.radians(angle)),
                abs_tol=1e-9,
            )
        end = lines[f'{steps} steps later'] if steps else split
        loss = names['plane'].loss(torch.tensor(end), torch.tensor([0.5, 0.5], dtype=torch.float64)).item()
        assert ax.get_title().endswith(f'{loss:.4f}')
        np.testing.assert_allclose(lines['samples'], names['samples'].numpy())
        plt.close('all')
        seen += 1
    assert seen == 27


def test_every_place_of_the_sliders_of_04_draws_what_its_title_names(browser):
    names, caught = browser
    result, shots, seen = names['result'], names['shots'], 0
    assert caught.sliders['sample'].max == len(result.problem.data.X) - 1
    assert values(caught.sliders['step']) == shots['steps'].tolist() == [0, 100, 200, 300, 400]
    assert sorted(values(caught.sliders['method'])) == ['plain', 'split']
    for at in grid(caught.sliders):
        sample, step, method = at['sample'], at['step'], at['method']
        fig = caught.callback(**at)
        words = WORDS[method]
        score = result.record.evaluations(method).scores[step // 100, sample].item()
        assert fig.get_suptitle() == f'Sample {sample}, step {step}, {words}: L2 = {score:.2f}'
        image, candidate, curve = fig.axes
        shown, found = (ax.images[0].get_array().data for ax in (image, candidate))
        np.testing.assert_array_equal(shown, shots['training'][sample] / 255)
        mean = result.problem.data.mean.numpy().reshape(25, 25)
        x = result.runs[method].snapshots[step][sample].numpy().reshape(25, 25)
        np.testing.assert_allclose(found, (x + mean).clip(0, 1), atol=0.5 / 255 + 1e-6)
        # the score is that of the image shown, before it was clipped to what a picture can show
        assert (
            abs(
                np.linalg.norm(x + mean - (result.problem.data.X[sample].numpy().reshape(25, 25) + mean))
                - score
            )
            < 1e-3
        )
        assert curve.lines[-1].get_xydata().tolist() == [[step, score]]
        seen += 1
    assert seen == 3 * 5 * 2


def test_a_place_beyond_the_sliders_of_04_is_refused(browser):
    show = browser[0]['show_snapshot']
    with pytest.raises(IndexError):
        show(browser[1].sliders['sample'].max + 1, 0)
    with pytest.raises(ValueError):
        show(0, 50)


@pytest.mark.parametrize('name', ['02_splitting', '04_experiments'])
def test_without_ipywidgets_a_sentence_says_so(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    sources, names = code(ROOT / f'nbs/{name}.ipynb'), {}
    at = place(sources, 'from ipywidgets')
    execute(sources[at : at + 2], names)
    said = capsys.readouterr().out
    assert names['interact'] is None and 'ipywidgets is not installed' in said and said.rstrip().endswith('.')


def read_names(function, names, seen=None):
    "Names of the notebook that a function reads, with those read by the notebook's functions it calls"
    seen = set() if seen is None else seen

    def visit(c):
        for i in dis.get_instructions(c):
            if i.opname in ('LOAD_GLOBAL', 'LOAD_NAME') and i.argval in names and i.argval not in seen:
                seen.add(i.argval)
                f = names[i.argval]
                if isinstance(f, types.FunctionType) and f.__globals__ is names:
                    visit(f.__code__)
        for inner in c.co_consts:
            if isinstance(inner, types.CodeType):
                visit(inner)

    visit(function.__code__)
    return seen


def assigned(s):
    "Names that a cell sets when it runs, not inside its functions and comprehensions"
    out = set()

    def visit(node):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            out.add(node.name)
            return
        if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            return
        if isinstance(node, ast.alias):
            out.add((node.asname or node.name).split('.')[0])
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            out.add(node.id)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(s))
    return out


@pytest.mark.parametrize('name', ['02_splitting', '04_experiments'])
def test_sliders_still_work_when_the_whole_notebook_has_run(name, toy, browser):
    "A later cell that uses a name for something else would break a slider moved after it"
    (names, caught), mark = {
        '02_splitting': (toy, 'interact(lambda'),
        '04_experiments': (browser, 'interact(show'),
    }[name]
    sources = code(ROOT / f'nbs/{name}.ipynb')
    needs = read_names(caught.callback, names)
    assert {
        '02_splitting': {'show_split', 'stalled', 'samples', 'v', 'half'},
        '04_experiments': {'shots', 'result'},
    }[name] <= needs
    for s in sources[place(sources, mark) + 1 :]:
        if is_imports(s):
            continue
        assert not needs & assigned(s), f'{needs & assigned(s)} is set again by:\n{s}'


def alt_text_problem(cell):
    "What is wrong with the text of a cell's picture; None if nothing is, or if it has no picture"
    if cell['cell_type'] != 'code' or not any('image/png' in o.get('data', {}) for o in cell['outputs']):
        return None
    head = list(itertools.takewhile(lambda line: line.startswith('#|'), source(cell).splitlines()))
    found = [line for line in head if re.match(r'#\| *fig-alt:', line)]
    if len(found) != 1:
        return f'{len(found)} fig-alt lines at the top'
    text = yaml.safe_load(found[0].removeprefix('#|'))['fig-alt']
    if not isinstance(text, str):
        return 'not a text'
    if not 20 <= len(text) <= 300:
        return f'{len(text)} characters, not 20 to 300'
    if re.fullmatch(r'(the |a )?(figure|picture|image|plot)[ \d.]*', text, re.I):
        return 'says nothing'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_every_picture_has_a_text(path):
    assert not {c['id']: problem for c in cells(path) if (problem := alt_text_problem(c))}


def test_no_two_pictures_of_a_notebook_say_the_same():
    for path in NOTEBOOKS:
        texts = [
            line for c in cells(path) for line in source(c).splitlines() if line.startswith('#| fig-alt:')
        ]
        assert len(texts) == len(set(texts)), path.stem


def test_what_is_wrong_with_a_text_is_found():
    picture = lambda *lines: dict(
        cell_type='code', source=['\n'.join([*lines, 'draw()'])], outputs=[dict(data={'image/png': ''})]
    )
    good = '#| fig-alt: "Two curves: the loss falls with splitting and stays without."'
    assert alt_text_problem(picture(good)) is None and alt_text_problem(picture('#| slow', good)) is None
    assert alt_text_problem(dict(picture(), outputs=[])) is None
    for bad, says in (
        ([], '0 fig-alt'),
        (['#| fig-alt: figure'], '6 characters'),
        (['#| fig-alt:'], 'not a text'),
        (['#| fig-alt: "' + 'long ' * 70 + '"'], '350 characters'),
        (['x = 1', good], '0 fig-alt'),
        ([good, good], '2 fig-alt'),
        (['#| fig-alt: "Figure 1111111111111111"'], 'says nothing'),
    ):
        assert says in alt_text_problem(picture(*bad))
    with pytest.raises(yaml.YAMLError):
        alt_text_problem(picture('#| fig-alt: Two curves: with a colon and no quotes'))
