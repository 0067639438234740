"""The documents are true: their messages, commands and links are the program's."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from conftest import ROOT


def literals(node: ast.AST) -> list[str]:
    """Return the fixed parts of a message in order."""
    parts = [
        part
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    parts.sort(key=lambda part: (part.lineno, part.col_offset))
    return [str(part.value).strip(" :;,.()'\n") for part in parts]


def messages() -> Iterator[tuple[str, str]]:
    """Yield (place, telling part) of all that the program complains of."""
    for path in sorted((ROOT / "seqclf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            parts = [part for part in literals(node.args[0]) if part]
            said = name in ("say", "append") and parts and parts[0].startswith(("note", "warning"))
            if parts and (said or name in ("UserError", "RuntimeError", "OSError", "ValueError")):
                # the first words that say something, else the longest
                telling = next((p for p in parts if len(p) >= 10 and " " in p), max(parts, key=len))
                telling = telling.removeprefix("note").strip(" :")
                yield f"{path.stem}: {telling}", telling[:30].rstrip()


MESSAGES = dict(messages())


@pytest.mark.parametrize("place", MESSAGES)
def test_a_message_is_in_troubleshooting(place: str) -> None:
    assert MESSAGES[place] in (ROOT / "docs" / "troubleshooting.md").read_text()


def test_the_messages_are_found() -> None:
    assert len(MESSAGES) >= 50
    assert "config: not valid YAML" in MESSAGES
    assert any("GPUs here, 1 used" in place for place in MESSAGES)
    assert any("checkpoint passed over" in place for place in MESSAGES)
