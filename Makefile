# Two commands, on any machine with Python 3.11 or newer, git and make:
#   make compare   compare systems on this machine, cost and quality, within four minutes; prints the table
#                  and where the report lies. What was measured before, by the same code, is not again.
#   make test      the whole test suite
# and, for whoever changes a card or its evidence, `make tables`: the tables of the README, made anew.
# All build the environment in .venv on first use. PYTHON=… chooses the interpreter; a torch that it
# already has is used as it is.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: compare test tables clean

compare: $(READY)
	@$(BIN)/python -m regardant compare --out reports/compare

test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

tables: $(READY)
	@$(BIN)/python -m regardant.atlas.readme
	@$(BIN)/python -m regardant.compare.variants

$(READY): pyproject.toml .ci/environment
	@PYTHON="$(PYTHON)" .ci/environment $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) reports
