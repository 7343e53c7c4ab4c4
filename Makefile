# One line a target over the two command lines; .venv is made from the lock by itself.
PYTHON ?= python3
BACKEND ?= local
ROOT ?=
PY = .venv/bin/python
JOBS = $(PY) -m jobs
WHERE = $(GRID) --backend $(BACKEND) $(if $(ROOT),--root $(ROOT)) $(ARGS)

.PHONY: demo test soak soak-local soak-cloud soak-properties check lint bench plan submit status logs stop report reap drill rehearse lock image push
.DEFAULT_GOAL := help

help:
	@echo "make demo | test | check | bench | soak"
	@echo "make plan | submit | status | stop | report | reap   GRID=grids/x.yaml [ROOT=studies] [BACKEND=...] [ARGS=...]"
	@echo "    BACKEND=local (default) | sagemaker | sagemaker-local [IMAGE=artclf:latest]"
	@echo "make logs GRID=grids/x.yaml ARGS=TRIAL"
	@echo "make drill GRID=grids/x.yaml [ARGS=--faults 8]   rehearse interruptions here"
	@echo "make rehearse GRID=grids/x.yaml BACKEND=sagemaker    the cloud without an account"
	@echo "make image | push   [IMAGE=artclf] [BASE_IMAGE=...] [TF_PACKAGE='tensorflow[and-cuda]']"

demo: .venv/ready
	$(JOBS) submit grids/demo.yaml $(if $(ROOT),--root $(ROOT)) $(ARGS)

plan submit: export ARTCLF_IMAGE := $(or $(ARTCLF_IMAGE),$(IMAGE))
plan submit status stop report reap logs drill: .venv/ready
	$(if $(GRID),,$(error which grid? for example: make $@ GRID=grids/demo.yaml))
	$(JOBS) $@ $(WHERE)
submit: $(if $(filter sagemaker-local,$(BACKEND)),.venv/cloud)

rehearse: .venv/ready
	$(if $(GRID),,$(error which grid? for example: make $@ GRID=grids/demo.yaml))
	$(PY) -m tests.fake_aws $(GRID) --backend $(if $(filter local,$(BACKEND)),sagemaker,$(BACKEND)) $(ARGS)

test: .venv/ready
	tests/packages.sh
	tests/docker.sh
	$(PY) -m pytest -n 3 --dist worksteal $(HANG) $(ARGS)
# A test that hangs ends, with what each of its threads was at.
HANG = -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true
# The long forms of the fault tests: of a run on this machine, then of runs and studies in a bucket; and new examples for
# all properties, which elsewhere are tried with the same ones each time.
soak: soak-local soak-cloud soak-properties
soak-local soak-cloud soak-properties: .venv/ready
	tests/packages.sh
	$(PY) -m pytest -n 2 --dist worksteal --soak $(SOAK_$(@:soak-%=%)) $(ARGS)
SOAK_properties = -m hypothesis
SOAK_local = tests/faults tests/artclf/test_checkpoint.py
SOAK_cloud = tests/artclf/test_s3.py tests/artclf/test_cache.py tests/container/test_remote.py tests/container/test_credentials.py \
	tests/jobs/test_sagemaker.py tests/jobs/test_sagemaker_backend.py tests/jobs/test_bucket_study.py tests/jobs/test_rehearsal.py
lint: .venv/ready
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy artclf jobs container tests bench
check: lint test
bench: .venv/ready
	$(PY) -m bench $(ARGS)

# The image of all backends; IMAGE, BASE_IMAGE and TF_PACKAGE reach the script by the environment.
image:
	container/image.sh $(ARGS)
push: .venv/ready
	$(PY) -m jobs.push --image $(or $(IMAGE),artclf):latest $(if $(REPOSITORY),--repository $(REPOSITORY)) $(ARGS)

# The environment: exactly what the lock says, every file checked by its hash.
.venv/ready: requirements.lock pyproject.toml
	@echo "setting up .venv, once: about 2 GB"
	@$(PYTHON) -m venv .venv
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	@.venv/bin/uv pip install --quiet --python $(PY) --require-hashes -c requirements.lock -r pyproject.toml --extra cpu --extra s3 --extra dev
	@touch $@
# The cloud group besides: the SageMaker SDK, which only BACKEND=sagemaker-local needs.
.venv/cloud: .venv/ready
	@echo "adding the SageMaker SDK to .venv, once: about 0.5 GB"
	@.venv/bin/uv pip install --quiet --python $(PY) --require-hashes -c requirements.lock -r pyproject.toml --extra cpu --extra s3 --extra dev --extra cloud
	@touch $@
lock: .venv/ready
	.venv/bin/uv pip compile pyproject.toml --extra cpu --extra gpu --extra s3 --extra cloud --extra dev --universal --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --python-version 3.11 -o requirements.lock
