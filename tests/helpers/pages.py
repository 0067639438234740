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
  const isSeen = (one) => one.textContent.trim() && one.getClientRects().length;
  const texts = [...document.querySelectorAll("svg text")].filter(isSeen);
  const sizes = texts.map((text) => {
    return parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getScreenCTM().a;
  });
  const others = texts.filter((text) => getComputedStyle(text).fill !== ink);
  const page = document.documentElement;
  return [page.scrollWidth - page.clientWidth, Math.min(...sizes), others.length];
}"""
# Returns the visible texts whose contrast with what is behind them is below 4.5 (WCAG 2, AA).
CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((x, i) => a * x + (1 - a) * below[i]);
  const luminance = (rgb) => rgb.map((x) => x / 255)
    .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    if (!one) return [255, 255, 255];
    return over(numbers(getComputedStyle(one).backgroundColor), behind(one.parentElement));
  };
  const isText = (node) => node.nodeType === 3 && node.textContent.trim();
  const found = [];
  for (const one of document.body.querySelectorAll("*")) {
    if (!one.getClientRects().length || ![...one.childNodes].some(isText)) continue;
    if (["title", "script", "style"].includes(one.localName)) continue;
    const style = getComputedStyle(one), cell = one.previousElementSibling;
    const isCell = one.localName === "text" && cell?.localName === "rect";
    const ground = isCell ? numbers(getComputedStyle(cell).fill).slice(0, 3) : behind(one);
    const ink = over(numbers(one.localName === "text" ? style.fill : style.color), ground);
    const [high, low] = [luminance(ink), luminance(ground)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) found.push([one.textContent.trim(), ratio]);
  }
  return found;
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
