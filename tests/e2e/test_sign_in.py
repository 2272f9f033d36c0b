"""Signing in in a real browser: passkeys with a virtual authenticator, an app's codes, every page.

Every page on the way is held against axe-core and its own width, in both languages and themes.
"""

import re
import time

import pytest
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from django.core.cache import cache
from playwright.sync_api import expect

from tests.e2e.test_browser import NARROW, WIDE, Visitor, new_context
from tests.factories import PASSWORD, UserFactory

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("browser")]

AUTHENTICATOR = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}


@pytest.fixture
def dora(transactional_db, settings):
    # The server's own hasher, for the server checks this password.
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
    cache.clear()
    return UserFactory(username="dora", is_superuser=True)


@pytest.fixture
def visit(browser, server):
    """Open a window with an authenticator in it; passkeys belong to a name, not to an address."""
    contexts = []

    def open_window(language="en", theme="light", size=WIDE):
        context = new_context(browser, theme, size)
        contexts.append(context)
        address = server.url.replace("127.0.0.1", "localhost")
        visitor = Visitor(context.new_page(), address, language)
        devtools = context.new_cdp_session(visitor.page)
        devtools.send("WebAuthn.enable")
        devtools.send("WebAuthn.addVirtualAuthenticator", {"options": AUTHENTICATOR})
        return visitor

    yield open_window
    for context in contexts:
        context.close()


def password(visitor):
    visitor.page.get_by_label(visitor.t("Password"), exact=True).fill(PASSWORD)


def sign_in(visitor):
    visitor.go("/login")
    visitor.look("sign in")
    visitor.page.get_by_label(visitor.t("Name", "of an account"), exact=True).fill("dora")
    password(visitor)
    visitor.button("Sign in").click()


def sign_out(visitor):
    visitor.page.locator(".menu summary").click()
    visitor.button("Sign out").click()
    expect(visitor.page.locator(".avatar")).to_have_count(0)


def is_in(visitor):
    expect(visitor.page.locator(".avatar")).to_be_visible()


def prove(visitor):
    expect(visitor.page).to_have_url(re.compile("/login/again"))
    visitor.look("again")
    password(visitor)
    visitor.button("Go on").click()


def code(secret, steps=0):
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30 + steps))


@pytest.mark.parametrize(
    ("language", "theme", "size"), [("en", "light", WIDE), ("zh-hans", "dark", NARROW)]
)
def test_every_way_in(dora, visit, language, theme, size):  # noqa: PLR0915 - one long walk
    visitor = visit(language, theme, size)
    page = visitor.page
    sign_in(visitor)
    is_in(visitor)
    visitor.go("/settings")
    visitor.look("settings")
    visitor.go("/settings/password")
    visitor.look("password")

    # A passkey that signs in alone.
    visitor.go("/settings/passkeys/add")
    prove(visitor)
    visitor.look("add a passkey")
    page.get_by_label(visitor.t("What to call it")).fill("My laptop")
    visitor.button("Make the passkey").click()
    expect(page).to_have_url(visitor.at("/settings/second-factors/codes"))
    visitor.look("recovery codes")
    expect(page.locator(".codes li")).to_have_count(10)
    visitor.link("I have kept them").click()
    expect(page.locator("main")).to_contain_text("My laptop")
    visitor.look("second factors")
    sign_out(visitor)
    visitor.go("/login?next=" + visitor.prefix + "/settings/sessions")
    visitor.button("Use a passkey").click()
    expect(page).to_have_url(visitor.at("/settings/sessions"))
    is_in(visitor)
    visitor.look("sessions")

    # An authenticator app; the passkey proves who it is.
    visitor.go("/settings/second-factors/app")
    visitor.link("Use a passkey").click()
    visitor.look("again with a passkey")
    visitor.button("Use a passkey").click()
    expect(page).to_have_url(visitor.at("/settings/second-factors/app"))
    visitor.look("authenticator app")
    secret = page.locator("#secret").text_content()
    page.get_by_label(visitor.t("Code"), exact=True).fill(code(secret))
    visitor.button("Set up").click()
    expect(page.locator("main")).to_contain_text(visitor.t("The authenticator app is set up."))
    sign_out(visitor)

    # The password, then a code or the passkey.
    sign_in(visitor)
    expect(page).to_have_url(visitor.at("/login/second-factor"))
    visitor.look("second step")
    page.get_by_label(visitor.t("Code"), exact=True).fill("000000")
    visitor.button("Sign in").click()
    expect(page.locator(".errors")).to_contain_text(
        visitor.t("The code is wrong, or was used already.")
    )
    page.get_by_label(visitor.t("Code"), exact=True).fill(code(secret, steps=1))
    visitor.button("Sign in").click()
    is_in(visitor)
    sign_out(visitor)
    sign_in(visitor)
    visitor.button("Use a passkey").click()
    is_in(visitor)

    # Pages of an administrator, and taking things away.
    visitor.go("/users")
    visitor.look("people")
    visitor.go("/users/dora")
    visitor.look("one person")
    visitor.go("/settings/tokens")
    visitor.look("tokens")
    visitor.go("/settings/identity")
    visitor.look("identity")
    visitor.go("/settings/second-factors")
    page.get_by_role("link", name=re.compile("My laptop")).click()
    prove(visitor)
    visitor.look("remove a passkey")
    visitor.button("Remove").click()
    expect(page.locator("main")).to_contain_text(visitor.t("The passkey is removed."))
    visitor.go("/settings/second-factors/codes/new")
    visitor.look("new codes")
    visitor.go("/settings/second-factors/app/remove")
    visitor.look("remove the app")
    assert visitor.complaints == []


def test_a_stopped_passkey_leaves_the_page_as_it_was(dora, visit):
    visitor = visit()
    visitor.go("/login")
    visitor.page.evaluate(
        "() => { navigator.credentials.get = () => Promise.reject(new Error('no')); }"
    )
    visitor.button("Use a passkey").click()
    expect(visitor.page.locator("#toast")).to_have_text("No passkey was used.")
    expect(visitor.page).to_have_url(visitor.at("/login"))


def test_an_address_without_passkeys_says_so(dora, browser, server):
    context = new_context(browser, "light", WIDE)
    page = context.new_page()
    page.add_init_script("delete window.PublicKeyCredential")
    page.goto(f"{server.url}/login")
    expect(page.get_by_role("button", name="Use a passkey")).to_be_disabled()
    context.close()
