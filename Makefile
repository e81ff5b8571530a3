# `make run` watches a BERT learn, `make test` checks everything; each sets itself up first.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

installed := .venv/.installed
bin := .venv/bin
bert := runs/step2_bert

.PHONY: help run test lint format report clean

help:
	@echo "make run     step 2 end to end: raw text -> BERT -> fine-tuned -> runs/report.html"
	@echo "make test    ruff, import-linter, pytest"
	@echo "make lint    ruff and import-linter alone; make format mends what ruff can"
	@echo "make report  refresh the tables in README.md and the notes from notes/results"
	@echo "make clean   remove .venv and caches; runs/ stays"

$(installed): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(bin)/python -m pip install --disable-pip-version-check --requirement requirements.txt
	@touch $@

run: $(installed)
	$(bin)/python step2_bert/prepare.py --data sotu+imdb --out $(bert)/text
	$(bin)/python step2_bert/pretrain.py --data $(bert)/text --max-minutes 5 --out $(bert)/pretrain --resume
	$(bin)/python step2_bert/evaluate.py --model $(bert)/pretrain/model --data $(bert)/text --out $(bert)/evaluate --resume
	$(bin)/python step2_bert/finetune_sentence.py --model $(bert)/pretrain/model --random --out $(bert)/rt-random --resume
	$(bin)/python step2_bert/finetune_sentence.py --model $(bert)/pretrain/model --out $(bert)/rt-pretrained --resume
	$(bin)/python step2_bert/finetune_sentence.py --model minilm --seeds 2 --epochs 1 --learning-rate 1e-4 --eval-every 100 --out $(bert)/rt-minilm --resume
	$(bin)/python -m common.report --runs $(bert) --html runs/report.html

# One thread each: two workers, and all that they start, would wait for each other's on two cores
test: lint
	OMP_NUM_THREADS=1 $(bin)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(installed)
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/lint-imports --no-logo

format: $(installed)
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

report: $(installed)
	$(bin)/python -m common.report

clean:
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
