# Two commands, on any machine with Python 3.11 or newer, git and make:
#   make compare   measure the systems on this machine; prints tables, leaves the figures in reports/
#   make test      the whole test suite
# Both build the environment in .venv on first use. PYTHON=… chooses the interpreter; a torch that it
# already has is used as it is.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: compare test clean

compare: $(READY)
	@mkdir -p reports
	@$(BIN)/python -m regardant cost --json > reports/cost.json

test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

$(READY): pyproject.toml .ci/environment
	@PYTHON="$(PYTHON)" .ci/environment $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) reports
