# Two commands matter: `make demo` and `make test`. Both install what the machine lacks, and say what and why.

SHELL := /bin/bash
TOOLS := $(CURDIR)/.tools
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
export PATH := $(TOOLS)/bin:$(PATH)
export CARRICK_ENVOY := $(TOOLS)/bin/envoy
export CARRICK_KUBECTL := $(TOOLS)/bin/kubectl
export CARRICK_HELM := $(TOOLS)/bin/helm
export CARRICK_PYTHONPATH := $(TOOLS)/python
export CARRICK_PKITS := $(TOOLS)/pkits
JOBS ?= 2
NAME ?= banknext
PROXIES ?= 5000
SIDECARS ?= 300

KUBECONFIG_OF = $(if $(filter command,$(origin KUBECONFIG)),--kubeconfig $(abspath $(KUBECONFIG)))

.PHONY: help demo test build check unit e2e e2e-scenarios e2e-apart e2e-cases e2e-kubernetes image bench bench-control fuzz clean-tools

help: ## show this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## run a scenario with every pair of data planes; NAME=banknext, or another of examples/
	@tools/install demo
	cargo build --release --locked -j $(JOBS) -p carrick -p carrick-proxy-bin
	$(TARGET)/release/carrick demo $(NAME)

test: ## every check and test; what CI runs
	@tools/install test
	$(MAKE) --no-print-directory check unit e2e fuzz

build: ## debug binaries in target/debug
	cargo build --locked -j $(JOBS) --workspace

check: ## formatting, lints, layers, licences
	cargo fmt --all --check
	cargo xtask tidy
	cargo deny check bans licenses sources
	cargo clippy --locked -j $(JOBS) --workspace --all-targets -- -D warnings

unit: ## tests of the crates; needs root for network namespaces
	cargo test --locked -j $(JOBS) --workspace

e2e: build ## scenarios and cases on real traffic, with native, Envoy and mixed data planes; two meshes side by side
	$(MAKE) --no-print-directory -j2 e2e-scenarios e2e-apart

e2e-scenarios:
	$(TARGET)/debug/carrick demo banknext --switches 2 --services 40
	for name in product-stock hipster intuit-gateway gopay-partners; do $(TARGET)/debug/carrick demo $$name --engine all || exit 1; done
	$(TARGET)/debug/carrick demo quarantine
	$(TARGET)/debug/carrick demo renewals --sidecars 12 --envoys 2 --certificate-ttl 10s --time 25s --look 1s --tell 10s --rate 60
	$(TARGET)/debug/carrick demo authority --certificate-ttl 30s --grace-ratio 0.7 --rate 5

e2e-apart:
	tools/apart $(MAKE) --no-print-directory e2e-cases

e2e-cases:
	python3 e2e/documents/run.py $(TARGET)/debug/carrick
	python3 e2e/kubernetes/run.py $(TARGET)/debug/carrick
	PYTHONPATH=$(CARRICK_PYTHONPATH) python3 e2e/protocols/run.py $(TARGET)/debug/carrick
	set -o pipefail; log=$(TARGET)/cases.log; $(TARGET)/debug/carrick demo cases | tee $$log || { \
	  echo "what failed once more, in a new mesh: a busy machine can be late"; \
	  $(TARGET)/debug/carrick demo cases $$(sed -n 's#^ *FAIL  \([^ ]*\) .*#cases/\1.yaml#p' $$log | sort -u); }

e2e-kubernetes: ## install, upgrade and uninstall in a Kubernetes API: KUBECONFIG=… (else the embedded one), ADDRESS=… of this machine, HUB=… and TAG=… of images
	@tools/install kubernetes
	cargo build --locked -j $(JOBS) -p carrick -p carrick-proxy-bin
	HUB=$(HUB) TAG=$(TAG) python3 e2e/kubernetes/run.py $(TARGET)/debug/carrick $(KUBECONFIG_OF) $(if $(ADDRESS),--address $(ADDRESS))

fuzz: build ## the committed corpus and a little beyond; 500 cases through our engine, Envoy and the simulator
	$(TARGET)/debug/carrick-fuzz --seconds 2
	$(TARGET)/debug/carrick-fuzz differential --seed 1 --cases 500 --shrink 2

image: ## OCI archives of the control plane and the proxy, and their bill of materials, in target/image; no Docker
	cargo build --release --locked -j $(JOBS) -p carrick
	cargo build --profile dist --locked -j $(JOBS) -p carrick-proxy-bin
	cargo xtask image $(TARGET)/release/carrick $(TARGET)/dist/carrick-proxy $(TARGET)/image

bench: ## pairs of sidecars beside Envoy, HAProxy, nginx and the floor, in one run; writes docs/performance.md and its plot
	@tools/install bench
	cargo build --release --locked -j $(JOBS) -p carrick -p carrick-benches
	cargo build --profile dist --locked -j $(JOBS) -p carrick-proxy-bin
	CARRICK_PROXY=$(TARGET)/dist/carrick-proxy $(TARGET)/release/carrick bench sidecars --out $(TARGET)/bench --page docs

bench-control: ## the control plane with PROXIES simulated proxies, then SIDECARS real ones; writes docs/performance.md
	@tools/install bench
	cargo build --release --locked -j $(JOBS) -p carrick
	cargo build --profile dist --locked -j $(JOBS) -p carrick-proxy-bin
	CARRICK_PROXY=$(TARGET)/dist/carrick-proxy $(TARGET)/release/carrick bench control --proxies $(PROXIES) --sidecars $(SIDECARS) --out $(TARGET)/bench --page docs

clean-tools:
	rm -rf $(TOOLS)
