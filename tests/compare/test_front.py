from regardant.compare.front import Contender, Quality, beaten_by, better, cheaper


def contender(system, cost, **quality):
    return Contender(system, cost, cost, {task: Quality(*own) for task, own in quality.items()})


FAST = contender("fast", 1.0, recall=(0.5, 0.02))
GOOD = contender("good", 3.0, recall=(0.9, 0.02))
SLOW = contender("slow", 4.0, recall=(0.89, 0.02))
BAD = contender("bad", 2.0, recall=(0.3, 0.02))


def test_the_front_are_those_that_nothing_beats():
    assert beaten_by([FAST, GOOD, SLOW, BAD]) == {"fast": [], "good": [], "slow": ["good"], "bad": ["fast"]}


def test_a_difference_inside_the_spread_is_none():
    near = contender("near", 3.0, recall=(0.93, 0.02))
    assert better(near, GOOD) == []
    assert beaten_by([GOOD, near]) == {"good": [], "near": []}
    ahead = contender("ahead", 3.0, recall=(0.95, 0.02))
    assert better(ahead, GOOD) == ["recall"]
    assert beaten_by([GOOD, ahead]) == {"good": ["ahead"], "ahead": []}


def test_less_than_five_percent_of_time_are_a_tie():
    assert not cheaper(contender("a", 0.96), contender("b", 1.0))
    assert cheaper(contender("a", 0.95), contender("b", 1.0))
    doubtful = Contender("doubtful", 0.5, 1.5)
    assert not cheaper(doubtful, contender("b", 1.2))
    assert not cheaper(contender("b", 1.2), doubtful)


def test_who_is_better_on_one_task_and_worse_on_another_beats_nobody():
    one = contender("one", 1.0, recall=(0.9, 0.01), bytes=(-2.0, 0.01))
    other = contender("other", 1.0, recall=(0.8, 0.01), bytes=(-1.8, 0.01))
    assert beaten_by([one, other]) == {"one": [], "other": []}


def test_without_a_task_in_common_nobody_is_beaten():
    assert beaten_by([contender("fast", 1.0), GOOD]) == {"fast": [], "good": []}
    assert beaten_by([contender("fast", 1.0, bytes=(1.0, 0.1)), GOOD]) == {"fast": [], "good": []}


def test_from_a_single_seed_only_time_decides():
    one, other = contender("one", 1.0, recall=(0.2, None)), contender("other", 2.0, recall=(0.9, None))
    assert beaten_by([one, other]) == {"one": [], "other": ["one"]}
