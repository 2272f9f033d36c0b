"""Keep a row of a repository in one place, up to half a page: searches look at whole rows."""

from django.db import migrations

# PostgreSQL moves values elsewhere from 2 kB on, and the words of a model with a card take one; a
# search that ranks a thousand rows would then look in two places for each.
_ONE_PLACE = "ALTER TABLE registry_repository SET (toast_tuple_target = 4080)"
_AS_USUAL = "ALTER TABLE registry_repository RESET (toast_tuple_target)"


class Migration(migrations.Migration):
    """Rows that are there move when they are written next, or by VACUUM FULL."""

    dependencies = [("registry", "0036_more_concepts")]

    operations = [migrations.RunSQL(_ONE_PLACE, _AS_USUAL)]
