"""Imports point down: command, then applications, then the twins, then what both agree on."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHIPPED = {"unet_spec", "unet_torch", "unet_jax", "unet_parity"}

ALLOWED = {
    "unet_spec": {"unet_spec", "numpy", "safetensors"},
    "unet_torch": {"unet_torch", "unet_spec", "torch", "numpy", "jaxtyping"},
    "unet_jax": {"unet_jax", "unet_spec", "jax", "flax", "optax", "numpy", "jaxtyping"},
    "unet_parity": SHIPPED
    | {
        "torch",
        "jax",
        "flax",
        "optax",
        "numpy",
        "jaxtyping",
        "jsonschema",
        "safetensors",
        "rich",
        "unet_image",
        "unet_page",
    },
}


def imports(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            # train/ is installed under another name than its folder's, and so imports by dots
            inside = path.relative_to(ROOT).parts
            assert inside[0] == "train", path
            assert node.level < len(inside), path
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found - set(sys.stdlib_module_names)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py")) + sorted(ROOT.glob(f"{package}.py"))


@pytest.mark.parametrize("package", ALLOWED)
def test_package_imports_only_what_lies_below_it(package):
    assert len(sources(package)) > 3
    for path in sources(package):
        assert imports(path) <= ALLOWED[package], path


TYPING = ("wrong_flags", "bad_days", "watched")


@pytest.mark.parametrize(
    "package",
    ["train", "benchmarks", "unet_bench", "unet_demo", "unet_image", "unet_page", "unet_plan"],
)
def test_applications_do_not_import_the_command_or_the_tests(package):
    for path in sources(package):
        # what damages commands has to type them, and to read what they answer
        types_commands = {"unet_cli", "unet_command"} if path.stem in TYPING else set()
        above = {"unet_cli", "unet_command", "parity_tests"} - types_commands
        assert not imports(path) & above, path


def test_what_stands_behind_the_verbs_does_not_import_them():
    for path in sources("unet_command"):
        assert not imports(path) & {"unet_cli", "parity_tests"}, path


@pytest.mark.parametrize("package", ["train", "unet_plan"])
def test_training_and_its_plan_do_not_need_torch(package):
    for path in sources(package):
        assert not imports(path) & {"torch", "unet_torch", "unet_parity", "unet_bench"}, path


def test_only_applications_import_training():
    for package in (*SHIPPED, "unet_image", "unet_page"):
        for path in sources(package):
            assert "unet_train" not in imports(path), path


@pytest.mark.parametrize(
    "package", ["unet_cli", "unet_command", "unet_convert", "unet_demo", "benchmarks", "train"]
)
def test_nothing_is_imported_under_a_name_that_other_packages_have_too(package):
    """Somebody's own `train` or `benchmarks` comes first in a folder that holds one."""
    for path in sources(package):
        foreign = {"train", "benchmarks"}
        if package == "benchmarks":  # its scripts run from a checkout, and there alone
            foreign = {"train"}
        assert not imports(path) & foreign, path


def test_command_imports_no_framework_before_a_verb_asks_for_it():
    for path in (*sources("unet_cli"), *sources("unet_command")):
        top = ast.Module([n for n in ast.parse(path.read_text()).body
                          if isinstance(n, ast.Import | ast.ImportFrom)], [])  # fmt: skip
        names = {a.name for n in top.body if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module or "" for n in top.body if isinstance(n, ast.ImportFrom)}
        names -= {"unet_train.config"}  # plain values, of which the flags are made
        frameworks = {"torch", "jax", "flax", "optax", "unet_torch", "unet_jax", "unet_parity",
                      "unet_train", "unet_plan"}  # fmt: skip
        assert not {name.partition(".")[0] for name in names} & frameworks


# each floor of train/ imports only from those before it
FLOORS = (
    ("config",), ("losses", "metrics", "devices"), ("input",), ("step",), ("check", "run"),
    ("report",), ("setup",), ("loop", "overfit"),
)  # fmt: skip
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def rooms_imported(path: Path) -> set[str]:
    """The files and folders of train/ that one of its files imports, but for its own folder."""
    place = path.relative_to(ROOT / "train").parts
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == len(place):  # up to train/ itself
            names = [node.module] if node.module else [alias.name for alias in node.names]
            rooms |= {name.partition(".")[0] for name in names}
    return rooms


def test_every_room_of_training_imports_only_from_the_floors_below_it():
    files = [path for path in sources("train") if path.name != "__init__.py"]
    arrows = {
        (path.relative_to(ROOT / "train").with_suffix("").parts[0], room)
        for path in files
        for room in rooms_imported(path)
    }
    assert len(arrows) > 20
    assert {room for arrow in arrows for room in arrow} == FLOOR.keys()
    assert [arrow for arrow in sorted(arrows) if FLOOR[arrow[0]] <= FLOOR[arrow[1]]] == []
