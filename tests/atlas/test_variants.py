"""Named variants of systems: known to names, cards and create, and checked where a card is read."""

import pytest

import regardant
from regardant.atlas import catalog
from regardant.atlas.card import read, write
from tests.atlas.small_package import a_card, put_card


def test_variants_are_made_by_name_and_what_is_given_goes_first():
    model = regardant.create("davit_tiny", classes=10, widths=(8, 16, 24, 32), heads=(1, 2, 3, 4))
    assert model.head.classify.out_features == 10 and model.channels == (8, 16, 24, 32)
    assert [len(stage.layers) for stage in model.stages] == [2, 2, 6, 2]


def test_names_know_variants_of_the_kind_that_is_asked_for():
    assert {"maxvit", "maxvit_tiny", "davit_base"} <= set(regardant.names("backbone"))
    assert "maxvit_tiny" in regardant.names() and "maxvit_tiny" not in regardant.names("grid")
    assert "maxvit_tiny" not in catalog.names("backbone")
    assert regardant.card("maxvit_tiny").slug == "maxvit"
    assert catalog.system("maxvit_tiny").name == "maxvit"


def test_what_does_not_fit_is_said_with_the_nearest():
    with pytest.raises(ValueError, match="no system is called 'maxvit_tini'; the nearest are maxvit_tiny"):
        regardant.create("maxvit_tini")
    with pytest.raises(ValueError, match=r"'davit_tiny' takes no 'clases' .*; the nearest are classes"):
        regardant.create("davit_tiny", clases=3)
    with pytest.raises(ValueError, match="'maxvit' needs widths, depths, stem"):
        regardant.create("maxvit")


def test_a_card_keeps_its_variants(tmp_path):
    card = a_card("pier", provides={"pier": "regardant.backbone.pier:Pier"}, variants={"pier_tiny": "pier"})
    path = put_card(tmp_path, card)
    assert read(path) == card and write(read(path)) == write(card)
    assert catalog.variants(package=tmp_path)["pier_tiny"].target == "regardant.backbone.pier:Pier"


def test_variants_of_nothing_and_names_that_are_taken_are_refused(tmp_path):
    put_card(tmp_path, a_card("pier", variants={"pier_tiny": "pier"}))
    with pytest.raises(ValueError, match="the variant 'pier_tiny' of 'pier', which it does not provide"):
        catalog.cards(package=tmp_path)
    provides = {"pier": "regardant.backbone.pier:Pier"}
    put_card(tmp_path, a_card("pier", provides=provides, variants={"pier": "pier"}))
    with pytest.raises(ValueError, match="the card 'pier' has the variant 'pier', but the card 'pier' has"):
        catalog.variants(package=tmp_path)


def test_timm_is_told_every_variant(monkeypatch):
    import sys
    from types import ModuleType

    from regardant.atlas.timm_entry import register_with_timm

    known = {}
    models = ModuleType("timm.models")
    models.register_model = lambda entry: known.setdefault(entry.__name__, entry)
    monkeypatch.setitem(sys.modules, "timm", ModuleType("timm"))
    monkeypatch.setitem(sys.modules, "timm.models", models)
    assert set(register_with_timm()) == set(known) >= {"regardant_maxvit_tiny"}
    shape = dict(widths=(8, 16, 24, 32), heads=(1, 2, 3, 4))
    model = known["regardant_davit_tiny"](num_classes=5, in_chans=1, pretrained_cfg=None, **shape)
    assert model.image_channels == 1 and model.head.classify.out_features == 5
    with pytest.raises(ValueError, match="regardant_davit_tiny has no weights to download"):
        known["regardant_davit_tiny"](pretrained=True)


def test_without_timm_the_registry_says_so(monkeypatch):
    import sys

    from regardant.atlas.timm_entry import register_with_timm

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="timm does not import here"):
        register_with_timm()
