"""The Celery application: a message carries a job id and wakes a worker; the row is the truth."""

import os

from celery import Celery
from django.conf import settings

from registry.queue import DEFAULT_QUEUE, broker_url

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
# Django's checks import every URL, and with them all views; a worker needs none of those.
os.environ.setdefault("CELERY_SKIP_CHECKS", "1")

app = Celery("modelyard")
app.conf.update(
    broker_url=broker_url(settings.REDIS_URL),
    broker_connection_retry_on_startup=True,
    broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 5},
    include=["workers.tasks"],
    accept_content=["json"],
    task_serializer="json",
    task_ignore_result=True,
    task_default_queue=DEFAULT_QUEUE,
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    timezone="UTC",
    # Leases that ran out are no message's business: every worker's housekeeper looks after them.
    beat_schedule={
        "clean-up": {"task": "workers.clean_up", "schedule": 600.0, "options": {"expires": 600}},
        "collect-garbage": {
            "task": "workers.collect_garbage",
            "kwargs": {"strays": False},
            "schedule": 3600.0,
            "options": {"expires": 3600},
        },
        # This one looks through the whole storage.
        "collect-strays": {
            "task": "workers.collect_garbage",
            "kwargs": {"strays": True},
            "schedule": 86400.0,
            "options": {"expires": 86400},
        },
        # After an upgrade; at other times there is nothing to do.
        "reinspect": {
            "task": "workers.reinspect",
            "schedule": 60.0,
            "options": {"expires": 60},
        },
        "review-canaries": {
            "task": "workers.review_canaries",
            "schedule": 15.0,
            "options": {"expires": 15},
        },
        "encode-cards": {
            "task": "workers.encode_cards",
            "schedule": 15.0,
            "options": {"expires": 15},
        },
        # Looks at every row: some may have been loaded with times of long ago.
        "encode-all-cards": {
            "task": "workers.encode_cards",
            "kwargs": {"everything": True},
            "schedule": 86400.0,
            "options": {"expires": 86400},
        },
        "check-uploads": {
            "task": "workers.check_uploads",
            "schedule": 30.0,
            "options": {"expires": 30},
        },
    },
)
