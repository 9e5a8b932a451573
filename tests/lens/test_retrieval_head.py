import pytest
import torch

from regardant.edit.apply import apply
from regardant.edit.mask_heads import MaskHeads
from regardant.lens.retrieval_head import RetrievalHeads, answers, hits, read_prompts, recall
from regardant.task.secret_codes import NeedleCase
from regardant.world.planted import planted_induction

IDS = torch.tensor([0, 9, 3, 4, 5, 6, 12, 3])
CASE = NeedleCase(IDS, 3, 6)  # after 3: 4 5 6
COPYING, PREVIOUS = (2, 3), (0, 1)


@pytest.fixture
def model():
    return planted_induction(previous=PREVIOUS, copying=COPYING)


def test_the_planted_copying_head_is_found_and_no_other(model):
    found = RetrievalHeads([CASE])(model)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    expected[COPYING] = 1.0
    assert torch.equal(found.values, expected)
    assert torch.equal(found.activation, expected)
    assert found.retrieving == [COPYING] and found.kept == 1 and found.recalls == (1.0,)


def test_pitfall_the_token_that_comes_out_counts_not_the_one_that_went_in():
    """A head that looks at the token which was just read (a duplicate) has no hit, even inside the needle."""
    said = torch.tensor([4, 5, 6])
    copies, duplicates = torch.tensor([3, 4, 5]), torch.tensor([2, 3, 4])
    found = hits(torch.stack([copies, duplicates])[None], said, CASE)
    assert found.tolist() == [[1.0, 0.0]]


def test_pitfall_the_first_token_comes_out_of_the_prompt_and_counts(model):
    case = NeedleCase(IDS, 3, 4)
    assert RetrievalHeads([case])(model).top(1) == [COPYING]
    assert float(RetrievalHeads([case])(model).values.sum()) == 1.0


def test_repeated_hits_of_one_place_count_once():
    ids = torch.tensor([0, 3, 4, 4, 3])
    found = hits(torch.tensor([[[2, 2]]]), torch.tensor([4, 4]), NeedleCase(ids, 2, 4))
    assert found.tolist() == [[0.5]]


def test_pitfall_failed_runs_are_left_out_and_counted(model):
    # Behind 12 the model says 3, then 4: half of what this case calls the answer.
    wrong = NeedleCase(torch.tensor([0, 9, 3, 4, 7, 12, 3, 4]), 1, 3)
    found = RetrievalHeads([CASE, wrong], least_recall=0.9)(model)
    assert found.kept == 1 and found.recalls[0] == 1.0 and found.recalls[1] < 0.9
    assert found[COPYING] == 1.0
    with pytest.raises(ValueError, match="the model answered none of 1 cases"):
        RetrievalHeads([wrong], least_recall=0.9)(model)


def test_pitfall_padding_beside_a_longer_prompt_moves_no_place(model):
    longer = NeedleCase(torch.tensor([0, 9, 13, 14, 15, 3, 4, 5, 6, 12, 17, 3]), 6, 9)
    alone = RetrievalHeads([CASE], batch=1)(model).values
    assert torch.equal(RetrievalHeads([CASE, longer], batch=2)(model).values, alone)


def test_pitfall_query_heads_are_scored_though_keys_are_shared(model):
    """The planted head shares its keys and values with its neighbour, whose score stays 0."""
    assert model.config.num_key_value_heads == 2
    found = RetrievalHeads([CASE])(model)
    assert found[2, 3] == 1.0 and found[2, 2] == 0.0


def test_masking_the_head_takes_the_answer_away_and_others_do_not(model):
    idle = [(layer, head) for layer in range(3) for head in range(4)]
    idle = [each for each in idle if each not in (COPYING, PREVIOUS)]
    masks = {"none": [], "copying": [COPYING], "idle": idle}
    assert RetrievalHeads([CASE]).masked(model, masks) == {"none": [1.0], "copying": [0.0], "idle": [1.0]}


def test_masks_act_on_the_answer_and_not_on_the_reading(model):
    """The head that notes what stood before did so while the prompt was read: a mask comes too late."""
    assert RetrievalHeads([CASE]).masked(model, {"previous": [PREVIOUS]}) == {"previous": [1.0]}
    with apply(model, MaskHeads(chosen=[PREVIOUS])):
        assert RetrievalHeads([CASE]).masked(model, {"none": []}) == {"none": [0.0]}


def test_recall_counts_tokens_of_the_answer_in_any_order():
    assert recall(torch.tensor([6, 4, 4]), CASE) == pytest.approx(2 / 3)
    assert recall(torch.tensor([4, 5, 6, 7]), CASE) == 1.0


def test_answers_are_those_of_prompts_alone(model):
    longer = NeedleCase(torch.tensor([0, 9, 13, 14, 15, 3, 4, 5, 6, 12, 17, 3]), 6, 9)
    read = read_prompts(model, [CASE, longer])
    assert read.padding == [4, 0] and read.cache.get_seq_length() == 11
    for _ in range(2):  # answering leaves what was read as it is
        assert answers(model, read).tolist() == [[4, 5, 6], [4, 5, 6]]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RetrievalHeads([]), "cases is empty"),
        (lambda: RetrievalHeads([CASE], batch=0), "batch is 0"),
        (lambda: RetrievalHeads([CASE], least_recall=0), "least_recall is 0"),
        (lambda: NeedleCase(IDS, 5, 20), "the answer is from 5 to 20, but the prompt has 8 tokens"),
    ],
)
def test_bad_settings_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
