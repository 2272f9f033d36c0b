"""The Celery application: a message carries a job id and wakes a worker; the row is the truth."""

import os
from urllib.parse import parse_qs, urlsplit

from celery import Celery
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")


def broker_url(redis_url: str) -> str:
    """Say a redis-py address in Celery's words: a Unix socket is `redis+socket://` there."""
    url = urlsplit(redis_url)
    if url.scheme != "unix":
        return redis_url
    database = parse_qs(url.query).get("db", ["0"])[-1]
    login = f"{url.username or ''}:{url.password}@" if url.password else ""
    return f"redis+socket://{login}{url.path}?virtual_host={database}"


app = Celery("modelyard")
app.set_default()  # for every thread: `registry.queue` finds it as `celery.current_app`
app.conf.update(
    broker_url=broker_url(settings.REDIS_URL),
    broker_connection_retry_on_startup=True,
    broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 5},
    include=["workers.tasks"],
    accept_content=["json"],
    task_serializer="json",
    task_ignore_result=True,
    task_default_queue="default",
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    timezone="UTC",
    beat_schedule={
        "requeue-expired-jobs": {"task": "workers.requeue_expired", "schedule": 5.0},
    },
)
