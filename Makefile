# Everything happens in .venv/, created and pinned by the first target that needs it.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
DATA   ?= $(EGMF_REAL_DATA)
# Two OpenMP threads beside one busy process ran 60 times slower than one: one thread a process, everywhere.
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo real real-llm clips load test faults soak plan-matrix kernel-tables check docs wheel install clean
install: $(VENV)/installed
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install            ## data and backbone, training on 2 ZeRO-3 ranks under Ray, evaluation, pictures
	$(BIN)/egmf demo

real: install            ## the same steps on MELD's and SIMS-V2's real text: make real DATA=DIR
	$(BIN)/egmf real --data "$(DATA)"

real-llm: install        ## Gemma 3 270M on the same rows, fetched first (Google's terms of use): make real-llm DATA=DIR
	[ -d backbones/gemma3-270m ] || $(BIN)/egmf backbone fetch gemma3-270m --out backbones/gemma3-270m
	$(BIN)/egmf real --data "$(DATA)" --backbone backbones/gemma3-270m

clips: install           ## recordings made here (espeak-ng, one photograph), features, training, answers, the server and its page
	$(BIN)/egmf clips

MODEL ?= models/clips
load: install            ## a server under 8 clients for 60 s, good, huge, broken and slow: make load MODEL=DIR
	$(BIN)/egmf bench serve "$(MODEL)" --out runs/serve --clients 8 --seconds 60

test: install            ## on two cores, a file's tests in one process
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=15

kernel-tables: install   ## the shipped tile tables against the reference, interpreted, at every width: many minutes
	EGMF_KERNEL_TABLES=all $(BIN)/python -m pytest tests/kernels/test_tables.py

faults: install          ## what a run survives (docs/reliability.md), in every ZeRO stage and precision
	EGMF_FAULTS=all $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=25 \
	  tests/launcher/test_hosts.py tests/launcher/test_runs.py tests/distributed/test_elastic.py tests/launcher/test_kills.py \
	  tests/distributed/test_hangs.py tests/distributed/test_stopping.py tests/distributed/test_training.py tests/launcher/test_ray.py \
	  tests/launcher/test_ray_guard.py tests/distributed/test_bad_data.py tests/distributed/test_disks.py tests/egmf_dist/test_checkpoint.py \
	  tests/egmf_dist/test_saver.py tests/egmf_dist/test_lock.py

soak: install            ## twenty kills at random moments of random processes: half an hour
	EGMF_FAULTS=soak $(BIN)/python -m pytest tests/launcher/test_kills.py

plan-matrix: install     ## plans against trainings that run: every stage, 2 and 4 ranks, fp32 and bf16, gathered once and again
	EGMF_PLAN=all $(BIN)/python -m pytest -n 1 tests/distributed/test_plan_actual.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install            ## the site of README.md and docs/: site/index.html; a link or an anchor that leads nowhere ends it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: install           ## build it and use it in an empty environment outside the clone; installs 3 GB, for a while
	PYTHON=$(CURDIR)/$(BIN)/python .ci/wheel

clean:
	rm -rf $(VENV) runs data backbones models hosts site
