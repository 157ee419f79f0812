"Whatever a caller gives: it is taken for what it is, or refused in one line that names it"

import math
from dataclasses import MISSING, fields, replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from samplesplit_nb.descent import Descent, Running
from samplesplit_nb.networks import MLP
from samplesplit_nb.objectives import KKTObjective, MapObjective, NTKObjective
from samplesplit_nb.optimisers import LazyAdam, geometric, hold_then_decay, warm_restarts
from samplesplit_nb.peeling import Peeling, Search
from samplesplit_nb.rules import PublishedRule, RandomSplits
from samplesplit_nb.problems import TRAININGS, Trained
from samplesplit_nb.records import Record
from samplesplit_nb.runs import load_or_run
from samplesplit_nb.settings import Experiment, fingerprint
from samplesplit_nb.splitting import (
    Event,
    Every,
    LineSearch,
    Plateau,
    Proposal,
    SmallGradient,
    SplitRule,
    Splitting,
    Stop,
    reconstruct,
    split_samples,
)
from samplesplit_nb.storage import Checkpoint
from samplesplit_nb.tidy import Tidy

SETTINGS = [
    Descent(10),
    Running(),
    Checkpoint('run.safetensors'),
    Splitting(),
    SplitRule(),
    LineSearch(),
    RandomSplits(),
    PublishedRule(),
    Every(),
    SmallGradient(1.0),
    Plateau(),
    Stop(),
    Tidy(),
    Search(20),
    Peeling(),
    Experiment(),
]
TINY = Experiment(n=4, k=3, width=10, steps=30, splits=1, evaluations=2)
# none of these is a sensible value of any setting
WRONG = [
    '',
    '7',
    -3,
    -0.5,
    math.nan,
    math.inf,
    [],
    [1.0],
    {},
    object(),
    np.int64(3),
    torch.tensor(0.5),
    b'7',
    1j,
]
# what some settings do take of them
TAKEN = {
    ('Experiment', 'data'): ['7'],  # the path of a folder
    ('Experiment', 'device'): ['', '7'],  # looked at when it is used
    ('Experiment', 'lam_min'): [-3, -0.5],
    ('Checkpoint', 'path'): ['7'],
    ('SplitRule', 'threshold'): [-3, -0.5],
    ('PublishedRule', 'threshold'): [-3, -0.5],
    ('Experiment', 'threshold'): [-3, -0.5],
    ('Running', 'progress'): ['', '7'],
    ('Running', 'callbacks'): [[]],
    ('RandomSplits', 'counts'): [[]],
}


def names_of(settings):
    return [f.name for f in fields(settings)]


@pytest.mark.parametrize('settings', SETTINGS, ids=lambda s: type(s).__name__)
def test_a_setting_is_right_or_refused_in_one_line(settings):
    kind, seen = type(settings).__name__, 0
    for name in names_of(settings):
        for value in WRONG:
            taken = any(
                value is v or (type(value) is type(v) and value == v) for v in TAKEN.get((kind, name), [])
            )
            if taken:
                replace(settings, **{name: value})
                continue
            with pytest.raises(ValueError) as e:
                replace(settings, **{name: value})
                pytest.fail(f'{name}={value!r} was taken')
            assert '\n' not in str(e.value) and ' must be ' in str(e.value), (name, value)
            assert f'{name}=' in str(e.value), (name, value, str(e.value))
            seen += 1
    assert seen >= 10
    defaults = {f.name: f.default for f in fields(settings) if f.default is not MISSING}
    replace(settings, **defaults)  # control: what is right is not refused


@pytest.mark.parametrize('wrong', WRONG, ids=lambda v: type(v).__name__)
def test_schedules_and_optimisers_refuse_the_same(wrong):
    p = torch.zeros(2, requires_grad=True)
    for make in (
        lambda: geometric(wrong, 1.0, 5),
        lambda: geometric(1.0, wrong, 5),
        lambda: hold_then_decay(wrong),
        lambda: hold_then_decay(5, wrong),
        lambda: warm_restarts(wrong),
        lambda: warm_restarts(5, wrong),
        lambda: LazyAdam([p], lr=wrong),
        lambda: LazyAdam([p], betas=wrong),
        lambda: LazyAdam([p], eps=wrong),
    ):
        if isinstance(wrong, float) and 0 <= wrong < 1:
            continue
        with pytest.raises(ValueError, match=' must be '):
            make()


@pytest.fixture
def problem():
    start, end = (MLP([6, 20, 20, 1], seed=s, dtype=torch.float64) for s in (0, 1))
    objective = NTKObjective(end, start, sharpness=5.0)
    g = torch.Generator().manual_seed(2)
    return objective, torch.randn(5, 6, generator=g).double(), torch.ones(5).double()


def test_candidates_of_another_kind_are_refused_before_the_first_step(problem):
    objective, x, lam = problem
    for bad, says in (
        (
            x.float(),
            r"^x=<torch.float32 on cpu>: x must be torch.float64 on cpu; use x.to\('cpu', torch.float64\)$",
        ),
        (x.numpy(), '^x=<ndarray>: x must be a tensor; use torch.as_tensor'),
        (x.tolist(), '^x=<list>: x must be a tensor'),
        (x.long(), '^x=<torch.int64>: x must be a tensor of floating-point numbers'),
        (None, '^x=<NoneType>: x must be a tensor'),
    ):
        like = bad if torch.is_tensor(bad) else x
        with pytest.raises(ValueError, match=says):
            reconstruct(objective, bad, lam.to(like), Descent(5))
        with pytest.raises(ValueError, match=says):
            split_samples(objective, bad, lam.to(like), SplitRule())
    with pytest.raises(ValueError, match='^objective=<MLP>: objective must be a ReconstructionObjective'):
        reconstruct(MLP([2, 1]), x, lam, Descent(5))
    with pytest.raises(
        ValueError, match='^candidates=3: candidates must be at least 5, the number at the start'
    ):
        reconstruct(objective, x, lam, Descent(5), Splitting(stop=Stop(candidates=3)))


@pytest.mark.parametrize(
    'name', ['box', 'box_weight', 'lam_min', 'lam_weight', 'scale', 'sharpness', 'labels']
)
def test_objectives_refuse_what_they_cannot_use(name):
    net, labels = MLP([6, 5, 1], bias='first'), torch.tensor([1.0, -1.0])
    for value in WRONG:
        if name in ('lam_min',) and value in (-3, -0.5):
            continue
        if name == 'sharpness' and torch.is_tensor(value):
            continue  # a scalar tensor is a sharpness
        with pytest.raises(ValueError, match=' must be '):
            KKTObjective(net, **{'labels': labels, name: value})
    with pytest.raises(ValueError, match='write dtype=torch.float64'):
        KKTObjective(net, labels).to(torch.float64)
    with pytest.raises(ValueError, match="dtype='float64': dtype must be a floating-point dtype"):
        KKTObjective(net, labels).to(dtype='float64')


class Mine:
    "A rule that proposes whatever it is told"

    def __init__(self, **wrong):
        self.wrong = wrong

    def propose(self, objective, x, lam, event: Event):
        one = torch.zeros(1, x.shape[1], dtype=x.dtype)
        one[0, 0] = 1
        return Proposal(**dict(indices=torch.tensor([0]), directions=one) | self.wrong)


def test_a_rule_of_ones_own_is_held_to_what_it_proposes(problem):
    objective, x, lam = problem
    assert split_samples(objective, x, lam, Mine()).split.num_candidates == 5  # control
    one = Mine().propose(objective, x, lam, None).directions
    for wrong in (
        dict(indices=torch.tensor([0.0])),
        dict(indices=torch.tensor([True])),
        dict(indices=torch.tensor([7])),
        dict(indices=torch.tensor([-1])),
        dict(directions=2 * one),
        dict(directions=0 * one),
        dict(directions=one * math.nan),
        dict(directions=one[:, :3]),
        dict(directions=one.float()),
    ):
        with pytest.raises(ValueError, match=' must be '):
            split_samples(objective, x, lam, Mine(**wrong))


@pytest.mark.parametrize('answer', [np.bool_(True), torch.tensor(True), True])
@pytest.mark.parametrize('occasion', ['report', 'split'])
def test_whatever_says_true_stops(problem, answer, occasion):
    class Watch:
        pass

    watch = Watch()
    setattr(watch, occasion, lambda *what: answer)
    found = reconstruct(
        *problem, Descent(20), Splitting(SplitRule(-1e-9), Every(5)), Running(callbacks=[watch])
    )
    assert found.result.startswith('stopped by the callback')
    with pytest.raises(
        ValueError, match=f'a {occasion} callback must be a function that returns True or False'
    ):
        setattr(watch, occasion, lambda *what: 'enough')
        reconstruct(*problem, Descent(20), Splitting(SplitRule(-1e-9), Every(5)), Running(callbacks=[watch]))


def test_a_map_of_ones_own_is_told_by_its_code_and_what_it_uses(tmp_path):
    "The checkpoint of one function is not that of another with the same name"
    target, x, lam = torch.tensor([0.0, 1.0]).double(), torch.ones(1, 1).double(), torch.ones(1).double()

    def run(factor, power):
        def f(x):
            return torch.cat([factor * x, x**power], dim=1)

        at = Running(checkpoint=Checkpoint(tmp_path / 'run.safetensors'))
        return reconstruct(MapObjective(f, target, 1), x, lam, Descent(5, lr_multipliers=0.1), running=at)

    first = run(2.0, 2)
    assert torch.equal(run(2.0, 2).x, first.x)
    for other in ((3.0, 2), (2.0, 3)):
        with pytest.raises(ValueError, match='made with another f;'):
            run(*other)


def test_an_optimiser_that_calls_no_closure_sees_fresh_gradients(problem):
    class Plain(torch.optim.Optimizer):
        def __init__(self, groups):
            super().__init__(groups, dict(lr=0.01))

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group['params']:
                    p.sub_(group['lr'] * p.grad)

    found = reconstruct(*problem, Descent(30, 0.01, 0.01, Plain))
    sgd = reconstruct(*problem, Descent(30, 0.01, 0.01, torch.optim.SGD))
    torch.testing.assert_close(found.x, sgd.x, rtol=1e-12, atol=0)
    assert len(set(found.history.loss)) == len(found.history.loss) > 2


def test_a_listener_gets_copies(problem):
    kept = []

    def meddle(step, loss, x, lam):
        kept.append(x)
        x.zero_()
        lam.zero_()

    alone = reconstruct(*problem, Descent(20))
    watched = reconstruct(*problem, Descent(20), running=Running(callbacks=[meddle]))
    assert torch.equal(alone.x, watched.x) and len({id(x) for x in kept}) == len(kept) > 2

    class Greedy(SplitRule):
        def propose(self, objective, x, lam, event):
            proposal = super().propose(objective, x, lam, event)
            x.zero_()
            return proposal

    a, b = (split_samples(*problem, rule=rule(-1e-9)) for rule in (SplitRule, Greedy))
    assert torch.equal(a.x, b.x)


def test_a_run_that_was_stopped_goes_on(problem, tmp_path):
    at = Checkpoint(tmp_path / 'run.safetensors', every_steps=10)
    whole = reconstruct(*problem, Descent(50), Splitting(SplitRule(-1e-9), Every(20)))
    stop = Running(callbacks=[lambda step, *_: step >= 30], checkpoint=at)
    first = reconstruct(*problem, Descent(50), Splitting(SplitRule(-1e-9), Every(20)), stop)
    assert first.result == 'stopped by the callback after 30 steps'
    again = reconstruct(
        *problem, Descent(50), Splitting(SplitRule(-1e-9), Every(20)), Running(checkpoint=at)
    )
    assert torch.equal(again.x, whole.x) and again.history.step == whole.history.step


def test_a_schedule_is_compared_at_every_step(problem, tmp_path):
    at = Running(checkpoint=Checkpoint(tmp_path / 'run.safetensors'))
    reconstruct(*problem, Descent(40, lr_factor=warm_restarts(10)), running=at)
    with pytest.raises(ValueError, match='made with another lr_factor;'):
        reconstruct(*problem, Descent(40, lr_factor=warm_restarts(5)), running=at)


def test_no_file_is_lost_that_is_not_of_this_experiment(tmp_path):
    path = tmp_path / 'r.json'
    path.write_text('{"my": "notes"}')
    first = load_or_run(TINY, path)
    assert (tmp_path / 'r.json.old').read_text() == '{"my": "notes"}'
    load_or_run(replace(TINY, steps=31), path)
    (tmp_path / 'r.json.old1').rename(tmp_path / 'first.json')
    assert Record.load(tmp_path / 'first.json') == first


def test_an_entry_of_ones_own_is_known_by_what_it_is(tmp_path):
    first, second = (
        lambda e, data, init, scale=scale, **_: train(e, data, init, scale) for scale in (1.0, 2.0)
    )

    def train(e, data, init, scale):
        for p in init.parameters():
            p.data.mul_(scale)
        return Trained(init, init, {})

    seen = []
    for way in (first, second):
        with patch.dict(TRAININGS, mine=way):
            e = replace(TINY, training='mine', training_steps=1)
            seen.append(fingerprint(e))
    assert seen[0] != seen[1] and fingerprint(TINY) == fingerprint(replace(TINY))
