"""What is read from source: fingerprints that follow the code only, configurations, declared support."""

import pytest

from regardant.atlas import source
from regardant.core.supports import Supports
from tests.atlas.small_package import SYSTEM, put_source

MODULE = "regardant.sequence.moth"


def fingerprint_of(package, text: str) -> str:
    put_source(package, MODULE, text)
    return source.fingerprint(MODULE, package=package)


PLAIN = '''"""Docstring."""
import math

WORDS = """kept
text"""


class Moth:
    """What it is."""

    size: int = 2
    """What size is."""

    def wing(self, a="# no comment", b=\'\'\'it's "kept" (too\'\'\'):
        r"""Raw docstring with a \\" in it."""
        return {"a": a, "b":
                "c"}[a]
'''


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(
            '"""Docstring."""', '"""Another docstring,\n\nlonger: (it has brackets.\n"""'
        ),
        lambda text: text.replace('    """What it is."""', "    '''It's that.'''  # a comment"),
        lambda text: text.replace("What size is.", "Size."),
        lambda text: text.replace(
            "import math\n", "# a comment with a ' quote\nimport math  # and another\n\n\n"
        ),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("class Moth:", "class Moth:   "),
        lambda text: "\ufeff" + text,
        lambda text: text.rstrip("\n"),
    ],
)
def test_what_changes_nothing_keeps_the_fingerprint(package, change) -> None:
    before = fingerprint_of(package, PLAIN)
    path = source.locate(MODULE, package=package)
    path.write_bytes(change(PLAIN).encode())
    assert path.read_bytes() != PLAIN.encode()
    assert source.fingerprint(MODULE, package=package) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("kept\ntext", "kept\nwords"),
        lambda text: text.replace("# no comment", "# no such comment"),
        lambda text: text.replace('"kept" (too', '"kept" (two'),
        lambda text: text.replace("size: int = 2", "size: int = 3"),
        lambda text: text.replace('"c"}', '"d"}'),
        lambda text: text.replace("        return", "    return"),
    ],
)
def test_what_changes_the_code_changes_the_fingerprint(package, change) -> None:
    assert change(PLAIN) != PLAIN
    assert fingerprint_of(package, change(PLAIN)) != fingerprint_of(package, PLAIN)


def test_strings_in_brackets_or_continued_lines_are_code(package) -> None:
    call = 'raise ValueError(\n    "one"\n    "two"\n)\n'
    assert fingerprint_of(package, call) != fingerprint_of(package, call.replace("two", "three"))
    continued = 'x = \\\n"one"\n'
    assert fingerprint_of(package, continued) != fingerprint_of(package, continued.replace("one", "two"))


def test_the_fingerprint_is_the_same_everywhere(package) -> None:
    # A literal, so that a Python that reads sources otherwise would be noticed.
    assert fingerprint_of(package, "x = 1\n") == "8ff436def1451285"
    assert fingerprint_of(package, PLAIN) == fingerprint_of(package, PLAIN)


def test_no_source_is_said_so(package) -> None:
    with pytest.raises(ValueError, match=r"there is no source of 'regardant\.grid\.none'"):
        source.fingerprint("regardant.grid.none", package=package)
    assert source.locate("torch.nn", package=package) is None
    assert source.locate("regardant", package=package) is None


def test_defining_is_at_the_top_level(package) -> None:
    put_source(
        package,
        MODULE,
        "class Moth(Base):\n    Inner = 1\n\ndef make(): ...\n\nAlias = Moth\n# class No: ...\n",
    )
    for name, there in {
        "Moth": True,
        "make": True,
        "Alias": True,
        "Mot": False,
        "Inner": False,
        "No": False,
    }.items():
        assert source.defines(MODULE, name, package=package) is there, name
    assert not source.defines("regardant.sequence.none", "Moth", package=package)


def test_configuration_goes_through_the_classes_behind(package) -> None:
    options = source.configuration(f"{MODULE}:Moth", package=package)
    assert [(option.name, option.default, option.annotation) for option in options] == [
        ("chosen", "2", "int"),
        ("dim", None, "int"),
        ("heads", None, "int"),
        ("causal", "False", "bool"),
        ("context_dim", "None", "int | None"),
    ]


def test_configuration_leaves_out_what_a_system_settles_itself(package) -> None:
    put_source(
        package,
        MODULE,
        SYSTEM.replace("__init__(**shared)", "__init__(causal=True, **shared)"),
    )
    names = [option.name for option in source.configuration(f"{MODULE}:Moth", package=package)]
    assert names == ["chosen", "dim", "heads", "context_dim"]


def test_configuration_without_a_constructor_is_that_of_the_base(package) -> None:
    put_source(
        package,
        MODULE,
        "from regardant.core import mixer\nclass Moth(mixer.MultiHead):\n    pass\n",
    )
    names = [option.name for option in source.configuration(f"{MODULE}:Moth", package=package)]
    assert names == ["dim", "heads", "causal", "context_dim"]


def test_configuration_of_a_dataclass_a_function_and_a_relative_import(package) -> None:
    put_source(
        package,
        "regardant.edit.scale",
        "from typing import ClassVar\n"
        "@dataclass(frozen=True)\nclass Base:\n    strength: float\n    shared: ClassVar[int] = 3\n",
    )
    put_source(
        package,
        "regardant.edit.temper",
        "from .scale import Base\n"
        "@dataclass\nclass Temper(Base):\n    heads: tuple[int, ...] = ()\n"
        "def make(*, a, b=1): ...\n",
    )
    options = source.configuration("regardant.edit.temper:Temper", package=package)
    assert [(option.name, option.default) for option in options] == [("heads", "()"), ("strength", None)]
    options = source.configuration("regardant.edit.temper:make", package=package)
    assert [(option.name, option.default) for option in options] == [("a", None), ("b", "1")]


def test_supports_is_read_from_the_class(package) -> None:
    assert source.supports(f"{MODULE}:Moth", package=package) == Supports(
        cross=False, time=1.0, exempt={"step": "it looks ahead"}
    )


def test_a_growth_may_be_written_as_a_quotient(package) -> None:
    put_source(package, MODULE, "class Moth:\n    supports = Supports(time=4 / 3)\n")
    assert source.supports(f"{MODULE}:Moth", package=package).time == 4 / 3


def test_supports_of_the_base_and_a_replacement_of_it(package) -> None:
    text = "from regardant.core.mixer import MultiHead\n\n\nclass Moth(MultiHead):\n"
    put_source(package, MODULE, text + "    pass\n")
    assert source.supports(f"{MODULE}:Moth", package=package) == Supports(step=False, time=1.5)
    put_source(
        package, MODULE, text + "    supports = replace(MultiHead.supports, time=1.0, padding=False)\n"
    )
    assert source.supports(f"{MODULE}:Moth", package=package) == Supports(step=False, time=1.0, padding=False)


def test_supports_of_a_class_that_declares_none(package) -> None:
    put_source(package, MODULE, "class Moth:\n    pass\n")
    assert source.supports(f"{MODULE}:Moth", package=package) is None
    assert source.supports("regardant.sequence.none:Moth", package=package) is None


def test_classes_that_inherit_in_a_circle_end(package) -> None:
    put_source(package, MODULE, "class A(B): ...\nclass B(A): ...\n")
    assert source.configuration(f"{MODULE}:A", package=package) == []
