"""What a system's source says, read without importing it (and so without torch).

The fingerprint ties evidence to a version of the system; the configuration and the declared support
are for `regardant show`.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from regardant.atlas.catalog import PACKAGE
from regardant.core.errors import require
from regardant.core.supports import Supports

# Strings (so that a # or a bracket inside one is none), comments, brackets.
_TOKENS = re.compile(
    r"""(?P<string>(?i:\b[rbuft]{1,2})?(?:
        \"\"\"(?:\\.|[^\\])*?\"\"\" | '''(?:\\.|[^\\])*?'''
        | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'))
    | (?P<comment>\#[^\n]*)
    | (?P<open>[(\[{]) | (?P<close>[)\]}])""",
    re.VERBOSE | re.DOTALL,
)


def locate(module: str, *, package: Path = PACKAGE) -> Path | None:
    """The file of `regardant.folder.module`, or None where there is none."""
    root, *parts = module.split(".")
    if root != "regardant" or not parts:
        return None
    path = package.joinpath(*parts)
    for candidate in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def defines(module: str, attribute: str, *, package: Path = PACKAGE) -> bool:
    """Whether the module's source has a class, function or value of this name at its top level."""
    path = locate(module, package=package)
    if path is None:
        return False
    name = re.escape(attribute)
    return bool(re.search(rf"^(?:class|def)\s+{name}\b|^{name}\s*[:=]", _code(path), re.MULTILINE))


def fingerprint(module: str, *, package: Path = PACKAGE) -> str:
    """Sixteen hexadecimal digits that change with the module's code, and not with its comments,
    docstrings, blank lines or line endings."""
    path = locate(module, package=package)
    require(path is not None, f"there is no source of {module!r} under {package}")
    return _digest(_code(path))


def fingerprint_of(text: str) -> str:
    """The fingerprint that a module of this text would have."""
    return _digest(_strip(text))


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def _code(path: Path) -> str:
    facts = path.stat()
    return _stripped(path, facts.st_mtime_ns, facts.st_size)


@cache
def _stripped(path: Path, _changed: int, _size: int) -> str:
    return _strip(path.read_text(encoding="utf-8-sig"))


def _strip(text: str) -> str:
    """The source without what changes nothing: comments, strings that stand as statements, blank lines."""
    kept, end = [], 0
    for first, last in _idle(text):
        kept.append(text[end:first])
        end = last
    kept.append(text[end:])
    return "\n".join(line.rstrip() for line in "".join(kept).splitlines() if line.strip())


def _idle(text: str) -> Iterator[tuple[int, int]]:
    """The spans of comments and of docstrings: strings outside brackets with a line to themselves."""
    depth = 0
    for token in _TOKENS.finditer(text):
        if token["open"]:
            depth += 1
        elif token["close"]:
            depth -= 1
        elif token["comment"]:
            yield token.span()
        elif depth == 0:
            start = text.rfind("\n", 0, token.start()) + 1
            after = text.find("\n", token.end())
            rest = text[token.end() : after if after >= 0 else len(text)].strip()
            alone = not text[start : token.start()].strip() and (not rest or rest.startswith("#"))
            continued = text[: start - 1].endswith("\\") if start else False
            if alone and not continued:
                yield token.span()


@dataclass(frozen=True)
class Option:
    """A keyword of a constructor, as its source has it. `default` is None where it must be given."""

    name: str
    default: str | None
    annotation: str


def configuration(target: str, *, package: Path = PACKAGE) -> list[Option]:
    """The keywords that the constructor of `module:Class` takes, from its source.

    Where it takes `**shared` and passes it on, those of the classes behind it follow, except the ones
    that it sets itself.
    """
    options: dict[str, Option] = {}
    settled: set[str] = set()
    for node in _lineage(target, package=package):
        if isinstance(node, ast.ClassDef):
            function = _member(node, "__init__")
            if function is None:
                for option in _fields(node):
                    options.setdefault(option.name, option)
                continue
        else:
            function = node
        own = list(_options(function, skip=1 if isinstance(node, ast.ClassDef) else 0))
        for option in own:
            if option.name not in settled:
                options.setdefault(option.name, option)
        if function.args.kwarg is None:
            break
        settled |= _settled(function)
    return list(options.values())


def supports(target: str, *, package: Path = PACKAGE) -> Supports | None:
    """What the class declares as its `supports`, from its source; None where neither it nor a base does."""
    changes: dict[str, Any] = {}
    for node in _lineage(target, package=package):
        value = _assigned(node, "supports") if isinstance(node, ast.ClassDef) else None
        if not isinstance(value, ast.Call):
            continue
        given = {item.arg: _literal(item.value) for item in value.keywords if item.arg}
        changes = given | changes
        # `replace(Base.supports, …)` goes on to what the base declares.
        if ast.unparse(value.func).split(".")[-1] != "replace":
            break
    else:
        if not changes:
            return None
    known = {item.name for item in fields(Supports)}
    return replace(Supports(), **{name: value for name, value in changes.items() if name in known})


def exempt(target: str, *, package: Path = PACKAGE) -> dict[str, str]:
    """The contract properties that the class says it cannot have, each with its reason, from its source."""
    declared = supports(target, package=package)
    if declared is not None:
        return dict(declared.exempt)
    for node in _lineage(target, package=package):
        value = _assigned(node, "exempt") if isinstance(node, ast.ClassDef) else None
        if value is not None:
            return dict(_literal(value))
    return {}


def _lineage(target: str, *, package: Path) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """The class (or function) and the classes behind it, nearest first, as far as they are ours."""
    waiting, seen = [tuple(target.split(":"))], set()
    while waiting:
        module, name = waiting.pop(0)
        path = locate(module, package=package)
        if (module, name) in seen or path is None:
            continue
        seen.add((module, name))
        tree = ast.parse(path.read_text(encoding="utf-8-sig"))
        imported = dict(_imports(tree, module, is_package=path.name == "__init__.py"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                yield node
                if isinstance(node, ast.ClassDef):
                    waiting += [_named(base, module, imported) for base in node.bases]
                break
        else:
            if name in imported:
                waiting.append(imported[name])


def _named(base: ast.expr, module: str, imported: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """Where a base class is written: `Base`, `Base[T]`, or `module.Base`."""
    if isinstance(base, ast.Subscript):
        base = base.value
    if isinstance(base, ast.Attribute):
        first, _, rest = ast.unparse(base.value).partition(".")
        where, name = imported.get(first, ("", first))
        return ".".join(part for part in (where, name, rest) if part), base.attr
    name = ast.unparse(base)
    return imported.get(name, (module, name))


def _imports(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[tuple[str, tuple[str, str]]]:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                source = ".".join([*parents, *([node.module] if node.module else [])])
            for item in node.names:
                yield item.asname or item.name, (source, item.name)
        elif isinstance(node, ast.Import):
            for item in node.names:
                yield (item.asname, ("", item.name)) if item.asname else (item.name.split(".")[0],) * 2


def _member(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    found = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == name]
    return found[-1] if found else None


def _options(function: ast.FunctionDef, *, skip: int) -> Iterator[Option]:
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    pairs = [*list(zip(positional, defaults))[skip:], *zip(given.kwonlyargs, given.kw_defaults)]
    for argument, default in pairs:
        yield _option(argument.arg, default, argument.annotation)


def _fields(node: ast.ClassDef) -> Iterator[Option]:
    """The fields of a dataclass; nothing of another class."""
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and not ast.unparse(item.annotation).startswith("ClassVar"):
            yield _option(ast.unparse(item.target), item.value, item.annotation)


def _option(name: str, default: ast.expr | None, annotation: ast.expr | None) -> Option:
    return Option(
        name=name,
        default=None if default is None else ast.unparse(default),
        annotation="" if annotation is None else ast.unparse(annotation),
    )


def _settled(function: ast.FunctionDef) -> set[str]:
    """The keywords that a constructor gives to the one behind it by itself."""
    return {
        keyword.arg
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".__init__")
        for keyword in call.keywords
        if keyword.arg is not None
    }


def _assigned(node: ast.ClassDef, name: str) -> ast.expr | None:
    for item in node.body:
        if isinstance(item, ast.Assign) and any(ast.unparse(at) == name for at in item.targets):
            return item.value
        if isinstance(item, ast.AnnAssign) and ast.unparse(item.target) == name:
            return item.value
    return None


def _literal(value: ast.expr) -> Any:
    """The value of a literal, or of a quotient of two (`4 / 3`); the text of anything else."""
    try:
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Div):
            return ast.literal_eval(value.left) / ast.literal_eval(value.right)
        return ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)
