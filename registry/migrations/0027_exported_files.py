"""Derivatives may be exports: what a job wrote of a version for other programs to load."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0026_tunings")]

    operations = [
        migrations.AlterField(
            model_name="derivative",
            name="purpose",
            field=models.CharField(
                choices=[("converted", "Converted"), ("exported", "Exported")], max_length=32
            ),
        ),
    ]
