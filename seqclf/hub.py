"""Models on the Hugging Face Hub: what `seqclf push` sends, and `seqclf.load("hf://ORG/NAME")`.

Nothing here is called unless a user names the Hub. Weights go as safetensors, all else as text.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from seqclf.errors import UserError, printable
from seqclf.run.checkpoint import MODEL_FILE
from seqclf.run.files import read_file, read_json
from seqclf.run.weights import ARCHITECTURE_FILE

PREFIX = "hf://"
CARD, README = "card.json", "README.md"
FILES = (MODEL_FILE, ARCHITECTURE_FILE, CARD, README)
NO_LICENCE = "- Licence: not stated"  # a line of README.md
TAGS = ("lstm", "sequence-classification")


class Name(NamedTuple):
    """What the Hub calls a model."""

    repository: str  # ORG/NAME
    revision: str | None = None  # a branch, a tag or a commit; None: the newest

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def parse_name(text: str) -> Name:
    """Return the name of a model on the Hub, ORG/NAME or ORG/NAME@REVISION. Raises UserError."""
    found = re.fullmatch(r"(?:hf://)?(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", text)
    if found is None:
        raise UserError(f"'{text}': no name of the Hugging Face Hub, which is ORG/NAME")
    return Name(found[1], found[2])


def gather(model_dir: Path, folder: Path, name: Name) -> list[str]:
    """Copy a model's files to an empty folder, as the Hub wants them; return what to say of it.

    Raises UserError if a file is damaged, the folder is not empty, or it cannot be written.
    """
    notes = []
    card = read_json(model_dir / CARD) if os.path.lexists(model_dir / CARD) else {}
    settings, licence = card.get("settings", {}), card.get("licence")
    if not isinstance(settings, dict):
        raise UserError(f"{model_dir / CARD}: damaged: settings: not a JSON object")
    if not isinstance(licence, str | None):
        raise UserError(f"{model_dir / CARD}: licence {licence!r}: expected a text such as mit")
    text = _read_text(model_dir / README)
    places = [one for one, value in settings.items() if _is_place(value)]
    settings.update(dict.fromkeys(places))
    if places:
        notes.append(f"{', '.join(places)}: left out of card.json, as a place on this machine")
    if not card:
        notes.append("no card: the model was not saved by a run")
    if not licence:
        notes.append(f"no licence: write one into {model_dir / CARD} before you publish")
    there = f'seqclf.load("{PREFIX}{name.repository}")'
    text = text.replace('seqclf.load("model")  # this folder', there)
    if licence:
        text = text.replace(NO_LICENCE, f"- Licence: {printable(licence)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
        if is_empty:
            for file in (MODEL_FILE, ARCHITECTURE_FILE):
                shutil.copyfile(model_dir / file, folder / file)
            if card:
                (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")
            (folder / README).write_text(front_matter(licence) + text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot write the files: {error}") from None
    if not is_empty:
        raise UserError(f"{folder}: not empty; name another folder")
    return notes


def _read_text(readme: Path) -> str:
    """Return a model's README.md, or the heading of one if there is none. Raises UserError."""
    if not os.path.lexists(readme):
        return "# A model of seqclf\n"
    try:
        return read_file(readme).decode()
    except UnicodeDecodeError:
        raise UserError(f"{readme}: damaged: not UTF-8") from None


def _is_place(value: object) -> bool:
    """Return whether a setting names a file or a folder of the user's machine."""
    return isinstance(value, str) and os.path.isabs(os.path.expanduser(value))


def front_matter(licence: str | None) -> str:
    """Return the lines of a README that the Hub reads. JSON is YAML, and escapes what it must."""
    lines = ["library_name: seqclf", f"tags: {json.dumps(TAGS)}"]
    if licence:
        lines.append(f"license: {json.dumps(licence.lower())}")  # as all ids of the Hub are
    return "\n".join(["---", *lines, "---", "", ""])


def push(folder: Path, name: Name, *, private: bool) -> str:
    """Upload a folder as a model, which is made if it is not there; return its address.

    Raises UserError if the Hub refuses, or is not reached.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi(library_name="seqclf")
        api.create_repo(name.repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name.repository,
            folder_path=folder,
            revision=name.revision,
            commit_message="A model of seqclf",
            allow_patterns=list(FILES),
        )
    except Exception as error:
        raise _refusal(name, "push", error) from None
    return str(done.repo_url)


def fetch(name: Name, folder: Path) -> None:
    """Copy a model of the Hub to a new folder; huggingface_hub keeps it, too. Raises UserError."""
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            name.repository,
            revision=name.revision,
            allow_patterns=list(FILES),
            library_name="seqclf",
        )
        shutil.copytree(found, folder)  # what is kept are links, which no model may be
    except Exception as error:
        raise _refusal(name, "load", error) from None
    if not all((folder / file).is_file() for file in (MODEL_FILE, ARCHITECTURE_FILE)):
        raise UserError(
            f"{PREFIX}{name}: no model of seqclf, which has {ARCHITECTURE_FILE} and {MODEL_FILE}; "
            "is it another library's, or was its download cut short (is the network there)?"
        )


def _refusal(name: Name, what: str, error: Exception) -> Exception:
    """Return the error for the user; an error that is none of the Hub's stays what it is."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
    )

    is_known = isinstance(
        error, HfHubHTTPError | LocalEntryNotFoundError | LocalTokenNotFoundError | OSError
    ) or type(error).__module__.startswith(("httpx", "httpcore"))
    if not is_known:
        return error
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return UserError(
        f"{PREFIX}{name}: cannot {what} it ({reason}); "
        "is the name right, the network there, and are you logged in (hf auth login)?"
    )
