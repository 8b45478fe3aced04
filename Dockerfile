# Speech for OpenAI's clients, on the CPU. docs/serving.md, In a container.
FROM python:3.11-slim

# Of torch the build without CUDA, as long as it is the version of constraints.txt.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

# README.md, Extras: speed, normalize and multilingual are of use to a server too.
ARG EXTRAS=serve
WORKDIR /opt/chatterbox
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY configs ./configs
COPY src ./src
RUN pip install -c constraints.txt ".[${EXTRAS}]"

# Voices, jobs, and models from the hub.
ENV XDG_DATA_HOME=/data \
    HF_HOME=/data/huggingface
RUN useradd --create-home --uid 1000 chatterbox && install -d -o chatterbox -g chatterbox /data
USER chatterbox
WORKDIR /home/chatterbox
VOLUME /data

EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]

# Needs CHATTERBOX_API_KEY. What follows the image's name are more arguments: --model turbo.
ENTRYPOINT ["chatterbox", "serve", "--host", "0.0.0.0"]
