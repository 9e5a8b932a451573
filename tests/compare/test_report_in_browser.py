"""The report, opened from its file in a real browser: it sorts, hovers, switches, and nothing goes wrong."""

import pytest

from regardant.compare.findings import Findings
from regardant.compare.report import write
from tests.compare.browser import chromium, prefer, resize
from tests.compare.sample_findings import SYSTEMS, write_sample


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The report, opened once: it is large, and the tests are many."""
    folder = tmp_path_factory.mktemp("comparison")
    report = write(Findings.read(write_sample(folder)), folder / "report.html")
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        resize(browser, 1280, 900)
        prefer(browser, "light")
        browser.get(report.as_uri())
        yield browser


@pytest.fixture
def page(opened):
    """The report at its first tab and at desktop width; afterwards nothing may stand in the console."""
    resize(opened, 1280, 900)
    prefer(opened, "light")
    find(opened, "#tab-overview").click()
    opened.execute_script("scrollTo(0, 0)")
    yield opened
    assert [entry["message"] for entry in opened.get_log("browser")] == []


def find(page, selector):
    return page.find_element("css selector", selector)


def rows(page):
    return [row.get_attribute("data-system") for row in page.find_elements("css selector", "#table tbody tr")]


def column(page, place):
    """What the cells of a column are sorted by; None where there is no figure."""
    cells = page.find_elements("css selector", f"#table tbody tr > :nth-child({place + 1})")
    given = [cell.get_attribute("data-sort") for cell in cells]
    return [None if value is None else float(value) for value in given]


def wait_for(page, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(page, 10, poll_frequency=0.05).until(lambda _: condition())


def test_headings_sort_the_table_and_what_has_no_figure_stays_below(page):
    headings = page.find_elements("css selector", "#table thead th button")
    assert set(rows(page)) == set(SYSTEMS)
    assert column(page, 1) == sorted(column(page, 1), reverse=True)
    place = next(k for k, heading in enumerate(headings) if heading.text.startswith("a token"))
    assert None in column(page, place)
    for descending in (False, True):
        headings[place].click()
        figures = [value for value in column(page, place) if value is not None]
        assert figures == sorted(figures, reverse=descending)
        assert column(page, place)[len(figures) :] == [None] * (len(SYSTEMS) - len(figures))
        state = page.find_elements("css selector", "#table thead tr:last-child th")[place].get_attribute(
            "aria-sort"
        )
        assert state == ("descending" if descending else "ascending")
    headings[0].click()
    assert rows(page) == sorted(SYSTEMS)


def test_pointing_at_a_marker_tells_its_figures(page):
    from selenium.webdriver import ActionChains

    plot = find(page, "[data-figure='front-recall-forward']")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    markers = wait_for(page, lambda: plot.find_elements("css selector", ".scatterlayer .point"))
    assert len(markers) == len(SYSTEMS)
    ActionChains(page).move_to_element(markers[0]).perform()
    told = wait_for(page, lambda: plot.find_elements("css selector", ".hoverlayer .hovertext"))[0].text
    assert any(name in told for name in SYSTEMS)
    assert "accuracy" in told
    assert "ms forward at" in told


def test_tabs_show_one_part_each_and_draw_its_figures(page):
    tabs = page.find_elements("css selector", "[role=tab]")
    assert [tab.text for tab in tabs] == [
        "Overview", "Cost", "Quality", "Length", "Attention", "Systems", "Method",
    ]  # fmt: skip
    for tab in tabs:
        tab.click()
        shown = [each for each in page.find_elements("css selector", "main > section") if each.is_displayed()]
        assert [each.get_attribute("id") for each in shown] == [tab.get_attribute("aria-controls")]
        assert tab.get_attribute("aria-selected") == "true"
        for plot in shown[0].find_elements("css selector", ".plot"):
            if plot.is_displayed():
                assert plot.find_elements("css selector", "svg.main-svg"), plot.get_attribute("data-figure")


def test_a_chip_puts_the_other_systems_into_the_background(page):
    def faded():
        data = page.execute_script("return document.querySelector('[data-figure=front-recall-forward]').data")
        return {trace["meta"]["system"] for trace in data if trace.get("opacity", 1) < 0.2}

    find(page, ".chip[data-system='moh']").click()
    assert faded() == set(SYSTEMS) - {"moh"}
    find(page, ".chip.all").click()
    assert faded() == set()


def test_a_part_s_address_opens_it_without_scrolling(page):
    page.execute_script("location.hash = 'quality'")
    wait_for(page, lambda: find(page, "#part-quality").is_displayed())
    assert page.execute_script("return scrollY") == 0


def test_a_choice_shows_its_figure(page):
    find(page, "[role=tab][href='#cost']").click()
    find(page, "#part-cost .choices [data-choice='2']").click()
    assert not find(page, "[data-figure='time-forward']").is_displayed()
    assert find(page, "[data-figure='time-decode'] svg.main-svg").is_displayed()


@pytest.mark.parametrize("width", [320, 390])
def test_no_part_is_wider_than_the_page(page, width):
    resize(page, width, 844)
    for tab in page.find_elements("css selector", "[role=tab]"):
        page.execute_script("arguments[0].click()", tab)
        wide = page.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, (tab.get_attribute("href"), wide)


def test_the_theme_is_the_system_s_until_another_is_chosen(page):
    def paper():
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    light = paper()
    prefer(page, "dark")
    wait_for(page, lambda: paper() != light)
    dark = paper()
    button = find(page, "#theme")
    button.click()
    assert (paper(), button.text) == (light, "Theme: light")
    button.click()
    assert (paper(), button.text) == (dark, "Theme: dark")
    button.click()
    assert (paper(), button.text) == (dark, "Theme: auto")


def test_the_fragment_of_a_card_opens_it(page):
    find(page, "#table tbody tr[data-system='moh'] a").click()
    card = wait_for(page, lambda: find(page, "article[data-system='moh']"))
    assert card.is_displayed()
    assert "MoH: Multi-Head Attention as Mixture-of-Head Attention" in card.text
