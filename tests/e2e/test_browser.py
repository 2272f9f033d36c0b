"""A person's way through the web UI in a real browser, on a real installation with real jobs.

Both walks go through everything: one in English and light, one in Chinese and dark. Every page on
the way, and every page again on a narrow screen, is held against axe-core, its own width and a
silent console.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect
from safetensors.numpy import save_file

from benchmarks.installation import Installation, running
from tests.e2e.furnished import TEAM_PAGES, furnish_team
from tests.registry.web.messages import LOCALE, read_catalogue

# One installation for all of it, where pytest-xdist is told to keep groups together.
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("browser")]

WIDE, NARROW = {"width": 1240, "height": 900}, {"width": 390, "height": 844}
JOB_PATIENCE = 240_000
CARD = """---
license: mit
pipeline_tag: image-classification
library_name: pytorch
tags: [drawn, tiny]
base_model: {base}
---
# A card

Written **by hand**, with a table:

| split | n |
|---|---|
| train | 400 |
"""


@dataclass
class Visitor:
    """A browser window, the language it reads, and all that its console complained about."""

    page: Page
    address: str
    language: str
    complaints: list[str] = field(default_factory=list)
    checked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page.on("console", self._hear)
        self.page.on("pageerror", self._fail)
        path = LOCALE / "zh_Hans/LC_MESSAGES/django.po"
        self._words = {
            (message.context, message.id): message.string
            for message in read_catalogue(path)
            if isinstance(message.id, str)
        }

    def _fail(self, error) -> None:
        # The browser leaves out the transition between two pages when it has too much to do.
        if not re.search("Transition was (skipped|aborted)", str(error)):
            self.complaints.append(str(error))

    def _hear(self, message) -> None:
        # How soon after its preload a font is drawn says how busy this machine is.
        late_font = "preloaded using link preload but not used" in message.text
        if message.type in {"error", "warning"} and not late_font:
            self.complaints.append(f"{self.page.url}: {message.text}")

    def t(self, text: str, context: str | None = None) -> str:
        """Say a text of the pages in the visitor's language."""
        return text if self.language == "en" else self._words[context, text]

    @property
    def prefix(self) -> str:
        return "" if self.language == "en" else "/zh-hans"

    def go(self, path: str) -> None:
        self.page.goto(self.address + self.prefix + path)

    def at(self, path: str) -> re.Pattern[str]:
        return re.compile(re.escape(self.address + self.prefix) + path + "$")

    def look(self, name: str) -> None:
        """Hold the page against axe-core and its own width."""
        self.checked.add(name)
        self.page.wait_for_load_state()
        found = Axe().run(self.page)
        if found.violations_count:
            self.complaints.append(f"{name}: {found.generate_report()}")
        self.complaints += [f"{name} is wider than its window: {e}" for e in self.overflow()]

    def overflow(self) -> list[str]:
        return self.page.evaluate(
            """() => document.documentElement.scrollWidth <= innerWidth ? [] :
            [...document.body.querySelectorAll('*')]
              .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
              .slice(0, 5).map(e => e.outerHTML.slice(0, 160))"""
        )

    def button(self, text: str, context: str | None = None):
        return self.page.get_by_role("button", name=self.t(text, context), exact=True)

    def link(self, text: str):
        return self.page.get_by_role("link", name=self.t(text), exact=True)

    def fill(self, label: str, value: str) -> None:
        named = self.page.get_by_label(re.compile("^" + re.escape(self.t(label))))
        named.and_(self.page.locator("input, textarea")).first.fill(value)


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    with running() as running_installation:
        yield running_installation


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> list[Path]:
    """Make a tiny dataset of drawn digits: each class has its own bright stripe."""
    folder = tmp_path_factory.mktemp("digits")
    random = np.random.default_rng(0)
    for split, count in (("train", 400), ("test", 100)):
        label = np.arange(count, dtype=np.int64) % 10
        image = random.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for row, digit in enumerate(label):
            image[row, 2 + 2 * digit : 4 + 2 * digit, 4:24] = 230
        save_file({"image": image, "label": label}, folder / f"{split}.safetensors")
    about = {
        "task": "image-classification",
        "labels": [str(digit) for digit in range(10)],
        "columns": {"image": "uint8", "label": "int64"},
        "splits": {"train": 400, "test": 100},
    }
    (folder / "dataset.json").write_text(json.dumps(about))
    (folder / "README.md").write_text(CARD.format(base="none/at-all"))
    return sorted(folder.iterdir())


def new_context(browser: Browser, theme: str, size: dict[str, int], **extra) -> BrowserContext:
    context = browser.new_context(viewport=size, color_scheme=theme, **extra)
    context.set_default_timeout(30_000)
    return context


def sign_in(visitor: Visitor, installation: Installation) -> None:
    visitor.go("/login")
    visitor.look("sign in")
    visitor.page.get_by_label(visitor.t("Name", "of an account"), exact=True).fill("admin")
    password = (installation.home / "admin-password").read_text().strip()
    visitor.page.get_by_label(visitor.t("Password"), exact=True).fill(password)
    visitor.page.locator("main").get_by_role("button", name=visitor.t("Sign in")).click()
    expect(visitor.page).to_have_url(re.compile(r"/$"))
    expect(visitor.page.locator(".avatar")).to_be_visible()


def upload(visitor: Visitor, paths: list[Path], message: str) -> None:
    visitor.page.locator("input[name=files]").set_input_files(paths)
    expect(visitor.page.locator("#files li")).to_have_count(len(paths))
    visitor.look("new version")
    visitor.fill("What changed", message)
    visitor.button("Upload and register").click()


def register(visitor: Visitor, plural: str, name: str) -> None:
    visitor.go(f"/{plural}/new")
    visitor.look(f"register {plural}")
    visitor.page.get_by_label(visitor.t("Name"), exact=True).fill(name)
    visitor.button("Register").click()
    expect(visitor.page).to_have_url(visitor.at(f"/{plural}/admin/{name}/versions/new"))


def watch_to_the_end(visitor: Visitor) -> None:
    """Look at a running job until the page itself says that it succeeded."""
    visitor.look("job, live")
    heading = visitor.page.locator("#progress-h")
    succeeded = visitor.t("Succeeded")
    ended = re.compile("|".join(map(re.escape, (succeeded, visitor.t("Failed")))))
    expect(heading).to_have_text(ended, timeout=JOB_PATIENCE)
    expect(heading).to_have_text(succeeded)
    visitor.look("job, done")


def open_result(visitor: Visitor, pattern: str) -> None:
    visitor.link("Open the result").click()
    expect(visitor.page).to_have_url(visitor.at(pattern))


@pytest.mark.parametrize(("theme", "language"), [("light", "en"), ("dark", "zh-hans")])
def test_whole_walk(browser, installation, digits, tmp_path, theme, language):
    context = new_context(browser, theme, WIDE)
    visitor = Visitor(context.new_page(), installation.url, language)
    page, name = visitor.page, f"{theme}-digits"

    visitor.go("/")
    visitor.look("home")
    visitor.go("/models")
    visitor.look("models")
    sign_in(visitor, installation)

    # A dataset is registered and its files go up as resumable uploads.
    visitor.go("/")
    page.locator(".menu summary").click()
    visitor.look("menu")
    register(visitor, "datasets", name)
    upload(visitor, digits, "Drawn by a test.")
    expect(page).to_have_url(visitor.at(f"/datasets/admin/{name}/versions/1"))
    visitor.look("dataset version")
    visitor.go(f"/datasets/admin/{name}")
    expect(page.locator(".prose h2")).to_have_text("A card")
    expect(page.locator(".kv")).to_contain_text("MIT")
    visitor.look("dataset card")

    train(visitor, name)
    download(visitor, f"/models/admin/{name}-cnn", tmp_path)
    mark(visitor)
    compress(visitor, name)
    infer(visitor, name)
    find(visitor, name)
    add_version(visitor, f"{name}-cnn", tmp_path)
    make_and_revoke_a_token(visitor)

    # Signed out, the public model is still there, the forms are not.
    page.locator(".menu summary").click()
    visitor.button("Sign out").click()
    visitor.go(f"/models/admin/{name}-cnn")
    expect(visitor.link("New version")).to_have_count(0)
    visitor.look("model, signed out")
    download(visitor, f"/models/admin/{name}-cnn", tmp_path)
    assert visitor.complaints == [], "\n".join(visitor.complaints)
    context.close()


def train(visitor: Visitor, name: str) -> None:
    page = visitor.page
    visitor.go(f"/jobs/new?kind=train&way=digits_cnn&dataset=admin/{name}@1")
    visitor.look("training form")
    visitor.fill("Name of the trained model", f"admin/{name}-cnn")
    visitor.fill("Channels", "4")
    visitor.fill("Hidden units", "16")
    visitor.fill("Epochs", "12")
    visitor.fill("Batch size", "20")
    visitor.button("Submit the job").click()
    expect(page).to_have_url(visitor.at("/jobs/[0-9a-f-]{36}"))
    watch_to_the_end(visitor)
    expect(page.locator("svg .curve").first).to_be_visible()
    expect(page.locator("#log")).not_to_be_empty()
    open_result(visitor, f"/models/admin/{name}-cnn/versions/1")
    visitor.look("trained version")
    expect(page.locator("#sig-h")).to_be_visible()
    expect(page.locator("#eval-h")).to_be_visible()


def download(visitor: Visitor, model: str, folder: Path) -> None:
    visitor.go(f"{model}?tab=files")
    visitor.look("files")
    row = visitor.page.locator("tr", has_text="config.json")
    digest = row.locator("[data-copy]").get_attribute("data-copy")
    with visitor.page.expect_download() as coming:
        row.get_by_role("link", name="config.json", exact=True).click()
    target = folder / "config.json"
    coming.value.save_as(target)
    assert hashlib.sha256(target.read_bytes()).hexdigest() == digest


def mark(visitor: Visitor) -> None:
    """Set a tag and an alias, delete the tag, and undo that."""
    page = visitor.page
    page.locator(".title + .lede, .tabs").first.wait_for()
    page.locator(".tabs a").first.click()
    page.locator("summary", has_text=visitor.t("Set an alias")).click()
    visitor.fill("Alias", "champion")
    visitor.button("Set alias").click()
    expect(page.locator("li.tag.alias")).to_contain_text("@champion → v1")
    page.locator("summary", has_text=visitor.t("Set a tag")).click()
    page.get_by_label(visitor.t("Key", "of a tag"), exact=True).fill("team")
    page.get_by_label(visitor.t("Value", "of a tag"), exact=True).fill("vision")
    visitor.look("tag form")
    visitor.button("Set tag").click()
    tag = page.locator("li.tag", has_text="team")
    expect(tag).to_contain_text("vision")
    tag.get_by_role("button").click()
    expect(tag).to_have_count(0)
    visitor.look("undo")
    visitor.button("Undo").click()
    expect(tag).to_contain_text("vision")


def compress(visitor: Visitor, name: str) -> None:
    page = visitor.page
    visitor.link("New job").click()
    visitor.look("kinds of jobs")
    page.get_by_role("link", name=re.compile("^" + visitor.t("Compress"))).click()
    visitor.look("compression form")
    expect(page.get_by_label(visitor.t("Model version"))).to_have_value(f"admin/{name}-cnn@1")
    visitor.fill("Dataset to measure on", f"admin/{name}@1")
    visitor.button("Submit the job").click()
    watch_to_the_end(visitor)
    expect(page.locator("#report-h")).to_be_visible()
    open_result(visitor, f"/models/admin/{name}-cnn/versions/2")
    visitor.look("variant")
    expect(page.locator(".tree")).to_contain_text(f"admin/{name}-cnn@1")
    for tab in ("versions", "metrics", "lineage", "use"):
        visitor.go(f"/models/admin/{name}-cnn?tab={tab}")
        visitor.look(tab)
    visitor.go(f"/models/admin/{name}-cnn?tab=versions")
    expect(page.locator("tr.variant")).to_contain_text("int8")


def infer(visitor: Visitor, name: str) -> None:
    visitor.go(f"/jobs/new?kind=infer&model=admin/{name}-cnn@champion&dataset=admin/{name}")
    visitor.look("inference form")
    visitor.fill("Name of the dataset of predictions", f"admin/{name}-answers")
    visitor.button("Submit the job").click()
    watch_to_the_end(visitor)
    open_result(visitor, f"/datasets/admin/{name}-answers/versions/1")
    expect(visitor.page.locator(".tree")).to_contain_text(f"admin/{name}-cnn@1")
    visitor.look("predictions")
    visitor.go("/jobs")
    expect(visitor.page.locator(".rows > li").nth(2)).to_be_visible()
    visitor.look("jobs")


def find(visitor: Visitor, name: str) -> None:
    """Find the model by the keyboard, and narrow the list by what stands in the address."""
    page = visitor.page
    page.keyboard.press("/")
    expect(page.locator("#q")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#q")).not_to_be_focused()
    page.keyboard.press("?")
    expect(page.locator("#shortcuts")).to_be_visible()
    visitor.look("shortcuts")
    page.keyboard.press("Escape")
    expect(page.locator("#shortcuts")).to_be_hidden()
    page.keyboard.press("Control+k")
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    expect(page).to_have_url(visitor.at(rf"/models\?q={name}"))
    expect(page.locator(".rows > li")).to_have_count(1)
    # Typing in the list asks at once, and the address follows.
    page.locator("#q").fill("nothing is called this")
    expect(page.locator("#browse .empty")).to_be_visible()
    expect(page).to_have_url(re.compile(r"q=nothing"))
    visitor.look("nothing found")
    page.go_back()
    expect(page.locator(".rows > li")).to_have_count(1)
    page.locator(".facets a").first.click()
    expect(page.locator(".facets a[aria-current]")).to_have_count(1)
    visitor.look("narrowed")


def add_version(visitor: Visitor, name: str, folder: Path) -> None:
    """Upload a next version by hand; its card fills the facts of the model."""
    (folder / "README.md").write_text(CARD.format(base=f"admin/{name}"))
    visitor.go(f"/models/admin/{name}")
    visitor.link("New version").first.click()
    upload(visitor, [folder / "README.md", folder / "config.json"], "Only words.")
    expect(visitor.page).to_have_url(visitor.at(f"/models/admin/{name}/versions/3"))
    visitor.go(f"/models/admin/{name}")
    expect(visitor.page.locator(".prose table")).to_be_visible()
    expect(visitor.page.locator(".kv").first).to_contain_text(f"admin/{name}")
    visitor.look("card")
    visitor.go(f"/models/admin/{name}/settings")
    visitor.look("settings")
    visitor.fill("Summary", "Reads drawn digits.")
    visitor.button("Save").click()
    expect(visitor.page.locator(".lede")).to_have_text("Reads drawn digits.")


def make_and_revoke_a_token(visitor: Visitor) -> None:
    visitor.go("/settings/tokens")
    visitor.fill("What it is for", "a laptop")
    visitor.button("Create token").click()
    secret = visitor.page.locator("#secret").inner_text()
    assert re.fullmatch(r"my_[0-9A-Za-z]{46}", secret)
    visitor.look("token, shown once")
    visitor.page.get_by_role(
        "button", name=visitor.t("Revoke %(name)s") % {"name": "a laptop"}
    ).click()
    expect(visitor.page.get_by_text("a laptop", exact=True)).to_have_count(0)
    visitor.look("tokens")


# --- Every page again, on a small screen and in the other pairs of theme and language ------------


@pytest.fixture(scope="module")
def furnished(installation) -> Installation:
    """Put one model with a card and one version into the installation, over REST."""
    with httpx.Client(
        base_url=f"{installation.url}/api/v1",
        headers={"Authorization": f"Bearer {installation.token}"},
    ) as client:
        furnish(client)
    return installation


def furnish(client: httpx.Client) -> None:
    client.post("/models", json={"namespace": "admin", "name": "plain"}).raise_for_status()
    summary = "A model with a rather long summary, so that narrow screens have to wrap it. " * 2
    about = {"namespace": "admin", "name": "shown", "summary": summary}
    client.post("/models", json=about).raise_for_status()
    files = {
        "README.md": CARD.format(base="admin/other").encode(),
        "config.json": b'{"signature": {"inputs": [{"name": "image", "dtype": "float32",'
        b' "shape": [-1, 1, 28, 28]}], "outputs": [{"name": "logits", "dtype": "float32",'
        b' "shape": [-1, 10]}]}}',
        "a/rather/deep/folder/with-a-file-whose-name-is-long-too.txt": b"x",
    }
    form = {path: (path, content) for path, content in files.items()}
    client.post("/models/admin/shown/versions", files=form).raise_for_status()
    client.put("/models/admin/shown/aliases/champion", json={"version": 1}).raise_for_status()


PAGES = (
    "/",
    "/models",
    "/datasets",
    "/models/admin/shown",
    "/models/admin/shown?tab=versions",
    "/models/admin/shown?tab=files",
    "/models/admin/shown?tab=metrics",
    "/models/admin/shown?tab=lineage",
    "/models/admin/shown?tab=similar",
    "/models/admin/shown?tab=use",
    "/models/admin/shown/versions/1",
    "/models/admin/shown/settings",
    "/models/admin/shown/versions/new",
    "/models/new",
    "/jobs",
    "/jobs/new",
    "/jobs/new?kind=compress&model=admin/shown",
    "/jobs/new?kind=train",
    "/settings/tokens",
)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "zh-hans"])
@pytest.mark.parametrize("size", [NARROW, WIDE], ids=["narrow", "wide"])
def test_pages_fit_and_are_accessible(browser, furnished, theme, language, size):
    touch = size is NARROW
    context = new_context(browser, theme, size, has_touch=touch, reduced_motion="reduce")
    visitor = Visitor(context.new_page(), furnished.url, language)
    sign_in(visitor, furnished)
    for path in PAGES:
        visitor.go(path)
        visitor.look(path)
        if touch:
            visitor.complaints += [f"{path}: small {e}" for e in small_targets(visitor.page)]
    assert visitor.complaints == []
    context.close()


@pytest.fixture(scope="module")
def at_work(installation) -> Installation:
    """Put a team into the installation, with something on every page of sharing and safe files."""
    furnish_team(installation.url, installation.token)
    return installation


@pytest.mark.parametrize(("theme", "language"), [("light", "en"), ("dark", "zh-hans")])
def test_pages_of_a_team_fit_and_are_accessible(browser, at_work, theme, language):
    """Look at each in a narrow window, and once more in a wide one."""
    context = new_context(browser, theme, NARROW, has_touch=True, reduced_motion="reduce")
    visitor = Visitor(context.new_page(), at_work.url, language)
    sign_in(visitor, at_work)
    for path in TEAM_PAGES:
        visitor.page.set_viewport_size(NARROW)
        visitor.go(path)
        for summary in visitor.page.locator("main details.more > summary").all()[:8]:
            summary.click()
        visitor.look(path)
        visitor.complaints += [f"{path}: small {e}" for e in small_targets(visitor.page)]
        visitor.page.set_viewport_size(WIDE)
        visitor.complaints += [f"{path} is wider than its window: {e}" for e in visitor.overflow()]
    assert visitor.complaints == [], "\n".join(visitor.complaints)
    context.close()


def small_targets(page: Page) -> list[str]:
    """List buttons and fields that a finger would miss: under 44 pixels high."""
    return page.evaluate(
        """() => [...document.querySelectorAll(
            '.btn, .icon-btn:not(.copy), .nav a, .tabs a, select, summary,'
            + 'input:not([type=hidden], [type=checkbox], [type=radio])')]
          .filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 43.5)
          .map(e => e.outerHTML.slice(0, 120))"""
    )


def test_theme_is_kept_and_set_before_the_first_paint(browser, furnished):
    context = new_context(browser, "light", WIDE)
    page = context.new_page()
    page.goto(furnished.url)
    light = page.evaluate("getComputedStyle(document.body.parentNode).backgroundColor")
    page.locator("#theme").click()
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    # A script that counts the themes it sees, from before the page has a body.
    page.add_init_script(
        "window.seen = []; new MutationObserver(() => window.seen.push("
        "`${document.documentElement?.dataset.theme}${!!document.body}`)).observe("
        "document, {childList: true, subtree: true})"
    )
    page.reload()
    assert page.evaluate("window.seen.filter(s => s.endsWith('true'))[0]") == "darktrue"
    assert page.evaluate("getComputedStyle(document.body.parentNode).backgroundColor") != light
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") is None
    context.close()


def test_pages_work_without_scripts(browser, furnished, tmp_path):
    context = new_context(browser, "light", WIDE, java_script_enabled=False)
    visitor = Visitor(context.new_page(), furnished.url, "en")
    page = visitor.page
    visitor.go("/login")
    page.get_by_label("Name", exact=True).fill("admin")
    password = (furnished.home / "admin-password").read_text().strip()
    page.get_by_label("Password").fill(password)
    page.locator("main").get_by_role("button", name="Sign in").click()
    visitor.go("/models?q=shown")
    page.locator("#q").fill("sho")
    page.locator("main").get_by_role("button", name="Search").click()
    expect(page).to_have_url(re.compile(r"/models\?q=sho&sort="))
    expect(page.locator(".rows > li")).to_have_count(1)
    (tmp_path / "notes.txt").write_text("sent by a plain form")
    visitor.go("/models/admin/plain/versions/new")
    page.locator("input[name=files]").set_input_files(tmp_path / "notes.txt")
    page.get_by_role("button", name="Upload and register").click()
    expect(page).to_have_url(re.compile(r"/models/admin/plain/versions/1$"))
    expect(page.locator("main")).to_contain_text("notes.txt")
    context.close()


def test_snippets_run_as_they_stand(browser, furnished, tmp_path, monkeypatch):
    context = new_context(browser, "light", WIDE)
    page = context.new_page()
    page.goto(f"{furnished.url}/models/admin/shown?tab=use")
    monkeypatch.chdir(tmp_path)
    for key in ("python", "requests"):
        code = page.locator(f"#code-{key}").text_content()
        exec(compile(code, key, "exec"), {})
    assert (tmp_path / "shown/config.json").is_file()
    assert (tmp_path / "config.json").read_bytes().startswith(b'{"signature"')
    context.close()


def test_copying_says_so(browser, furnished):
    context = new_context(browser, "light", WIDE, permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"{furnished.url}/models/admin/shown")
    page.get_by_role("button", name="Copy name").click()
    expect(page.locator("#toast")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "admin/shown"
    context.close()
