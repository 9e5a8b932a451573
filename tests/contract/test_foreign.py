"""Anybody's layer through the suites."""

import copy

import pytest
import torch
from torch import nn

from regardant.contract import check
from tests.contract import foreign

HERE = "tests.contract.foreign"


def test_a_sound_layer_of_torch():
    report = check(f"{HERE}:CausalAttention", examples=6)
    assert report.passed, str(report)
    assert (report.name, report.kind) == (f"{HERE}:CausalAttention", "sequence")
    assert report.verdict("causality").status == "passed"
    assert report.verdict("padding").status == "passed"
    reasons = {verdict.property: verdict.detail for verdict in report.verdicts if verdict.status == "skipped"}
    assert reasons["reference"] == "it has no reference"
    assert reasons["step"] == "it does not decode step by step"
    assert reasons["time"] == "it declares no growth"
    assert reasons["cross"] == "it has no cross-attention"
    assert reasons["errors"] == "only layers of this project promise how they refuse wrong input"


def test_a_mask_that_begins_too_late():
    report = check(foreign.OneTooFar, examples=6)
    assert {verdict.property for verdict in report.failures} == {"causality", "training"}
    detail = report.verdict("causality").detail
    assert detail.startswith("future leak: changing token 1 moved the output at position 0 by ")
    assert detail.endswith("(length 2, batch 2, heads 2, causal)")


def test_an_instance_is_checked_and_left_alone():
    layer = foreign.CausalAttention(16, 4)
    before = copy.deepcopy(layer.state_dict())
    report = check(layer, examples=4)
    assert report.passed, str(report)
    assert layer.training
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert next(layer.parameters()).dtype == torch.float32


@pytest.mark.parametrize("target", ["made", "instance"])
def test_factories_and_instances_by_name(target):
    report = check(f"{HERE}:{target}", examples=3)
    assert report.passed, str(report)
    assert report.verdict("causality").status == "passed"


def test_found_out_where_it_does_not_say():
    report = check(foreign.Silent, examples=3)
    assert report.passed, str(report)
    assert report.verdict("causality").detail.startswith("causal, though it does not say so")
    looks_ahead = check(foreign.FoursOnly(8), examples=3).verdict("causality")
    assert looks_ahead.status == "passed"
    assert looks_ahead.detail.startswith("not causal, and it does not say that it is: future leak")


def test_what_it_should_be_can_be_insisted_on():
    report = check(foreign.FoursOnly(8), causal=True, examples=3)
    assert report.verdict("causality").status == "failed"


def test_a_constructor_that_takes_causal_is_asked_both_ways():
    report = check(foreign.Both, examples=4)
    assert report.passed, str(report)
    assert report.verdict("noncausal").status == "passed"
    assert check(foreign.Both, config={"is_causal": False}, causal=True, examples=4).failures


def test_lengths_that_do_not_run_fail_the_shape():
    report = check(foreign.FoursOnly, examples=4)
    assert [verdict.property for verdict in report.failures] == ["shape"]
    detail = report.verdict("shape").detail
    assert detail.startswith(
        "lengths 1, 2, 3, 5, 7, 13, 17, 31, 33, 65, 101, 257 do not run; at length 1 forward raised"
    )


def test_what_only_runs_in_float32_is_compared_in_float32():
    report = check(foreign.SinglePrecision, examples=3)
    assert {verdict.property for verdict in report.failures} == {"half precision"}
    assert "RuntimeError" in report.verdict("half precision").detail


@pytest.mark.parametrize(
    ("system", "kind"),
    [(foreign.SqueezeExcite, "gate"), (foreign.ChannelsLast, "grid")],
    ids=["gate", "grid"],
)
def test_the_kind_is_found(system, kind):
    report = check(system, examples=4)
    assert report.kind == kind
    assert not {verdict.property for verdict in report.failures} - {"reach"}, str(report)


def test_a_rule_is_carried():
    report = check(foreign.PlainAttention(), causal=True, examples=4)
    assert report.kind == "rule"
    assert report.passed, str(report)
    assert report.verdict("causality").status == "passed"


def test_torch_attention_itself():
    report = check(nn.MultiheadAttention(16, 4, batch_first=True), examples=3)
    assert report.kind == "sequence"
    assert report.verdict("batch").status == "passed"


@pytest.mark.parametrize(
    ("target", "config", "sentence"),
    [
        (f"{HERE}:NeedsMore", {}, "needs codebook, which the suite cannot guess: give it in config"),
        (f"{HERE}:Nothing", {}, "tests.contract.foreign has no Nothing"),
        ("nowhere.at.all:Layer", {}, "importing nowhere.at.all failed"),
        ("CausalAttention", {}, "it is written module:Attribute"),
        (f"{HERE}:number", {}, "is a int, but a class, a layer or a factory can be checked"),
        (f"{HERE}:CausalAttention", {"depth": 3}, "config has depth, which"),
        (f"{HERE}:instance", {"depth": 3}, "is made already: only dim and heads can be told"),
        (f"{HERE}:CausalAttention", {"dim": 7, "heads": 2}, "could not be made: the constructor raised"),
    ],
)
def test_what_cannot_be_checked_gets_one_sentence(target, config, sentence):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        check(target, config=config)
    assert sentence in str(error.value)


def test_an_unknown_kind_gets_one_sentence():
    with pytest.raises(ValueError, match="kind is 'fusion', but the suites are for sequence, grid, gate"):
        check(foreign.Silent, kind="fusion")
