"""The compression workshop in a real browser: recipes of several steps, a goal to its versions.

One search on a tiny real model is watched to its end; what it made is compared, promoted, profiled
and run again. Pages are held against axe-core, a narrow window and a silent console.
"""

import re
import time

import httpx
import pytest
from playwright.sync_api import expect

from tests.e2e.test_browser import (
    NARROW,
    WIDE,
    Visitor,
    digits,
    installation,
    new_context,
    sign_in,
    watch_to_the_end,
)

__all__ = ["digits", "installation"]
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("browser")]

MODEL = "/models/admin/tiny"
TRAINING = {
    "kind": "train",
    "dataset": "admin/drawn",
    "output": "admin/tiny",
    "architecture": {"name": "digits_cnn", "channels": 4, "hidden_size": 16},
    "steps": [{"epochs": 12, "batch_size": 20, "test_split": None}],
}


@pytest.fixture(scope="module")
def workshop(installation, digits):
    """Train a tiny model on the drawn digits, over REST."""
    with httpx.Client(
        base_url=f"{installation.url}/api/v1",
        headers={"Authorization": f"Bearer {installation.token}"},
        timeout=60,
    ) as api:
        api.post("/datasets", json={"namespace": "admin", "name": "drawn"}).raise_for_status()
        form = {path.name: (path.name, path.read_bytes()) for path in digits}
        api.post("/datasets/admin/drawn/versions", files=form).raise_for_status()
        job = api.post("/jobs", json={"recipe": TRAINING}).raise_for_status().json()
        until = time.monotonic() + 240
        while job["state"] in {"queued", "running"}:
            assert time.monotonic() < until
            # Its events end when the job does.
            with api.stream("GET", f"/jobs/{job['id']}/events", timeout=240) as said:
                for _line in said.iter_lines():
                    pass
            job = api.get(f"/jobs/{job['id']}").json()
        assert job["state"] == "succeeded", job["error"]
    return installation


def steps_on(page):
    return page.locator(".step h3").all_inner_texts()


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "plain"])
def test_steps_are_added_moved_and_removed(browser, workshop, scripts):
    context = new_context(browser, "light", WIDE, java_script_enabled=scripts)
    visitor = Visitor(context.new_page(), workshop.url, "en")
    page = visitor.page
    visitor.go("/login")
    page.get_by_label("Name", exact=True).fill("admin")
    page.get_by_label("Password").fill((workshop.home / "admin-password").read_text().strip())
    page.locator("main").get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile(r"/$"))

    visitor.go("/jobs/new?kind=compress&way=cluster&model=admin/tiny@1")
    visitor.fill("Variant name", "both")
    for title in ("Quantize to int8 (dynamic)", "Low rank (SVD)", "Code into a .myz file"):
        page.locator("details", has_text="Add a step").locator("summary").first.click()
        page.get_by_role("button", name=re.compile("^" + re.escape(title))).click()
        expect(page.locator(".step h3").last).to_contain_text(title)
    page.get_by_role("button", name="Move step 3 up").click()
    expect(page.locator(".step h3").nth(1)).to_contain_text("Low rank")
    page.get_by_role("button", name="Remove step 3").click()
    expect(page.locator(".step")).to_have_count(3)
    titles = [text.split(maxsplit=1)[1] for text in steps_on(page)]
    assert titles == ["Share weights", "Low rank (SVD)", "Code into a .myz file"]
    expect(page.get_by_label("Variant name")).to_have_value("both")

    # An estimate queues nothing, and what was typed stays.
    page.get_by_role("button", name="Estimate", exact=True).click()
    expect(page.locator("#estimate-h")).to_be_visible()
    expect(page.locator("#recipe")).to_contain_text("parameters of admin/tiny@1")
    expect(page.locator(".step")).to_have_count(3)
    if scripts:
        visitor.look("estimate")

    # What does not fit is said beside its step: a graph comes before what needs weights.
    visitor.go("/jobs/new?kind=compress&way=quantize_weights&model=admin/tiny@1")
    page.locator("details", has_text="Add a step").locator("summary").first.click()
    page.get_by_role("button", name=re.compile("^Low rank")).click()
    expect(page.locator(".step")).to_have_count(2)
    page.locator(".formfoot").get_by_role("button", name="Submit the job").click()
    expect(page.locator(".step").nth(1)).to_contain_text("put it before quantize_weights")
    # The refusal itself is what a browser complains of.
    assert [said for said in visitor.complaints if "422" not in said] == []
    context.close()


@pytest.fixture(scope="module")
def searched(browser, workshop):
    """Pick a goal on the page of a model, and watch its search to the end; give its address."""
    context = new_context(browser, "light", WIDE)
    visitor = Visitor(context.new_page(), workshop.url, "en")
    page = visitor.page
    sign_in(visitor, workshop)
    visitor.go(MODEL)
    page.get_by_role("link", name="Make it smaller").first.click()
    visitor.fill("Dataset version", "admin/drawn@1")
    visitor.fill("Most accuracy lost", "0.2")
    visitor.fill("Minutes to search", "1")
    visitor.fill("Most versions to keep", "2")
    visitor.look("goal form")
    page.locator("summary", has_text="More settings").click()
    visitor.fill("Most candidates to try", "3")
    page.locator(".formfoot").get_by_role("button", name="Submit the job").click()
    expect(page).to_have_url(visitor.at("/jobs/[0-9a-f-]{36}"))
    watch_to_the_end(visitor)
    expect(page.locator("#candidates-h")).to_be_visible()
    expect(page.locator("svg.scatter, svg .point, svg a").first).to_be_visible()
    assert visitor.complaints == [], "\n".join(visitor.complaints)
    address = page.url.removeprefix(workshop.url)
    context.close()
    return address


def test_the_best_is_compared_and_promoted_by_click(browser, workshop, searched):
    context = new_context(browser, "light", WIDE)
    visitor = Visitor(context.new_page(), workshop.url, "en")
    page = visitor.page
    sign_in(visitor, workshop)
    visitor.go(searched)
    expect(page.locator("tr", has_text="recommended")).to_have_count(1)
    visitor.link("Compare with the parent").click()
    expect(page.locator("#numbers-h")).to_be_visible()
    expect(page.locator("#answers-h")).to_be_visible()
    visitor.look("comparison")
    promote = page.locator("form", has=page.get_by_role("button", name=re.compile("champion")))
    promote.first.get_by_role("button").click()
    expect(page.locator("main")).to_contain_text("champion")
    visitor.go(MODEL)
    expect(page.locator("li.tag.alias")).to_contain_text("@champion → v")

    # A profile of the parent, from its page.
    visitor.go("/jobs/new?kind=profile&model=admin/tiny@1")
    visitor.fill("Dataset to try layers on", "admin/drawn@1")
    visitor.fill("Most rows to try on", "32")
    page.locator(".formfoot").get_by_role("button", name="Submit the job").click()
    watch_to_the_end(visitor)
    expect(page.locator("#profile-h")).to_be_visible()
    visitor.go(f"{MODEL}/versions/1")
    expect(page.locator("#profile-h")).to_be_visible()
    visitor.look("profile")
    assert visitor.complaints == [], "\n".join(visitor.complaints)
    context.close()


def test_a_job_is_run_again_and_another_like_it_begun(browser, workshop, searched):
    context = new_context(browser, "dark", WIDE)
    visitor = Visitor(context.new_page(), workshop.url, "zh-hans")
    page = visitor.page
    sign_in(visitor, workshop)
    visitor.go(searched)
    visitor.look("search, done")
    visitor.link("Another like it").click()
    value = page.get_by_label(visitor.t("Most accuracy lost"))
    expect(value).to_have_value("0.2")
    visitor.go("/jobs/new?kind=compress&model=admin/tiny@1")
    page.locator(".formfoot").get_by_role("button", name=visitor.t("Submit the job")).click()
    watch_to_the_end(visitor)
    visitor.button("Reproduce").click()
    watch_to_the_end(visitor)
    expect(page.locator("#reproduction-h")).to_be_visible()
    expect(page.locator("main")).to_contain_text(visitor.t("Same bytes"))
    visitor.look("reproduction")
    assert visitor.complaints == [], "\n".join(visitor.complaints)
    context.close()


@pytest.mark.parametrize(("theme", "language"), [("dark", "en"), ("light", "zh-hans")])
def test_pages_of_the_workshop_fit_a_narrow_window(browser, workshop, searched, theme, language):
    context = new_context(browser, theme, NARROW, has_touch=True, reduced_motion="reduce")
    visitor = Visitor(context.new_page(), workshop.url, language)
    sign_in(visitor, workshop)
    for path in (
        "/jobs/new?kind=search&model=admin/tiny@1",
        "/jobs/new?kind=compress&way=quantize_weights&model=admin/tiny@1",
        searched,
        f"{searched}?x=latency",
        f"{searched}/compare",
        f"{MODEL}/versions/1",
        f"{MODEL}/versions/2",
        f"{MODEL}?tab=metrics",
    ):
        visitor.go(path)
        visitor.look(path)
    visitor.go("/jobs/new?kind=compress&way=svd&model=admin/tiny@1")
    visitor.button("Estimate").click()
    expect(visitor.page.locator("#estimate-h")).to_be_visible()
    visitor.look("estimate")
    assert visitor.complaints == [], "\n".join(visitor.complaints)
    context.close()
