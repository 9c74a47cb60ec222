"""How the packages hang together: imports go one way, files stay small, imports stay light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("envs", "esper_rl")
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
MOST_LINES = 400


def imported(name: str) -> set[str]:
    """Modules of this project that a module imports when it is imported itself."""
    found = set()
    for node in at_import(ast.parse(SOURCES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in SOURCES else str(node.module))
    return {module for module in found if module in SOURCES}


def at_import(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements outside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not isinstance(child, ast.FunctionDef):
            yield from at_import(child)


IMPORTS = {name: imported(name) for name in SOURCES}


def circle(arrows: dict[str, set[str]]) -> list[str] | None:
    """Names along a way that comes back to where it began, or None."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for following in sorted(arrows[name]):
            found = walk(following, [*path, name])
            if found:
                return found
        done.add(name)
        return None

    ways = (walk(name, []) for name in arrows)
    return next((way for way in ways if way), None)


def is_package(name: str) -> bool:
    return SOURCES[name].name == "__init__.py"


def folder_of(name: str) -> str:
    """The folder that a module lies in; modules beside their package's own __init__ are rooms."""
    if is_package(name):
        return name
    return name if name.count(".") == 1 else name.rpartition(".")[0]


def test_the_search_sees_the_imports() -> None:
    assert "envs.lifecycle" in IMPORTS["envs.morphogenesis"]
    assert "esper_rl.training.trainer" in IMPORTS["esper_rl"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_circle_between_files() -> None:
    assert circle(IMPORTS) is None


def test_no_circle_between_folders() -> None:
    """A package's __init__ that only gathers what lies in it doesn't count."""
    arrows: dict[str, set[str]] = {}
    for name, targets in IMPORTS.items():
        if name in PACKAGES:
            continue
        here = folder_of(name)
        there = {folder_of(target) for target in targets if target not in PACKAGES}
        arrows.setdefault(here, set()).update(there - {here})
    for targets in list(arrows.values()):
        for target in targets:
            arrows.setdefault(target, set())
    assert circle(arrows) is None


@pytest.mark.parametrize(
    ("inside", "forbidden"),
    [
        ("envs", "esper_rl"),
        ("esper_rl.policy", "envs"),
        ("esper_rl.objectives", "envs"),
        ("envs.batched", "envs.lifecycle"),
        ("envs.batched", "envs.actions"),
        ("envs.batched", "envs.state"),
    ],
)
def test_imports_go_one_way(inside: str, forbidden: str) -> None:
    def within(name: str, package: str) -> bool:
        return name == package or name.startswith(f"{package}.")

    guilty = {
        name: sorted(bad)
        for name, targets in IMPORTS.items()
        if within(name, inside) and (bad := {t for t in targets if within(t, forbidden)})
    }
    assert guilty == {}


def test_the_policy_and_the_loss_name_nothing_of_a_seed() -> None:
    """No head, key or column has a name where the policy is for anyone's environment."""
    words = ("germinate", "fossil", "blueprint", "tempo", "alpha_target", "num_slots")
    for name, path in SOURCES.items():
        if not name.startswith(("esper_rl.policy", "esper_rl.objectives")):
            continue
        tree = ast.parse(path.read_text())
        named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        named |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        named |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        assert not [word for word in named if any(seed in word for seed in words)], name


@pytest.mark.parametrize("folder", ["envs", "esper_rl", "tests", "benchmarks", "examples"])
def test_files_are_short(folder: str) -> None:
    """Or say, in a line of their own, why they aren't: ``# longer than 400 lines: REASON``."""
    reason = re.compile(rf"^# longer than {MOST_LINES} lines: .+", re.MULTILINE)
    texts = {path: path.read_text() for path in (ROOT / folder).rglob("*.py")}
    long = {
        str(path.relative_to(ROOT)): len(text.splitlines())
        for path, text in texts.items()
        if len(text.splitlines()) > MOST_LINES and not reason.search(text)
    }
    assert texts
    assert long == {}


@pytest.mark.parametrize(
    ("package", "heavy"),
    [
        ("envs", ("sklearn", "numba", "matplotlib")),
        ("esper_rl", ("sklearn", "numba", "matplotlib")),
    ],
)
def test_imports_are_light(package: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {package}; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_tests_import_no_tests() -> None:
    modules = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert str(node.module).rpartition(".")[2] not in modules, path


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_say_what_a_thing_is_or_does(package: str) -> None:
    """None opens with a question word, which leaves the reader to guess the sentence."""
    riddle = re.compile(r'"""(What|Where|How|Which|When|Who|Whether|In how|In which)\b')
    for name, path in SOURCES.items():
        if name.startswith(package):
            assert not riddle.findall(path.read_text()), name
