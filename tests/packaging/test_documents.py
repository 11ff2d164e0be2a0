"""What the documents name is there: files, links, commands and environment variables."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "csrc/README.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
FOLDERS = ("scp_kernels", "csrc", "models", "benchmarks", "examples", "tests", "docs")

FILE = re.compile(r"[\w./-]*\w\.(?:py|md|h|cpp|cu|sh)\b")
LINK = re.compile(r"\]\(([^)\s#]+)")
MODULE = re.compile(r"python -m (benchmarks[\w.]*)")
TARGET = re.compile(r"\bmake ([a-z]+)\b(?! (?:a|the|it)\b)")
VARIABLE = re.compile(r"\bSCP_[A-Z]+(?:_[A-Z]+)*\b")
# What a source holds: `cpu/fold.h: classify_layer1, fold_columns`, or `fold.h`: `fold`, `list_units`.
HELD = re.compile(r"`([\w./]+\.(?:h|cpp|cu|py)):((?: \w+,?)+)`|`([\w./]+\.(?:h|cpp|cu|py))`:((?:,? `\w+`)+)")


def lines(document: Path) -> Iterator[str]:
    """All but the glossary, whose last column has names that are gone."""
    text = document.read_text(encoding="utf-8")
    yield from re.sub(r"\n## Glossary\n.*?(?=\n## |\Z)", "", text, flags=re.DOTALL).splitlines()


@functools.cache
def tree_files() -> set[str]:
    below = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return {path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*"), *below) if path.is_file()}


@functools.cache
def code() -> str:
    suffixes = {".py", ".h", ".cpp", ".cu", ".sh"}
    return "\n".join(
        (ROOT / name).read_text(encoding="utf-8") for name in tree_files() if Path(name).suffix in suffixes
    )


def missing(document: Path, files: set[str], source: str) -> Iterator[str]:
    """What a document names and the tree lacks."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in lines(document):
        for link in LINK.findall(line):
            if "://" not in link and not (document.parent / link).exists():
                yield f"link {link}"
        for code_span in re.findall(r"`([^`]+)`", line):
            for name in FILE.findall(code_span):
                if not any(file == name or file.endswith("/" + name.lstrip("./")) for file in files):
                    yield f"file {name}"
            for target in TARGET.findall(code_span):
                if target not in targets:
                    yield f"make {target}"
            for variable in VARIABLE.findall(code_span):
                if variable not in source:
                    yield f"variable {variable}"
        for together, names, apart, spans in HELD.findall(line):
            file = together or apart
            sources = [(ROOT / path).read_text() for path in files if path == file or path.endswith(f"/{file}")]
            for name in re.findall(r"\w+", names or spans):
                if not any(re.search(rf"\b{name}\b", text) for text in sources):
                    yield f"{file}: {name}"
        for module in MODULE.findall(line):
            if f"{module.replace('.', '/')}.py" not in files:
                yield f"module {module}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_document_names_is_there(document):
    assert not (problems := list(missing(document, tree_files(), code()))), problems


# Whether something has run on a GPU stands in one table.
STATUS = re.compile(
    r"\b(?:no|not|never|none)\b[^.|]{0,40}\b(?:run|ran)\b[^.|]{0,20}\bGPUs?\b"
    r"|\bGPUs?\b[^.|]{0,40}\b(?:not|never|yet)\b[^.|]{0,20}\b(?:run|ran|measured|tested|yet)\b"
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_status_on_gpus_stands_in_one_place(document):
    states = [line for line in lines(document) if STATUS.search(line)]
    assert document.name == "gpu.md" or not states, states
    assert STATUS.search("the trainer has not run on GPUs yet")


# As in: docs/tile_linear.md, "Fold, backward", or docs/tile_linear.md: "Notation".
SECTION = re.compile(r'docs/(\w+\.md)[,:(][^"\n]{0,20}"([^"\n]+)"')


def test_the_sections_that_code_names_are_there():
    cited = set(SECTION.findall(code()))
    assert len(cited) > 3
    for name, section in sorted(cited):
        headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert section in headings, f"docs/{name} has no section {section!r}"


def bullets(changelog: str) -> list[str]:
    return re.findall(r"^- .*(?:\n  .*)*", changelog, re.MULTILINE)


def test_the_changelog_is_short():
    """Each bullet stands once, in one or two lines."""
    entries = bullets((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert len(entries) > 20 and len(set(entries)) == len(entries)
    assert [entry for entry in entries if entry.count("\n") > 1] == []
    assert bullets("- one\n  two\n  three\n- four\n") == ["- one\n  two\n  three", "- four"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("see `scp_kernels/nowhere.py`", "file scp_kernels/nowhere.py"),
        ("see [there](docs/nowhere.md#part)", "link docs/nowhere.md"),
        ("`cpu/fold.h: fold, nowhere`", "cpu/fold.h: nowhere"),
        ("`cpu/fold.h`: `fold`, `nowhere`", "cpu/fold.h: nowhere"),
        ("run `make nothing`", "make nothing"),
        ("run `python -m benchmarks.nowhere`", "module benchmarks.nowhere"),
        ("set `SCP_NOWHERE_" + "READ=1`", "variable SCP_NOWHERE_" + "READ"),
    ],
)
def test_a_name_that_is_gone_would_be_seen(line, problem, tmp_path):
    document = tmp_path / "some.md"
    document.write_text(line)
    assert list(missing(document, tree_files(), code())) == [problem]
