"""The tree uses the words of the glossary in docs/design.md, and not those that they replaced."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("scp_kernels", "csrc", "models", "benchmarks", "examples", "tests", "docs")
SUFFIXES = {".py", ".h", ".cpp", ".cu", ".md", ".sh", ".toml", ".html", ".yaml"}
GLOSSARY = ROOT / "docs" / "design.md", "## Glossary"

# Only words that have no other meaning: common ones may stand where they mean the common thing.
REPLACED = {
    r"\bmixed (unit|row|column|lane)s?\b": "unstable unit",
    r"\bnewly[- ]on\b": "newly active",
    r"\boff, on,? (or|and) mixed\b": "inactive, active or unstable",
    r"\bcrowded\b": "overflow tile",
    r"\bpull_(on2|rows|outputs)\b": "fold_outputs_backward",
    r"\bvector levels?\b|\bVECTOR_LEVELS?\b": "ISA target",
    r"\bpast the caches\b": "non-temporal",
    r"\b(Keeper|Lease|sightings)\b": "WeightFieldCache, handle, hits",
    r"\bpatience\b": "admission threshold",
    r"\b(Carver|lent_bytes)\b": "BumpAllocator, scratch_alias",
    r"\b(class|struct) Shares\b": "WorkPartition",
    r"\b_?Unwatched\b": "eager function",
    r"\bunusable\(": "unavailable_reason()",
    r"\bcannot_run\b": "unsupported_reason()",
    r"\bNativeCPU\b|\bbackends/native\b|\bbackends import native\b": "CpuBackend, backends/cpu.py",
    r"\bmeet_(direct|gradient)\b|\bk(Listers|Lookers)\b|\bCHIEF\b|\bstrangers\b": "a name that says what it does",
    r"\bLeftOut\b|\bsupport\.left_out\b|\b[Ll]aboratory\b": "a name that says what it does",
    # Rates.
    r"\b(one|once|twice) an? (sample|pixel|thread|block|tile|case|launch|pass|step|record|modality|process)\b": "per",
    r"\b(registers|stack|bytes|multiply-adds|threads|warps|seconds|minutes|ms|[KMG]i?B|subjects|slices|steps|epochs|seed"
    r"|samples|pixels|voxels|look-alikes|lesions|launches|cycles|instructions)"
    r" an? (thread|block|pixel|sample|tile|launch|call|step|epoch|slice|subject|image|volume)\b": "per",
    r"\b\d+(\.\d+)? an? (thread|block|pixel|sample|tile|launch|call|step|epoch|slice|subject|image|volume)\b": "per",
    # Results.
    r"\b_?(found|told|mine|asked|able|all_of_them) = |(?-i:\bfound: (?=[A-Z]))"
    r"|\b(told|own|found)_(affine|origin|extent|result|cache)\b": "result, or what it is",
}
# In the operator's own code also those that are common words elsewhere (a hospital's site).
REPLACED_IN_THE_OPERATOR = {
    r"\bsites?\b": "tile",
    r"\bwatched\b": "needs the dispatcher",
    r"\blent\b": "scratch_alias",
    r"\bpull(s|ed)?\b": "fold_backward",
    r"\b(?<!issue )slots?\b|\bkNoSlot\b": "index_in_parent, unstable_row, range of tasks",
    r"\b(on|off) units?\b": "active or inactive unit",
    r"\bplans?\b": "sequence, partition, report",
    r"\b(pass|stream)(es|ed)? (by|past)\b": "what is multiplied, with what",
    r"\bways = |\bway: ": "coordinates_as",
    r"\bcoming\b": "next",
}
OPERATOR = ("scp_kernels", "csrc")


def compiled(words: dict[str, str]) -> dict[re.Pattern[str], str]:
    return {re.compile(pattern, re.IGNORECASE): word for pattern, word in words.items()}


PATTERNS, PATTERNS_IN_THE_OPERATOR = compiled(REPLACED), compiled(REPLACED_IN_THE_OPERATOR)


def files() -> Iterator[Path]:
    yield from (path for path in sorted(ROOT.glob("*")) if path.suffix in SUFFIXES)
    for folder in FOLDERS:
        yield from (path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file but for those of the glossary, where the old words are explained."""
    in_glossary = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if path == GLOSSARY[0] and line.startswith("## "):
            in_glossary = line == GLOSSARY[1]
        if not in_glossary:
            yield number, line


def occurrences(path: Path) -> list[str]:
    """``file:line: old word -> word of the glossary``, for each old word."""
    patterns = PATTERNS
    if path.relative_to(ROOT).parts[0] in OPERATOR:
        patterns = PATTERNS | PATTERNS_IN_THE_OPERATOR
    return [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r} -> {word}"
        for number, line in lines(path)
        for pattern, word in patterns.items()
        for match in pattern.finditer(line)
    ]


def test_no_word_stands_that_the_glossary_replaced():
    problems = [problem for path in files() if path != Path(__file__) for problem in occurrences(path)]
    assert not problems, f"{len(problems)} old words; docs/design.md has the new ones:\n" + "\n".join(problems)


# Of the first vocabulary, whoever reads an older commit meets these.
OLD_NAMES = (
    *("off", "on", "mixed", "pull", "pull_on2", "crowded tile", "record", "round", "Panel", "site", "vector level"),
    *(
        "past the caches",
        "Keeper",
        "Lease",
        "sightings",
        "patience",
        "Carver",
        "lent",
        "Shares",
        "watched",
        "_Unwatched",
    ),
    *("unusable()", "cannot_run()", "NativeCPU", "native.py", "meet_direct", "meet_gradient", "kListers"),
    *("kLookers", "wake", "LeftOut", "Laboratory", "CHIEF", "strangers", "subject", "Peer", "slot", "slots"),
)


def test_the_glossary_has_every_old_name():
    """It is the one place where somebody who reads an older commit can look a name up."""
    path, heading = GLOSSARY
    glossary = path.read_text(encoding="utf-8").partition(heading)[2].partition("\n## ")[0]
    last_columns = [line.split("|")[3] for line in glossary.splitlines() if line.count("|") == 4]
    before = {name.strip(" `") for column in last_columns for name in re.split(r"[,;]| in Triton", column)}
    assert set(OLD_NAMES) <= before, set(OLD_NAMES) - before


@pytest.mark.parametrize("folder", ["common", "cpu", "cuda", "include"])
def test_lines_of_cpp_have_at_most_120_characters(folder):
    """clang-format breaks code, but no comment."""
    paths = [path for path in sorted((ROOT / "csrc" / folder).rglob("*")) if path.suffix in (".h", ".cpp", ".cu")]
    assert paths
    for path in paths:
        for number, line in lines(path):
            assert len(line) <= 120, f"{path.relative_to(ROOT)}:{number}"


@pytest.mark.parametrize(
    "line",
    [
        "the mixed units of a tile",
        "Mixed units of a tile",
        "backend.unusable() is None",
        "one a sample",
        "8 MB a subject",
        "6 slices of 6 subjects a step",
        "class Keeper {",
        "    found = search()",
    ],
)
def test_an_old_word_would_be_found(line, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "some.h"
    file.write_text(f"first\n{line}\n")
    (problem,) = occurrences(file)
    assert problem.startswith("some.h:2: ")


def test_a_common_word_is_old_in_the_operator_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for folder, expected in (("csrc", 1), ("models", 0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "some.h").write_text("fold every site of the map\n")
        assert len(occurrences(tmp_path / folder / "some.h")) == expected


def test_every_deprecation_names_the_version_in_which_the_old_name_goes():
    """As CONTRIBUTING.md asks."""
    warned = 0
    for path in files():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in ("scp_kernels", "models"):
            text = path.read_text(encoding="utf-8")
            warned += (count := text.count("DeprecationWarning"))
            assert len(re.findall(r"the old name goes in version \d+\.\d+", text)) >= count, path.relative_to(ROOT)
    assert warned
