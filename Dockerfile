# authsidecar: `docker build -t authsidecar .`
#
# Runs as user 10001 on a read-only root file system: only /var/lib/authsidecar (the embedded
# Redis; unused with a Redis of your own) and /tmp are written.

# The newest Python that is tested. `make image-test` builds on a stand-in.
ARG BASE=python:3.13.9-slim-trixie

FROM ${BASE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY requirements/build.txt requirements/run.txt requirements/
RUN python -m venv --without-pip /opt/authsidecar \
    && pip --python /opt/authsidecar/bin/python install \
        --require-hashes --only-binary :all: -r requirements/run.txt \
    && pip install --require-hashes --only-binary :all: -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY deploy deploy
COPY docs/reference/reason-codes.md docs/reference/
COPY man man
COPY src src
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && pip --python /opt/authsidecar/bin/python install --no-deps --no-index /wheels/*.whl

FROM ${BASE}
ARG BASE
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="authsidecar" \
      org.opencontainers.image.description="An authorization sidecar that guards Coolify's API" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
# The base image's own pip builds nothing here; whoever breaks in should not find it.
RUN pip uninstall --yes --root-user-action ignore pip setuptools wheel \
    && groupadd --system --gid 10001 authsidecar \
    && useradd --system --uid 10001 --gid 10001 --no-log-init --no-create-home \
        --home-dir /var/lib/authsidecar --shell /usr/sbin/nologin authsidecar \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/authsidecar
COPY --from=build /opt/authsidecar /opt/authsidecar
# All interfaces, IPv4 and IPv6, because a container's loopback is nobody else's; `trusted_peers`
# still decides who may ask. The management listener stays on loopback.
ENV PATH=/opt/authsidecar/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    AUTHSIDECAR_DATA_DIR=/var/lib/authsidecar \
    AUTHSIDECAR_LISTEN__ADDRESS=:4190
USER 10001:10001
WORKDIR /var/lib/authsidecar
VOLUME /var/lib/authsidecar
EXPOSE 4190
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["authsidecar", "health"]
ENTRYPOINT ["authsidecar"]
CMD ["serve"]
