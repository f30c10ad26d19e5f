"""Every page in a real browser, in a wide and a narrow window, light and dark: what a reader would stumble over."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import Page
from tests.browser.pages import MARK, PAGES

CHECKS = Path(__file__).with_name("checks.js").read_text(encoding="utf-8")
WIDTHS, SCHEMES = (390, 1300), ("light", "dark")
BAD_LEVELS = ("error", "warning", "assert")
Problems = dict[str, list[str]]


@pytest.fixture(scope="session")
def problems_of(browser: Page, file_of: Callable[[str], Path]) -> Callable[[str], Problems]:
    """Rule -> problems of a page, in all windows and colour schemes, closed and with every part opened."""

    @cache
    def look(name: str) -> Problems:
        found: Problems = {}
        for width in WIDTHS:
            for scheme in SCHEMES:
                for rule, problems in _look(browser, file_of(name), width, scheme).items():
                    found.setdefault(rule, []).extend(f"{width} px, {scheme}: {problem}" for problem in problems)
        return found

    return look


def _look(page: Page, file: Path, width: int, scheme: str) -> Problems:
    page.show(width, scheme)
    events = page.open(file)
    page.evaluate(CHECKS)
    check = f"findProblems({width}, {MARK!r})"
    found: Problems = page.evaluate(check)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    page.evaluate("document.querySelectorAll('button').forEach(each => each.click())")
    for rule, problems in page.evaluate(check).items():
        found[rule] += [f"opened: {problem}" for problem in problems if problem not in found[rule]]
    events += page.take_events()
    return found | {"console": _complaints(events), "requests": _requests(events, file)}


def _complaints(events: list[dict[str, Any]]) -> list[str]:
    found = []
    for event in events:
        told = event["params"]
        if event["method"] == "Runtime.exceptionThrown":
            found.append(str(told["exceptionDetails"]))
        if event["method"] == "Runtime.consoleAPICalled" and told["type"] in BAD_LEVELS:
            found.append(str(told["args"]))
        if event["method"] == "Log.entryAdded" and told["entry"]["level"] in BAD_LEVELS:
            found.append(told["entry"]["text"])
    return found


def _requests(events: list[dict[str, Any]], file: Path) -> list[str]:
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert file.resolve().as_uri() in sent, "the events of the network are not seen"
    return [url for url in sent if url != file.resolve().as_uri()]


RULES = {
    "console": "the console says nothing",
    "requests": "nothing is loaded but the page",
    "acts": "no text of a run, of data or of a model acts",
    "width": "the page is no wider than the window",
    "inside": "every text stays inside its container",
    "cut": "no text is cut off without an ellipsis",
    "size": "every text is 8.5 px high or more",
    "overlap": "no two texts of a chart lie on each other",
    "contrast": "every text has a contrast of 4.5 or more",
    "alternative": "every chart has a description",
    "headings": "headings are in order",
    "names": "the page, its controls and its columns have names",
    "reach": "whatever scrolls can be focused and has a name",
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", PAGES)
def test_page_keeps(name: str, rule: str, problems_of: Callable[[str], Problems]) -> None:
    problems = problems_of(name)[rule]
    assert not problems, f"{RULES[rule]}; {len(problems)} times not:\n" + "\n".join(problems[:20])


@pytest.mark.parametrize("name", ["report", "hostile_report", "comparison"])
def test_the_keyboard_alone_reaches_and_scrolls_whatever_scrolls(
    name: str, browser: Page, file_of: Callable[[str], Path]
) -> None:
    browser.show(390, "light")
    browser.open(file_of(name))
    browser.evaluate(CHECKS)
    number = browser.evaluate("findScrollers().length")
    assert number, "nothing scrolls at this width, so that this test tests nothing"
    reached = set()
    for _ in range(browser.evaluate("document.querySelectorAll('[tabindex], button, summary, a[href]').length")):
        browser.press(["Tab"])
        place = browser.evaluate("findScrollers().findIndex(each => each.contains(document.activeElement))")
        if place in reached or place < 0:
            continue
        reached.add(place)
        browser.press(["ArrowRight", "ArrowDown"])
        moved = f"(() => {{ const each = findScrollers()[{place}]; return each.scrollLeft + each.scrollTop > 0; }})()"
        assert browser.holds(moved), browser.evaluate(f"findScrollers()[{place}].outerHTML.slice(0, 200)")
    assert len(reached) == number


def test_the_summary_fits_one_screen(browser: Page, file_of: Callable[[str], Path]) -> None:
    browser.show(1300, "light")
    browser.open(file_of("summary"))
    assert browser.evaluate("document.documentElement.scrollHeight") <= 900


def test_pressed_buttons_change_what_is_drawn(browser: Page, file_of: Callable[[str], Path]) -> None:
    browser.show(1300, "light")
    browser.open(file_of("comparison"))
    drawn = "document.querySelector('.curves path[data-g]').getAttribute('d')"
    first = browser.evaluate(drawn)
    browser.evaluate("document.querySelector('.switch button[data-axis=tokens]').click()")
    assert browser.evaluate(drawn) != first
    of_first = "[...document.querySelectorAll('figure [data-g=\"0\"]')]"
    shown = f"{of_first}.filter(each => getComputedStyle(each).display !== 'none').length"
    assert browser.evaluate(shown)
    browser.evaluate("document.querySelector('.legend button').click()")
    assert browser.evaluate(shown) == 0


FAULTS = {
    "console": "<script>console.error('a fault')</script>",
    "requests": "<img alt='' src='absent.png'>",
    "acts": "<p onclick='f()'>acts</p>",
    "width": "<div style='width: 1400px; height: 1px'></div>",
    "inside": "<div style='width: 40px'>Donaudampfschifffahrt</div>",
    "cut": "<div style='width: 40px; overflow: hidden'>Donaudampfschifffahrt</div>",
    "size": "<small style='font-size: 7px'>small</small>",
    "overlap": "<svg role='img' aria-label='a' viewBox='0 0 99 20'><text y='15'>a</text><text y='14'>b</text></svg>",
    "contrast": "<p style='color: #999; background: #fff'>faint</p>",
    "alternative": "<svg viewBox='0 0 9 9'><path d='M1 1h8'/></svg>",
    "headings": "<h3>too deep</h3>",
    "names": "<table><thead><tr><th></th></tr></thead></table>",
    "reach": "<div style='overflow-x: auto'><div style='width: 1400px; height: 1px'></div></div>",
}


ALONG = {"requests": {"console"}, "cut": {"inside"}}
"""What cannot be wrong alone."""


@pytest.mark.parametrize("rule", RULES)
def test_a_planted_fault_is_found_by_its_rule_alone(rule: str, browser: Page, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    head = "<!DOCTYPE html><html lang='en'><meta name='viewport' content='width=device-width'><title>t</title>"
    file.write_text(f"{head}<body style='background: #fff; color: #000'><h1>Page</h1>{FAULTS[rule]}", encoding="utf-8")
    found = {name for name, problems in _look(browser, file, 390, "light").items() if problems}
    assert found == {rule} | ALONG.get(rule, set())
