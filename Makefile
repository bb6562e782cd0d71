# kekd: make help lists the targets. On a fresh Debian machine with Go,
# `make run` and `make test` install what they need.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Built tools and Kubernetes' binaries are kept here, by version.
KEKD_CACHE ?= $(HOME)/.cache/kekd
export KEKD_CACHE

# The name of the images, and what their tag begins with.
IMAGE   ?= kekd
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
export IMAGE VERSION

GOLANGCI_VERSION := v2.15.0
GOLANGCI := $(KEKD_CACHE)/tools/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint

SYFT_VERSION := v1.57.1
SYFT := $(KEKD_CACHE)/tools/syft-$(SYFT_VERSION)/syft

# Runs a command with the Docker daemon that answers, or one of its own.
WITH_DOCKER := e2e/kind/with-docker.sh

# -buildvcs=auto puts the commit into `kekd version`.
BUILD := CGO_ENABLED=1 go build -trimpath -buildvcs=auto

# What the end-to-end tests run.
E2E_BINARIES := KEKD_BIN=$(CURDIR)/bin/kekd KEKCTL_BIN=$(CURDIR)/bin/kekctl KEKD_FAULT_MODULE=$(CURDIR)/bin/kekd-faults.so

# How long each fuzz target runs.
FUZZTIME ?= 20s

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: build
build: deps-build ## Build bin/kekd and bin/kekctl
	$(BUILD) -o bin/ ./cmd/kekd ./cmd/kekctl

# A PKCS#11 module that stands before a real one and does harm on command; for
# tests alone. Written beside and renamed, since several tests may build it at once.
FAULTS_SOURCES := $(wildcard hsm/hsmtest/faultmodule/*.[ch])
bin/kekd-faults.so: $(FAULTS_SOURCES)
	@mkdir -p bin
	gcc -std=gnu11 -D_GNU_SOURCE -O2 -Wall -Wextra -Wno-unused-parameter -Werror -fPIC -shared -fvisibility=hidden \
	  -I"$$(go list -m -f '{{.Dir}}' github.com/miekg/pkcs11)" -o $@.$$$$ $(filter %.c,$^) -ldl -lpthread && mv $@.$$$$ $@

.PHONY: run
run: deps-run build ## Start kekd on a SoftHSM token of its own and show it at work
	go run ./internal/demo -kekd bin/kekd -kekctl bin/kekctl

.PHONY: test
test: deps-test build ## Build and pass all tests (SoftHSM, NSS, opencryptoki and the apiserver's own client included)
	CI=true go test -count=1 -shuffle=on ./...
	cd e2e && KEKD_BIN=$(CURDIR)/bin/kekd KEKCTL_BIN=$(CURDIR)/bin/kekctl go test -count=1 ./client/... ./internal/... ./speed/...

.PHONY: race
race: deps-test build ## Run the tests under the race detector
	CI=true go test -race -count=1 -shuffle=on ./...

.PHONY: lint
lint: $(GOLANGCI) ## Check formatting, style and the directions of imports
	@test -z "$$(gofmt -l cmd hsm internal keycache manifests plugin e2e)" || { gofmt -l cmd hsm internal keycache manifests plugin e2e; echo 'run gofmt -w on these files'; exit 1; }
	go mod tidy -diff
	cd e2e && go mod tidy -diff
	$(GOLANGCI) run ./...
	cd e2e && $(GOLANGCI) run --config ../.golangci.yml ./...
	cd e2e/tracing/collector && go mod tidy -diff && $(GOLANGCI) run --config ../../../.golangci.yml ./...
	cd internal/bench/plot && go mod tidy -diff && $(GOLANGCI) run --config ../../../.golangci.yml ./...

$(GOLANGCI):
	GOBIN=$(dir $@) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

.PHONY: fuzz
fuzz: deps-build ## Run every fuzz target for FUZZTIME, and print how often each was executed
	@# Go 1.26 may end a clean run with a bare "context deadline exceeded": go.dev/issue/75804.
	@log="$$(mktemp)"; trap 'rm -f "$$log"' EXIT; failed=0; table=$$'package\ttarget\texecutions\n'; \
	while IFS=: read -r file target; do \
	  package="$$(dirname "$$file")"; target="$${target#func }"; note=""; \
	  echo "== $$package $$target"; \
	  go test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) -fuzzminimizetime=10x "./$$package" </dev/null 2>&1 | tee "$$log" || \
	    if grep -qxE ' +context deadline exceeded' "$$log" && ! grep -q 'Failing input' "$$log"; then \
	      note=" (ended late)"; \
	    else \
	      failed=1; note=" FAILED"; \
	    fi; \
	  execs="$$(sed -nE 's/.*execs: ([0-9]+).*/\1/p' "$$log" | tail -1)"; \
	  table+="$$package"$$'\t'"$$target"$$'\t'"$${execs:-0, the corpus took all of FUZZTIME}$$note"$$'\n'; \
	done < <(grep -roE '^func Fuzz[A-Za-z0-9_]+' --include=*_test.go cmd hsm internal keycache plugin | sort); \
	echo; printf '%s' "$$table" | expand -t 24,44; exit $$failed

.PHONY: bench
bench: deps-run build bin/kekd-faults.so ## Measure kekd beside a no-op and a naive plugin, at four HSM latencies (seven minutes)
	go build -o .run-bench/ ./internal/bench ./internal/bench/cmd/...
	.run-bench/bench report $(BENCHFLAGS)

.PHONY: bench-docs
bench-docs: bench ## The same, written into docs/performance.md with its pictures
	.run-bench/bench write -page docs/performance.md .run-bench/report.json
	cd internal/bench/plot && go run . -in $(CURDIR)/.run-bench/report.json -out $(CURDIR)/docs/performance

BENCHCOUNT ?= 1
.PHONY: bench-go
bench-go: deps-test ## Go benchmarks of the parts, with allocations (BENCHCOUNT=10 for benchstat)
	go test -run '^$$' -bench . -benchmem -count $(BENCHCOUNT) ./keycache ./plugin ./hsm/wire ./hsm ./internal/audit ./internal/metrics ./internal/secret

.PHONY: bench-audit
bench-audit: deps-test build ## What the audit trail costs: a million records written and verified, and each request (KEKD_UPDATE_DOCS=1: into docs/audit.md)
	go test -run '^$$' -bench Million -benchtime 1x ./internal/audit
	go test -run '^$$' -bench Record -benchmem ./internal/audit
	cd e2e && $(E2E_BINARIES) go test -run='^$$' -bench=Audit -benchtime=1x -timeout=10m ./audit

.PHONY: bench-tracing
bench-tracing: deps-run build ## Measure warm requests with tracing off, at one in a hundred, and on (KEKD_UPDATE_DOCS=1: into docs/tracing.md)
	cd e2e && $(E2E_BINARIES) go test -run='^$$' -bench=Tracing -benchtime=1x -timeout=10m ./tracing

.PHONY: bench-apiserver
bench-apiserver: deps-run build bin/kekd-faults.so ## Measure creates and lists of 10,000 Secrets at a real kube-apiserver (FLAGS=-update: into docs/performance.md)
	@bin="$$(e2e/kube/build.sh etcd kube-apiserver)"; cd e2e && KEKD_KUBE_BIN="$$bin" $(E2E_BINARIES) \
	go test -run='^$$' -bench=APIServer -benchtime=1x -timeout=0 ./speed -args $(FLAGS)

.PHONY: kube
kube: ## Build Kubernetes' server binaries and etcd from their Go modules (minutes when cold)
	@e2e/kube/build.sh

.PHONY: e2e
e2e: deps-test build ## Run kekd under a real kube-apiserver and etcd
	$(BUILD) -tags e2eclock -o bin/e2e/kekd-clock ./cmd/kekd
	@bin="$$(e2e/kube/build.sh)"; cd e2e && \
	KEKD_KUBE_BIN="$$bin" KEKD_BIN=$(CURDIR)/bin/kekd KEKCTL_BIN=$(CURDIR)/bin/kekctl KEKD_CLOCK_BIN=$(CURDIR)/bin/e2e/kekd-clock \
	go test -count=1 -timeout=30m -v -p 1 -parallel 3 ./cluster/... ./inventory/... ./portforward/... ./rewrap/... ./rotation/...

.PHONY: inventory-memory
inventory-memory: build ## Measure the memory that an inventory of 200,000 objects takes, 2,500 of 500 KB (docs/inventory.md)
	@bin="$$(e2e/kube/build.sh etcd)"; cd e2e && KEKD_INVENTORY_FULL=1 KEKD_KUBE_BIN="$$bin" $(E2E_BINARIES) \
	go test -count=1 -timeout=30m -v -run '^TestMemory$$' ./inventory

.PHONY: bench-inventory
bench-inventory: build ## Measure kekctl inventory of 100,000 objects (OBJECTS=N), beside the kekctl of a commit (BASE=COMMIT)
	@base=; if [[ -n '$(BASE)' ]]; then base=$$(mktemp -d); trap "rm -rf $$base" EXIT; \
	  git archive '$(BASE)' | tar -x -C "$$base" && (cd "$$base" && go build -o kekctl ./cmd/kekctl) && base=$$base/kekctl; fi; \
	bin="$$(e2e/kube/build.sh etcd)"; cd e2e && KEKD_INVENTORY_OBJECTS=$(OBJECTS) KEKD_INVENTORY_BASE="$$base" KEKD_KUBE_BIN="$$bin" $(E2E_BINARIES) \
	go test -run='^$$' -bench=Inventory -benchtime=1x -timeout=60m ./inventory

.PHONY: bench-rewrap
bench-rewrap: deps-run build ## Measure a rewrap of 10,000 Secrets, and what its checks take of the time (docs/rewrap.md)
	@bin="$$(e2e/kube/build.sh etcd kube-apiserver)"; cd e2e && KEKD_KUBE_BIN="$$bin" $(E2E_BINARIES) \
	go test -run='^$$' -bench=Rewrap -benchtime=1x -timeout=30m ./rewrap

.PHONY: faults
faults: deps-run build bin/kekd-faults.so ## Play every fault of a PKCS#11 module at every moment (docs/reliability.md)
	cd e2e && $(E2E_BINARIES) go test -count=1 -timeout=30m -parallel 8 ./faults/...

.PHONY: outages
outages: deps-test build bin/kekd-faults.so ## Take away what kekd stands on, one thing after the other (docs/reliability.md)
	$(BUILD) -tags e2eclock -o bin/e2e/kekd-clock ./cmd/kekd
	cd e2e && $(E2E_BINARIES) KEKD_CLOCK_BIN=$(CURDIR)/bin/e2e/kekd-clock go test -count=1 -timeout=10m -v ./outages/...

# How long make chaos breaks things at random, and the seed of what it does.
CHAOS ?= 60s
SEED  ?=
.PHONY: chaos
chaos: deps-test build bin/kekd-faults.so ## Two administrators on three nodes of one token while everything breaks (as root; seven minutes; CHAOS=30m SEED=7)
	$(BUILD) -tags e2eclock -o bin/e2e/kekd-clock ./cmd/kekd
	@bin="$$(e2e/kube/build.sh etcd kube-apiserver)"; cd e2e && CI=true KEKD_KUBE_BIN="$$bin" $(E2E_BINARIES) KEKD_CLOCK_BIN=$(CURDIR)/bin/e2e/kekd-clock \
	go test -count=1 -timeout=0 -parallel 4 -v ./chaos/... -args -length=$(CHAOS) $(if $(SEED),-seed=$(SEED))

.PHONY: load
load: deps-test build bin/kekd-faults.so ## Overload, cold start, stampede and a short soak (two minutes)
	cd e2e && $(E2E_BINARIES) go test -count=1 -timeout=15m -v ./load/...

.PHONY: soak
soak: deps-test build bin/kekd-faults.so ## 64 callers for ten minutes, a fault each second; writes docs/reliability.md (FLAGS="-soak=1h")
	cd e2e && $(E2E_BINARIES) go test -count=1 -timeout=0 -v -run 'TestSoak$$' ./load/ -soak=10m -update $(FLAGS)

.PHONY: e2e-hardening
e2e-hardening: deps-hardening build ## Look at a running kekd's processes, memory and system calls (as root)
	cd e2e && CI=true $(E2E_BINARIES) go test -count=1 -timeout=15m -v ./hardening/...

.PHONY: rules
rules: deps-watch ## Check and test the rules and alerts of manifests/prometheus (promtool, amtool)
	cd manifests/prometheus && promtool check config prometheus.yaml && promtool check rules rules/*.yaml alerts/*.yaml && \
	  promtool test rules tests/*.yaml && amtool check-config alertmanager.yaml
	CI=true go test -count=1 -run 'Alert|Rule|Inhibit' ./manifests

.PHONY: watch
watch: deps-watch build bin/kekd-faults.so ## Break kekd under a real Prometheus and Alertmanager, and see the alerts (docs/metrics.md is held against it too)
	cd e2e && CI=true $(E2E_BINARIES) go test -count=1 -timeout=15m -v ./watch/... $(FLAGS)

.PHONY: gameday
gameday: deps-gameday build bin/kekd-faults.so ## Break a cluster in the way of each runbook and walk the page's commands (as root; five minutes; KEKD_UPDATE_DOCS=1: into docs/gameday.md)
	@bin="$$(e2e/kube/build.sh etcd etcdctl kube-apiserver kubectl)"; cd e2e && CI=true KEKD_KUBE_BIN="$$bin" $(E2E_BINARIES) \
	go test -count=1 -timeout=20m -parallel 3 -v ./gameday/... $(FLAGS)

.PHONY: e2e-tracing
e2e-tracing: deps-run build bin/kekd-faults.so ## Send traces through a real OpenTelemetry Collector, and take it away (docs/tracing.md)
	cd e2e && CI=true $(E2E_BINARIES) go test -count=1 -timeout=10m -v ./tracing/... $(FLAGS)

.PHONY: dashboards
dashboards: deps-watch build ## Ask a real Prometheus every query of the Grafana dashboards
	cd e2e && CI=true $(E2E_BINARIES) go test -count=1 -timeout=10m -v ./dashboards/... $(FLAGS)

.PHONY: e2e-page
e2e-page: deps-page build ## Look at kekd's status page in a headless Chromium, in every state (KEKD_SCREENSHOTS=DIR keeps the pictures)
	cd e2e && CI=true $(E2E_BINARIES) go test -count=1 -timeout=15m -v ./page/... $(FLAGS)

.PHONY: fips
fips: deps-test ## Build bin/fips with the certified Go Cryptographic Module and test it in FIPS 140-3 mode (as root)
	GOFIPS140=certified $(BUILD) -o bin/fips/ ./cmd/kekd ./cmd/kekctl
	bin/fips/kekd version | grep 'FIPS 140-3 module v1'
	@# The golden envelopes need a random source that this module does not let tests set.
	GOFIPS140=certified CI=true go test -count=1 -skip '^TestSealWritesGoldenEnvelopes$$' ./cmd/... ./hsm/... ./internal/... ./keycache/... ./plugin/...
	@# In fips140=only the fakes of keycache and hsm can't be, which draw no IVs of their own.
	GOFIPS140=certified GODEBUG=fips140=only CI=true go test -count=1 ./hsm/wire ./hsm/worker ./internal/secret ./internal/state ./internal/config ./internal/health ./internal/httpapi ./internal/rotation ./plugin
	cd e2e && KEKD_BIN=$(CURDIR)/bin/fips/kekd KEKCTL_BIN=$(CURDIR)/bin/fips/kekctl go test -count=1 -run '^TestFIPS$$' ./hardening

.PHONY: image
image: deps-image ## Build IMAGE:VERSION and IMAGE:VERSION-softhsm, and save them to dist/ (OFFLINE=1: ask no registry)
	$(WITH_DOCKER) bash -c 'e2e/image/build.sh && mkdir -p dist && \
	  for i in "$(IMAGE):$(VERSION)" "$(IMAGE):$(VERSION)-softhsm"; do f="dist/$$(basename "$${i%%:*}")-$${i##*:}.tar"; docker save -o "$$f" "$$i"; echo "$$f"; done'

.PHONY: sbom
sbom: deps-image $(SYFT) ## Write the images' bills of material (SPDX) to dist/
	$(WITH_DOCKER) bash -c 'e2e/image/build.sh && SYFT=$(SYFT) e2e/image/sbom.sh'

.PHONY: e2e-image
e2e-image: deps-image $(SYFT) ## Build the images and test them
	$(WITH_DOCKER) bash -c 'e2e/image/build.sh && SYFT=$(SYFT) e2e/image/sbom.sh && \
	  cd e2e && KEKD_IMAGE=$(IMAGE) KEKD_VERSION=$(VERSION) go test -count=1 -v ./image/...'

.PHONY: reproduce
reproduce: deps-image ## Build the image twice from nothing and compare binaries and layers
	$(WITH_DOCKER) e2e/image/build.sh reproduce

.PHONY: kind-node-image
kind-node-image: deps-image ## Build a kind node image from Debian packages and Kubernetes' own sources
	@$(WITH_DOCKER) e2e/kind/node/build.sh

.PHONY: e2e-kind
e2e-kind: deps-image ## Install kekd in kind by docs/install.md's own commands, and break things (FLAGS="-run TestKubeadm")
	$(WITH_DOCKER) e2e/kind/run.sh $(FLAGS)

$(SYFT):
	GOBIN=$(dir $@) go install github.com/anchore/syft/cmd/syft@$(SYFT_VERSION)

.PHONY: clean
clean: ## Remove what the targets built in the checkout
	rm -rf bin dist .run .run-bench

# Debian packages. Only what is missing is installed, by root or through sudo.
.PHONY: deps deps-build deps-run deps-test deps-watch deps-gameday deps-page deps-hardening deps-image
deps: deps-test ## Install the Debian packages that building and testing need
deps-build: PACKAGES := gcc libc6-dev git
deps-run:   PACKAGES := gcc libc6-dev git softhsm2
deps-test:  PACKAGES := gcc libc6-dev git softhsm2 opensc openssl libnss3 libnss3-tools opencryptoki systemd
deps-watch: PACKAGES := gcc libc6-dev git softhsm2 opensc prometheus prometheus-alertmanager
deps-gameday: PACKAGES := gcc libc6-dev git softhsm2 opensc curl iproute2 procps prometheus
deps-page:  PACKAGES := gcc libc6-dev git softhsm2 opensc chromium
deps-hardening: PACKAGES := gcc libc6-dev git softhsm2 systemd strace
deps-image: PACKAGES := gcc libc6-dev git jq docker.io iptables iproute2 debootstrap procps
deps-build deps-run deps-test deps-watch deps-gameday deps-page deps-hardening deps-image:
	@missing=""; for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' "$$p" 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  echo "installing$$missing"; \
	  $$sudo apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi
