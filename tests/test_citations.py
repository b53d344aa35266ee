"""What the code cites is there: sections of docs/method.md, and no document that is not in the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "method.md"
FOLDERS = ("pad_dist", "spark_jobs", "launchers", "benchmarks", "tests", "configs")
FILES = [file for folder in FOLDERS for kind in ("py", "yaml") for file in sorted((ROOT / folder).rglob(f"*.{kind}"))]
# Names of documents that were never part of the repository, put together so that this file does not cite them.
ABSENT = re.compile(rf"\b({'MET' + 'HOD'}|{'DES' + 'IGN'})\b")
CITATION = re.compile(r"docs/method\.md\b(?P<sections>[^.)]*)")


def wrong_citations(text: str) -> list[str]:
    """Citations of sections that docs/method.md does not have, or of no section."""
    headings = set(re.findall(r"^#+ (.*)$", DOCUMENT.read_text(), re.MULTILINE))
    wrong = []
    for citation in CITATION.finditer(" ".join(line.strip().lstrip("# ") for line in text.splitlines())):
        sections = re.findall(r'"([^"]+)"', citation["sections"])
        wrong += [name for name in sections if name not in headings] or ([] if sections else [citation[0]])
    return wrong


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_cited_section_is_in_the_method(folder: str) -> None:
    files = [file for file in FILES if file.is_relative_to(ROOT / folder) and file != Path(__file__)]
    assert {str(file.relative_to(ROOT)): wrong for file in files if (wrong := wrong_citations(file.read_text()))} == {}


def test_the_method_is_cited_by_each_room_that_computes_it() -> None:
    rooms = ("model", "objectives", "stages", "evaluation", "data")
    cited = {room: any(CITATION.search(file.read_text()) for file in FILES if room in file.parts) for room in rooms}
    assert all(cited.values()), cited


def test_no_absent_document_is_cited() -> None:
    lines = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in FILES
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if ABSENT.search(line) and file != Path(__file__)
    ]
    assert lines == []


def test_a_wrong_citation_is_noticed() -> None:
    assert wrong_citations('"""x (docs/method.md, "Evaluation" and "Phase 4")."""') == ["Phase 4"]
    assert wrong_citations("# see docs/method.md (somewhere)") == ["docs/method.md (somewhere"]
    assert ABSENT.search("(MET" + "HOD, text)") and not ABSENT.search("MET" + "HODS[method]")
