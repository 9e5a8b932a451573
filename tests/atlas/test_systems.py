"""What is read statically from the real systems is what they are."""

import ast

import pytest

from regardant.atlas import catalog, source

SYSTEMS = catalog.systems()


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_resolves_to_its_class(name: str) -> None:
    system = SYSTEMS[name]
    constructor = catalog.resolve(name)
    assert f"{constructor.__module__}:{constructor.__name__}" == system.target
    assert source.defines(system.module, system.attribute)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_support_that_is_shown_is_the_one_that_is_declared(name: str) -> None:
    assert source.supports(SYSTEMS[name].target) == getattr(catalog.resolve(name), "supports", None)


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_shown_as_exempt_is_what_is_declared(name: str) -> None:
    constructor = catalog.resolve(name)
    declared = getattr(getattr(constructor, "supports", constructor), "exempt", {})
    assert source.exempt(SYSTEMS[name].target) == dict(declared)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_configuration_that_is_shown_is_the_one_that_is_taken(name: str) -> None:
    shown = {option.name: option for option in source.configuration(SYSTEMS[name].target)}
    taken, open_ended = catalog.keywords(catalog.resolve(name))
    assert not open_ended
    assert shown.keys() <= taken.keys()
    for key, option in shown.items():
        assert (option.default is None) == (taken[key].default is taken[key].empty), key
    # What is taken and not shown is what the system gives to its base by itself.
    for key in taken.keys() - shown.keys():
        assert taken[key].default is not taken[key].empty, key


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_system_imports_another(name: str) -> None:
    # Of the same folder: a network is made of mixers, and which folder may use which import-linter holds.
    own = SYSTEMS[name]
    rivals = {system.module for system in SYSTEMS.values() if system.kind == own.kind} - {own.module}
    tree = ast.parse(source.locate(SYSTEMS[name].module).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {item.name for node in ast.walk(tree) if isinstance(node, ast.Import) for item in node.names}
    assert imported & rivals == set()
