"""The pages of endpoints in a real browser, with real requests: deployed, tried, gated, promoted.

A version is deployed from the page of its model and called as the page says; another one watches as
a shadow until its evidence lets it be promoted under load; a canary that fails is taken back.
"""

import json
import subprocess
import threading
import time
from itertools import cycle

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from playwright.sync_api import expect

from tests.e2e.test_browser import NARROW, WIDE, Visitor, installation, new_context, sign_in

__all__ = ["installation"]
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("browser")]

PATIENCE = 240.0
PAGE = "/endpoints/admin/lookup"


def lookup(known):
    """Give y = x, for numbers that it knows; it fails on others."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        "lookup",
        [value("x", TensorProto.INT64, ["rows"])],
        [value("y", TensorProto.FLOAT, ["rows"])],
        [onnx.numpy_helper.from_array(np.arange(known, dtype=np.float32), "table")],
    )
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


@pytest.fixture(scope="module")
def registered(installation):
    """Register a model of three versions, of which the last fails on half of what it is asked."""
    with httpx.Client(
        base_url=f"{installation.url}/api/v1",
        headers={"Authorization": f"Bearer {installation.token}"},
        timeout=60,
    ) as api:
        about = {"namespace": "admin", "name": "lookup", "visibility": "public"}
        api.post("/models", json=about).raise_for_status()
        for known in (10, 12, 5):
            files = {"model.onnx": ("model.onnx", lookup(known))}
            api.post("/models/admin/lookup/versions", files=files).raise_for_status()
    return installation


class Callers:
    """Somebody who calls an endpoint all the time, and keeps what came back."""

    def __init__(self, address):
        self.address = f"{address}/predict/admin/lookup"
        self.versions, self.refused = [], []
        self._done, self._answered = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._call)

    def _call(self):
        with httpx.Client(timeout=60) as client:
            for number in cycle(range(10)):
                if self._done.is_set():
                    return
                answer = client.post(self.address, json={"x": number})
                if answer.status_code == 200:
                    self.versions.append(answer.json()["version"])
                else:
                    self.refused.append(answer.text)
                self._answered.set()

    def wait_for(self, version, count):
        """Wait until the last answers all came from a version."""
        until = time.monotonic() + PATIENCE
        while self.versions[-count:] != [version] * count:
            assert time.monotonic() < until, self.versions[-count:]
            self._answered.wait(1)
            self._answered.clear()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()


def reload_until(page, locator):
    """Look at a page again and again until something stands on it."""
    until = time.monotonic() + PATIENCE
    while not locator.count():
        assert time.monotonic() < until, page.locator("main").inner_text()
        page.wait_for_timeout(1000)
        page.reload()


def deploy(visitor, version, *, role="", **fields):
    page = visitor.page
    visitor.go(f"/endpoints/new?model=admin/lookup&version={version}")
    if role:
        page.locator(f"input[name=role][value={role}]").check()
    for label, value in fields.items():
        visitor.fill(label.replace("_", " "), value)
    if role == "canary":
        page.locator("input[name=widens]").check()
    visitor.look(f"deploy {role}")
    visitor.button("Deploy").click()
    expect(page).to_have_url(visitor.at(PAGE))


def row_of(page, version):
    link = page.get_by_role("link", name=f"v{version}", exact=True)
    return page.locator("section[aria-labelledby=deployments-h] tr", has=link)


def test_from_the_first_deployment_to_a_canary_that_is_taken_back(browser, registered):
    context = new_context(browser, "light", WIDE)
    visitor = Visitor(context.new_page(), registered.url, "en")
    sign_in(visitor, registered)
    deploy_from_the_model(visitor)
    promote_a_shadow(visitor, registered)
    fail_as_a_canary(visitor, registered)
    assert visitor.complaints == [], "\n".join(visitor.complaints)
    context.close()


def deploy_from_the_model(visitor):
    page = visitor.page
    visitor.go("/models/admin/lookup?tab=serve")
    page.get_by_role("link", name="Deploy a version").click()
    visitor.fill("Version", "1")
    visitor.button("Deploy").click()
    expect(page).to_have_url(visitor.at(PAGE))
    reload_until(page, page.locator("#replicas td", has_text="Ready"))
    visitor.look("endpoint")
    command = page.locator("#code-predict").inner_text()
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert json.loads(said.stdout)["version"] == "1", said.stdout


def promote_a_shadow(visitor, registered):
    page = visitor.page
    deploy(visitor, 2, role="shadow")
    expect(row_of(page, 2)).to_contain_text("not decided yet")
    row_of(page, 2).get_by_role("button", name="Promote").click()
    expect(page.locator(".notice.bad")).to_contain_text("does not say yet whether")
    with Callers(registered.infer_url) as callers:
        reload_until(page, row_of(page, 2).get_by_text("may be promoted"))
        visitor.look("endpoint with a shadow")
        page.set_viewport_size(NARROW)
        visitor.look("endpoint with a shadow, narrow")
        page.set_viewport_size(WIDE)
        row_of(page, 2).get_by_role("button", name="Promote").click()
        expect(page.locator(".notice.good")).to_contain_text("it answers everything now")
        callers.wait_for("2", 1)
    # Not one call failed, and none went back.
    assert callers.refused == []
    assert callers.versions == sorted(callers.versions)
    expect(page.locator("section[aria-labelledby=history-h]")).to_contain_text("v2 promoted")


def fail_as_a_canary(visitor, registered):
    page = visitor.page
    deploy(visitor, 3, role="canary", Percent_of_the_requests="30")
    expect(row_of(page, 3)).to_contain_text("widens by itself")
    with Callers(registered.infer_url) as callers:
        reload_until(page, page.get_by_text("v3 does worse than the others"))
    assert "3" in callers.versions
    assert callers.refused
    expect(row_of(page, 2).locator("input.percent")).to_have_value("100")
    with Callers(registered.infer_url) as callers:
        callers.wait_for("2", 100)
