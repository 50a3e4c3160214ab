"""Experiments by name: found lazily, also in the user's own modules; unknown names say what was meant."""

import sys

import pytest
import toy

from raylingvo import registry
from raylingvo.errors import RequestError
from raylingvo.registry import find, get, names, register

USER_MODULE = """
import toy
from raylingvo.registry import register

@register("{module}.Mine")
def mine():
    '''A toy of my own.

    More of it.'''
    return toy.experiment()
"""


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """What a test registers and imports is gone after it."""
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("users_"):
            del sys.modules[name]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, module, text=None):
    *packages, leaf = module.split(".")
    for package in packages:
        folder = folder / package
        folder.mkdir()
        (folder / "__init__.py").write_text("")
    (folder / f"{leaf}.py").write_text(text or USER_MODULE.format(module=module))


def test_an_experiment_has_its_name():
    register("some.where.Toy")(toy.experiment)
    assert get("some.where.Toy").name == "some.where.Toy"
    assert toy.experiment().name != "some.where.Toy"


def test_every_name_can_be_got():
    assert {"image.digits.LeNet5", "image.mnist.LeNet5"} <= set(names())
    assert names() == sorted(names())
    for name in names():
        assert get(name).name == name


@pytest.mark.parametrize("module", ["users_toys", "users_package.deep.toys"])
def test_modules_in_the_current_directory_are_found(here, module):
    write(here, module)
    assert get(f"{module}.Mine").name == f"{module}.Mine"
    assert find("mine") == {f"{module}.Mine": "A toy of my own."}


def test_a_name_has_one_function():
    register("some.where.Toy")(toy.experiment)
    register("some.where.Toy")(toy.experiment)  # the same one again: its module was reloaded
    with pytest.raises(ValueError, match=r"'some.where.Toy' is registered twice: toy.experiment and .*\.other"):

        @register("some.where.Toy")
        def other():
            return toy.experiment()


def test_a_name_has_a_module():
    with pytest.raises(ValueError, match=r"an experiment's name must be module.Name \(got 'Toy'\)"):
        register("Toy")


@pytest.mark.parametrize(
    "name", ["image.mnist.LeNet", "image.minst.LeNet5", "mnist.LeNet5", "IMAGE.MNIST.LENET5", "LeNet5"]
)
def test_the_closest_names_are_proposed(here, name):
    with pytest.raises(RequestError, match=rf"no experiment '{name}'; did you mean .*image\.mnist\.LeNet5") as error:
        get(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["", ".", "Zzzzzz", "zzz.yyy.Xxx", ".Qqqqqq", "..Qqqqqq", "zz..Qqqqqq", "a b.Qqqqqq", "json.decoder.zz.Qqqqqq"],
)
def test_a_name_like_no_other(here, name):
    with pytest.raises(RequestError, match="no experiment "):
        get(name)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import users_missing_dependency", "ModuleNotFoundError: No module named 'users_missing_dependency'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: .*"),
        ("from raylingvo.registry import nothing", "ImportError: cannot import name 'nothing'.*"),
    ],
)
@pytest.mark.parametrize("module", ["users_broken", "users_package.broken", "users_parent.child"])
def test_a_broken_module_of_the_user_is_named(here, module, text, problem):
    if module == "users_parent.child":
        write(here, module)
        (here / "users_parent" / "__init__.py").write_text(text)
    else:
        write(here, module, text)
    with pytest.raises(RequestError, match=rf"{module} cannot be imported: {problem}"):
        get(f"{module}.Mine")


def test_a_module_without_the_name(here):
    write(here, "users_toys")
    with pytest.raises(RequestError, match=r"no experiment 'users_toys.Other'; did you mean .*users_toys\.Mine"):
        get("users_toys.Other")


@pytest.mark.parametrize("pattern", ["", "lenet", "image.mnist.LeNet5", "*.mnist.*", "image.mn?st.*"])
def test_find_matches_parts_and_globs(pattern):
    found = find(pattern)
    assert "LeNet-5 on MNIST" in found["image.mnist.LeNet5"]
    assert all("\n" not in line and line for line in found.values())


def test_find_of_nothing_proposes_something():
    with pytest.raises(
        RequestError, match=r"no experiment matches 'image.minst.LeNet5'; closest: .*image\.mnist\.LeNet5"
    ):
        find("image.minst.LeNet5")
    with pytest.raises(RequestError, match=r"no experiment matches 'qqqqqq\*'"):
        find("qqqqqq*")
