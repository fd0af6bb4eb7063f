# make quickstart   install, then teach the embedded base text-to-SQL and show it before and after
# make test         install, then lint, types, import contract and every test
# make check        lint, types and import contract alone
# make campaign     kills, power failures, full disks, damaged files, too little memory and ten minutes of serving; goes on
# make laws         every method before every law on every base; the tests alone take a sample of some rows
# make interop      adapters of 20 families between PEFT and Lorica, both ways, and what must turn them red
# make tasks        every task taught on drawn rows and on docstrings, beside the head alone; some minutes
# make evidence     methods beside full fine-tuning, each at its best learning rate, on ten fresh seeds; hours, goes on
# make bench        training and serving beside PEFT, HF Trainer, torch.compile, transformers and full fine-tuning; an hour
# make format       put the code into its format

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: quickstart test check format campaign laws interop tasks evidence bench clean

quickstart: .venv/.lorica
	$(BIN)/lorica quickstart

# One thread a worker: two workers already fill the two cores this is timed on.  Bytecode is kept, since every process
# that a test starts would otherwise compile 330 files anew.
test: check
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal

check: .venv/.dev
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

laws: .venv/.dev
	OMP_NUM_THREADS=1 LORICA_LAWS=whole $(BIN)/python -m pytest -n 2 --dist worksteal tests/laws

interop: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m campaign.interop

tasks: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.tasks

evidence: .venv/.dev
	$(BIN)/python -W ignore -m benchmarks.evidence

bench: .venv/.dev
	$(BIN)/python -W ignore -m benchmarks.speed
	$(BIN)/python -W ignore -m benchmarks.serving

format: .venv/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

campaign: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m campaign.runs
	OMP_NUM_THREADS=1 $(BIN)/python -m campaign.files
	OMP_NUM_THREADS=1 $(BIN)/python -m campaign.memory_limit
	$(BIN)/python -W ignore -m campaign.served

clean:
	rm -rf .venv build dist

.venv/.made:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.lorica: .venv/.made pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

.venv/.dev: .venv/.made pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	@touch $@ .venv/.lorica
