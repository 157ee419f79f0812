"""What a user of the package meets: the names at its top, its documentation, its types.

The rules of documentation, checked on the exported source. Public is what stands in a module's `__all__`, and
of a public class the
methods and properties without underscore, its fields, `__init__` and `__call__`.

1. Whatever can be called has a docstring that says more than its name, and annotates what it returns (but
   `__init__`).
2. A parameter or field is explained by the comment on its line (its docment), by the docstring or the comment
   of what is returned naming
   it, by its type where that is a class of this package, or by the table "Names that mean the same
   everywhere" of nbs/api.ipynb.
3. Parameters are annotated, unless their docment or that table says what they are (functions, "anything torch
   takes").
4. A tensor or array that goes in or comes out has a shape, such as `(k, d)`, in one of these places.
5. A function that raises, itself or by the private helpers of its module, names the exception (but
   NotImplementedError, which marks
   what a subclass must define).
6. A constant has a comment in the source, above it or on its line.
7. A method that a base class of the same module documents need not say it again.
"""

import ast, io, json, re, subprocess, sys, tokenize
from functools import cache
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
MODULES = tuple(
    '''
    identifiability objectives splitting convergence experiments inversion shallow inactive steps peeling
    layers spans simulation simulated leaks audit
    checks tables networks perceptrons decomposition eigenvectors tangents plain validator penalties presets
    optimisers descent lanczos tidy rules storage checkpoints weights stationarity certificates training
    preprocessing arrayfiles folders data metrics settings records problems runs search figures studies claims
    options answers fit given recipes attacks
    reports auditfiles commands cli
    '''.split()
)  # the order of CONTRIBUTING.md
SHAPE = re.compile(
    r"\((?:\w[\w' /*+-]*|\.),(?: ?[\w*.][\w' /*+.-]*,?)*(?:\[, ?\w+\])?\)|(?i:\b(?:scalar|same shape|any shapes?|shape of|shaped like|a number|plain numbers)\b)"  # noqa: E501
)
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
notebook = lambda: json.loads((ROOT / 'nbs/api.ipynb').read_text(encoding='utf-8'))['cells']


@cache
def names_everywhere():
    "Name -> meaning, from the table on the API page"
    text = next(
        ''.join(c['source'])
        for c in notebook()
        if 'Names that mean the same everywhere' in ''.join(c['source'])
    )
    rows = re.findall(r'^\| (`.+?`) \| (.+) \|$', text, re.M)
    return {name: meaning for names, meaning in rows for name in re.findall(r'`(\w+)`', names)}


class Source:
    "One exported module, read and not imported"

    def __init__(self, text):
        self.tree = ast.parse(text)
        self.comments, self.colons, depth = {}, [], 0
        for t in tokenize.generate_tokens(io.StringIO(text).readline):
            if t.type == tokenize.COMMENT:
                self.comments[t.start[0]] = t.string.lstrip('# ')
            if t.type == tokenize.OP:
                depth += (t.string in '([{') - (t.string in ')]}')
                if t.string == ':' and depth == 0:
                    self.colons.append(t.start)
        self.top = {n.name: n for n in self.tree.body if isinstance(n, (*FUNCTIONS, ast.ClassDef))}
        self.constants = {
            t.id: n
            for n in self.tree.body
            if isinstance(n, (ast.Assign, ast.AnnAssign))
            for t in (n.targets if isinstance(n, ast.Assign) else [n.target])
            if isinstance(t, ast.Name)
        }
        self.public = ast.literal_eval(self.constants['__all__'].value)

    def signature_end(self, f):
        "The line of the colon that ends the signature"
        return min(line for line, column in self.colons if (line, column) > (f.lineno, f.col_offset))

    def returns(self, f):
        return self.comments.get(self.signature_end(f), '')

    def parameters(self, f):
        "[(name, annotation or None, docment)], without self"
        end, a = self.signature_end(f), f.args
        every = [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]
        alone = lambda line: line != end or (end > f.lineno and f.name == '__init__')
        return [
            (p.arg, p.annotation, self.comments.get(p.end_lineno, '') if alone(p.end_lineno) else '')
            for p in every
            if p.arg not in ('self', 'cls')
        ]

    def raised(self, f, seen=()):
        "Names of the exceptions that a function raises, itself or by private helpers"
        found, stack = set(), list(f.body)
        while stack:
            node = stack.pop()
            if isinstance(node, (*FUNCTIONS, ast.Lambda)):
                continue
            if isinstance(node, ast.Try) and node.handlers:  # what it catches is its own affair
                stack += node.orelse + node.finalbody + [n for h in node.handlers for n in h.body]
                continue
            if isinstance(node, ast.Raise) and node.exc is not None:
                name = ast.unparse(getattr(node.exc, 'func', node.exc))
                if name[0].isupper() and name != 'NotImplementedError':
                    found.add(name)
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name.split('.')[-1] in (
                    'require',
                    '_require',
                    'require_finite',
                    'require_candidates',
                    'check',
                ):
                    found.add('ValueError')
                elif name.startswith('_') and name in self.top and name not in seen:
                    helper = self.top[name]
                    if isinstance(helper, ast.ClassDef):
                        helper = next((m for m in helper.body if getattr(m, 'name', '') == '__init__'), None)
                    if helper is not None:
                        found |= self.raised(helper, (*seen, name))
            stack += ast.iter_child_nodes(node)
        return found


words = lambda text: re.findall(r'[a-z]+', re.sub(r'([a-z])([A-Z])', r'\1 \2', text).lower())
holds_tensors = lambda annotation: (
    annotation is not None and re.search(r'\b(Tensor|ndarray)\b', ast.unparse(annotation))
)


def says_more(name, doc):
    "More than the name's own words?"
    new = [
        w
        for w in words(doc or '')
        if len(w) > 2
        and w not in words(name)
        and w not in ('the', 'and', 'for', 'its', 'this', 'that', 'with')
    ]
    return len(new) >= 2


def gaps_of_function(source, f, where, classes, extra=''):
    "What rules 1 to 5 miss in a function; `extra`: what else explains it, for a method of a class"
    doc, returned = ast.get_docstring(f) or '', source.returns(f)
    about, gaps = f'{doc} {returned} {extra}', []
    if f.name != '__init__':
        if not says_more(f.name, doc):
            gaps.append(f'{where}: docstring {doc!r}')
        if f.returns is None:
            gaps.append(f'{where}: returns what?')
        elif holds_tensors(f.returns) and not SHAPE.search(f'{returned} {doc}'):
            gaps.append(f'{where}: shape of what is returned')
    for name, annotation, docment in source.parameters(f):
        told = docment or names_everywhere().get(name, '')
        of_ours = annotation is not None and set(re.findall(r'\w+', ast.unparse(annotation))) & classes
        if not (told or of_ours or re.search(rf'\b{name}\b', about)):
            gaps.append(f'{where}: parameter {name}')
        if annotation is None and not told:
            gaps.append(f'{where}: type of {name}')
        if holds_tensors(annotation) and not SHAPE.search(f'{told} {about}'):
            gaps.append(f'{where}: shape of {name}')
    everything = ' '.join([about, *(docment for *_, docment in source.parameters(f))])
    gaps += [f'{where}: raises {error}' for error in sorted(source.raised(f)) if error not in everything]
    return gaps


def bases(source, c):
    "The classes of this module that a class is made from"
    own = [source.top[b.id] for b in c.bases if isinstance(b, ast.Name) and b.id in source.top]
    return own + [further for b in own for further in bases(source, b)]


def gaps_of_class(source, c, where, classes):
    "What the rules miss in a class: its docstring, fields, methods"
    doc = ast.get_docstring(c) or ''
    fields = [n for n in c.body if isinstance(n, ast.AnnAssign)]
    comments = ' '.join(source.comments.get(n.end_lineno, '') for n in fields)
    gaps = [] if says_more(c.name, doc) else [f'{where}: docstring {doc!r}']
    for n in fields:
        told = source.comments.get(n.end_lineno, '') or names_everywhere().get(n.target.id, '')
        of_ours = set(re.findall(r'\w+', ast.unparse(n.annotation))) & classes
        if not (told or of_ours):
            gaps.append(f'{where}.{n.target.id}: field')
        if holds_tensors(n.annotation) and not SHAPE.search(told):
            gaps.append(f'{where}.{n.target.id}: shape')
    inherited = {
        f.name
        for base in bases(source, c)
        for f in base.body
        if isinstance(f, FUNCTIONS) and f.name != '__init__' and ast.get_docstring(f)
    }
    for f in c.body:
        if isinstance(f, FUNCTIONS) and f.name in inherited and not ast.get_docstring(f):
            if f.returns is None:
                gaps.append(f'{where}.{f.name}: returns what?')
            continue
        if (
            not isinstance(f, FUNCTIONS)
            or f.name.startswith('_')
            and f.name not in ('__init__', '__post_init__', '__call__')
        ):
            continue
        if f.name == '__post_init__':
            gaps += [
                f'{where}: raises {error}'
                for error in sorted(source.raised(f))
                if error not in f'{doc} {comments}'
            ]
        else:
            gaps += gaps_of_function(
                source, f, f'{where}.{f.name}', classes, f'{doc} {comments}' if f.name == '__init__' else ''
            )
    return gaps


def gaps_of(text, classes=frozenset()):
    "All that the rules miss in the source of a module"
    source, gaps = Source(text), []
    for name in source.public:
        if name in source.constants:
            n = source.constants[name]
            if not (
                source.comments.get(n.lineno)
                or source.comments.get(n.lineno - 1, '').strip('% ').count(' ') > 2
                and not source.comments[n.lineno - 1].startswith('%%')
            ):
                gaps.append(f'{name}: a constant without comment')
        elif isinstance(source.top[name], ast.ClassDef):
            gaps += gaps_of_class(source, source.top[name], name, classes)
        else:
            gaps += gaps_of_function(source, source.top[name], name, classes)
    return gaps


text_of = lambda module: (ROOT / f'samplesplit_nb/{module}.py').read_text(encoding='utf-8')


@cache
def our_classes():
    "Public classes of the package"
    sources = map(Source, map(text_of, MODULES))
    return frozenset(name for s in sources for name in s.public if isinstance(s.top.get(name), ast.ClassDef))


@pytest.mark.parametrize('module', MODULES)
def test_public_names_are_documented(module):
    gaps = gaps_of(text_of(module), our_classes())
    assert not gaps, '\n'.join(gaps)


CLASSES = frozenset({'SplitRule'})
BAD = {  # each a module that breaks one rule, and what is said about it
    'docstring': 'def step(x:int)->int: # a number\n    "Do the step of x"\n    return x',
    'returns what?': 'def grow(x:int):\n    "The candidate made larger by one, x being what it was"\n    return x',  # noqa: E501
    'parameter n': 'def grow(\n    n:int, # \n    lam:int\n)->int:\n    "The candidate made larger by one"\n    return n',  # noqa: E501
    'type of n': 'def grow(n)->int:\n    "The candidate made larger by one, from the number n"\n    return n',
    'shape of y': 'def grow(\n    y:Tensor, # of the samples\n)->int:\n    "The candidate made larger by one"\n    return 1',  # noqa: E501
    'shape of what is returned': 'def grow()->Tensor: # of the samples\n    "The candidate made larger by one"\n    return 1',  # noqa: E501
    'raises ValueError': 'def grow()->int:\n    "The candidate made larger by one"\n    _check()\n    return 1\ndef _check(): require(False, 1, 2, 3, 4)',  # noqa: E501
    'raises OSError': 'def grow()->int:\n    "The candidate made larger by one"\n    raise OSError("full")',
    'raises TypeError': '@dataclass\nclass Box:\n    "Lower and upper limits of pixels"\n    x:int=1\n    def __post_init__(self): raise TypeError(self.x)',  # noqa: E501
    'field': 'class Box:\n    "Lower and upper limits of pixels"\n    low:float\n    rule:SplitRule\n',
    'Box.low: shape': 'class Box:\n    "Lower and upper limits of pixels"\n    low:Tensor # smallest values\n',  # noqa: E501
    'Box.cut': 'class Box:\n    "Lower and upper limits of pixels"\n    def cut(self)->None: pass\n',
    'constant': 'LIMIT = 3\n',
}


@pytest.mark.parametrize('said', BAD)
def test_each_rule_can_fail(said):
    code = BAD[said]
    name = next(n.name if hasattr(n, 'name') else n.targets[0].id for n in ast.parse(code).body)
    gaps = gaps_of(f'__all__ = [{name!r}]\n\n{code}', CLASSES)
    assert len(gaps) == 1 and said in gaps[0], gaps


def test_names_everywhere_are_all_used():
    "No row of the API page's table outlives its parameters"
    used = {
        a.arg
        for m in MODULES
        for n in ast.walk(ast.parse(text_of(m)))
        if isinstance(n, FUNCTIONS)
        for a in [*n.args.args, *n.args.kwonlyargs]
    }
    assert len(names_everywhere()) > 20 and set(names_everywhere()) <= used, set(names_everywhere()) - used


def test_the_order_of_modules_is_that_of_the_house():
    "In CONTRIBUTING.md: the numbered notebooks, what lies beyond the paper, support"
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    listed = re.findall(r'^  +\S+\.ipynb +-> (\w+)\.py', text, re.M)
    assert tuple(listed) == MODULES
    modules = {p.stem for p in (ROOT / 'samplesplit_nb').glob('*.py') if not p.stem.startswith('_')}
    assert set(MODULES) == modules


def test_the_api_page_lists_what_there_is():
    "Its saved lists are those that its cells make now, one under the heading of each module"
    cells = notebook()
    texts = [''.join(c['source']) for c in cells]
    assert tuple(re.findall(r'^## \[(\w+)\]\(\S+\.ipynb\)$', '\n'.join(texts), re.M)) == MODULES
    maker, scope = next(t for t in texts if 'def names_of' in t), {}
    exec(next(t for t in texts if 'import inspect' in t), scope)
    exec(maker, scope)
    saved = {
        text.splitlines()[-1]: ''.join(o['data']['text/markdown'])
        for text, c in zip(texts, cells)
        for o in c.get('outputs', [])
        if 'text/markdown' in o.get('data', {})
    }
    assert len(saved) == len(MODULES) + 1
    for call, markdown in saved.items():
        assert eval(call, scope).data == markdown, f'{call}: run python tools/execute_nbs.py nbs/api.ipynb'


EXTENSION = re.compile(r"""^(class |@register|[A-Z]+\['|.*MapObjective\()""", re.M)


def test_an_extension_takes_at_most_ten_lines():
    "Every cell of the page on adding a method that adds one; each registry and each kind is used"
    path = ROOT / 'nbs/howto/add_a_method.ipynb'
    cells = [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    texts = [text for c in cells if EXTENSION.search(text := ''.join(c['source']))]
    assert max(len(text.splitlines()) for text in texts) <= 10
    together = '\n'.join(texts)
    for way in ('OPTIMIZERS[', 'TRAININGS[', 'ATTACKS[', 'RUNS[', '@register(', 'MapObjective('):
        assert way in together, way
    for method in ('propose', 'how_far', 'due', 'report', 'split', 'step', 'cotangent'):
        assert f'def {method}(self' in together, method


def python(code):
    "A fresh process at the top of the tree; what it printed"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


INIT = ast.parse((ROOT / 'samplesplit_nb/__init__.py').read_text(encoding='utf-8'))


def test_type_checkers_see_the_names_that_are_loaded_on_first_use():
    guarded = next(n for n in INIT.body if isinstance(n, ast.If))
    for_checkers = {(a.asname, n.module) for n in guarded.body for a in n.names}
    home = next(n for n in INIT.body if isinstance(n, ast.Assign) and n.targets[0].id == '_HOME')
    assert for_checkers == set(ast.literal_eval(home.value).items()) and len(for_checkers) <= 15


def test_the_names_at_the_top():
    """They can be imported, are listed by dir and `import *`, and are the modules' own; any other name fails
    as usual"""
    assert (
        python('''
import samplesplit_nb, samplesplit_nb.splitting
from samplesplit_nb import reconstruct
assert reconstruct is samplesplit_nb.splitting.reconstruct
names = {name: getattr(samplesplit_nb, name) for name in samplesplit_nb.__all__}
assert set(names) <= set(dir(samplesplit_nb)) and '__version__' in dir(samplesplit_nb)
scope = {}
exec('from samplesplit_nb import *', scope)
assert all(scope[name] is value for name, value in names.items())
try: samplesplit_nb.nothing
except AttributeError as e: print(e)
''')
        == "module 'samplesplit_nb' has no attribute 'nothing'\n"
    )


def test_importing_the_package_is_quick_and_imports_little():
    "Not even torch; best of five, because machines are shared"
    code = 'import sys, time; t = time.perf_counter(); import samplesplit_nb; t = time.perf_counter() - t; print(t, {"torch", "numpy", "scipy"} & set(sys.modules))'  # noqa: E501
    answers = [python(code).split(maxsplit=1) for _ in range(5)]
    assert all(loaded == 'set()\n' for _, loaded in answers)
    assert min(float(seconds) for seconds, _ in answers) < 0.1


def test_no_import_touches_network_or_gpu():
    """Every module, and every name at the top: the interpreter reports no use of a socket, and CUDA stays
    asleep"""
    modules = '; '.join(f'import samplesplit_nb.{m}' for m in MODULES)
    assert (
        python(f'''
import socket, sys
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith('socket.') else None)
{modules}
[getattr(samplesplit_nb, name) for name in samplesplit_nb.__all__]
import torch
print(seen, torch.cuda.is_initialized())
socket.socket().close()
print(seen) # the hook hears
''')
        == "[] False\n['socket.__new__']\n"
    )


def test_types(tmp_path):
    """mypy as pyproject.toml sets it; the marker that makes it read for users is shipped; few ignores, each
    with a reason"""
    done = subprocess.run(
        [sys.executable, '-m', 'mypy', '--cache-dir', tmp_path], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (ROOT / 'samplesplit_nb/py.typed').exists() and '"py.typed"' in (ROOT / 'setup.py').read_text()
    ignores = [line for m in MODULES for line in text_of(m).splitlines() if 'type: ignore' in line]
    assert len(ignores) <= 10 and all(
        re.search(r'# type: ignore\[[\w-]+\] # \w', line) for line in ignores
    ), ignores
