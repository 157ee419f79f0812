"Properties and boundaries of the metrics: permutations, directions, coverage of intervals"

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom, ttest_1samp
from skimage.metrics import structural_similarity
from samplesplit_nb import metrics
from samplesplit_nb.metrics import (
    L2,
    SSIM,
    Paired,
    Score,
    baselines,
    bootstrap_interval,
    coverage,
    nearest_l2,
    nearest_ssim,
    paired,
    paired_over_seeds,
    simulated_gains,
    summarize,
    t_interval,
    top_samples,
)

T = lambda *v: torch.tensor(v, dtype=torch.float64)
small = st.floats(-8, 8, allow_nan=False).map(lambda v: round(v * 4) / 4)  # sums are exact
scores = st.lists(st.tuples(small, small), min_size=2, max_size=12).map(
    lambda v: tuple(map(torch.tensor, zip(*v)))
)


def images(n, shape, seed=0):
    return torch.rand(
        n, int(np.prod(shape)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


# nearest candidates


@given(
    arrays(float, (5, 3), elements=small),
    arrays(float, (4, 3), elements=small),
    st.permutations(range(5)),
    st.permutations(range(4)),
)
def test_distance_does_not_depend_on_order(X, c, rows, order):
    X, c = torch.from_numpy(X), torch.from_numpy(c)
    d, i = nearest_l2(X, c)
    np.testing.assert_allclose(
        d, np.linalg.norm(X[:, None].numpy() - c[None].numpy(), axis=2).min(1), atol=1e-12
    )
    assert torch.equal(nearest_l2(X[rows], c[order])[0], d[rows])
    assert torch.allclose((X - c[i]).norm(dim=1), d)


@pytest.mark.parametrize('shape', [(7, 7), (8, 9, 3), (10, 8, 1)])
@pytest.mark.parametrize('half', [False, True])
def test_ssim_finds_each_image_whatever_the_order(shape, half):
    X, mean = images(6, shape), images(1, shape, 1)[0]
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    s, i = nearest_ssim(X - mean, (X - mean)[order], mean, shape, half=half)
    assert torch.equal(order[i], torch.arange(6)) and torch.allclose(s, torch.ones_like(s))
    noise = images(6, shape, 3) - mean
    s, i = nearest_ssim(X - mean, noise, mean, shape, half=half)
    t, j = nearest_ssim((X - mean)[order], noise[order], mean, shape, half=half)
    assert torch.allclose(t, s[order]) and torch.equal(order[j], i[order])


def test_search_ignores_brightness_and_contrast_of_a_channel_and_the_score_does_not():
    shape, mean = (12, 12, 3), torch.zeros(432, dtype=torch.float64)
    X, wrong = images(4, shape), images(4, shape, 1)
    dull = (X.reshape(-1, 3) * T(0.3, 0.5, 0.1) + T(0.1, 0.2, 0.6)).reshape(4, -1)
    for half in (False, True):
        s, i = nearest_ssim(X, torch.cat([wrong, dull]), mean, shape, half=half)
        assert i.tolist() == [4, 5, 6, 7] and s.max() < 0.9


def test_clip_and_rescale_by_scikit_image_itself():
    shape, mean = (9, 9), torch.full((81,), 0.5, dtype=torch.float64)
    X, c = images(1, shape) - 0.5, 3 * (images(1, shape, 1) - 0.5)  # sticks out of [0, 1]
    a, b = (X + mean).numpy().reshape(shape), (c + mean).numpy().reshape(shape)
    want = dict(clip=b.clip(0, 1), rescale=(b - b.min()) / (b.max() - b.min()))
    got = {r: nearest_ssim(X, c, mean, shape, range=r)[0].item() for r in want}
    assert got == pytest.approx({r: structural_similarity(a, v, data_range=1.0) for r, v in want.items()})
    assert abs(got['clip'] - got['rescale']) > 0.005
    for r in want:
        assert np.isfinite(nearest_ssim(X, 0 * c, mean, shape, range=r)[0].item())  # constant candidate


@pytest.mark.parametrize(
    'kw, says',
    [
        (dict(shape=(6, 6)), r'shape=\(6, 6\)'),
        (dict(shape=(49,)), r'shape=\(49,\)'),
        (dict(shape=(1, 49)), r'7 x 7'),
        (dict(range='both'), "range='both'.*never compare"),
    ],
)
def test_ssim_refuses(kw, says):
    X = images(2, (7, 7))
    with pytest.raises(ValueError, match=says):
        nearest_ssim(X, X, X[0], **{'shape': (7, 7), **kw})


@pytest.mark.parametrize('c', [torch.zeros(0, 3), torch.zeros(2, 4), torch.zeros(3)])
def test_candidates_of_another_shape_are_refused(c):
    for f in (nearest_l2, L2):
        with pytest.raises(ValueError, match='candidates.shape'):
            f(torch.zeros(2, 3), c)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_on_a_gpu():
    shape = (8, 8, 3)
    X, c = images(3, shape), images(5, shape, 1)
    for score in (L2, SSIM.bind(mean=X.mean(0), shape=shape)):
        for cpu, gpu in zip(score(X, c), score(X.cuda(), c)):
            assert torch.allclose(cpu, gpu.cpu())


# directions


@given(scores, small)
def test_a_direction_is_the_mirror_of_the_other(pair, threshold):
    before, after = pair
    assert L2.count(before, threshold) == SSIM.count(-before, -threshold) == int((before < threshold).sum())
    assert torch.equal(L2.improvement(before, after), SSIM.improvement(-before, -after))
    a, b = paired(before, after, L2), paired(-before, -after, SSIM)
    assert a == b
    assert torch.equal(
        top_samples(before, after, L2, threshold, 3), top_samples(-before, -after, SSIM, -threshold, 3)
    )


def test_a_tie_with_the_threshold_and_nan_do_not_pass():
    values = T(1.0, float('nan'), 2.0)
    for score in (L2, SSIM):
        assert not score.passes(values[:1], 1.0).any() and not score.passes(values[1:2], 1.0).any()
    assert L2.count(values, 3.0) == 2 and SSIM.count(values, 0.0) == 2


@pytest.mark.parametrize('better', ['', 'Lower', None, 1])
def test_a_score_has_a_direction(better):
    with pytest.raises(ValueError, match='better='):
        Score('mine', better, nearest_l2)


def test_bound_scores_and_plain_functions_serve_as_baselines():
    shape = (7, 8)
    X, mean = images(4, shape), images(1, shape, 5)[0]
    ssim = SSIM.bind(mean=mean, shape=shape)
    base, plain = baselines(X - mean, ssim), baselines(X - mean, lambda a, b: nearest_ssim(a, b, mean, shape))
    for k in base:
        assert torch.equal(base[k], plain[k])
    assert summarize(T(0.5, 0.5, 0.5, 0.5), base['nearest_other'], score=ssim)['beat_nearest_other'] == 4
    assert (
        summarize(T(0.5, 0.5, 0.5, 0.5), base['nearest_other'])['beat_nearest_other'] == 0
    )  # control: L2's direction
    assert ssim.name == 'SSIM' and ssim.better == 'higher' and SSIM.function is nearest_ssim


# recovered


def recovered(X, scores):
    "The definition, with the distance to the nearest other sample measured here"
    return metrics.recovered(scores, baselines(X, L2)['nearest_other'])


@given(arrays(float, (6, 2), elements=small), arrays(float, (7, 2), elements=small))
def test_no_candidate_recovers_two_samples(X, c):
    X, c = torch.from_numpy(X), torch.from_numpy(c)
    d, i = nearest_l2(X, c)
    mine = recovered(X, d)
    used = i[mine].tolist()
    assert len(used) == len(set(used))
    for sample, candidate in zip(mine.nonzero().flatten().tolist(), used):  # and it is nearest to that one
        assert (X - c[candidate]).norm(dim=1).argmin() == sample


def test_recovered_at_its_boundary():
    X = T([0.0, 0.0], [4.0, 0.0], [4.0, 0.0]).reshape(3, 2)
    assert recovered(X, T(1.99, 0.0, 0.0)).tolist() == [True, False, False]  # twins are never told apart
    assert recovered(X, T(2.0, 0.0, 0.0)).tolist() == [False] * 3
    with pytest.raises(ValueError, match=r'scores.shape=\(2,\)'):
        recovered(X, T(1.0, 1.0))
    with pytest.raises(ValueError, match='n=1'):
        recovered(X[:1], T(1.0))


# paired comparisons


@given(scores)
def test_paired_against_direct_counts(pair):
    before, after = pair
    r = paired(before, after, L2)
    up, down = int((after < before).sum()), int((after > before).sum())
    assert (r.improved, r.same, r.worse) == (up, len(before) - up - down, down)
    assert r.mean == pytest.approx((before - after).mean().item(), abs=1e-6)
    assert r.low is None and r.high is None  # one seed has no interval
    n = up + down
    tail = min(1.0, 2 * binom.cdf(min(up, down), n, 0.5)) if n else 1.0
    assert r.p == pytest.approx(tail)


def test_paired_takes_lists():
    before, after = [3.0, 2.0, 5.0, 4.0], [1.0, 2.0, 6.0, 1.0]
    assert paired(before, after, L2) == paired(torch.tensor(before), torch.tensor(after), L2)


def test_nothing_changed():
    r = paired([1.0, 2.0], [1.0, 2.0], L2)
    assert r == Paired(0, 2, 0, 0.0, None, None, 1.0)
    assert str(r) == '0 of 2 improved, 0 worse; mean improvement 0, sign test p = 1'
    assert 'over 2 seeds' in str(paired_over_seeds([([1.0, 2.0], [1.0, 2.0])] * 2, L2))


@pytest.mark.parametrize(
    'before, after, says',
    [
        ([1.0, 2.0], [1.0], r'after.shape=\(1,\)'),
        ([1.0], [1.0], 'n >= 2'),
        ([[1.0, 2.0]], [[1.0, 2.0]], 'after.shape'),
        ([1.0, float('nan')], [1.0, 2.0], 'before=<1 of 2'),
        ([1.0, 2.0], [1.0, float('inf')], 'after=<1 of 2'),
    ],
)
def test_paired_refuses(before, after, says):
    with pytest.raises(ValueError, match=says):
        paired(before, after, L2)


def test_over_seeds_refuses():
    with pytest.raises(ValueError, match='seeds=1'):
        paired_over_seeds([([1.0, 2.0], [1.0, 2.0])], L2)
    with pytest.raises(ValueError, match='after.shape'):
        paired_over_seeds([([1.0, 2.0], [1.0, 2.0]), ([1.0], [1.0, 2.0])], L2)


def test_seeds_have_equal_weight_and_the_sign_test_counts_them():
    r = paired_over_seeds([([0.0] * 8, [1.0] * 8), ([0.0], [-3.0]), ([0.0, 0.0], [2.0, 0.0])], SSIM)
    assert (r.improved, r.same, r.worse, r.seeds) == (9, 1, 1, 3) and r.mean == pytest.approx((1 - 3 + 1) / 3)
    assert r.p == 1.0 and r.low <= r.mean <= r.high
    assert (
        paired_over_seeds([([0.0] * 50, [1.0] * 50)] * 3, SSIM).p == 0.25
    )  # three seeds can never do better


@pytest.mark.parametrize('seeds', [2, 3, 5, 12])
def test_the_interval_over_seeds_is_that_of_scipy_and_sees_the_means_alone(seeds):
    g = np.random.default_rng(seeds).normal(size=(seeds, 7))
    r = paired_over_seeds([(0 * a, a) for a in g], SSIM)
    means = g.mean(1)
    expected = ttest_1samp(means, 0.0).confidence_interval(0.95)
    assert (r.low, r.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    shuffled = paired_over_seeds([(np.zeros(3), np.full(3, m)) for m in means], SSIM)
    assert (shuffled.low, shuffled.high) == pytest.approx((r.low, r.high), rel=1e-12)


def test_intervals_hold_the_truth_about_95_percent_of_the_time():
    "Simulated studies with normal seeds; the former bootstrap and pooled samples are the controls"
    student = lambda g: t_interval(g.mean(1))
    pooled = lambda g: t_interval(g.ravel())
    for seeds in (3, 5, 12):
        gains = simulated_gains(seeds, studies=2000, seed=1)
        share, error = coverage(gains, student)
        assert abs(share - 0.95) < 3.5 * error
        assert coverage(gains, pooled).share < 0.7  # samples of one seed are not independent
    few = simulated_gains(3, between=2.0, studies=400, seed=1)
    assert coverage(few, lambda g: bootstrap_interval(g, resamples=200)).share < 0.85
    # skewed seeds: what the README says of three and five
    for seeds in (3, 5):
        share = coverage(simulated_gains(seeds, True, 2.0, studies=4000), student).share
        assert 0.86 < share < 0.91


# samples of a figure


@given(scores, small, st.integers(1, 13))
def test_top_samples_against_the_rule_read_aloud(pair, threshold, count):
    before, after = pair
    best = torch.maximum(before, after)
    got = top_samples(before, after, SSIM, threshold, count).tolist()
    passing = [i for i in range(len(best)) if before[i] > threshold or after[i] > threshold]
    assert len(got) == len(set(got)) == min(count, len(passing)) and set(got) <= set(passing)
    left = set(passing) - set(got)
    if left:
        assert min(best[i] for i in got) >= max(best[i] for i in left)
    gains = [(after - before)[i].item() for i in got]
    assert gains == sorted(gains, reverse=True)


@given(st.permutations(range(6)))
def test_top_samples_do_not_depend_on_order(order):
    before, after = (
        T(1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        T(3.0, 1.5, 2.25, 9.0, 2.0, 7.5),
    )  # no ties: those go by index
    for count in (1, 3, 6):
        assert [order[i] for i in top_samples(before[order], after[order], L2, 6.5, count)] == top_samples(
            before, after, L2, 6.5, count
        ).tolist()


def test_top_samples_refuse():
    with pytest.raises(ValueError, match='count=0'):
        top_samples([1.0], [1.0], L2, 2.0, 0)
    with pytest.raises(ValueError, match='after.shape'):
        top_samples([1.0, 2.0], [1.0], L2, 2.0, 1)


@pytest.mark.parametrize('shape', [(28, 28), (32, 32, 3)])
def test_gaussian_ssim_is_that_of_scikit_image_but_for_the_border(shape):
    "Its Gaussian window is 11; we reflect around the border pixel as kornia, it around the edge"
    rng = np.random.default_rng(4)
    a = rng.random(shape)
    b = 0.7 * a + 0.3 * rng.random(shape)
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)
    theirs = structural_similarity(
        a, b, data_range=1.0, channel_axis=2 if len(shape) == 3 else None, **options
    )[1]
    wide = lambda z: np.pad(z, [(5, 5)] * 2 + [(0, 0)] * (z.ndim - 2), mode='reflect')
    larger = structural_similarity(
        wide(a), wide(b), data_range=1.0, channel_axis=2 if len(shape) == 3 else None, **options
    )[1][5:-5, 5:-5]
    ours = metrics.gaussian_ssim(a, b, 11)
    assert abs(ours - larger.mean()) < 1e-12
    assert abs(ours - theirs.mean()) > 1e-5  # control: the border counts
    flat = metrics.gaussian_ssim(a, b, 3)
    assert abs(ours - flat) > 1e-3
