# chiasm's command in a container.
#
#   docker build -t chiasm .
#   docker run --rm --shm-size=1g -v "$PWD:/data" --user "$(id -u):$(id -g)" chiasm demo
#
# UNTRIED: no image was ever built from this file. Its RUN steps were carried out by hand, and
# hadolint finds nothing. On a machine without a GPU, name an index of CPU wheels of torch:
#   docker build --build-arg PIP_ARGS="--extra-index-url INDEX" -t chiasm .
FROM python:3.12-slim

ARG EXTRA=cpu
ARG PIP_ARGS=""

WORKDIR /src
COPY pyproject.toml constraints.txt MANIFEST.in README.md LICENSE ./
COPY pipeline pipeline
COPY index index
COPY jobs jobs
# Its links lead to the three folders above.
COPY chiasm chiasm
# PIP_ARGS is several words: no quotes.
# hadolint ignore=SC2086
RUN pip install --no-cache-dir -c constraints.txt $PIP_ARGS ".[$EXTRA]" \
    && rm -rf /src/* \
    && useradd --create-home --uid 1000 chiasm

# --user may name somebody who has no home.
ENV HOME=/tmp \
    RAY_USAGE_STATS_ENABLED=0
USER 1000
WORKDIR /data
ENTRYPOINT ["chiasm"]
CMD ["--help"]
