"""A page in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")

# Returns three numbers of a page: px beyond its right edge, px of its smallest letters, and how
# many texts of its figures have another colour than its text.
LOOK = """() => {
  const ink = getComputedStyle(document.body).color;
  const texts = [...document.querySelectorAll("svg text")].filter((one) => one.textContent.trim());
  const sizes = texts.map((text) => {
    return parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getScreenCTM().a;
  });
  const others = texts.filter((text) => getComputedStyle(text).fill !== ink);
  const page = document.documentElement;
  return [page.scrollWidth - page.clientWidth, Math.min(...sizes), others.length];
}"""
# Returns the numbers in tables that are broken over two lines.
BROKEN = """() => {
  const cells = [...document.querySelectorAll("td:not(:first-child)")];
  const tops = (cell) => {
    const range = document.createRange();
    range.selectNodeContents(cell);
    return new Set([...range.getClientRects()].map((box) => box.top));
  };
  return cells.filter((cell) => tops(cell).size !== 1).map((cell) => cell.textContent);
}"""
FOCUS = "document.activeElement.textContent"


@contextmanager
def opened(browser: Browser, file: Path) -> Iterator[Page]:
    """Open a page, which must write nothing to the console and request nothing but itself."""
    messages: list[str] = []
    requests: list[str] = []
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    yield page
    page.close()
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
