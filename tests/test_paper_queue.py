"""The queue of the paper's sizes: stopped at any moment and called again, it ends with the same records"""

import importlib.util, json, subprocess, sys
from pathlib import Path
import pytest
from samplesplit_nb.storage import load_arrays

TOOL = Path(__file__).parent.parent / 'tools/paper_queue.py'


@pytest.fixture(scope='module')
def queue():
    spec = importlib.util.spec_from_file_location('paper_queue', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def items(queue, folder):
    "Two items of seconds, at scale smoke"
    return [queue.Item(*i, 'smoke', folder / 'results', folder / 'cache') for i in queue.ITEMS[:2]]


def without_time(record):
    "What a record holds besides seconds"
    timeless = lambda run: {name: v for name, v in run.items() if name != 'timing'}
    runs = {name: timeless(run) for name, run in record.data['runs'].items()}
    return record.config, record.data['images'], record.data['training'], runs


def test_stopped_again_and_again_it_ends_with_the_same_records(queue, tmp_path):
    whole, parts = (items(queue, tmp_path / name) for name in ('whole', 'parts'))
    for item in whole:
        item.work()
    log = tmp_path / 'parts/cache/log.jsonl'
    folders = ['--results', str(tmp_path / 'parts/results'), '--cache', str(tmp_path / 'parts/cache')]
    command = [sys.executable, str(TOOL), '--scale', 'smoke', '--nice', '0', *folders]
    for seconds in (0.5, 2.5, 60):  # killed while it starts, somewhere in its work, and not at all
        queue.go_on(parts, seconds, log, command)
    for a, b in zip(whole, parts):
        assert without_time(a.record()) == without_time(b.record())
        if a.path.with_suffix('.npz').exists():
            one, two = (load_arrays(i.path.with_suffix('.npz')) for i in (a, b))
            assert all((one[name] == two[name]).all() for name in one) and one.keys() == two.keys()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) >= 3 and [line['finished'] for line in lines].count(True) == 2
    assert lines[0]['cpu_seconds'] < 0.7 and sum(line['cpu_seconds'] for line in lines) > 1
    assert {words for _, _, words, _, _ in queue.rows(parts)} == {'finished'}


def test_what_is_left_is_estimated_from_what_was_measured(queue, tmp_path, monkeypatch):
    plain, other = items(queue, tmp_path)
    assert [row[2:] for row in queue.rows([plain])] == [('not begun', 0.0, None)] * 2
    monkeypatch.setattr(
        queue.Item, 'state', lambda self, run: (10, 5.0) if run == 'plain' and self is plain else None
    )
    steps, ratio = plain.experiment.steps, other.size() / plain.size()
    first, second, third, _ = queue.rows([plain, other])
    assert first[2] == f'under way, step 10 of {steps}' and first[4] == pytest.approx((steps - 10) / 2)
    assert second[4] == pytest.approx(steps / 2) and third[4] == pytest.approx(steps / 2 * ratio)


def test_a_failure_is_said(queue, tmp_path):
    with pytest.raises(SystemExit, match='seed 0 ended with status'):
        queue.go_on(
            items(queue, tmp_path)[:1], 60, tmp_path / 'log', [sys.executable, '-c', 'raise SystemExit(3)']
        )


def test_status_runs_nothing(tmp_path):
    words = [sys.executable, str(TOOL), '--scale', 'smoke', '--status', '--cache', str(tmp_path / 'c')]
    out = subprocess.run(
        [*words, '--results', str(tmp_path / 'r')], capture_output=True, text=True, check=True
    )
    assert 'not begun' in out.stdout and not any(tmp_path.iterdir())


def test_only_one_of_them(queue, tmp_path):
    one, other = items(queue, tmp_path)
    words = ['--scale', 'smoke', '--nice', '0', '--results', str(tmp_path / 'results')]
    command = [sys.executable, str(TOOL), *words, '--cache', str(tmp_path / 'cache')]
    subprocess.run([*command, '--only', '2'], capture_output=True, check=True)
    assert one.record() is None and other.record() is not None
    wrong = subprocess.run([*command, '--only', '99'], capture_output=True, text=True)
    assert wrong.returncode == 2 and '--only must be from 1 to' in wrong.stderr.splitlines()[-1]
