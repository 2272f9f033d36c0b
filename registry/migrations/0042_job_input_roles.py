"""Keep which version has which role in a job, and under which names its process was told of them.

Jobs of before, and those that the previous release still queues, have neither.
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0041_known_word_pairs")]

    operations = [
        migrations.AddField(
            model_name="job",
            name=name,
            field=models.JSONField(
                blank=True, db_default=models.Value({}, models.JSONField()), default=dict
            ),
        )
        for name in ("input_ids", "input_names")
    ]
