"""One name, one thing: what is defined at a module's top level has a name of its own among all packages."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("scp_kernels", "csrc", "models/scp_models", "benchmarks")

# Names that several modules may define, each with the reason.
SHARED = {
    "main": "what `python -m` and the console command run",
    "compare": "the command of that name, and what it calls",
    "evaluate": "the command of that name, and what it calls",
    "fit": "the command of that name, and what it calls",
    "predict": "the command of that name, and what it calls",
    "find_subjects": "the same thing for each layout of data, and what chooses among them",
    "LaunchSequence": "a call as a sequence of launches, in either of the two backends for GPUs",
    "PACKAGE": "the build cannot import what it installs; test_both_mean_the_same_package holds them equal",
}


def public_names(source: str) -> Iterator[str]:
    """Classes, functions and constants that a module defines at its top level, but for those with an underscore."""
    for node in ast.parse(source).body:
        names: list[str] = []
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        yield from (name for name in names if not name.startswith("_"))


CPP_NAME = re.compile(
    r"^(?:template <[^\n]*>\n)?"
    r"(?:(?:struct|class|enum class|enum) (\w+)[^;\n]*\{|"
    r"(?:inline |static )?constexpr [\w:]+(?:<.*?>)? (k\w+)\b(?!<))",  # a specialisation defines nothing new
    re.MULTILINE,
)


def public_names_of_cpp(source: str) -> Iterator[str]:
    """Types and constants of C++ and CUDA outside of classes; functions may be overloaded."""
    yield from (match[1] or match[2] for match in CPP_NAME.finditer(source))


def places(root: Path) -> dict[str, set[str]]:
    """The files that define each name, whatever their language."""
    result: dict[str, set[str]] = defaultdict(set)
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.*")):
            reader = READERS.get(path.suffix)
            for name in reader(path.read_text(encoding="utf-8")) if reader else ():
                result[name].add(path.relative_to(root).as_posix())
    return result


READERS = {
    ".py": public_names,
    **dict.fromkeys((".h", ".cpp", ".cu"), public_names_of_cpp),
}


def defined_twice(root: Path) -> dict[str, set[str]]:
    return {name: files for name, files in places(root).items() if len(files) > 1}


def test_no_name_is_defined_twice():
    problems = {name: files for name, files in defined_twice(ROOT).items() if name not in SHARED}
    lines = [f"{name}: {', '.join(sorted(files))}" for name, files in sorted(problems.items())]
    assert not lines, "give one of them another name, or merge them:\n" + "\n".join(lines)


def test_every_exception_is_needed():
    assert set(SHARED) <= set(defined_twice(ROOT))


def test_a_second_definition_would_be_found(tmp_path):
    for package in PACKAGES:
        (tmp_path / package).mkdir(parents=True)
    (tmp_path / "benchmarks" / "a.py").write_text("class Launch: pass\n_private = 1\nfirst, SECOND = 1, 2\n")
    (tmp_path / "scp_kernels" / "b.py").write_text("def Launch(): pass\n_private = 2\nSECOND: int = 3\n")
    (tmp_path / "csrc" / "c.h").write_text("template <class T>\nstruct Launch {};\nconstexpr int kMost = 1;\n")
    (tmp_path / "csrc" / "d.cpp").write_text("constexpr int64_t kMost = 2;\n")
    twice = defined_twice(tmp_path)
    assert set(twice) == {"Launch", "SECOND", "kMost"} and len(twice["Launch"]) == 3


def test_both_mean_the_same_package():
    from csrc import build_description
    from scp_kernels.backends import _libraries

    assert build_description.PACKAGE == _libraries.PACKAGE
