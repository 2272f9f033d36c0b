"""The first administrator of an installation, and the token that comes with the account."""

import pytest

from config.environment import BadSetting
from config.local.prepare import make_first_administrator
from registry.authenticate import digest_of
from registry.models import Token, User

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def home(settings, monkeypatch, tmp_path):
    monkeypatch.delenv("MODELYARD_ADMIN_TOKEN", raising=False)
    settings.HOME_DIR = tmp_path
    return tmp_path


def test_a_start_after_a_refused_token_still_makes_one(home, monkeypatch):
    monkeypatch.setenv("MODELYARD_ADMIN_TOKEN", "short")
    with pytest.raises(BadSetting, match="MODELYARD_ADMIN_TOKEN"):
        make_first_administrator()
    assert not User.objects.filter(is_superuser=True).exists()
    monkeypatch.delenv("MODELYARD_ADMIN_TOKEN")
    make_first_administrator()
    kept = (home / "admin-token").read_text().strip()
    assert Token.objects.get(digest=digest_of(kept)).user.is_superuser


def test_a_second_start_makes_neither_account_nor_token():
    make_first_administrator()
    make_first_administrator()
    assert User.objects.filter(is_superuser=True).count() == 1
    assert Token.objects.count() == 1
