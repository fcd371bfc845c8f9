# `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
SCALE ?= 0.05
BIN = $(VENV)/bin

.PHONY: help demo test lint installed bench clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile

demo: $(VENV)/run  ## set up, make the sample data, and run the scripts on it
	$(BIN)/python examples/make_sample.py sample
	$(BIN)/python create_dataset.py --voxdet-root sample/VoxDet --output-file sample/anns.pt
	$(BIN)/python verify_dataset.py --ann-file sample/anns.pt --preview sample/preview.png
	$(BIN)/python examples/colour_features.py sample/anns.pt sample/features.pt
	$(BIN)/python evaluate_retrieval.py --ann-file sample/anns.pt --features sample/features.pt --preview sample/worst.png
	$(BIN)/python convert_annotations.py --ann-file sample/anns.pt --coco sample/anns.json
	$(BIN)/python create_instre_subsets.py --instre-root sample/INSTRE --output-dir sample
	$(BIN)/python verify_dataset.py --ann-file sample/instre_xs.pt --preview sample/instre_xs.png
	$(BIN)/python verify_dataset.py --ann-file sample/instre_xxs.pt --preview sample/instre_xxs.png
	@echo
	@echo "Look at sample/preview.png (queries and gallery images), at sample/worst.png (what the worst queries retrieved),"
	@echo "and at sample/instre_xs.png and sample/instre_xxs.png (the subsets of INSTRE)."
	@echo "sample/anns.pt is the annotation file, sample/anns.json the same for tools that read COCO."

test: $(VENV)/dev  ## set up, and run the tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(VENV)/dev  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

installed: demo $(VENV)/dev  ## the demo, and its commands from a wheel that is installed in an environment of its own
	rm -rf build installed
	$(PYTHON) -m venv installed
	$(BIN)/python -m pip wheel . --quiet --no-deps --no-build-isolation --wheel-dir installed
	installed/bin/python -m pip install --quiet --no-deps installed/*.whl
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $$(echo installed/lib/python*/site-packages)/requirements.pth
	cd installed && bin/soir-create-dataset --voxdet-root ../sample/VoxDet --output-file anns.pt
	cd installed && bin/soir-verify-dataset anns.pt
	cd installed && bin/soir-convert-annotations anns.pt --coco anns.json
	cd installed && bin/soir-create-instre-subsets --instre-root ../sample/INSTRE
	cd installed && bin/soir-evaluate-retrieval --ann-file ../sample/anns.pt --features ../sample/features.pt

bench: $(VENV)/dev  ## measure speed and memory against floors; SCALE=1 is the size of the real data sets
	$(BIN)/python benchmarks/benchmark.py --scale $(SCALE) --folder bench

clean:  ## remove the virtual environment, the sample, the installation and the trees of the benchmark
	rm -rf $(VENV) sample build *.egg-info installed bench

$(VENV)/run: requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt --constraint constraints.txt
	touch $@

$(VENV)/dev: $(VENV)/run requirements-dev.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt --constraint constraints.txt
	touch $@
