"""Attention inside clusters of content."""

import pytest
import torch
import torch.nn.functional as F

from regardant.core.clusters import Centroids, attend_balanced, attend_nearest, take_rows


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n, window", [(1, 1), (9, 1), (40, 7), (64, 8), (65, 100)])
def test_nearest_is_the_last_members_of_the_own_cluster_row_by_row(n, window):
    x, v = drawn(2, 3, n, 4), drawn(2, 3, n, 5, seed=1)
    clusters = torch.randint(5, (2, 3, n), generator=torch.Generator().manual_seed(2))
    out = attend_nearest(x, v, clusters, window=window, scale=0.5)
    for b in range(2):
        for h in range(3):
            for t in range(n):
                mine = [s for s in range(t + 1) if clusters[b, h, s] == clusters[b, h, t]][-window:]
                others = mine[:-1] or mine
                weights = (x[b, h, others] @ x[b, h, t] * 0.5).softmax(0)
                torch.testing.assert_close(out[b, h, t], weights @ v[b, h, others], rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_balanced_is_the_mean_over_the_clusters_that_a_token_is_in(causal):
    q, v = drawn(1, 1, 8, 4), drawn(1, 1, 8, 3, seed=1)
    members = torch.tensor([[0, 2, 5], [2, 3, 7]])[None, None]
    out = attend_balanced(q, q, v, members, members, causal=causal, scale=1.0)[0, 0]
    copies = {t: [] for t in range(8)}
    for cluster in members[0, 0].tolist():
        for t in cluster:
            sees = ([s for s in cluster if s < t] or [t]) if causal else cluster
            copies[t].append((q[0, 0, sees] @ q[0, 0, t]).softmax(0) @ v[0, 0, sees])
    for t in range(8):
        expected = torch.stack(copies[t]).mean(0) if copies[t] else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(out[t], expected, rtol=0, atol=1e-12)


def test_a_cluster_whose_keys_are_all_padding_counts_for_nothing():
    q, k, v = drawn(1, 1, 4, 2), drawn(1, 1, 4, 2, seed=1), drawn(1, 1, 4, 2, seed=2)
    members = torch.tensor([[0, 1], [1, 2]])[None, None]
    real = torch.tensor([[True, False, False, True]])
    out = attend_balanced(q, k, v, members, members, real_keys=real, causal=False, scale=1.0)[0, 0]
    torch.testing.assert_close(out[:2], v[0, 0, [0, 0]], rtol=0, atol=1e-12)
    assert out[2:].abs().max() == 0


def test_rows_are_taken_head_by_head():
    x = drawn(2, 3, 6, 4)
    index = torch.randint(6, (2, 3, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(take_rows(x, index), x.gather(2, index[..., None].expand(-1, -1, -1, 4)))


def test_the_nearest_centroid_is_the_one_at_the_smallest_angle():
    torch.manual_seed(0)
    centroids, x = Centroids(2, 7, 4).double(), drawn(1, 2, 20, 4)
    apart = (F.normalize(x, dim=-1)[:, :, :, None] - centroids.directions[:, None]).square().sum(-1)
    assert torch.equal(centroids.nearest(x), apart.argmin(-1))
    closest = apart.min(-1).values.mean() / 4
    torch.testing.assert_close(centroids.distance(x, None), closest, rtol=0, atol=1e-12)


def test_k_means_comes_closer_step_by_step():
    torch.manual_seed(0)
    centroids, x = Centroids(1, 6, 3).double(), drawn(1, 1, 200, 3)
    before = centroids.distance(x, None)
    for _ in range(10):
        centroids.directions.copy_(centroids.moved(x, None, decay=0.0))
    assert centroids.distance(x, None) < 0.8 * before
    torch.testing.assert_close(centroids.directions.norm(dim=-1), torch.ones(1, 6, dtype=torch.float64))
