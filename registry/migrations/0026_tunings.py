"""What tunings found of versions, one for each kind of machine."""

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0030_segmented_blobs"),
    ]

    operations = [
        migrations.CreateModel(
            name="Tuning",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("device_class", models.CharField(max_length=200)),
                ("runtime", models.CharField(max_length=16)),
                ("threads", models.PositiveSmallIntegerField()),
                ("max_batch_size", models.PositiveSmallIntegerField()),
                ("summary", models.JSONField(default=dict)),
                ("measured_at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "created_by",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "job",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to="registry.job",
                    ),
                ),
                (
                    "version",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="tunings",
                        to="registry.version",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("version", "device_class"), name="tuning_once_per_device_class"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("threads__gte", 1), ("max_batch_size__gte", 1)),
                        name="tuning_is_of_something",
                    ),
                ],
            },
        ),
    ]
