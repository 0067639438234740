"""How files are read: what `prepare` was told and decided, which predictions must repeat.

A data set keeps it in dataset.json, and a model in its config.json.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from seqclf.data.readers.rows import Form

LabelChange = Literal["error", "majority", "cut"]
Count = Annotated[int, Field(ge=1, lt=2**63)]


class Reading(BaseModel):
    """How to read files as those of a data set were read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Columns, by name; without a header line by number.
    id: str | None = None
    time: str | None = None
    label: str | None = None
    group: str | None = None
    tokens: str | None = None
    text: str | None = None
    form: Form | None = None  # of a table
    header: bool | None = None  # whether the first line names the columns, where somebody said so
    columns: tuple[str, ...] = ()  # of a wide table: the names of the steps
    num_values: int | None = None  # of a wide table without a header line: the number of steps
    open_end: bool = False  # of a wide table: columns that go on counting are steps, too
    own_files: bool = False  # each training sequence had a file of its own
    numbered: bool = False  # the columns above are numbers, as the table has no header line

    fill_missing: bool = False
    pad_value: float | None = None
    channels_first: bool = False

    window: Count | None = None  # the steps of a window; None: sequences stay whole
    stride: Count | None = None  # the steps between the beginnings of two windows; None: `window`
    on_label_change: LabelChange = "error"
    min_share: Annotated[float, Field(ge=0, le=1)] = (
        0.0  # of a window's steps that must have its label
    )

    @property
    def has_parts(self) -> bool:
        """Whether a sequence may be a part of one of a file."""
        return self.window is not None or self.on_label_change == "cut"

    # What becomes of the numbers before they are float32 of the model:
    offset: tuple[FiniteFloat, ...] = ()  # taken off each feature in float64; empty: nothing
    measured: tuple[str, ...] = ()  # features beside which a 0 or 1 says whether they were measured
