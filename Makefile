SHELL := /bin/bash
export PATH := $(PATH):/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin

# How long each fuzz target runs.
FUZZTIME ?= 10s
# How often the power fails in vm-test.
CUTS ?=
# What checks the workflows of .github. Not a tool of go.mod: the ten modules
# that it needs, a release candidate among them, would be requirements of
# everybody who imports a package of ctplan.
ACTIONLINT = github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
# Releases of iptables beside the machine's own: those of Debian's suites, fetched
# once, and any that lie ready beside the checkout.
BUILDS = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/ctplan-iptables
export CTPLAN_IPTABLES_BUILDS ?= $(subst $() ,:,$(strip $(BUILDS) $(abspath $(wildcard ../*/old-iptables))))
# Further arguments for go test: make test ARGS='-run TestCure -v'
ARGS ?=

.PHONY: help build man demo test ns-test vm-test lint bench fuzz clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/ctplan
	CGO_ENABLED=0 go build -o bin/ctplan ./cmd/ctplan

man: ## build/man: the manual pages of all commands
	go run ./cmd/ctplan man build/man

demo: ## the main job, for real, in a throw-away network and mount namespace (root)
	@scripts/setup
	@CGO_ENABLED=0 go build -o bin/ctplan ./cmd/ctplan
	@scripts/demo bin/ctplan

test: ns-test ## all tests: ns-test, then vm-test
	@$(MAKE) --no-print-directory vm-test

ns-test: ## all tests on this machine; as root they change real rules, in namespaces
	@scripts/setup cron:cron rpm:rpm rpmbuild:rpm sudo:sudo strace:strace logger:bsdutils \
		dpkg-deb:dpkg /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
	@scripts/iptables-builds $(BUILDS) || [ "$$CI" != true ]
	go test -timeout 40m $(ARGS) $$(go list ./... | grep -v /internal/test/vmtest$$)

vm-test: ## whole machines in QEMU without KVM: modules, boots, CUTS power cuts (20)
	@scripts/setup depmod:kmod mke2fs:e2fsprogs dpkg-deb:dpkg /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
	CTPLAN_VM=1 CUTS=$(CUTS) go test -C internal/test/vmtest -count=1 -timeout $(if $(CUTS),4h,60m) $(ARGS)

lint: ## gofmt, go.mod, go vet, staticcheck, actionlint, shellcheck and the import rule
	@scripts/setup shellcheck:shellcheck
	@unformatted=$$(gofmt -l .) && [ -z "$$unformatted" ] || { echo "not formatted, run gofmt -w:" $$unformatted >&2; exit 1; }
	@go mod tidy -diff || { echo "go.mod or go.sum is not tidy, run go mod tidy" >&2; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	go run $(ACTIONLINT)
	shellcheck .ci/run scripts/* internal/snapshot/snapshot.sh $$(grep -rl '^#!' internal/test/vmlab/guest)
	go test -count=1 -run '^TestImports$$' ./internal

bench: ## cost against the tools ctplan stands on, as ratios (root)
	@scripts/setup
	@go run ./internal/test/bench

fuzz: ## every fuzz target, FUZZTIME each (default 10s)
	@scripts/fuzz $(FUZZTIME)

clean: ## remove what was built
	rm -rf bin build
