"""A page's last line: a sha256 of the page, and one of what a run directory held when it was made.

By it the command that trained the run notices a page that is torn, or older than its run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from seqclf.run.records import EVALUATION, FACTS, METRICS, REPORT, STATUS

# What a page shows. The lines of metrics.jsonl are only counted: there may be millions.
SOURCES = (FACTS, STATUS, f"{EVALUATION}/val.json", f"{EVALUATION}/test.json")


def stamped(page: str, run_dir: Path) -> str:
    """Return a run's page with its last line."""
    digest = hashlib.sha256(page.encode()).hexdigest()
    return f"{page}<!-- seqclf {digest} {_digest_of(run_dir)} -->\n"


def is_current(run_dir: Path) -> bool:
    """Return whether a run's report.html is whole, and of what the run directory holds now."""
    try:
        content = (run_dir / REPORT).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    page = content[: content.rfind("<!-- seqclf ")]
    return content == stamped(page, run_dir)


def _digest_of(run_dir: Path) -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        file = run_dir / name
        digest.update(hashlib.sha256(file.read_bytes() if file.is_file() else b"").digest())
    metrics = run_dir / METRICS
    digest.update(str(metrics.stat().st_size if metrics.is_file() else 0).encode())
    return digest.hexdigest()
