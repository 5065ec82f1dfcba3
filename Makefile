# The commands of the project. Each does its own set-up; slow products are cached outside the checkout.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test fuzz bench bench-builds figures charts check build guest kernel kernel-reproducible setup images container-images builder cluster e2e-cluster

GUEST := target/microvm
export CLOISTER_KERNEL := $(CURDIR)/$(GUEST)

help: ## list the commands
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 22

demo: build images ## import a Debian root and run commands in a microVM
	@scripts/demo.sh

test: build images builder cluster ## every test, virtual machines included
	@scripts/test.sh

fuzz: setup ## every fuzz target for FUZZ_SECONDS (20) seconds
	@scripts/fuzz.sh

e2e: build ## pods under real containerds: microVMs, and containers beside them
	@scripts/test.sh -p cloister-e2e -E 'binary(pods)'

e2e-full: build images builder cluster ## all of it on every handler and version, the documents, and the long runs: cycles, deaths, execs, gigabytes
	@scripts/test.sh -p cloister-e2e --profile full --no-capture -E 'not binary(cluster)'

e2e-cluster: build cluster container-images ## pods on nodes of a real Kubernetes, every case; the chart on a node
	@scripts/test.sh -p cloister-e2e --profile full --no-capture -E 'binary(cluster)'

cri-validation: build ## the behaviours of Kubernetes' CRI validation suite, microVMs beside runc
	@scripts/test.sh -p cloister-e2e --profile full --no-capture -E 'binary(pods) and test(cri_validation)'

bench-pods: build ## pods beside runc's on the same containerd, into target/bench-pods.json
	@scripts/bench.sh --bin bench-pods

bench-builds: build builder ## builds in microVMs beside buildctl on the host: digests and times
	@scripts/bench.sh --bin bench-builds

figures: build builder cluster ## a Prometheus that scrapes a cluster at work: dashboard, alerts, and the figures of docs/metrics.md
	@FIGURES=$(CURDIR)/docs/figures scripts/test.sh -p cloister-e2e --profile full --no-capture -E 'binary(builds) and test(/^monitoring::/)'

bench: build images ## the figures of docs/performance.md, into target/bench.json
	@scripts/bench.sh

charts: setup ## lint and render the charts, test the alerts (part of check)
	@scripts/charts.sh

check: ## format, lint, documents, charts, dependencies and licences
	@scripts/setup.sh --ci
	@scripts/check.sh

build: setup kernel guest ## the programs and the guest
	cargo build --release --locked -p cloister -p cloister-shim -p cloister-node -p cloister-operator

guest: setup kernel ## kernel and initramfs of the guest, in target/microvm
	@scripts/guest.sh $(GUEST)

kernel: setup ## the guest kernel, from the cache when its inputs are unchanged
	@kernel/build.sh >/dev/null

kernel-reproducible: setup ## build the guest kernel once more elsewhere and compare (17 minutes of processor time)
	@kernel/reproduce.sh

images: setup ## the Debian images that demo, tests and benchmarks use
	@scripts/debian-image.sh demo >/dev/null
	@scripts/debian-image.sh large >/dev/null

cluster: setup ## the programs of a small Kubernetes that tests start
	@scripts/kubernetes.sh >/dev/null

container-images: build builder ## the images that the charts run, in target/images, with their sizes
	@scripts/container-images.sh

builder: setup ## BuildKit, and the image of the microVM that builds images, from Debian's packages (10 minutes once)
	@scripts/builder-image.sh >/dev/null

setup: ## Debian packages and helper programs
	@scripts/setup.sh
