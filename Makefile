# Two commands: `make demo` and `make test`. Each sets up what it needs in .venv first.
PYTHON ?= python3.11
VENV := .venv

.PHONY: demo test test-slow clean

demo: $(VENV)/demo
	$(VENV)/bin/optin demo

test: $(VENV)/dev
	. $(VENV)/bin/activate && scripts/check && scripts/test

# All cases, and what they cover: takes half an hour, before a change of weight lands.
test-slow: $(VENV)/dev
	. $(VENV)/bin/activate && scripts/test-slow

$(VENV)/demo $(VENV)/dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --no-compile --constraint constraints.txt --editable '.[$(@F)]'
	touch $@

clean:
	rm -rf $(VENV) demo-output
