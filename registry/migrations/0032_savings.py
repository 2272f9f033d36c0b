"""Weights coded where they lie, and how much room files do not take."""

import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0031_card_vectors")]

    operations = [
        migrations.AddField(
            model_name="namespace",
            name="compress_weights",
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AddField(
            model_name="namespace",
            name="saved_bytes",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.CreateModel(
            name="Tally",
            fields=[
                ("name", models.CharField(max_length=32, primary_key=True, serialize=False)),
                ("value", models.BigIntegerField(default=0)),
                ("counted_at", models.DateTimeField(default=django.utils.timezone.now)),
            ],
        ),
    ]
