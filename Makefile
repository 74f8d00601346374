# Two commands: `make demo` and `make test`. Each sets up what it needs in .venv first.
PYTHON ?= python3.11
VENV := .venv

.PHONY: demo test test-slow clean

demo: $(VENV)/demo
	$(VENV)/bin/optin demo

test: $(VENV)/dev
	. $(VENV)/bin/activate && scripts/check && scripts/test

# Further cases of what `make test` tests: longer, and worth it before a change lands.
test-slow: $(VENV)/dev
	. $(VENV)/bin/activate && pytest --numprocesses=2 -m slow

$(VENV)/demo $(VENV)/dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --constraint constraints.txt --editable '.[$(@F)]'
	touch $@

clean:
	rm -rf $(VENV) demo-output
