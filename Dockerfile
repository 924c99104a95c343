# The daemon, the workers and the command line in one image: `docker run … daemon --app /app/flows.py:app`.
# Workflow code comes in as a volume below /app, or in an image built FROM this one.

FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /opt/streamflow && pip install --no-cache-dir build
# The dependencies first, so that a change of the code keeps their layer.
COPY pyproject.toml ./
RUN python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]))' \
    > requirements.txt \
    && /opt/streamflow/bin/pip install --no-cache-dir -r requirements.txt
COPY . .
RUN python -m build --wheel --outdir dist . \
    && /opt/streamflow/bin/pip install --no-cache-dir --no-deps dist/*.whl

FROM python:3.12-slim
ENV PATH=/opt/streamflow/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN groupadd --system --gid 10001 streamflow \
    && useradd --system --uid 10001 --gid streamflow --home-dir /app --no-create-home --shell /usr/sbin/nologin streamflow
COPY --from=build /opt/streamflow /opt/streamflow
COPY --chown=root:root examples /app/examples
WORKDIR /app
USER 10001:10001
# Whether the daemon or worker in this container is well: its event loop, its loops, its shards, its threads, and whether
# the server confirms its heartbeats. It reads what that process writes to /tmp, which must be writable.
HEALTHCHECK --interval=15s --timeout=8s --start-period=30s --retries=3 \
    CMD ["streamflow", "health"]
# SIGTERM makes a daemon hand its shards back: give `docker stop` more time than STREAMFLOW_GRACE (10 s).
STOPSIGNAL SIGTERM
ENTRYPOINT ["streamflow"]
CMD ["--help"]
