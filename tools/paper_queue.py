"""The paper's sizes on any machine: runs of hours, one after the other, each resumable to the bit.

python tools/paper_queue.py --minutes 60     goes on where it stopped: one thread, lowest priority
python tools/paper_queue.py --status         what is finished, under way or not begun, and what is left
python tools/paper_queue.py --only 4         the fourth experiment, where there is no time for the second

Records go to results/STUDY/paper/, where the figures look for them. What is not finished lies in the cache
folder: keep it, and a run goes on from its last checkpoint, at most 30 seconds back.
"""

import argparse, json, os, signal, subprocess, sys, time
from pathlib import Path
from samplesplit_nb.problems import images_of
from samplesplit_nb.runs import MissingResult, load_or_run
from samplesplit_nb.settings import fingerprint
from samplesplit_nb.storage import load_state
from samplesplit_nb.studies import get_study
from samplesplit_nb.tables import table

# (study, label, seed), the most telling first; each without and with splitting from the same start
ITEMS = (
    ('figure01', 'mnist', 0),
    ('figure05', 'mnist', 0),
    ('figure01', 'cifar10', 0),
    ('figure11', 'mnist-0.3n', 0),
    ('figure11', 'mnist-0.6n', 0),
    ('figure11', 'mnist-1n', 0),
    ('figure08', 'cifar10-few', 0),
    ('figure01', 'mnist', 1),
)
RUNS = 'plain', 'split'


class Item:
    "One experiment of the queue: what is known of it, and how to go on"

    def __init__(self, study, label, seed, scale, results, cache):
        self.study = get_study(study, scale)
        self.label, self.seed = label, seed
        self.name = f'{study}/{label}, seed {seed}'
        self.experiment = self.study.experiment(label, seed)
        self.path, self.cache = self.study.path(label, seed, results), Path(cache)

    def record(self):
        "The finished record, or None"
        try:
            return load_or_run(self.experiment, self.path, RUNS, run_missing=False)
        except MissingResult:
            return None

    def state(self, run):
        "(step, seconds so far) of a run that is under way; None: not begun"
        path = self.cache / f'runs-{fingerprint(self.experiment)}' / f'{run}.safetensors'
        try:
            state = load_state(path)
        except (FileNotFoundError, ValueError):
            return None
        return state['step'], state['seconds']

    def work(self):
        "Train and attack until all is done; killed at any moment, the next call goes on"
        images = self.study.images and self.seed == self.study.seeds[0]
        load_or_run(self.experiment, self.path, RUNS, images=images, cache=self.cache)

    def size(self):
        "What a step costs, in multiplications for one candidate and both tangents, times k"
        e = self.experiment
        return e.k * (images_of(e).X.shape[1] * e.width + e.width**2)


def rows(items):
    "(item, run, how far, seconds used, seconds left): the last is an estimate from what was measured"
    found, speed = [], None
    for item in items:
        record, size = item.record(), item.size()
        for run in RUNS:
            steps = item.experiment.steps
            if record is not None:
                seconds = record.seconds(run)
                found.append((item.name, run, 'finished', seconds, 0.0))
                speed = seconds / steps / size
                continue
            state = item.state(run)
            if state is not None and state[0]:
                speed = state[1] / state[0] / size
            step, used = state or (0, 0.0)
            left = None if speed is None else (steps - step) * speed * size
            words = f'under way, step {step} of {steps}' if state else 'not begun'
            found.append((item.name, run, words, used, left))
    return found


def show(items):
    "The queue as a table"
    hours = lambda seconds: '' if seconds is None else f'{seconds / 3600:.1f}'
    lines = [[name, run, words, hours(used), hours(left)] for name, run, words, used, left in rows(items)]
    return str(table(['experiment', 'run', 'how far', 'hours', 'hours left, about'], lines, left=3))


def go_on(items, seconds, log, command, only=None):
    "Work through the items, or only one, in child processes until the time is up; a line of the log for each"
    end = time.monotonic() + seconds
    for number, item in enumerate(items):
        left = end - time.monotonic()
        if item.record() is not None or only not in (None, number):
            continue
        if left <= 0:
            return
        begin = {run: item.state(run) for run in RUNS}
        cpu_before = os.times()
        child = subprocess.Popen([*command, '--one', str(number)], env=os.environ | {'OMP_NUM_THREADS': '1'})
        try:
            child.wait(timeout=left)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGTERM)
        child.wait()
        if child.returncode not in (0, -signal.SIGTERM):
            raise SystemExit(f'{item.name} ended with status {child.returncode}; the lines above say why')
        cpu_after = os.times()
        cpu = cpu_after.children_user + cpu_after.children_system
        cpu = round(cpu - cpu_before.children_user - cpu_before.children_system, 1)
        end_of = {run: item.state(run) for run in RUNS}
        line = dict(
            item=item.name, finished=item.record() is not None, begin=begin, end=end_of, cpu_seconds=cpu
        )
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open('a') as f:
            f.write(json.dumps(line) + '\n')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=60, help='stop after so many (default 60)')
    p.add_argument('--status', action='store_true', help='say how far it is, run nothing')
    p.add_argument('--results', default='results', help='folder of records')
    p.add_argument('--cache', default='paper-queue', help='folder of what is under way; keep it')
    p.add_argument('--scale', default='paper', help="'smoke' tries the queue itself")
    p.add_argument('--nice', type=int, default=19, help='priority, from 0 to 19, the lowest (default 19)')
    p.add_argument('--only', type=int, metavar='NUMBER', help='only this item, counted from 1')
    p.add_argument('--one', type=int, help=argparse.SUPPRESS)
    o = p.parse_args()
    known = [i for i in ITEMS if i[1] in get_study(i[0], o.scale).experiments]
    items = [Item(*i, o.scale, o.results, o.cache) for i in known]
    if o.one is not None:
        os.nice(o.nice)
        try:
            items[o.one].work()
        except FileNotFoundError as e:  # the images are not at hand
            raise SystemExit(str(e)) from None
        return
    if o.only is not None and not 1 <= o.only <= len(items):
        p.error(f'--only={o.only}: --only must be from 1 to {len(items)}; see --status')
    if not o.status:
        only = None if o.only is None else o.only - 1
        words = ['--results', o.results, '--cache', o.cache, '--scale', o.scale, '--nice', str(o.nice)]
        go_on(items, 60 * o.minutes, Path(o.cache) / 'log.jsonl', [sys.executable, __file__, *words], only)
    print(show(items))


if __name__ == '__main__':
    main()
