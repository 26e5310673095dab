"""The house's two rules: utils imports nothing but utils; a room imports only lower floors."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import PROJECT

FLOORS = {
    "utils": 0,
    "confuse_matrix": 0,
    "FedAvg": 0,
    "robust": 1,
    "options": 1,
    "dataloaders": 2,
    "networks": 2,
    "local_update": 3,
    "predict": 3,
    "server": 4,
    "local_supervised": 5,
    "local_unsupervised": 5,
    "tasks": 5,
    "record": 5,
    "methods": 6,
    "test": 6,
    "paper": 6,
    "federation": 7,
    "rehearsal": 8,
    "reproduce": 8,
    "deploy": 8,
    "train_main": 9,
    "benchmarks": 10,
    "fedirm": 10,
}


def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    paths = [*PROJECT.glob("*.py")]
    for room in FLOORS:
        paths += (PROJECT / room).rglob("*.py")
    return {
        ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
    }


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows() -> set[tuple[str, str]]:
    """(importing module, imported module) within the house."""
    house = modules()
    return {(name, found) for name in house for found in imports(house[name]) if found in house}


def room(module: str) -> str:
    return module.split(".")[0]


def test_a_room_imports_only_rooms_on_lower_floors():
    house = modules()
    broken = {
        (str(house[source].relative_to(PROJECT)), room(target))
        for source, target in arrows()
        if room(source) != room(target) and FLOORS[room(target)] >= FLOORS[room(source)]
    }
    assert not broken


def test_every_module_lives_on_a_floor():
    assert {room(name) for name in modules()} <= FLOORS.keys()


def test_no_module_imports_itself_in_a_circle():
    after: dict[str, set[str]] = {}
    for source, target in arrows():
        if source != target:
            after.setdefault(source, set()).add(target)
    while leaves := {name for name in after if not after[name] & after.keys()}:
        for name in leaves:
            del after[name]
    assert not after
