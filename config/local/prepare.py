"""Bring an installation up to date: message catalogues, tables, the first administrator."""

from django.conf import settings
from django.core.management import call_command
from django.db import connection, transaction

from config.environment import BadSetting, env_text
from config.local.addresses import kept_secret
from config.local.catalogues import compile_catalogues
from registry.authenticate import digest_of, make_token
from registry.errors import Invalid
from registry.models import Token, User, make_vector_table
from registry.services.namespaces import create_user
from registry.services.tokens import install_token

ADMIN = "admin"


def prepare() -> None:
    compile_catalogues()
    call_command("migrate", interactive=False, verbosity=0)
    # The migration left it out where the database had no pgvector; it may have it by now.
    make_vector_table(connection)
    make_first_administrator()


@transaction.atomic
def make_first_administrator() -> None:
    """Make the account `admin` where nobody administers yet, and give it its token.

    A token from the environment is stored once: one that was revoked stays revoked. Of one that is
    refused there is no account either, so that the next start makes both.
    """
    chosen = env_text("MODELYARD_ADMIN_TOKEN")
    admin = User.objects.filter(is_superuser=True).order_by("pk").first()
    if admin is None:
        password = kept_secret(settings.HOME_DIR / "admin-password")
        chosen = chosen or kept_secret(settings.HOME_DIR / "admin-token", make_token())
        admin = create_user(username=ADMIN, password=password, is_admin=True)
    if chosen and not Token.objects.filter(digest=digest_of(chosen)).exists():
        try:
            install_token(user=admin, secret=chosen, name="installation")
        except Invalid as error:
            raise BadSetting("MODELYARD_ADMIN_TOKEN", error.detail) from error
