# Hanok's commands for developers and CI. The two that matter:
#   make demo   a three-host lab that loses a host and brings its VMs back
#   make test   everything that CI runs, lab included
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
GO          ?= go
RUNS        ?= 10
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS     := -s -w -X hanok.dev/hanok/internal/version.Version=$(VERSION)
export CGO_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help deps build generate demo test test-unit test-lab test-long test-packages lint bench-failover bench-idle bench-datastore bench-placement bench-isolation bench-sim bench-server sim-scenarios sim-mutants soak fuzz fuzz-ci model clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

deps: ## install the Debian packages that the lab needs (idempotent)
	@scripts/install-deps.sh

build: ## build bin/hanok, bin/hanok-guard and the lab guest's writer
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/hanok ./cmd/hanok-guard ./cmd/hanok-lab-guest

generate: ## make api/gen from api/hanok/v1 (a test fails while it is not current)
	$(GO) run ./internal/apigen

demo: deps build ## lose hosts, watch their VMs come back (DEMO_KEEP=1 leaves the lab up)
	@bin/hanok lab demo $(if $(DEMO_KEEP),--keep,)

test: deps lint build test-unit fuzz-ci test-lab ## all that CI runs

lint: ## gofmt, go vet, staticcheck
	@files=$$(git ls-files '*.go' | xargs gofmt -l); if [ -n "$$files" ]; then echo "not gofmt-ed: $$files" >&2; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

test-unit: ## everything but the lab tests
	$(GO) test -timeout 10m $$($(GO) list ./... | grep -v '/test/')

test-lab: build ## end-to-end tests on real hosts and VMs, in real time
	$(GO) test -count=1 -timeout 25m -v ./test/lab

test-long: deps build test-packages ## what takes longer: flapping networks, repeated power loss, packages, upgrades, soak
	@scripts/install-deps.sh systemd
	$(GO) test -count=1 -timeout 60m -v ./test/long
	HANOK_KILLS=1000 HANOK_KILL_LANES=3 $(GO) test -count=1 -timeout 120m -parallel 3 -v -run 'KilledAtFailpoints|SetUpIsKilled|RotationIsKilled' ./internal/server
	$(GO) run ./test/bench/soak

bench-failover: deps build ## time from power loss to running elsewhere (RUNS=10)
	$(GO) run ./test/bench/failover -runs $(RUNS)

bench-isolation: deps build ## time from losing the network to isolated and running elsewhere; from healing to one primary (RUNS=10)
	$(GO) run ./test/bench/isolation -runs $(RUNS)

bench-idle: deps build ## processor and memory of guard and agent with 10 VMs
	$(GO) run ./test/bench/idle

bench-datastore: ## heartbeat write and lock claim latency; what heartbeats cost in space and processor time
	$(GO) test -run '^$$' -bench . -benchtime 200x ./internal/datastore/...

bench-placement: ## plans, failure checks and rule checks against their targets and against crm_simulate (RUNS=10, PEER_RUNS=1)
	@scripts/install-deps.sh bench
	$(GO) run ./test/bench/placement -runs $(RUNS) -peer-runs $(or $(PEER_RUNS),1)

model: ## check the protocol's model in every state (installs spin and gcc if they are missing)
	@scripts/install-deps.sh spin gcc libc6-dev
	test/model/run.sh

fuzz: build ## an hour of random disasters in virtual time (FUZZ_SEEDS=…, FUZZ_START=…)
	timeout 3600 bin/hanok sim fuzz --seeds $(or $(FUZZ_SEEDS),1000000) --start $(or $(FUZZ_START),1) || { s=$$?; [ $$s -eq 124 ]; }

fuzz-ci: build ## CI's share of random disasters, always the same seeds: at most 3 minutes on 2 cores
	bin/hanok sim fuzz --start 100001 --seeds 800
	bin/hanok sim fuzz --start 200001 --seeds 1500 --hosts 3 --vms 6 --duration 6m

sim-scenarios: ## the scenario library in virtual time, and each of them red with its feature off
	$(GO) test -count=1 -run 'TestScenarios' ./internal/sim

sim-mutants: ## deliberate bugs, one for each rule, that random disasters must find; the code without passes the same seeds
	$(GO) run ./test/mutants

bench-sim: ## speed of the simulator on one core: medians of RUNS runs of each size (RUNS=3); what a seed of random disasters costs (FUZZ_SEEDS=300, 10000 for the target itself)
	$(GO) run ./test/bench/sim -runs $(if $(filter 10,$(RUNS)),3,$(RUNS)) -seeds $(or $(FUZZ_SEEDS),300) -start $(or $(FUZZ_START),1)

bench-server: ## one server with 1,000 hosts and 20,000 VMs reporting to it
	$(GO) run ./test/bench/server

soak: deps build ## ten minutes with both cores saturated by other work
	$(GO) run ./test/bench/soak

test-packages: build ## packages in a fresh Debian: install, upgrade, remove, purge; rpm too
	@scripts/install-deps.sh debootstrap rpm
	$(GO) test -count=1 -timeout 20m -v ./test/packages

packages: build ## deb and rpm of a host into dist/
	scripts/packages.sh "$(VERSION)"

clean: ## remove what was built
	rm -rf bin dist
