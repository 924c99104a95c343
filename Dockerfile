# The daemon, the workers and the command line in one image: `docker run … daemon --app /app/flows.py:app`.
# Workflow code comes in as a volume below /app, or in an image built FROM this one.
#
#   docker build --tag streamflow .
#   docker build --tag streamflow --build-arg BASE_IMAGE=registry.example.org/python:3.13-slim .
#   docker build --tag streamflow --build-arg EXTRAS=metrics,otel .
#
# The base needs Python 3.11 or newer as `python3`, its `venv`, and `useradd`: the official Python images (not those on
# Alpine), or Debian with python3 and python3-venv.

ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
WORKDIR /src
RUN python3 -m venv /opt/streamflow
# The dependencies first, so that a change of the code keeps their layer.
COPY pyproject.toml ./
ARG EXTRAS=metrics
RUN python3 -c 'import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
extras = [project["optional-dependencies"][name] for name in sys.argv[1].split(",") if name]; \
print("\n".join(sum(extras, project["dependencies"])))' "$EXTRAS" > requirements.txt \
    && /opt/streamflow/bin/pip install --no-cache-dir -r requirements.txt
COPY . .
RUN /opt/streamflow/bin/pip install --no-cache-dir --no-deps . \
    && /opt/streamflow/bin/pip check

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="streamflow" \
    org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/streamflow/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN groupadd --gid 10001 streamflow \
    && useradd --uid 10001 --gid streamflow --home-dir /app --no-create-home --shell /usr/sbin/nologin streamflow
COPY --from=build /opt/streamflow /opt/streamflow
COPY --chown=root:root examples /app/examples
WORKDIR /app
USER 10001:10001
# Whether the daemon or worker in this container is well: its event loop, its loops, its shards, its threads, and
# whether the server confirms its heartbeats. It reads what that process writes to /tmp, which must be writable.
HEALTHCHECK --interval=15s --timeout=8s --start-period=30s --retries=3 \
    CMD ["streamflow", "health"]
# SIGTERM makes a daemon hand its shards back: give `docker stop` more time than STREAMFLOW_GRACE (10 s).
STOPSIGNAL SIGTERM
ENTRYPOINT ["streamflow"]
CMD ["--help"]
