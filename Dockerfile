# Both stages share one base, so that what is compiled for the first runs in the second.
FROM python:3.11.14-slim-bookworm AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_INPUT=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# The environment of the image is made without pip; the base's own pip fills it from outside.
RUN python -m venv --without-pip /opt/headrace
COPY requirements.lock ./
RUN pip --python /opt/headrace/bin/python install --require-hashes --only-binary :all: -r requirements.lock

COPY requirements-build.lock ./
RUN python -m venv --without-pip /build/venv \
    && pip --python /build/venv/bin/python install --require-hashes --only-binary :all: -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY app ./app
COPY agents ./agents
COPY tables ./tables
COPY config ./config
RUN /build/venv/bin/python -m hatchling build -t wheel -d /build/dist \
    && pip --python /opt/headrace/bin/python install --no-deps --no-index /build/dist/headrace-*.whl

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="headrace" \
      org.opencontainers.image.description="Industrial telemetry into action over Apache Kafka" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# A named volume on this folder takes over its owner. Some libraries ask for the user's name, so it has one.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/headrace --shell /usr/sbin/nologin headrace \
    && install -d -o 10001 -g 10001 /var/lib/headrace /var/lib/headrace/.headrace
COPY --from=builder /opt/headrace /opt/headrace

WORKDIR /var/lib/headrace
USER 10001:10001
EXPOSE 8080 8081 9095
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "app.healthcheck", "http://127.0.0.1:8081/health/ready"]
ENTRYPOINT ["headrace"]
CMD ["--help"]
