"""Vectors of cards, where the database has pgvector; where it has none nothing is made."""

import django.db.models.deletion
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

import registry.models.vectors


def make(_apps: StateApps, editor: BaseDatabaseSchemaEditor) -> None:
    registry.models.vectors.make_vector_table(editor.connection)


class Migration(migrations.Migration):
    dependencies = [("registry", "0027_exported_files")]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.CreateModel(
                    name="CardVector",
                    fields=[
                        (
                            "repository",
                            models.OneToOneField(
                                on_delete=django.db.models.deletion.DO_NOTHING,
                                primary_key=True,
                                related_name="+",
                                serialize=False,
                                to="registry.repository",
                            ),
                        ),
                        ("encoder", models.CharField(max_length=64)),
                        ("digest", models.CharField(max_length=64)),
                        ("read_at", models.DateTimeField()),
                        ("embedding", registry.models.vectors.HalfVector()),
                    ],
                ),
            ],
            database_operations=[
                migrations.RunPython(
                    make,
                    lambda _apps, editor: editor.execute(
                        "DROP TABLE IF EXISTS registry_cardvector"
                    ),
                ),
            ],
        ),
    ]
