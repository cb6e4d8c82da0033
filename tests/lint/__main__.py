"""Write docs/lint.md's table of rules again: `python -m tests.lint`."""

from pathlib import Path

from vitdeploy.lint import RULES

DOCUMENT = Path(__file__).parents[2] / "docs" / "lint.md"
HEADING = "## The rules"


def rules_table() -> str:
    """The rules as a Markdown table."""
    rows = [
        f"| {rule.number} | `{rule.id}` | {rule.severity} | {rule.title} | {rule.why} "
        f"| {rule.mend} |"
        for rule in RULES
    ]
    head = [
        "| | rule | breaking it is | asks for | because | mend it so |",
        "|--:|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


def document() -> str:
    """The document with its table as the rules are now."""
    before = DOCUMENT.read_text(encoding="utf-8").split(HEADING)[0]
    return f"{before}{HEADING}\n\n{rules_table()}"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
