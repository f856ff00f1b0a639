# The two commands of the README are `make repro` and `make test`. Both set up what they need, once.
SHELL := /bin/bash
PYTHON ?= python3
PRESET ?= default
JOBS ?= 1
# Of `make teachers`, beside that of the workspace: numbers from 1 on
TEACHERS ?= 1 2
# Of `make lab`, for jupyter lab, such as --no-browser; of `make browse`, such as --shots FOLDER
LAB ?=
BROWSE ?=
# Of `make plots`, for dvc plots show
PLOTS ?=

# With no environment active, .venv is made and used; an active one is taken as it is.
ifeq ($(VIRTUAL_ENV)$(CONDA_PREFIX),)
ENV := .venv/.installed
export PATH := $(CURDIR)/.venv/bin:$(PATH)
else
ENV := active-env
endif


.PHONY: repro test fuzz howto by-hand lab check docs browse plots preset new cost teachers export clean active-env
.DELETE_ON_ERROR:

repro: $(ENV)              ## run what is out of date, from data to the report
	@git rev-parse --git-dir >/dev/null 2>&1 || dvc config --local core.no_scm true # DVC refuses a folder without git
	dvc repro -q prepare
	-@python -m clarep.pipeline.progress
	CLAREP_PLAN=.scratch/plan.json dvc repro
	@echo "The report: runs/report/index.html (Markdown: runs/report/report.md). Numbers that lead to their notebooks: make docs"

test: $(ENV)               ## every notebook's asserts and the tests; ends with pytest's summary
	python -m pytest

fuzz: $(ENV)               ## thousands of random folders and damaged images; some minutes
	python -m pytest -n 0 -m fuzz

howto: $(ENV)              ## every recipe of nbs/howto.ipynb as it is written, at smoke size; half an hour
	python -m pytest -n 0 -m howto

by-hand: | $(ENV)          ## stage notebooks at smoke size, to play with; they never write to runs/
	python .jupyter/by_hand.py

lab: $(ENV) by-hand        ## JupyterLab: the tour, all notebooks; saving cleans
	JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter" JUPYTER_PREFER_ENV_PATH=1 jupyter lab $(LAB)

check: $(ENV)              ## export leaves no diff, notebooks are clean, lint, links
	ruff check .
	python .ci/check.py

docs: $(ENV)               ## the site, into _docs
	python docs/build.py

browse: $(ENV)             ## open every page of the site in headless Chromium (after make docs); says what it lacks
	python docs/browse.py $(BROWSE)

plots: $(ENV)              ## dvc plots without a network: make plots PLOTS="runs/student/ce-0/history.csv -x epoch -y ce"
	python docs/plots.py $(PLOTS)

preset: $(ENV)             ## write params.yaml from presets: make preset PRESET=smoke, or PRESET="imagenet-dit-xl smoke"
	python -m clarep.params $(PRESET)

# In a terminal, what is missing is asked for; a teacher is a folder, a hub id, or train
new: $(ENV)                ## a project of your own: make new NAME=birds TITLE="..." IMAGES=DIR TEACHER=train MASKS=DIR DEST=DIR
	@python -m clarep.pipeline.new --name "$$NAME" --title "$$TITLE" --images "$$IMAGES" --teacher "$$TEACHER" --masks "$$MASKS" --dest "$$DEST"

cost: $(ENV)               ## what the present params.yaml will cost, before it runs
	python -m clarep.pipeline.estimate

# Two at a time on two cores: make teachers JOBS=2 OMP_NUM_THREADS=1
teachers: $(ENV)           ## two more teachers and all that follows from them: how far the results hold (after make repro)
	for n in $(TEACHERS); do \
	  settings=$$(python -m clarep.report.population --settings $$n) || exit 1; \
	  dvc exp remove -q teacher-$$n 2>/dev/null; dvc exp run --queue -n teacher-$$n $$settings || exit 1; done
	dvc exp run --run-all -j $(JOBS)
	python -m clarep.report.population workspace $(TEACHERS:%=teacher-%)

export: $(ENV)             ## notebooks to library; parameters cells; what stages depend on
	nbdev-export
	python -m clarep.pipeline.prepare --parameters
	nbdev-clean
	dvc repro -q --single-item prepare

clean:                     ## what can be made again; never data, runs or the DVC cache
	rm -rf .venv .scratch live/* _docs _proc .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"error: Python 3.10 or newer is needed, $(PYTHON) is {sys.version.split()[0]}; name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -q --no-compile -r requirements.lock
	.venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true  # what pip would do on one core, sources of other Pythons skipped
	.venv/bin/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	touch $@

active-env:
	@python -c 'import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, "clarep dvc dvclive nbdev papermill torch".split())))' || { echo "error: the active environment lacks what clarep needs: pip install -r requirements.lock && pip install --no-deps -e .  (or deactivate it: make then keeps its own .venv)"; exit 1; }

# Of this repository's experiment; `make new` leaves out all that follows
.PHONY: check-readme readme bench rho ladder stability filters large teacher-recipes small findings
# Of `make ladder`
GAINS ?= 0.35 0.6 0.85 1.0
# Of papermill, for a benchmark: make bench OPTIONS="-y '{num_directions: [10]}'"
OPTIONS ?=
BENCHMARK := mkdir -p .scratch && papermill --cwd . --log-output --no-progress-bar nbs/benchmarks

check: check-readme

check-readme: $(ENV)
	python docs/readme.py --check

readme: $(ENV)             ## copy the table of the default's report into README.md
	python docs/readme.py

bench: $(ENV)              ## the kernel beside other algorithms, into bench/ (needs a trained teacher: make repro)
	$(BENCHMARK)/jacobian.ipynb .scratch/jacobian.ipynb $(OPTIONS)

# Lighter with `make preset PRESET=rho` first; two at a time on two cores: make rho JOBS=2 OMP_NUM_THREADS=1
rho: $(ENV)                ## the pipeline at five strengths of the tie between class and background, and two numbers of images
	for rho in 0.75 0.5 0.65 0.8 0.95; do dvc exp remove -q rho-$$rho 2>/dev/null; dvc exp run --queue -n rho-$$rho -S data.rho=$$rho || exit 1; done
	for n in 4000 1000; do dvc exp remove -q train-$$n 2>/dev/null; dvc exp run --queue -n train-$$n -S data.n_train=$$n || exit 1; done
	dvc exp run --run-all -j $(JOBS)
	python -m clarep.report.dependence rho-0.75 rho-0.5 rho-0.65 rho-0.8 rho-0.95 train-1000 train-4000

# Lighter with `make preset PRESET=ladder` first; two at a time on two cores: make ladder JOBS=2 OMP_NUM_THREADS=1
ladder: $(ENV)             ## when does CLARID work: selectivity at four gains of the background
	for gain in $(GAINS); do dvc exp remove -q gain-$$gain 2>/dev/null; \
	  dvc exp run --queue -n gain-$$gain -S data.background_gain=$$gain representation || exit 1; done
	dvc exp run --run-all -j $(JOBS)
	python -m clarep.report.ladder $(GAINS:%=gain-%)

stability: $(ENV)          ## does stage select choose the same with other threads and probes? into bench/ (needs a trained teacher: make repro)
	$(BENCHMARK)/select_stability.ipynb .scratch/stability.ipynb $(OPTIONS)

filters: $(ENV)            ## would a blur, a low-pass or noise do as well as CLARID? into bench/ (needs CLAReps: make repro)
	$(BENCHMARK)/filters.ipynb .scratch/filters.ipynb $(OPTIONS)

large: $(ENV)              ## CLARID at the size of DiT-XL/2, into bench/ (needs a GPU)
	$(BENCHMARK)/large.ipynb .scratch/large.ipynb $(OPTIONS)

teacher-recipes: $(ENV)    ## ways to train the teacher, each for the same time, into bench/ (needs the data: make repro)
	$(BENCHMARK)/teacher_recipes.ipynb .scratch/recipes.ipynb $(OPTIONS)

small: $(ENV)              ## the small teacher of the tour, into models/small; ten minutes
	$(BENCHMARK)/small_teacher.ipynb .scratch/small_teacher.ipynb -p commit "$$(git rev-parse --short HEAD)" $(OPTIONS)

findings: $(ENV)           ## the notebooks of findings, anew from the committed tables in bench/ and docs/results/
	jupyter nbconvert --to notebook --execute --inplace nbs/findings/*.ipynb
	nbdev-clean
