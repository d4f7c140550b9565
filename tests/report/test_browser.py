"""`report.html` in a real browser: it loads, its controls work, it can be read.

These need Chromium (or Chrome) with its driver, and selenium; without them they are skipped.
"""

import csv
import itertools
import json
import shutil
from pathlib import Path

import pytest

selenium = pytest.importorskip("selenium", reason="no selenium: pip install '.[test]'")

from selenium import webdriver  # noqa: E402
from selenium.common.exceptions import WebDriverException  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

from asking import BOTH, entries, rebuilt  # noqa: E402
from fp4scope import load  # noqa: E402
from fp4scope.diagnosis import Diagnosis  # noqa: E402
from fp4scope.report.numbers import interval, number  # noqa: E402

WORDS = {"keep": "keep", "only": "only"}

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# The least contrast of any text with what is behind it, and that text (WCAG 2.1, 1.4.3).
CONTRAST = """
const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
const light = (c) => c.slice(0, 3).map((v) => v / 255)
  .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
function behind(element) {
  for (let e = element; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c;
  }
}
let least = [99, ""];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  const text = walker.currentNode.textContent.trim();
  if (!text || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(element.tagName)) continue;
  if (!element.checkVisibility()) continue;
  const style = getComputedStyle(element);
  const ink = parse(element.closest("svg") ? style.fill : style.color);
  const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < least[0]) least = [ratio, text];
}
return least;
"""


@pytest.fixture(scope="module")
def chromium():
    binary = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium with chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    try:
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    except WebDriverException as error:
        pytest.skip(f"{binary} does not start: {error.msg}")
    yield browser
    browser.quit()


@pytest.fixture
def show(chromium, known, tmp_path):
    """`show(diagnosis=known(), width=1200, scheme="light")`: the browser with the report open."""

    def build(diagnosis=None, *, width=1200, scheme="light"):
        path = tmp_path / "report.html"
        path.write_text((diagnosis or known()).html(), encoding="utf-8")
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        for kind in ("browser", "performance"):
            chromium.get_log(kind)
        chromium.get(path.as_uri())
        return chromium

    return build


def choose(browser, name, value):
    Select(browser.find_element(By.ID, name)).select_by_value(value)


def cell(browser, fmt, block, projection):
    return browser.find_element(By.CSS_SELECTOR, f'[data-layer="{fmt}|{block}|{projection}"]')


def press(browser, key):
    """A key for whatever has the focus."""
    ActionChains(browser).send_keys(key).perform()


def asked(browser):
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]


def test_it_loads_without_an_error_and_without_a_request(show):
    browser = show()
    assert browser.get_log("browser") == []
    assert [u for u in asked(browser) if not u.startswith(("file:", "data:"))] == []
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-heat [data-layer]")) == 2 * 12
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-curves svg[role=slider]")) == 2
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-projections svg[role=img]")) == 2


@pytest.mark.parametrize("width", [1200, 390])
def test_long_names_of_projections_do_not_run_into_the_map(width, show):
    """Of a mixture of experts: `experts.gate_up_proj`."""
    kept = Path(__file__).parents[2] / "docs/results/small-moe"
    browser = show(load(kept), width=width)
    wide = browser.execute_script(
        "return [...document.querySelectorAll('#chart-heat th[scope=row]')]"
        ".filter((th) => th.scrollWidth > th.clientWidth).map((th) => th.textContent)"
    )
    assert wide == []


def test_the_policy_stops_what_is_not_the_pages_own(show):
    browser = show()
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.broken = 1';"
        "document.body.append(s); const i = new Image(); i.src = 'http://127.0.0.1:9/x.png';"
    )
    assert browser.execute_script("return window.broken") is None
    assert "Content Security Policy" in "".join(e["message"] for e in browser.get_log("browser"))


@pytest.mark.parametrize("precision", [{"W4A16"}, {BOTH}, {"W4A16", BOTH}])
def test_the_costs_of_formats_say_what_is_quantized(precision, show, known):
    results = known().results
    reference, *found = entries(results)
    found = (one.but(precision=name) for one in found for name in sorted(precision))
    results = rebuilt(results, [reference, *found])
    chart = show(Diagnosis(results)).find_element(By.ID, "chart-all-quantized")
    labels = [label.text for label in chart.find_elements(By.CSS_SELECTOR, "text.name")]
    title = chart.find_element(By.TAG_NAME, "h4").text
    assert sorted(labels) == ["mxfp4:floor", "nvfp4"]  # a line each, a mark for each precision
    marks = chart.find_elements(By.CSS_SELECTOR, "g[data-tip]")
    said = {mark.get_attribute("data-tip").split(":")[-2].split(" ")[-1] for mark in marks}
    assert len(marks) == 2 * len(precision)
    assert said == precision
    bits = "W4A16" if precision == {"W4A16"} else "W4A4"
    assert title.endswith(f", {bits}") == (len(precision) == 1)


@pytest.mark.parametrize("direction", ["keep", "only"])
def test_controls_choose_what_is_shown(direction, show, known):
    diagnosis = known()
    browser = show(diagnosis)
    choose(browser, "direction", WORDS[direction])
    for fmt in ("mxfp4:floor", "nvfp4"):
        for row in diagnosis.layers.where(format=fmt, direction=direction):
            button = cell(browser, fmt, row["block"], row["projection"])
            said = button.get_attribute("aria-label")
            hatched = "muted" in button.get_attribute("class").split()
            assert hatched == (row["p_holm"] > 0.05)
            start = f"block {row['block']}, {row['projection']}: "
            told = "significant" if row["p_holm"] <= 0.05 else "not significant"
            kl = interval(row, "delta_kl")
            rest = f"{interval(row)} millinats; {kl} millinats of KL, {fmt}, {told}"
            assert said == start + rest
    hollow = browser.find_elements(By.CSS_SELECTOR, "#chart-curves .mark.muted")
    assert len(hollow) == len(
        [r for r in diagnosis.layers.where(direction=direction) if r["p_holm"] > 0.05]
    )
    choose(browser, "metric", "percent")
    row = diagnosis.layers.where(
        format="nvfp4", direction=direction, projection="down_proj", block=5
    )[0]
    said = cell(browser, "nvfp4", 5, "down_proj").get_attribute("aria-label")
    # One sign: quantizing this costs, whether by keeping it or by quantizing it alone.
    assert said.startswith("block 5, down_proj: +0.")
    assert "] of PPL; " in said
    choose(browser, "format", "nvfp4")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-heat [data-layer]")) == 12
    for metric in ("ppl", "kl", "nats"):
        choose(browser, "metric", metric)
    assert browser.get_log("browser") == []


def test_differences_of_kl_have_their_own_test_and_scale(show, known):
    results = known().results
    found = entries(results)
    for one in found:
        a = one.asked
        if a.level == "layers":  # far from the reference in odd blocks alone, whatever the loss
            far = 0.04237 * (a.block % 2)
            kl = 0.25 - far if a.direction == "keep" else far
            one.kl = [10 * (kl + 0.001 * (-1) ** i) for i in range(len(one.kl))]
    diagnosis = Diagnosis(rebuilt(results, found))
    browser = show(diagnosis)
    choose(browser, "metric", "kl")
    for row in diagnosis.layers.where(format="nvfp4", direction="keep"):
        button = cell(browser, "nvfp4", row["block"], row["projection"])
        hatched = "muted" in button.get_attribute("class").split()
        assert hatched == (row["p_holm_kl"] > 0.05) == (row["block"] % 2 == 0)
        value = f"{interval(row, 'delta_kl')} millinats of KL; "
        assert button.get_attribute("data-tip").split(": ")[1].startswith(value)
    ends = [li.text for li in browser.find_elements(By.CSS_SELECTOR, "#chart-heat .scale li")]
    assert ends == ["−50", "−20", "0", "+20", "+50"]  # noqa: RUF001
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('#chart-heat .scale li span')]"
        ".map((s) => s.getBoundingClientRect()).map((b) => [b.left, b.right])"
    )
    assert all(left >= right for (_, right), (left, _) in itertools.pairwise(boxes))
    hollow = browser.find_elements(By.CSS_SELECTOR, "#chart-curves .mark.muted")
    assert len(hollow) == 12


def test_it_opens_on_a_choice_that_has_layers(show, known):
    results = known().results
    kept = (
        one
        for one in entries(results)
        if one.asked.level != "layers" or one.asked.direction == "only"
    )
    browser = show(Diagnosis(rebuilt(results, kept)))
    direction = Select(browser.find_element(By.ID, "direction"))
    assert direction.first_selected_option.text == "only"
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-heat [data-layer]")) == 2 * 12
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-projections svg[role=img]")) == 2
    choose(browser, "direction", "keep")  # projections have it
    said = browser.find_element(By.ID, "said-layers").text
    assert said.startswith("Of layers there is only alone. Only: only this is quantized")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-heat [data-layer]")) == 2 * 12
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-projections svg[role=img]")) == 2
    assert browser.get_log("browser") == []


def test_choices_without_data_are_grey_and_left(show, known):
    results = known().results
    reference, *rest = entries(results)
    found = [reference]
    for one in rest:
        kept = one.asked.direction == "keep"  # by weights alone, under one format
        found += [] if kept else [one]
        if one.asked.format == "nvfp4" and (kept or one.asked.is_whole):
            found.append(one.but(precision="W4A16"))
    browser = show(Diagnosis(rebuilt(results, found)))

    def enabled(name):
        options = browser.find_elements(By.CSS_SELECTOR, f"#{name} option")
        return {o.get_attribute("value") for o in options if o.is_enabled()}

    choose(browser, "direction", "only")
    assert enabled("format") == {"", "mxfp4:floor", "nvfp4"}
    assert enabled("precision") == {"W4A4"}
    choose(browser, "format", "mxfp4:floor")
    choose(browser, "direction", "keep")
    assert enabled("direction") == {"keep", "only"}
    assert enabled("precision") == {"W4A16"}
    assert enabled("format") == {"", "nvfp4"}
    assert Select(browser.find_element(By.ID, "format")).first_selected_option.text == "all"
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-heat [data-layer]")) == 12


def test_on_paper_every_direction_is_drawn_in_dark_ink_with_its_colours(show):
    browser = show(scheme="dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {
        "media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}],
    })  # fmt: skip
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    for chart in ("chart-projections", "chart-heat", "chart-curves"):
        titles = browser.find_elements(By.CSS_SELECTOR, f"#{chart} > .printed > h4")
        assert [title.text for title in titles] == ["Keep", "Only"]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-heat [data-layer]")) == 4 * 12
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    assert browser.execute_script(style, "html", "backgroundColor") == "rgb(255, 255, 255)"
    assert browser.execute_script(style, "#chart-heat button", "printColorAdjust") == "exact"
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-heat [data-layer]")) == 2 * 12
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert browser.get_log("browser") == []


def test_a_cell_shows_its_numbers_and_its_activations(show, known):
    diagnosis = known()
    browser = show(diagnosis)
    button = cell(browser, "mxfp4:floor", 5, "down_proj")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    dialog = browser.find_element(By.ID, "layer")
    assert dialog.is_displayed()
    assert "Block 5, down_proj" in dialog.text
    assert "max |x| 8.00, P99.9 2.00, max / P99.9 4.00" in dialog.text
    rows = dialog.find_elements(By.CSS_SELECTOR, "tbody tr")
    expected = diagnosis.layers.where(projection="down_proj", block=5)
    assert len(rows) == len(expected) == 4
    for row, values in zip(rows, expected, strict=True):
        shown = [c.text for c in row.find_elements(By.CSS_SELECTOR, "th, td")]
        assert shown[:2] == [WORDS[values["direction"]], values["format"]]
        assert shown[3].replace("\n", " ") == interval(values)
        assert shown[4] == number(values["ppl"])
        assert shown[7].replace("\n", " ") == interval(values, "delta_kl")
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()
    focused = browser.switch_to.active_element.get_attribute("data-layer")
    assert focused == "mxfp4:floor|5|down_proj"


def test_the_keyboard_reaches_everything(show):
    browser = show()
    first = browser.find_element(By.CSS_SELECTOR, "#chart-heat [tabindex='0'][data-layer]")
    first.send_keys(Keys.ARROW_RIGHT)
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    reached = browser.switch_to.active_element
    assert reached.get_attribute("data-layer") == "mxfp4:floor|1|down_proj"
    assert browser.find_element(By.ID, "tip").text.startswith("block 1, down_proj: ")
    outline = "const s = getComputedStyle(document.activeElement); return s.outlineStyle"
    assert browser.execute_script(outline) == "solid"
    panel = browser.find_element(By.CSS_SELECTOR, "#chart-curves svg[role=slider]")
    browser.execute_script("arguments[0].focus()", panel)
    press(browser, Keys.END)
    assert panel.get_attribute("aria-valuenow") == "5"
    assert "block 5; mxfp4:floor: +" in panel.get_attribute("aria-valuetext")
    press(browser, Keys.ENTER)
    assert "Block 5, q_proj" in browser.find_element(By.ID, "layer").text
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    select = browser.find_element(By.ID, "metric")
    select.send_keys(Keys.ARROW_DOWN)
    assert browser.execute_script(outline) == "solid"


def test_tables_sort(show):
    browser = show()
    browser.find_element(By.CSS_SELECTOR, "#all-layers summary").click()
    table = browser.find_element(By.ID, "layer-table")
    heads = table.find_elements(By.CSS_SELECTOR, "th button")
    (head,) = [h for h in heads if h.text.startswith("millinats per token")]
    values = (
        "return [...arguments[0].tBodies[0].rows]"
        f".map((r) => parseFloat(r.cells[{heads.index(head)}].textContent.replace('\u2212', '-')))"
    )
    assert len(browser.execute_script(values, table)) == 24
    for order, sign in (("descending", -1), ("ascending", 1)):
        head.send_keys(Keys.ENTER)
        found = browser.execute_script(values, table)
        assert found == sorted(found, key=lambda v: sign * v)
        sort = head.find_element(By.XPATH, "..").get_attribute("aria-sort")
        assert sort == order


def test_the_address_keeps_the_view_and_opens_what_is_folded(show):
    browser = show()
    choose(browser, "metric", "kl")
    choose(browser, "format", "nvfp4")
    address = browser.current_url
    assert "metric=kl" in address
    browser.get(address.replace("nvfp4", "nothing"))
    browser.refresh()  # a name that there is not leaves the control as it is
    chosen = {
        name: Select(browser.find_element(By.ID, name)).first_selected_option.get_attribute("value")
        for name in ("metric", "format")
    }
    assert chosen == {"metric": "kl", "format": ""}
    folded = browser.find_element(By.CSS_SELECTOR, "#protocol")
    assert not browser.execute_script("return arguments[0].closest('details').open", folded)
    browser.find_element(By.CSS_SELECTOR, "nav a[href='#protocol']").click()
    assert browser.execute_script("return arguments[0].closest('details').open", folded)
    assert browser.get_log("browser") == []


def test_layers_are_filtered_and_copied_as_csv(show, known):
    results = known().results
    hostile = '=1+1",x'
    found = (
        one.but(unit=hostile) if one.asked.unit == "q_proj" else one for one in entries(results)
    )
    diagnosis = Diagnosis(rebuilt(results, found))
    browser = show(diagnosis)
    browser.find_element(By.CSS_SELECTOR, "#all-layers summary").click()
    browser.execute_script(
        "navigator.clipboard.writeText = (text) => { window.copied = text; return text; }"
    )
    browser.find_element(By.ID, "layer-copy").click()
    rows = list(csv.DictReader(browser.execute_script("return window.copied").splitlines()))
    assert {row["projection"] for row in rows} == {"'" + hostile, "down_proj"}
    for row in rows:
        (expected,) = diagnosis.layers.where(
            format=row["format"], direction=row["direction"], block=int(row["block"]),
            projection=row["projection"].removeprefix("'"),
        )  # fmt: skip
        assert float(row["nats"]) == pytest.approx(1e3 * expected["delta_nll"], rel=1e-5)
    browser.find_element(By.ID, "layer-filter").send_keys("5.down_proj, nvfp4")
    assert browser.find_element(By.ID, "layer-count").text == "1 layers"


def test_each_format_can_have_its_own_scale(show):
    browser = show()
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-heat .scale")) == 1
    choose(browser, "scale", "own")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-heat .scale")) == 2
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart-heat [data-layer]")) == 2 * 12


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(scheme, show):
    browser = show(scheme=scheme)
    browser.execute_script("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    ratio, text = browser.execute_script(CONTRAST)
    assert ratio >= 4.5, text
    paper = browser.execute_script(
        "return getComputedStyle(document.documentElement).backgroundColor"
    )
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_phone_scrolls_tables_and_not_the_page(show):
    browser = show(width=390)
    browser.execute_script("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')]"
        ".filter((s) => s.scrollWidth > s.clientWidth + 1).length"
    )
    assert wide > 3
    outside = browser.execute_script(
        "return [...document.querySelectorAll('table')].filter((t) => !t.closest('.scroll')).length"
    )
    assert outside == 0


def test_pages_with_less_in_them_load_too(show, known):
    for keep in ("projections", "layers", "model"):
        diagnosis = known()
        kept = (
            one
            for one in entries(diagnosis.results)
            if one.asked.is_whole or one.asked.level == keep
        )
        diagnosis = Diagnosis(rebuilt(diagnosis.results, kept))
        if keep == "model":
            diagnosis.results.activations = []
        browser = show(diagnosis)
        assert browser.get_log("browser") == []
        assert browser.find_element(By.ID, "protocol").is_displayed()
