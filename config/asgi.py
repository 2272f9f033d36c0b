"""What the web server runs: streams natively, Django in threads."""

from django.conf import settings

from config.wsgi import application as django
from registry.stream.dispatcher import Dispatcher
from registry.stream.wsgi import ThreadedApplication

__all__ = ["application"]

# Before the first connection: nobody's request keeps the database busy for longer.
_options = settings.DATABASES["default"]["OPTIONS"]
_options["options"] = (
    f"{_options.get('options', '')} -c statement_timeout={settings.STATEMENT_SECONDS}s"
)

application = Dispatcher(
    ThreadedApplication(
        django,
        threads=settings.WEB_THREADS,
        max_body_bytes=settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 64 * 1024,
    )
)
