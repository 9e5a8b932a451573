import pytest
import torch
from scipy.stats import kendalltau, pearsonr, spearmanr

from regardant.lens.agreement import agreement, kendall, pearson, ranks, spearman, top_overlap


def scores(seed, ties=True):
    draw = torch.randn(6, 17, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (draw * 2).round() if ties else draw


@pytest.mark.parametrize(
    ("ours", "theirs"), [(kendall, kendalltau), (spearman, spearmanr), (pearson, pearsonr)]
)
@pytest.mark.parametrize("ties", [False, True])
def test_against_the_textbook(ours, theirs, ties):
    a, b = scores(0, ties), scores(1, ties)
    b = b + a.round()
    expected = torch.tensor([theirs(x, y).statistic for x, y in zip(a.tolist(), b.tolist())])
    assert (ours(a, b) - expected).abs().max() < 1e-9


@pytest.mark.parametrize("measure", [kendall, spearman, pearson])
def test_pitfall_padded_positions_have_no_rank(measure):
    a, b = scores(2), scores(3)
    mask = torch.arange(17) < torch.tensor([17, 12, 9, 8, 16, 13])[:, None]
    noise = torch.randn(6, 17, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 100
    found = measure(torch.where(mask, a, noise), torch.where(mask, b, -noise), mask)
    alone = [measure(x[m], y[m]) for x, y, m in zip(a, b, mask)]
    assert (found - torch.stack(alone)).abs().max() < 1e-9


def test_identical_scores_agree_and_opposite_ones_disagree():
    a = scores(4, ties=False)
    for measure in (kendall, spearman, pearson):
        assert (measure(a, a) - 1).abs().max() < 1e-12
        assert (measure(a, -a) + 1).abs().max() < 1e-12


def test_permuted_scores_do_not_agree():
    draw = torch.Generator().manual_seed(5)
    a, b = (torch.randn(400, 20, generator=draw) for _ in range(2))
    assert abs(float(kendall(a, b).mean())) < 0.05


def test_ranks_share_their_mean_where_they_tie():
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 0.0])).tolist() == [2.5, 1.0, 2.5, 0.0]


def test_overlap_of_the_best_few():
    a, b = torch.tensor([[5.0, 4, 3, 2, 1]]), torch.tensor([[5.0, 1, 2, 3, 9]])
    assert top_overlap(a, b, best=2).tolist() == [0.5]
    mask = torch.tensor([[True, True, True, True, False]])
    assert top_overlap(a, b, mask, best=1).tolist() == [1.0]
    with pytest.raises(ValueError, match="best is 5, but there are 4 entries"):
        top_overlap(a, b, mask, best=5)


def test_a_table_has_every_pair_once():
    table = agreement({"a": scores(0), "b": scores(1), "c": scores(0)})
    assert set(table) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert (table["a", "c"] - 1).abs().max() < 1e-12
