# Images of the zoo. The argument EXTRA chooses the accelerator: empty for CPU, or cuda12, cuda13, tpu.
#   docker build -t zoo .
#   docker build -t zoo-cuda --build-arg EXTRA=cuda13 .
#   docker run --rm --gpus all -v "$PWD:/work" zoo-cuda train gpt-nano
# The CUDA libraries come from Python packages, so that the image needs only the driver of its host.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY zoo zoo
COPY train train
COPY eval eval
COPY benchmarks benchmarks
ARG EXTRA=""
RUN python -m venv /opt/zoo \
    && PIP_CONSTRAINT=/source/constraints.txt /opt/zoo/bin/pip install --no-cache-dir ".${EXTRA:+[$EXTRA]}"

FROM python:${PYTHON}-slim
COPY --from=build /opt/zoo /opt/zoo
RUN useradd --create-home --uid 1000 zoo && install -d -o zoo -g zoo /work
USER 1000
WORKDIR /work
ENV PATH=/opt/zoo/bin:$PATH
ENTRYPOINT ["zoo"]
CMD ["--help"]
