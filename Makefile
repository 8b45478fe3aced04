PYTHON ?= python3
VENV ?= .venv
PEER_VENV ?= .venv-peer
BIN = $(VENV)/bin
READY = $(VENV)/.ready
DOCS_READY = $(VENV)/.docs-ready
PEER_READY = $(PEER_VENV)/.ready
QUALITY_READY = $(VENV)/.quality-ready
TEACHERS_READY = $(VENV)/.teachers-ready
STREAMING_VENV ?= .venv-streaming
STREAMING_READY = $(STREAMING_VENV)/.ready

# The oldest versions of all that is depended on, on Python 3.11.
OLDEST_VENV ?= .venv-oldest
OLDEST_READY = $(OLDEST_VENV)/.ready

# Caches under the oldest transformers that is supported, whose contract differs from the newest's.
TRANSFORMERS_VENV ?= .venv-transformers
TRANSFORMERS_READY = $(TRANSFORMERS_VENV)/.ready

# Programs that speak through OpenAI, to be served: node with npm, and 1 GB.
CLIENTS ?= .venv-clients
CLIENTS_READY = $(CLIENTS)/.ready

TEXT ?= Hello. This sentence was spoken on this machine.
OUT ?= say.wav
export SAY_TEXT = $(value TEXT)
export SAY_OUT = $(value OUT)
unexport TEXT OUT  # make expands what it exports, and would run a $(shell ...) in a text

# Where a benchmark's result goes: not into the tree, unless asked. `make gate`, docs and `make report` are of
# benchmarks/results, so a result that is to be committed is made with RESULTS=benchmarks/results.
RESULTS ?= build/results

# Data and checkpoints of the embedded voice's training; every stage resumes from here.
WORK ?= tiny-work
STAGES ?= data speakers tokenizer flow vocoder t3 export

.PHONY: say serve test test-browser test-openapi test-clients test-thorough test-slow test-oldest test-transformers test-peer peer-env streaming-env gate structure style types docs format clean train-tiny voice-eval memory soak quality quality-env teachers-env meters judging-flow bench-precision bench-s3gen bench-loading bench-realtime bench-kvcache bench-peer bench-streaming bench-streams bench-serve serve-soak serve-killed streaming-hour report shim

say: $(READY)
	@$(BIN)/chatterbox say --output="$$SAY_OUT" $(ARGS) -- "$$SAY_TEXT"

serve: $(READY)
	@$(BIN)/chatterbox serve $(ARGS)

# A process for each core, and one thread in it: the models of the tests are small. JOBS=0 is one process, as `pytest` is.
JOBS ?= auto
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile $(ARGS)

# The server's page in a browser: apt-get install chromium.
test-browser: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt playwright
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/integration/test_serve_page.py $(ARGS)

# Requests that schemathesis makes of the server's description of itself.
test-openapi: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt schemathesis
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m schemathesis tests/integration/test_serve_openapi.py $(ARGS)

# OpenAI's package for node, LiveKit's and Pipecat's own code against the server.
test-clients: $(READY) $(CLIENTS_READY)
	CHATTERBOX_CLIENTS="$(abspath $(CLIENTS))" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m clients $(ARGS)

# More of the same, of which `make test` has a part (tests/thorough.py).
test-thorough: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile -m "thorough and not slow" $(ARGS)

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu and not peer and not browser" $(ARGS)

test-oldest: $(OLDEST_READY)
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile $(ARGS)

test-transformers: $(TRANSFORMERS_READY)
	CHATTERBOX_TEST_TRANSFORMERS=5.2. $(TRANSFORMERS_VENV)/bin/python -m pytest --noconftest tests/unit/integrations/test_transformers_cache.py $(ARGS)

test-peer: $(READY) $(PEER_READY) $(STREAMING_READY)
	CHATTERBOX_PEER_PYTHON="$(abspath $(PEER_VENV))/bin/python" \
		CHATTERBOX_STREAMING_PYTHON="$(abspath $(STREAMING_VENV))/bin/python" $(BIN)/python -m pytest -m peer $(ARGS)

train-tiny: $(TEACHERS_READY)
	set -e; for stage in $(STAGES); do $(BIN)/python -m tools.tiny_voice $$stage --work $(WORK) $(ARGS); done

voice-eval: $(QUALITY_READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.tiny_voice.evaluate -o $(RESULTS)/voice_eval.json $(ARGS)

memory: $(READY)
	$(BIN)/python -m benchmarks.speed.memory -o $(RESULTS)/memory.json $(ARGS)

# Leaks: a thousand generations that differ in all a user can vary; ARGS="--hours 8" is a night.
soak: $(READY)
	$(BIN)/python -m benchmarks.speed.soak -o $(RESULTS)/soak.json $(ARGS)

# Meters of speech (extra `quality`), and what each can tell apart; needs flite.
quality-env: $(QUALITY_READY)

# Who teaches the embedded voice; apt-get install flite festival festvox-us-slt-hts wamerican-large.
teachers-env: $(TEACHERS_READY)

meters: $(QUALITY_READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quality.known_material -o $(RESULTS)/meters.json $(ARGS)

# A flow to judge S3Gen by, which `make train-tiny STAGES="judging_flow export_judging_flow"` makes; needs flite.
judging-flow: $(QUALITY_READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quality.judging_flow -o $(RESULTS)/judging_flow.json $(ARGS)

# What each cache policy costs in speech: needs flite, takes hours, goes on where it stopped.
QUALITY_WORK ?= quality-work
quality: $(QUALITY_READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quality.quality --work $(QUALITY_WORK) \
		-o $(RESULTS)/quality.json $(ARGS)

# What each precision buys and costs: minutes; nothing else should run.
bench-precision: $(READY)
	$(BIN)/python -m benchmarks.speed.precision -o $(RESULTS)/precision.json $(ARGS)

# What a piece of a stream costs S3Gen, by what it remembers; what loading takes; how near to real time a stream is. The last
# two write 11 GiB below build/.
bench-s3gen: $(READY)
	$(BIN)/python -m benchmarks.speed.s3gen -o $(RESULTS)/s3gen.json $(ARGS)

bench-realtime: $(READY)
	$(BIN)/python -m benchmarks.speed.realtime -o $(RESULTS)/realtime.json $(ARGS)

bench-loading: $(READY)
	$(BIN)/python -m benchmarks.speed.loading -o $(RESULTS)/loading.json $(ARGS)

# Key-value cache at the published size, against chatterbox-tts 0.1.7's own loop: about a quarter of an hour on two cores.
bench-kvcache: $(READY) $(PEER_READY)
	$(BIN)/python -m benchmarks.speed.linear -o $(RESULTS)/linear.json
	$(BIN)/python -m benchmarks.kvcache.prefill -o $(RESULTS)/prefill.json
	$(BIN)/python -m benchmarks.kvcache.t3_decode --peer "$(abspath $(PEER_VENV))/bin/python" -o $(RESULTS)/t3_decode.json
	$(BIN)/python -m benchmarks.kvcache.decode_memory -o $(RESULTS)/decode_memory.json
	$(BIN)/python -m benchmarks.kvcache.codecs -o $(RESULTS)/codecs.json
	$(BIN)/python -m benchmarks.kvcache.eviction --costs $(RESULTS)/prefill.json -o $(RESULTS)/eviction.json

# Against the packages this one replaces, in turn, at the published size: an hour on two cores, minutes with ARGS=--quick,
# whose result goes to peer_quick.json. The checkpoint with synthetic weights takes 6 GiB under build/.
PEER_RESULT = $(if $(findstring --quick,$(ARGS)),peer_quick,peer)
bench-peer: $(READY) $(PEER_READY) $(STREAMING_READY)
	$(BIN)/python -m benchmarks.speed.baselines --peer "$(abspath $(PEER_VENV))/bin/python" \
		--streaming "$(abspath $(STREAMING_VENV))/bin/python" -o $(RESULTS)/$(PEER_RESULT).json $(ARGS)

# Streaming with the embedded voice: a quarter of an hour on two cores, two minutes with ARGS=--quick.
bench-streaming: $(READY)
	$(BIN)/python -m benchmarks.streaming.streaming -o $(RESULTS)/streaming.json $(ARGS)

# Many streams at once, beside the packages this one replaces: half an hour on two cores; ARGS="--only tiny" is one part,
# ARGS="--only one --against SRC" compares with the src folder of another checkout.
bench-streams: $(READY) $(PEER_READY) $(STREAMING_READY)
	$(BIN)/python -m benchmarks.speed.streams --peer "$(abspath $(PEER_VENV))/bin/python" \
		--streaming "$(abspath $(STREAMING_VENV))/bin/python" -o $(RESULTS)/streams.json $(ARGS)

# The server as its clients know it: under half an hour on two cores, ten minutes without the peer's part; nothing else
# should run. ARGS="--only first_audio" is one part. The other two are about errors and memory: ten minutes each.
bench-serve: $(READY) $(PEER_READY)
	$(BIN)/python -m benchmarks.serve.serve --peer "$(abspath $(PEER_VENV))/bin/python" -o $(RESULTS)/serve.json $(ARGS)

serve-soak: $(READY)
	$(BIN)/python -m benchmarks.serve.soak -o $(RESULTS)/serve_soak.json $(ARGS)

serve-killed: $(READY)
	$(BIN)/python -m benchmarks.serve.killed -o $(RESULTS)/serve_killed.json $(ARGS)

# An hour of audio in one stream, in each continuity: goes on with the mode that it was at; half an hour on one core.
streaming-hour: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.streaming.hour -o $(RESULTS)/streaming_hour.json $(ARGS)

# docs/benchmarks.md and its plots, of the results that lie in benchmarks/results.
report: $(READY)
	$(BIN)/python -m benchmarks.lib.report

# Ratios between policies in one run; fails where a cache has lost its purpose.
gate: $(READY)
	$(BIN)/python -m benchmarks.kvcache.gate $(ARGS)

# Circles of files, files that a call enters, what importing brings, long signatures; fails where one is over its bound.
structure: $(READY)
	$(BIN)/python tools/structure.py $(ARGS)

style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

docs: $(DOCS_READY)
	$(BIN)/mkdocs build

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/configuration_tables.py
	$(BIN)/python docs/module_table.py

peer-env: $(PEER_READY)

streaming-env: $(STREAMING_READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

$(DOCS_READY): $(READY) docs/constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -c docs/constraints.txt -e ".[docs]"
	@touch $@

$(QUALITY_READY): $(READY) requirements-quality.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-quality.txt
	@touch $@

$(TEACHERS_READY): $(QUALITY_READY) requirements-teachers.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-teachers.txt
	@touch $@

$(PEER_READY): tests/peer/requirements.txt tests/peer/requirements-nodeps.txt
	test -x $(PEER_VENV)/bin/python || $(PYTHON) -m venv $(PEER_VENV)
	$(PEER_VENV)/bin/python -m pip install --quiet -r tests/peer/requirements.txt
	$(PEER_VENV)/bin/python -m pip install --quiet --no-deps -r tests/peer/requirements-nodeps.txt
	rm -f $(PEER_VENV)/lib/python*/site-packages/torchaudio/lib/*.so  # built against CUDA, and not needed
	@touch $@

$(CLIENTS_READY): tests/clients/requirements.txt tests/clients/package.json
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet -r tests/clients/requirements.txt
	cp tests/clients/package.json $(CLIENTS)/
	npm install --prefix $(CLIENTS) --no-audit --no-fund
	@touch $@

$(STREAMING_READY): tests/peer/requirements-streaming.txt tests/peer/requirements-streaming-nodeps.txt
	test -x $(STREAMING_VENV)/bin/python || $(PYTHON) -m venv $(STREAMING_VENV)
	$(STREAMING_VENV)/bin/python -m pip install --quiet -r tests/peer/requirements-streaming.txt
	$(STREAMING_VENV)/bin/python -m pip install --quiet --no-deps -r tests/peer/requirements-streaming-nodeps.txt
	rm -f $(STREAMING_VENV)/lib/python*/site-packages/torchaudio/lib/*.so  # as above
	@touch $@

$(OLDEST_READY): pyproject.toml constraints-oldest.txt
	test -x $(OLDEST_VENV)/bin/python || $(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --quiet -c constraints-oldest.txt setuptools wheel
	$(OLDEST_VENV)/bin/python -m pip install --quiet -c constraints-oldest.txt -e ".[dev]"
	@touch $@

$(TRANSFORMERS_READY): tests/requirements-transformers.txt
	test -x $(TRANSFORMERS_VENV)/bin/python || $(PYTHON) -m venv $(TRANSFORMERS_VENV)
	$(TRANSFORMERS_VENV)/bin/python -m pip install --quiet -r tests/requirements-transformers.txt
	$(TRANSFORMERS_VENV)/bin/python -m pip install --quiet --no-deps -e .
	@touch $@

# A chatterbox-tts without files, for programs that require that name (docs/migrating.md).
shim: $(READY)
	rm -rf build/shim
	mkdir -p build/shim
	cp tools/shim/pyproject.toml build/shim
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w dist build/shim

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache
