"""The page in a real headless Chromium: it opens, answers to mouse, keyboard and address, and model text stays text."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from doubles.reports import Row, character_tokenizer, marked, rollout, write_page, write_run

HOSTILE = "</script><script>window.harmed = 1</script><img src=x onerror='window.harmed = 2'><b>bold</b> &lt; ${x}"
LONG = "begin " + "0123456789abcdef " * 62_000 + "end"
PROBLEMS = ("p0", "p1 <i>&amp;</i>", "p2")


def with_tokens(row: Row, texts: list[str]) -> Row:
    letters = {letter: place for place, letter in enumerate(sorted(set("".join(texts))), 1)}
    return row | {"response_tokens": [*(letters[one] for one in row["response"]), 0]}


def batch(step: int, short: str) -> list[Row]:
    rows = []
    for place, problem in enumerate(PROBLEMS):
        rows += [
            rollout(problem, short * (step + place), status="correct"),
            rollout(problem, HOSTILE if place == 0 else f"wrong {place}"),
            rollout(problem, "cut " * 8, stop_reason="length", reward_overlong=-1.0),
        ]
    return rows


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of two objectives and two seeds; run names, problems and responses are hostile."""
    folder = tmp_path_factory.mktemp("runs")
    runs = []
    for objective in ("gspo", "luspo"):
        for seed in (0, 1):
            rows = {step: batch(step, objective[0]) for step in (1, 3, 4)}
            tokenizer = None
            if objective == "luspo":
                texts = [row["response"] for step in rows.values() for row in step]
                tokenizer = character_tokenizer(texts)
                size = dict.fromkeys(PROBLEMS, 0.02) | {"p2": 1e-4}  # noise of a first mini-batch
                for step in rows:
                    rows[step] = [
                        marked(with_tokens(row, texts),
                               [size[row["problem_id"]] * (-1) ** i for i in range(len(row["response"]) + 1)],
                               clip_low_fraction=float(row["status"] != "correct"), sequence_ratio=0.99, loss_weight=0.5)
                        for row in rows[step]
                    ]  # fmt: skip
            else:
                rows[4][1] = rollout(PROBLEMS[0], LONG)
            name = f"{objective}-<img src=x onerror=alert(1)>{seed}"
            runs.append(write_run(folder, name.replace("/", ""), objective, seed, rollouts=rows, tokenizer=tokenizer))
    return write_page(folder / "report.html", *runs).as_uri()


@pytest.fixture
def opened(browser: Any, page: str) -> Callable[..., Any]:
    """Open the page at a deep link and wait for it; afterwards nothing was logged and nothing of a model ran."""

    def open_at(**link: Any) -> Any:
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get(page + (f"#{urlencode(link)}" if link else ""))
        until(lambda: browser.execute_script("return document.documentElement.dataset.opened"))
        return browser

    return open_at


@pytest.fixture(autouse=True)
def nothing_wrong(request: pytest.FixtureRequest) -> Any:
    yield
    browser = request.getfixturevalue("browser")
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.harmed ?? null") is None
    assert browser.execute_script("return document.getElementById('trouble').hidden")


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.02)
    return found


def texts(browser: Any, selector: str) -> list[str]:
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector
    )
    return found


def labelled(browser: Any, text: str) -> Any:
    """The control whose label says `text`, or begins so."""
    return browser.execute_script(
        """
        const said = (label) => [...label.childNodes].filter((one) => one.nodeType === 3).map((one) => one.data).join("");
        const labels = [...document.querySelectorAll("label")];
        const begins = (one) => said(one).startsWith(arguments[0]);
        return (labels.find((one) => said(one) === arguments[0]) ?? labels.find(begins)).control;
        """,
        text,
    )


def click(browser: Any, text: str) -> None:
    control = labelled(browser, text)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", control)
    control.click()


def choose(browser: Any, text: str, option: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(labelled(browser, text)).select_by_visible_text(option)


def curve_names(browser: Any) -> list[str]:
    found: list[str] = browser.execute_script(
        "return document.querySelector('#curves .plot').data.filter((one) => one.name).map((one) => one.name)"
    )
    return found


def test_sections_curves_and_tables_are_there(opened: Any) -> None:
    browser = opened()
    assert texts(browser, "h2") == [
        "Curves", "Tables", "The formula as executed", "Where the configurations differ", "Kept advantage by length", "Rollouts",
    ]  # fmt: skip
    assert texts(browser, "#comparison caption") == [
        "Single runs", "Means over seeds", "Paired differences, seed by seed", "What the pairs allow to be said",
    ]  # fmt: skip
    assert curve_names(browser)[2] == "gspo, mean"
    assert browser.execute_script("return document.querySelectorAll('#kept .plot:not([hidden])').length") == 1
    assert "recorded no clip marks" in texts(browser, "#kept .panel .note")[0]
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    buttons = browser.execute_script(
        "return [...document.querySelectorAll('.modebar-btn')].map((one) => one.dataset.title)"
    )
    assert buttons
    assert not [title for title in buttons if "share" in title.lower() or "cloud" in title.lower()]


def test_runs_and_objectives_are_toggled(opened: Any) -> None:
    browser = opened()
    assert len(curve_names(browser)) == 6
    click(browser, "gspo")
    until(lambda: len(curve_names(browser)) == 3)
    click(browser, "luspo-<img")
    until(lambda: len(curve_names(browser)) == 1)
    assert browser.execute_script("return arguments[0].indeterminate", labelled(browser, "luspo"))
    click(browser, "gspo")
    until(lambda: len(curve_names(browser)) == 4)


def test_axis_metric_smoothing_and_band_are_chosen(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = opened()
    first = "return document.querySelector('#curves .plot').data.find((one) => one.name)"
    assert browser.execute_script(f"{first}.x") == [1, 2, 3, 4]
    choose(browser, "Across", "response tokens sampled")
    until(lambda: browser.execute_script(f"{first}.x") == [100, 200, 300, 400])
    choose(browser, "Across", "time in steps (s)")
    until(lambda: browser.execute_script(f"{first}.x") == [2, 4, 6, 8])
    choose(browser, "Left curve", "tokens/total")
    until(lambda: browser.execute_script(f"{first}.y") == [100, 200, 300, 400])
    labelled(browser, "Smoothing").send_keys(Keys.ARROW_RIGHT)
    until(lambda: browser.execute_script(f"{first}.y") == [150, 200, 300, 350])
    traces = "return document.querySelector('#curves .plot').data.length"
    assert browser.execute_script(traces) == 10
    choose(browser, "Band over seeds", "none")
    until(lambda: browser.execute_script(traces) == 6)


def test_model_text_is_shown_as_text(opened: Any) -> None:
    browser = opened(problem="p0", run="gspo-<img src=x onerror=alert(1)>0", step=3)
    assert HOSTILE in texts(browser, ".card .response")
    assert browser.execute_script("return document.querySelectorAll('main img, main b b, main script').length") == 0
    assert any("p1 <i>&amp;</i>" in text for text in texts(browser, ".prompts .id"))


def test_a_response_of_a_megabyte_is_shown_as_text(opened: Any) -> None:
    browser = opened(problem="p0", run="gspo-<img src=x onerror=alert(1)>0", step=4)
    assert len(LONG) > 1_000_000
    assert max(map(len, texts(browser, ".card .response"))) == 3000
    button = browser.execute_script(
        "return [...document.querySelectorAll('.card button')].find((one) => one.textContent.startsWith('Show all'))"
    )
    assert button.text == f"Show all {len(LONG):,} characters"
    browser.execute_script("arguments[0].click()", button)
    until(lambda: LONG in texts(browser, ".card .response"))


def test_a_deep_link_opens_step_problem_and_the_run_beside(opened: Any) -> None:
    gspo, luspo = (f"{name}-<img src=x onerror=alert(1)>1" for name in ("gspo", "luspo"))
    browser = opened(run=luspo, step=3, problem="p2", beside=gspo, sort="response_length", order="rising")
    assert texts(browser, ".sides h3") == [f" {luspo}: 1 of 3 right", f" {gspo}: 1 of 3 right"]
    assert texts(browser, ".sides > section:first-child .response") == ["lllll", "wrong 2", "cut " * 8]
    assert "step=3" in browser.current_url
    choose(browser, "Run", gspo)
    until(lambda: texts(browser, ".sides h3") == [f" {gspo}: 1 of 3 right", f" {luspo}: 1 of 3 right"])
    assert "run=gspo" in browser.current_url
    assert "problem=p2" in browser.current_url
    browser.execute_script(f"location.hash = '{urlencode({'run': luspo, 'step': 1, 'problem': 'p0'})}'")
    until(
        lambda: (
            texts(browser, ".prompts [aria-current=true] .id")[0].startswith("p0")
            and "l" in texts(browser, ".response")
        )
    )


def test_a_deep_link_to_what_is_not_there_says_so(opened: Any) -> None:
    run = "luspo-<img src=x onerror=alert(1)>0"
    said = "#rollouts .warning:not([hidden])"
    assert texts(opened(run=run, step=4, problem="p2"), said) == []
    (text,) = texts(opened(run=run, step=40, problem="<b>other</b>"), said)
    assert text.startswith(
        f"Step 40 of {run} is not on this page: the nearest one is shown. Problem <b>other</b> is not"
    )
    assert texts(opened(run="none", step=1), said) == ["No run none with rollouts is on this page."]


def test_a_page_opens_at_its_top_and_a_link_at_the_rollouts(opened: Any) -> None:
    run = "luspo-<img src=x onerror=alert(1)>0"
    browser = opened()
    assert browser.execute_script("return scrollY") == 0
    # The list scrolls to what is chosen in it, and the page stays where it is.
    browser.execute_script(
        "const list = document.querySelector('.prompts');"
        "list.style.maxHeight = '60px'; scrollTo(0, 0); list.querySelector('li:last-child button').click()"
    )
    until(lambda: texts(browser, ".prompts [aria-current=true] .id")[0].startswith("p2"))
    assert browser.execute_script("return [scrollY, document.querySelector('.prompts').scrollTop > 0]") == [0, True]
    browser = opened(run=run, step=3)
    assert browser.execute_script("return scrollY") > 0


@pytest.mark.parametrize("address", ["%%%", "%", "0", "a b", "[x]", "#", "nothing", "<b>", "a:b", "curves"])
def test_no_address_stops_the_page(browser: Any, page: str, address: str) -> None:
    browser.get("about:blank")
    browser.get(f"{page}#{address}")
    until(lambda: browser.execute_script("return document.documentElement.dataset.opened"))
    assert texts(browser, "#rollouts .warning:not([hidden])") == []
    assert len(texts(browser, ".card")) == 3


def test_what_a_deep_link_says_wrongly_is_told(opened: Any) -> None:
    run = "luspo-<img src=x onerror=alert(1)>0"
    said = "#rollouts .warning:not([hidden])"
    browser = opened(run=run, step="abc", sort="foo", show="zzz", order="up", beside="none")
    assert texts(browser, said) == [
        f"Step abc of {run} is not on this page: step 1 is shown. No run none with rollouts is on this page to stand beside."
        " sort=foo is ignored: sort can be reward, advantage, response_length, sampled."
        " show=zzz is ignored: show can be right, wrong, cut. order=up is ignored: order can be rising, falling."
    ]
    assert len(texts(browser, ".card")) == 3
    browser = opened(run=run, step=3, show="cut,zzz", sort="toString")
    assert texts(browser, said) == [
        "sort=toString is ignored: sort can be reward, advantage, response_length, sampled."
        " show=zzz is ignored: show can be right, wrong, cut."
    ]
    assert texts(browser, ".card .mark") == ["wrong", "cut", "clipped low"]
    assert texts(opened(run=run), said) == []
    assert texts(opened(step=3), said) == ["The link names no run: write #run=NAME&step=NUMBER."]
    browser = opened(run=run, step=3, show="", sort="sampled")
    assert texts(browser, said) == []
    assert texts(browser, ".card") == []


def test_filters_and_search(opened: Any) -> None:
    browser = opened()
    assert len(texts(browser, ".card")) == 3
    click(browser, "wrong")
    until(lambda: texts(browser, ".card .mark") == ["right", "wrong", "cut"])
    click(browser, "cut by")
    until(lambda: texts(browser, ".card .mark") == ["right"])
    assert "show=right" in browser.current_url
    click(browser, "right")
    until(lambda: "No response fits the filters." in texts(browser, "#rollouts .browser p"))
    for kind in ("right", "wrong", "cut by"):
        click(browser, kind)
    until(lambda: len(texts(browser, ".card")) == 3)
    find = labelled(browser, "Text in")
    find.send_keys("WRONG 2")
    until(lambda: len(texts(browser, ".prompts li")) == 1)
    assert texts(browser, ".card .response") == ["wrong 2"]
    find.send_keys("\n")
    until(lambda: "12 responses found." in texts(browser, "[role=status]"))
    link = browser.find_elements("css selector", ".hits a")[-1]
    browser.execute_script("arguments[0].click()", link)
    until(lambda: "luspo-<img src=x onerror=alert(1)>1: 1 of 3 right" in texts(browser, ".sides h3")[0])


def test_tokens_are_shaded_and_marks_are_shown(opened: Any) -> None:
    browser = opened(run="luspo-<img src=x onerror=alert(1)>0", step=4, problem="p0")
    spans = (
        "return [...document.querySelectorAll('.card.right .response span')].map((one) => [one.textContent, one.title])"
    )
    assert browser.execute_script(spans)[:2] == [["l", "0.0200 nats"], ["l", "-0.0200 nats"]]
    colours = "return [...document.querySelectorAll('.card.right .response span')].map((one) => one.style.background)"
    more, less = browser.execute_script(colours)[:2]
    assert more != less
    assert texts(browser, ".card.wrong .mark.clip") == ["clipped low"] * 2
    facts = texts(browser, ".card.right .facts span")
    assert {"reward 1", "advantage 1", "length 5", "weight 0.5", "sequence ratio 0.99000"} <= set(facts)
    noise = opened(run="luspo-<img src=x onerror=alert(1)>0", step=4, problem="p2").execute_script(colours)[0]
    assert float(noise.rstrip(")").split(",")[-1]) < 0.03


def test_everything_is_reached_by_keyboard(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = opened(problem="p0", run="gspo-<img src=x onerror=alert(1)>0", step=1)
    current = lambda: texts(browser, ".prompts [aria-current=true] .id")[0]  # noqa: E731
    browser.find_element("css selector", ".prompts button").send_keys("j")
    until(lambda: current().startswith("p1"))
    browser.switch_to.active_element.send_keys("j")
    until(lambda: current().startswith("p2"))
    browser.switch_to.active_element.send_keys("k")
    until(lambda: current().startswith("p1"))
    browser.switch_to.active_element.send_keys(".")
    until(lambda: "step 3." in texts(browser, "[role=status]")[0])
    browser.switch_to.active_element.send_keys("/")
    assert browser.switch_to.active_element.get_attribute("type") == "search"

    browser.execute_script("document.activeElement.blur()")
    seen = set()
    body = browser.find_element("tag name", "body")
    body.send_keys(Keys.TAB)
    for _ in range(90):
        active = browser.switch_to.active_element
        name = browser.execute_script(
            "const one = arguments[0];"
            "return one.getAttribute('aria-label') || one.labels?.[0]?.textContent || one.textContent",
            active,
        )
        assert name.strip(), active.get_attribute("outerHTML")[:200]
        outline = browser.execute_script("return getComputedStyle(arguments[0]).outlineWidth", active)
        assert outline == "3px", name
        seen.add(name.strip())
        active.send_keys(Keys.TAB)
    assert any(name.startswith("Across") for name in seen)
    assert any(name.startswith("Smoothing") for name in seen)
    assert "Response 1" not in seen
    assert "Text of response 1" in seen


def test_dark_and_narrow(opened: Any) -> None:
    browser = opened()
    try:
        for scheme, width in (("dark", 1300), ("light", 420), ("dark", 420)):
            browser.execute_cdp_cmd(
                "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            )
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            until(
                lambda: browser.execute_script(
                    "return document.querySelector('#curves .plot svg').clientWidth <= innerWidth"
                )
            )
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
            dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
            assert dark == (scheme == "dark")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_stored_advantage_that_is_no_number_is_counted(browser: Any, tmp_path: Path) -> None:
    rows = [marked(rollout("p0", "1")), marked(rollout("p0", "123", advantage=None))]
    other = [marked(rollout("p0", "1")), marked(rollout("p0", "123", advantage=float("nan")))]
    run = write_run(tmp_path, "a", rollouts={1: rows, 2: other})
    browser.get(write_page(tmp_path / "report.html", run).as_uri())
    until(lambda: browser.execute_script("return document.documentElement.dataset.opened"))
    assert texts(browser, "#kept .warning") == [
        "2 steps of a whose stored rollouts have an advantage or a length that is no number are left out here."
    ]
    assert len(texts(browser, ".card")) == 2


def test_logs_of_other_trainers_have_curves_and_no_rollouts(browser: Any, tmp_path: Path) -> None:
    log = tmp_path / "trainer_state.json"
    log.write_text(
        '{"log_history": [{"step": 1, "completions/mean_length": 8.0}, {"step": 2, "completions/mean_length": 9.0}]}'
    )
    browser.get(write_page(tmp_path / "report.html", log).as_uri())
    until(lambda: browser.execute_script("return document.documentElement.dataset.opened"))
    assert texts(browser, "#rollouts p")[0].startswith("No run here stored rollouts")
    assert browser.execute_script("return document.querySelector('#curves .plot').data[0].y") == [8, 9]
