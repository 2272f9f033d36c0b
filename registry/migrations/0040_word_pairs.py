"""Make room for which words of a name, a summary or a tag stand side by side."""

import django.contrib.postgres.fields
from django.db import migrations, models


class Migration(migrations.Migration):
    """The rows are filled by the next one, which holds nobody up."""

    dependencies = [("registry", "0039_restored_edges")]

    operations = [
        migrations.AddField(
            model_name="repository",
            name="word_pairs",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.IntegerField(), blank=True, db_default=[], default=list, size=None
            ),
        ),
    ]
