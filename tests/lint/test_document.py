"""docs/lint.md lists the rules as they are; `python -m tests.lint` writes it again."""

from tests.lint.__main__ import DOCUMENT, document


def test_the_document_lists_the_rules_as_they_are():
    assert DOCUMENT.read_text(encoding="utf-8") == document()
