"""Keep which version has which role in a job.

Jobs of before, and those that the previous release still queues, do without.
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0040_word_pairs")]

    operations = [
        migrations.AddField(
            model_name="job",
            name="input_ids",
            field=models.JSONField(
                blank=True, db_default=models.Value({}, models.JSONField()), default=dict
            ),
        ),
    ]
