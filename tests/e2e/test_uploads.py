"""The page where a person uploads files, in a real browser: paused, broken off, gone on with."""

import hashlib
import os
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.test import Client
from playwright.sync_api import expect

from registry.models import Artifact, Upload, Version
from registry.storage import default_storage
from tests.factories import make_model

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("upload-page")]

PAGE = "/models/alice/classifier/versions/new"
# Slow enough that a test can act before the end, fast enough to wait for it.
SLOW = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 6 << 20}


@pytest.fixture
def model(alice):
    return make_model(alice, "classifier")


@pytest.fixture
def context(browser, server, alice, model):
    session = Client()
    session.force_login(alice)
    context = browser.new_context(base_url=server.url, viewport={"width": 1240, "height": 900})
    cookie = {"name": "sessionid", "value": session.cookies["sessionid"].value, "url": server.url}
    context.add_cookies([cookie])
    context.set_default_timeout(30_000)
    yield context
    context.close()


@pytest.fixture
def page(context):
    page = context.new_page()
    page.goto(PAGE)
    return page


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(40 << 20))
    return path


def slowed(page):
    line = page.context.new_cdp_session(page)
    line.send("Network.enable")
    line.send("Network.emulateNetworkConditions", SLOW)
    return line


def at_full_speed(line):
    line.send("Network.emulateNetworkConditions", {**SLOW, "uploadThroughput": -1})


def row(page, path):
    return page.locator("#files li").filter(has=page.locator(".path", has_text=path))


def button(page, path, act):
    return row(page, path).locator(f"[data-act={act}]")


def choose(page, *paths):
    page.locator("input[name=files]").set_input_files(paths)


def register(page):
    page.get_by_role("button", name="Upload and register").click()
    expect(page).to_have_url(re.compile(r"/versions/1$"))


def files_of_the_version():
    version = Version.objects.get()
    rows = Artifact.objects.filter(revision=version.revision_id).select_related("blob")
    return {row.path: row.blob.sha256 for row in rows}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wait_for_some(page, path):
    """Wait until the row shows that something, and not everything, has gone out."""
    expect(row(page, path).locator(".state")).to_have_text(re.compile(r" [1-9]\d? %"))


def drop(page, *paths):
    """Drop files and folders on the zone as the system does it."""
    box = page.locator("#drop").bounding_box()
    line = page.context.new_cdp_session(page)
    spot = {"x": box["x"] + box["width"] / 2, "y": box["y"] + 20}
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver"):
        line.send("Input.dispatchDragEvent", {"type": kind, "data": data, **spot})
    expect(page.locator("#drop.over")).to_have_count(1)
    line.send("Input.dispatchDragEvent", {"type": "drop", "data": data, **spot})
    expect(page.locator("#drop.over")).to_have_count(0)


def test_files_and_folders_are_dropped_and_chosen(page, tmp_path):
    (tmp_path / "readme").write_text("# Hello")
    (tmp_path / "empty.txt").write_text("")
    model, more = tmp_path / "model", tmp_path / "more"
    (model / "nested").mkdir(parents=True)
    (model / "nested" / "notes.txt").write_text("below")
    (model / "config.json").write_text("{}")
    more.mkdir()
    (more / "top.txt").write_text("top")
    drop(page, tmp_path / "readme", tmp_path / "empty.txt")
    drop(page, model)
    page.locator("input[webkitdirectory]").set_input_files(more)
    expect(page.locator("#files li[data-state=done]")).to_have_count(5)
    expect(page.locator("#upload-summary")).to_have_text(re.compile("^5 of 5 files · .* · 100 %$"))
    register(page)
    paths = {"readme", "empty.txt", "config.json", "nested/notes.txt", "top.txt"}
    assert set(files_of_the_version()) == paths


def test_each_file_shows_how_far_it_is_and_can_be_paused(page, large):
    line = slowed(page)
    choose(page, large)
    wait_for_some(page, "large.bin")
    expect(row(page, "large.bin").locator(".state")).to_have_text(
        re.compile(r"^[\d.]+ [kM]B / 41\.9 MB · \d+ %$")
    )
    button(page, "large.bin", "pause").click()
    expect(row(page, "large.bin")).to_have_attribute("data-state", "paused")
    assert button(page, "large.bin", "pause").is_hidden()
    complaints = Axe().run(page)
    assert complaints.violations_count == 0, complaints.generate_report()
    page.get_by_role("button", name="Upload and register").click()
    expect(page.locator("#upload-status")).to_have_text(re.compile("large.bin: paused"))
    assert page.url.endswith(PAGE)
    at_full_speed(line)
    button(page, "large.bin", "resume").click()
    expect(row(page, "large.bin")).to_have_attribute("data-state", "done")
    assert Upload.objects.count() == 1
    register(page)
    assert files_of_the_version() == {"large.bin": sha256(large)}


def test_the_same_file_goes_on_after_a_reload(page, large):
    line = slowed(page)
    choose(page, large)
    # A first block of the upload is acknowledged before the page goes.
    expect(row(page, "large.bin").locator(".state")).to_have_text(
        re.compile(r" (4[5-9]|[5-7]\d) %"), timeout=60_000
    )
    page.reload()
    upload = Upload.objects.get()
    line = slowed(page)
    choose(page, large)
    wait_for_some(page, "large.bin")
    shown = row(page, "large.bin").locator(".state").inner_text()
    assert int(re.search(r"(\d+) %", shown).group(1)) >= 35, shown
    at_full_speed(line)
    expect(row(page, "large.bin")).to_have_attribute("data-state", "done")
    assert Upload.objects.get().pk == upload.pk
    register(page)
    assert files_of_the_version() == {"large.bin": sha256(large)}
    assert page.evaluate("Object.keys(JSON.parse(localStorage['modelyard-uploads']))") == []


def test_a_server_that_dies_is_waited_for(page, server, large):
    line = slowed(page)
    choose(page, large)
    wait_for_some(page, "large.bin")
    server.kill()
    expect(row(page, "large.bin")).to_have_attribute("data-state", "retrying")
    server.start()
    at_full_speed(line)
    expect(row(page, "large.bin")).to_have_attribute("data-state", "done", timeout=60_000)
    register(page)
    assert files_of_the_version() == {"large.bin": sha256(large)}


def test_a_file_that_is_refused_can_be_tried_again_or_left_out(page, tmp_path):
    lying, good = tmp_path / "model.safetensors", tmp_path / "good.txt"
    lying.write_bytes(b"\xff\xff\xff\xff\xff\xff\xff\x00{}")
    good.write_text("good")
    choose(page, lying, good)
    expect(row(page, "model.safetensors")).to_have_attribute("data-state", "failed")
    expect(row(page, "good.txt")).to_have_attribute("data-state", "done")
    button(page, "model.safetensors", "retry").click()
    expect(row(page, "model.safetensors")).to_have_attribute("data-state", "failed")
    page.get_by_role("button", name="Upload and register").click()
    expect(button(page, "model.safetensors", "retry")).to_be_focused()
    button(page, "model.safetensors", "cancel").click()
    register(page)
    assert set(files_of_the_version()) == {"good.txt"}


def test_a_cancelled_upload_leaves_nothing_behind(page, large):
    parts = default_storage().spool / "uploads"
    before = set(parts.iterdir())
    slowed(page)
    choose(page, large)
    wait_for_some(page, "large.bin")
    with page.expect_response(lambda answer: answer.request.method == "DELETE") as answer:
        button(page, "large.bin", "cancel").click()
    assert answer.value.status == 204
    expect(page.locator("#files li")).to_have_count(0)
    assert Upload.objects.count() == 0
    assert set(parts.iterdir()) <= before


def test_a_form_that_is_refused_keeps_its_files(page, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("kept")
    choose(page, path)
    page.get_by_label(re.compile("^Variant")).fill("\u202e")
    page.get_by_role("button", name="Upload and register").click()
    expect(page.locator(".errors, .notice.bad").first).to_be_visible()
    expect(row(page, "notes.txt")).to_have_attribute("data-state", "done")
    page.get_by_label(re.compile("^Variant")).fill("")
    register(page)
    assert files_of_the_version() == {"notes.txt": sha256(path)}
    assert Upload.objects.count() == 1


def test_without_scripts_the_form_carries_large_files(browser, server, context, large, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("other")
    plain = browser.new_context(
        base_url=server.url, java_script_enabled=False, storage_state=context.storage_state()
    )
    with plain:
        page = plain.new_page()
        page.goto(PAGE)
        page.locator("input[name=files]").set_input_files([large, other])
        page.get_by_label(re.compile("^Variant")).fill("\u202e")
        page.get_by_role("button", name="Upload and register").click()
        expect(page.locator(".errors, .notice.bad").first).to_be_visible()
        expect(page.locator("#files li")).to_have_count(2)
        page.get_by_label(re.compile("^Variant")).fill("")
        page.get_by_role("button", name="Upload and register").click()
        expect(page).to_have_url(re.compile(r"/versions/1$"))
    assert files_of_the_version() == {"large.bin": sha256(large), "other.txt": sha256(other)}
