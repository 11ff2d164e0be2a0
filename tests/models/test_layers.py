"""Which part of ``scp_models`` may import which."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import scp_models

ROOT = Path(scp_models.__file__).parent
# Each part imports itself, those named here, and what they may import. Among the four that the command line calls, the
# report shows what the others make, and evaluation segments.
DIRECT = {
    "errors": (),
    "files": ("errors",),
    "notes": (),
    "optional": ("errors",),
    "phantoms": ("files", "optional"),
    "data": ("files", "notes", "optional"),
    "networks": (),
    "monai": ("data", "networks"),
    "checkpoints": ("data", "networks"),
    "nnunet": ("data", "networks"),
    "training": ("checkpoints",),
    "inference": ("checkpoints",),
    "evaluation": ("inference",),
    "report": ("training", "evaluation", "phantoms"),
    "study": ("report",),
    "options": ("errors",),
    "cli": ("study", "options", "nnunet"),
}
KERNELS = set(__import__("scp_kernels").__all__)


def allowed(part: str) -> set[str]:
    return {part}.union(*(allowed(below) for below in DIRECT[part]))


def imports(path: Path):
    """Modules that a file imports, and names it takes from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module, {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, set()


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_part_has_its_place():
    parts = {part_of(path) for path in ROOT.rglob("*.py")} - {"__init__"}
    assert parts == set(DIRECT)


@pytest.mark.parametrize("part", DIRECT)
def test_imports_run_one_way(part):
    for path in ROOT.rglob("*.py"):
        if part_of(path) != part:
            continue
        for module, _ in imports(path):
            if module.startswith("scp_models."):
                assert module.split(".")[1] in allowed(part), f"{path.relative_to(ROOT)} imports {module}"


def test_only_the_public_interface_of_scp_kernels_is_used():
    for path in ROOT.rglob("*.py"):
        for module, names in imports(path):
            if module.split(".")[0] == "scp_kernels":
                assert module == "scp_kernels" and names <= KERNELS, (
                    f"{path.relative_to(ROOT)} imports {module} {names}"
                )


def test_packages_say_what_they_are():
    for path in ROOT.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_no_modules_import_each_other_in_a_circle():
    paths = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        graph[name] = set()
        for module, names in imports(path):
            below = {f"{module}.{imported}" for imported in names} & modules.keys()
            graph[name] |= below or ({module} & modules.keys())
    list(TopologicalSorter(graph).static_order())  # raises where there is a circle
