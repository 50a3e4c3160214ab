"""Who may import whom: arrows point down only, Ray stays in its room, and TensorFlow outside."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raylingvo"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# The roles and what they share: plain Python, that works in a unit test without Ray.
PLAIN_ACTORS = {
    f"raylingvo.actors.{name}"
    for name in ("trainer", "evaler", "decoder", "reader", "reporter", "outbox", "snapshot_store")
}
# Each floor may import what is below it.
FLOORS = [
    {"errors", "config", "_config"},
    {"data", "ops", "metrics", "parallel", "monitor"},
    {"models"},
    {"training", "experiment", "registry"},
    {"actors"},
    {"tune", "export"},
    {"cli_shared"},
    {"cli_submit", "cli_tune", "cli_watch"},
    {"cli", "__main__"},
]
# Files that register experiments, and `recipes` that several share, stand in their family's folder, but are made of
# what lies above it.
EXPERIMENT_PARTS = {"raylingvo.experiment", "raylingvo.registry", "raylingvo.training"}


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(path, *, inside_functions=True):
    """The dotted names that a file imports when it runs (`from a import b` gives both a and a.b)."""
    found = set()

    def visit(node):
        if is_type_checking(node):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not inside_functions:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def is_in(name, package):
    return name == package or name.startswith(f"{package}.")


def floor_of(module):
    part = module.split(".")[1] if "." in module else None
    return next((i for i, parts in enumerate(FLOORS) if part in parts), None)


def test_there_is_a_house():
    assert {"raylingvo", "raylingvo.config", "raylingvo.actors.trainer", "raylingvo.models.task"} <= MODULES.keys()
    assert MODULES.keys() >= PLAIN_ACTORS
    assert "jax" in imports(MODULES["raylingvo.training.step"])
    assert not is_in("raylingvo.experiments", "raylingvo.experiment")


@pytest.mark.parametrize("module", MODULES)
def test_ray_stays_in_actors_and_tune(module):
    names = imports(MODULES[module])
    if module in PLAIN_ACTORS or not (is_in(module, "raylingvo.actors") or is_in(module, "raylingvo.tune")):
        assert not {name for name in names if is_in(name, "ray")}


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_down(module):
    floor = floor_of(module)
    if floor is None:
        return  # the package itself resolves its names on first use
    for name in imports(MODULES[module]):
        above = floor_of(name) if is_in(name, "raylingvo") else None
        if above is not None and above > floor:
            assert is_in(module, "raylingvo.models"), f"{module} imports {name}"
            assert any(is_in(name, part) for part in EXPERIMENT_PARTS), f"{module} imports {name}"
            experiments = '@register("' in MODULES[module].read_text() or module.endswith(".recipes")
            assert experiments, f"{module} registers nothing, but imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_tensorflow(module):
    assert not {name for name in imports(MODULES[module]) if is_in(name, "tensorflow")}


@pytest.mark.parametrize("module", ["raylingvo", "raylingvo.config", "raylingvo.errors", "raylingvo.cli"])
def test_the_front_door_is_light(module):
    code = f"import sys, {module}; print(*({{'jax', 'ray', 'tensorflow'}} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.split() == []


def test_every_public_name_is_there():
    import raylingvo

    for name in raylingvo.__all__:
        assert getattr(raylingvo, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'raylingvo' has no attribute 'nothing'"):
        _ = raylingvo.nothing


@pytest.mark.parametrize("folder", ["raylingvo", "tests", "benchmarks"])
def test_no_file_is_long(folder):
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length >= 700} == {}
