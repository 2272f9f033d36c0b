"""Blobs that are put together of pieces, and what is known of the pieces of the others."""

import django.contrib.postgres.fields
import django.contrib.postgres.indexes
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0025_search_terms")]

    operations = [
        migrations.CreateModel(
            name="Outline",
            fields=[
                (
                    "blob",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="outline",
                        serialize=False,
                        to="registry.blob",
                    ),
                ),
                ("pieces", models.BinaryField()),
                (
                    "sketch",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.BigIntegerField(), size=None
                    ),
                ),
            ],
        ),
        migrations.AddIndex(
            model_name="blob",
            index=models.Index(
                condition=models.Q(("layout", "whole"), ("size_bytes__gte", 1048576)),
                fields=["created_at"],
                name="blob_to_segment",
            ),
        ),
        migrations.AddIndex(
            model_name="outline",
            index=django.contrib.postgres.indexes.GinIndex(
                fields=["sketch"], name="outline_sketch"
            ),
        ),
    ]
