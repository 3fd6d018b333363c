# purify on the CPU; how to build and run it: docs/start/install.md
FROM python:3.11-slim

# Wheels of torch for the CPU alone: pass their index by --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MPLCONFIGDIR=/tmp/matplotlib

COPY pyproject.toml README.md LICENSE /src/
COPY purify /src/purify
COPY attacks /src/attacks
COPY benchmarks /src/benchmarks
COPY configs /src/configs
RUN pip install /src && rm -r /src

RUN useradd --create-home purify && install -d -o purify -g purify /results /results/runs
USER purify
WORKDIR /results
ENTRYPOINT ["purify"]
CMD ["--help"]
