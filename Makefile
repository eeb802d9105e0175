# flowlab: `make demo` and `make test` work from a bare checkout with nothing but Python >= 3.11.

PYTHON ?= python3
VENV := .venv
JAX := .venv-jax
SDV := .venv-sdv
ARF := .venv-arf
ARGN := .venv-argn
UTREES := .venv-utrees
LOCK := .venv-lock
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-fast test-slow test-matrix lint format lock audit dist docs clean bench bench-quick bench-speed bench-fits \
	bench-scaling bench-density bench-seeds bench-truths bench-synthesis bench-literature bench-posteriors bench-verdicts \
	bench-ecosystem fuzz reliability

help:  ## say what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/'

# The environment is made once, and again only when the requirements change.
$(READY): pyproject.toml constraints.txt
	@echo "== setting up $(VENV) (Python packages, a few minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
ifdef LOCKED
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-ci.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
endif
	touch $@

# The tools of the two targets below; they are no part of what flowlab needs.
$(LOCK)/.ready:
	test -x $(LOCK)/bin/python || $(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/python -m pip install --quiet --disable-pip-version-check uv pip-audit
	touch $@

# torch is left out: its builds differ by platform, so that its version is pinned and no hash of it.
lock: $(LOCK)/.ready  ## after a change of constraints.txt: the hashes of all its packages, in requirements-ci.txt
	$(LOCK)/bin/uv pip compile constraints.txt --quiet --upgrade --no-deps --generate-hashes --no-annotate \
		--no-emit-package torch --custom-compile-command "make lock" -o requirements-ci.txt

# --strict: a package that the advisory database was not asked about is a failure, not a pass.
audit: $(LOCK)/.ready  ## are there known vulnerabilities in what CI installs? asks a database in the network
	$(LOCK)/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

demo: $(READY)  ## fit real tables, compare on held-out rows, write models, rows and pictures to demo/
	$(BIN)/flowlab demo -o demo

test: $(READY) lint  ## lint, types, tests and doctests
	@echo "== tests"
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=20

# Left out beside what is slow: other libraries, polars and pyarrow, reports, wheels and fresh processes, doctests.
test-fast: $(READY)  ## for daily work: one case of each test, in under three minutes on two cores
	@echo "== one case of each test"
	$(BIN)/python -m pytest -n 2 --dist worksteal --first-case tests \
		--ignore=tests/interop --ignore=tests/tables/frames --ignore=tests/report --ignore=tests/test_package.py

test-slow: $(READY)  ## the tests that take long
	@echo "== slow tests"
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

test-matrix:  ## the tests under further Pythons and torches, where they are at hand; ARGS="--help" says more
	$(PYTHON) .ci/matrix.py $(ARGS)

lint: $(READY)  ## ruff, mypy, and what may import what
	@echo "== lint and types"
	$(BIN)/ruff check flowlab tests examples datasets benchmarks
	$(BIN)/ruff format --check flowlab tests examples datasets benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY)  ## format the code
	$(BIN)/ruff format flowlab tests examples datasets benchmarks
	$(BIN)/ruff check --fix flowlab tests examples datasets benchmarks

# The peers of the speed benchmark; FlowJAX lives in an environment of its own.
$(VENV)/.bench: $(READY)
	@echo "== installing the libraries to compare with"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	test -x $(JAX)/bin/python || $(PYTHON) -m venv $(JAX)
	$(JAX)/bin/python -m pip install --quiet --disable-pip-version-check "flowjax>=19"
	touch $@

# Synthesizers to compare with, each in an environment of its own: they need other numpy, pandas, scikit-learn or torch
# than flowlab has.
$(SDV)/.ready:
	@echo "== setting up $(SDV)"
	test -x $(SDV)/bin/python || $(PYTHON) -m venv $(SDV)
	$(SDV)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(SDV)/bin/python -m pip install --quiet --disable-pip-version-check "sdv>=2" pyarrow
	touch $@

$(ARF)/.ready:
	@echo "== setting up $(ARF)"
	test -x $(ARF)/bin/python || $(PYTHON) -m venv $(ARF)
	$(ARF)/bin/python -m pip install --quiet --disable-pip-version-check "arfpy==0.1.1" "numpy<2.4" "pandas<3" pyarrow
	touch $@

SYNTHESIZERS := $(SDV)/.ready $(ARF)/.ready $(ARGN)/.ready $(UTREES)/.ready

# What comes with it for pictures and sound is built for another torch, and not needed for tables.
$(ARGN)/.ready:
	@echo "== setting up $(ARGN)"
	test -x $(ARGN)/bin/python || $(PYTHON) -m venv $(ARGN)
	$(ARGN)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(ARGN)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 "mostlyai-engine>=2.7" pyarrow
	$(ARGN)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio
	touch $@

$(UTREES)/.ready:
	@echo "== setting up $(UTREES)"
	test -x $(UTREES)/bin/python || $(PYTHON) -m venv $(UTREES)
	$(UTREES)/bin/python -m pip install --quiet --disable-pip-version-check "utrees==0.3.0" "scikit-learn<1.6" pyarrow
	touch $@

# A target for each benchmark: benchmarks/README.md has their questions. ARGS="--help" lists a benchmark's options.
bench: bench-seeds bench-fits bench-scaling  ## seeds of the comparison, whole fits, scaling; twenty minutes

bench-quick: $(READY)  ## is a step slower, relative to zuko's and to its networks, than last recorded? two minutes
	$(BIN)/python benchmarks/quick.py $(ARGS)

bench-speed: $(VENV)/.bench  ## speed against all other flow libraries, on one core and on two; up to an hour each
	$(BIN)/python benchmarks/speed.py --jax-python $(JAX)/bin/python $(ARGS)
	$(BIN)/python benchmarks/speed.py --jax-python $(JAX)/bin/python --cores 2 $(ARGS)

bench-fits: $(READY)  ## whole fits: the time to the likelihood of zuko's own recipe; ten minutes
	$(BIN)/python benchmarks/fits.py $(ARGS)

bench-scaling: $(READY)  ## how cost grows with features, layers, bins, batch and rows; four minutes
	$(BIN)/python benchmarks/scaling.py $(ARGS)

bench-density: $(VENV)/.bench  ## held-out likelihood against other density estimators; two hours, resumes
	$(BIN)/python benchmarks/density.py $(ARGS)

bench-seeds: $(READY)  ## held-out likelihood against baselines over several seeds; six minutes
	$(BIN)/python benchmarks/seeds.py $(ARGS)

bench-truths: $(READY)  ## the gap to densities that are known; half an hour, resumes
	$(BIN)/python benchmarks/truths.py $(ARGS)

bench-synthesis: $(VENV)/.bench $(SYNTHESIZERS)  ## synthetic rows against peers'; seven hours, resumes
	$(BIN)/python benchmarks/synthesis.py --sdv-python $(SDV)/bin/python --arf-python $(ARF)/bin/python \
		--argn-python $(ARGN)/bin/python --utrees-python $(UTREES)/bin/python $(ARGS)

bench-literature: $(VENV)/.bench  ## synthetic rows of tables that papers measure on; an hour, resumes
	$(BIN)/python benchmarks/literature.py $(ARGS)

bench-posteriors: $(READY)  ## fit_posterior() on posteriors with reference draws or known evidence; 15 minutes
	$(BIN)/python benchmarks/posteriors.py $(ARGS)

bench-verdicts: $(READY)  ## is a posterior's verdict ever better than the posterior? half an hour
	$(BIN)/python benchmarks/verdicts.py $(ARGS)

bench-ecosystem: $(READY)  ## how exactly other libraries' flows convert, and ONNX Runtime agrees; half an hour
	$(BIN)/python benchmarks/ecosystem.py $(ARGS)

fuzz: $(READY)  ## hostile model files: 200,000 mutated ones are loaded; hours, ARGS="--scale 0.1" a tenth
	nice -n 10 $(BIN)/python -m benchmarks.faults.files $(ARGS)

reliability: $(READY)  ## kills, hostile files, dirty tables, stress: results/reliability.md; some hours, resumes
	nice -n 10 $(BIN)/python -m benchmarks.reliability $(ARGS)

dist: $(READY)  ## wheel and source distribution in dist/
	$(BIN)/python -m build --no-isolation

docs: $(READY)  ## API pages in site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python -m pdoc --docformat google --output-directory site flowlab

clean:  ## remove everything that was made
	rm -rf $(VENV) $(JAX) $(SDV) $(ARF) $(ARGN) $(UTREES) $(LOCK) .matrix demo site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
