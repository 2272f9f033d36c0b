"""Uploads with keys that are forged, over or for elsewhere, with cookies, from other sites."""

from django.test import Client

from registry.authenticate import make_token as forge
from tests.attacks.corpus import refused, request
from tests.attacks.doors import BYTES, TUS, UPLOADS, encoded
from tests.factories import make_model, make_token

UNKNOWN = refused("unknown, expired or revoked", "unauthenticated", 401)
LENGTH = {**TUS, "Upload-Length": "4"}


def bearing(door, authorization, *, url=UPLOADS, **headers):
    sent = {**LENGTH, "Authorization": authorization, **headers}
    return door.nobody.post(url, headers=sent)


@request(refused("token", "unauthenticated", 401))
def no_key_at_all(door):
    return door.nobody.post(UPLOADS, headers=LENGTH)


@request(refused("token", "unauthenticated", 401))
def a_form_without_a_key(door):
    return door.form({"a.txt": b"x"}, by=door.nobody)


@request(UNKNOWN)
def a_key_with_a_wrong_checksum(door):
    return bearing(door, f"Bearer {door.token[:-1]}{'a' if door.token[-1] != 'a' else 'b'}")


@request(UNKNOWN)
def a_key_that_looks_right(door):
    return bearing(door, f"Bearer {forge()}")


@request(UNKNOWN)
def a_key_that_is_over(door):
    return bearing(door, f"Bearer {door.expired_token()}")


@request(UNKNOWN)
def a_key_that_was_revoked(door):
    return bearing(door, f"Bearer {door.revoked_token()}")


@request(UNKNOWN)
def a_key_of_noise(door):
    return bearing(door, b"Bearer \xff\xfe\x00".replace(b"\0", b"\x80"))


@request(UNKNOWN)
def a_key_of_ten_kilobytes(door):
    return bearing(door, "Bearer my_" + "x" * 10_000)


@request(UNKNOWN)
def a_key_that_asks_the_database(door):
    return bearing(door, "Bearer ' OR '1'='1' --aaaaaaaa")


@request(refused("", "unauthenticated", 401))
def a_key_in_the_address(door):
    return door.nobody.post(
        f"{UPLOADS}?token={door.token}&access_token={door.token}", headers=LENGTH
    )


@request(refused("", "unauthenticated", 401))
def a_password_instead_of_a_key(door):
    return bearing(door, f"Basic {encoded('alice:correct horse battery')}")


@request(UNKNOWN)
def two_keys_at_once(door):
    lines = [f"POST {UPLOADS} HTTP/1.1", f"Authorization: Bearer {door.token}", "Content-Length: 0"]
    return door.raw(
        [*lines, "Tus-Resumable: 1.0.0", "Upload-Length: 4"], token="my_other", end=False
    )


@request(refused("", "missing_scope", 403))
def a_key_that_may_only_read(door):
    return bearing(door, f"Bearer {make_token(door.alice, scopes=['read'])}")


@request(refused("", "missing_scope", 403))
def a_form_with_a_key_that_may_only_read(door):
    token = make_token(door.alice, scopes=["read"])
    return door.form({"a.txt": b"x"}, by=door.nobody, headers={"Authorization": f"Bearer {token}"})


@request(refused("that you may see", "model_not_found", 404))
def a_form_with_a_key_for_another_model(door):
    elsewhere = make_model(door.alice, "elsewhere-for-a-key")
    _, token = door.token_of(door.alice, repository=elsewhere)
    return door.form({"a.txt": b"x"}, by=door.nobody, headers={"Authorization": f"Bearer {token}"})


# --- Cookies and other sites ---------------------------------------------------------------------


def session(door):
    page = Client()
    page.force_login(door.alice)
    return page.cookies["sessionid"].value


def visiting(door, url, *, origin=None, token="a" * 32, sent="a" * 32, **headers):
    cookies = f"sessionid={session(door)}; csrftoken={token}"
    given = {**LENGTH, "Cookie": cookies, "Origin": origin or door.server.url, "X-CSRFToken": sent}
    given = {key: value for key, value in {**given, **headers}.items() if value is not None}
    return door.nobody.post(url, headers=given)


@request(refused("token", "unauthenticated", 401))
def a_cookie_at_the_door_of_machines(door):
    return visiting(door, UPLOADS)


@request(refused("token", "unauthenticated", 401))
def a_form_with_a_cookie_at_the_door_of_machines(door):
    cookies = {"Cookie": f"sessionid={session(door)}", "Origin": door.server.url}
    return door.form({"a.txt": b"x"}, by=door.nobody, headers=cookies)


@request(refused("", "csrf_failed", 403))
def an_upload_from_another_site(door):
    return visiting(door, "/uploads", origin="https://evil.example")


@request(refused("", "csrf_failed", 403))
def an_upload_from_a_site_with_a_similar_name(door):
    return visiting(door, "/uploads", origin=door.server.url + ".evil.example")


@request(refused("", "csrf_failed", 403))
def an_upload_from_a_frame_in_a_sandbox(door):
    return visiting(door, "/uploads", origin="null")


@request(refused("", "csrf_failed", 403))
def an_upload_of_a_page_without_its_token(door):
    return visiting(door, "/uploads", **{"X-CSRFToken": None})


@request(refused("", "csrf_failed", 403))
def an_upload_of_a_page_with_another_token(door):
    return visiting(door, "/uploads", sent="b" * 32)


@request(refused("", "csrf_failed", 403))
def a_key_at_the_door_of_pages(door):
    return bearing(door, f"Bearer {door.token}", url="/uploads")


@request(refused("", "unauthenticated", 401))
def a_session_that_never_was(door):
    cookies = {"Cookie": "sessionid=" + "x" * 32 + "; csrftoken=" + "a" * 32}
    sent = {**LENGTH, **cookies, "Origin": door.server.url, "X-CSRFToken": "a" * 32}
    return door.nobody.post("/uploads", headers=sent)


# --- Methods -------------------------------------------------------------------------------------


@request(refused("This address takes", "method_not_allowed", 405))
def a_method_that_is_not_there(door):
    return door.client.put(UPLOADS, content=b"x")


@request(refused("This address takes", "method_not_allowed", 405))
def a_method_behind_another(door):
    url = door.open(4)
    override = {"X-HTTP-Method-Override": "PATCH", "Upload-Offset": "0"}
    return door.client.post(url, content=b"data", headers={**BYTES, **override})


@request(refused("nothing at this address", "no_such_address", 404))
def an_upload_by_the_path_of_a_file(door):
    return door.client.patch(
        f"{UPLOADS}/..%2f..%2fetc%2fpasswd", headers={**BYTES, "Upload-Offset": "0"}
    )


@request(refused("", "not_found", 404))
def an_upload_whose_id_is_no_id(door):
    return door.send(f"{UPLOADS}/%00%ff", 0, b"x")
