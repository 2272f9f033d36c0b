"""What the web server runs: streams natively, Django in threads."""

from django.conf import settings

from config.wsgi import application as django
from registry.stream.dispatcher import Dispatcher
from registry.stream.wsgi import ThreadedApplication

__all__ = ["application"]

application = Dispatcher(
    ThreadedApplication(
        django,
        threads=settings.WEB_THREADS,
        max_body_bytes=settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 64 * 1024,
    )
)
