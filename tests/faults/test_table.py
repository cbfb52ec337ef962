"""docs/faults.md says what these tests hold, no more and no less."""

from pathlib import Path

from tests.faults.catalog import CATALOG, table

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"


def test_the_documents_table_is_the_tests_own() -> None:
    assert table() in DOCUMENT.read_text(), "write it with: python -m tests.faults.catalog"


def test_there_are_as_many_faults_as_the_document_needs() -> None:
    table()
    names = [entry.fault for entry in CATALOG]
    assert len(names) == len(set(names)) >= 28
