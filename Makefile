# Sealift. `make demo` and `make test` need Go and Debian 12, nothing else.

# Debian packages: what an image build, a boot and the demo need.
DEMO_PACKAGES := qemu-system-x86 ovmf swtpm swtpm-tools iproute2 dnsmasq-base \
	mtools sbsigntool util-linux curl procps ca-certificates
# And what the tests hold our output against.
TEST_PACKAGES := $(DEMO_PACKAGES) cryptsetup-bin gdisk dosfstools erofs-utils \
	tpm2-tools systemd systemd-boot-efi e2fsprogs binutils openssl atftp kea-admin \
	efitools busybox cpio zstd gpgv libxml2-utils gcc libc6-dev \
	qemu-utils xorriso genisoimage softhsm2 qemu-system-arm qemu-efi-aarch64 \
	prometheus postgresql-15 haproxy

# What "make bench" compares with, beside those.
BENCH_PACKAGES := $(TEST_PACKAGES) squashfs-tools

GO      ?= go
BIN     := bin
BUILD   := build
export CGO_ENABLED ?= 0
GOBUILD := $(GO) build -trimpath -buildvcs=false -ldflags '-s -w'

.PHONY: help build native demo test tools unit e2e lint fuzz bench vuln clean packages-demo packages-test packages-bench

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

# What runs inside images, for the architectures that this machine is not.
CROSS := $(filter-out $(shell $(GO) env GOARCH),amd64 arm64)

build: native ## build sealift, and sealift-agent and sealift-pause for each architecture, into bin/
	@for a in $(CROSS); do for p in sealift-agent sealift-pause; do \
	  echo "$(BIN)/$$p-$$a"; GOARCH=$$a $(GOBUILD) -o $(BIN)/$$p-$$a ./cmd/$$p || exit 1; done; done

native:
	@mkdir -p $(BIN)
	$(GOBUILD) -o $(BIN)/ ./cmd/sealift ./cmd/sealift-agent ./cmd/sealift-pause

demo: packages-demo native ## one box, from nothing to a Kubernetes node
	@$(BIN)/sealift demo --dir $(BUILD)/demo --cache $(BUILD)/cache

test: packages-test ## lint, unit tests with -race, then the long VM run
	@sh .ci/test

# cosign holds our signatures against the outside. It takes minutes to build, so
# it is kept until its pinned version changes.
COSIGN := $(abspath $(BUILD))/tools/cosign
COSIGN_MODULE := image/sign/testdata/cosign

tools: $(COSIGN) ## build cosign, at the version that the tests pin

$(COSIGN): $(COSIGN_MODULE)/go.mod $(COSIGN_MODULE)/go.sum
	$(GO) build -C $(COSIGN_MODULE) -trimpath -ldflags '-s -w' -o $@ github.com/sigstore/cosign/v3/cmd/cosign
	@touch $@

unit: export PATH := $(dir $(COSIGN)):$(PATH)
unit: ## unit tests with -race
	@r=0; CGO_ENABLED=1 $(GO) test -race -timeout 20m $$($(GO) list ./... | grep -v '/image/inspect$$') || r=1; \
	$(GO) test -timeout 20m ./image/inspect || r=1; exit $$r # verifies hundreds of damaged images: ten times slower under -race

e2e: build ## real firmware: network boot clients, the demo's steps as one Go test, image test
	SEALIFT_VM_TESTS=1 $(GO) test -count=1 -timeout 15m -v -run 'OVMF' ./provisioner
	SEALIFT_VM=1 SEALIFT_BIN=$(abspath $(BIN)) $(GO) test -count=1 -timeout 90m -v -run '^(TestOneBox|TestInstallFromAMedium|TestTheSameImageIsBuiltElsewhere)$$' ./cmd/sealift/internal/demo
	SEALIFT_VM=1 SEALIFT_BIN=$(abspath $(BIN)) $(GO) test -count=1 -timeout 60m -v -run '^TestBoots' ./cmd/sealift/internal/imagetest

lint: ## gofmt, vet, staticcheck and the import rules
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo 'gofmt would change:'; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test -count=1 -run '^TestImports' ./cmd/sealift

FUZZTIME ?= 30s
fuzz: ## every fuzz target for FUZZTIME (30s)
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s $$p || exit 1; done; done

bench: packages-bench build ## figures, side by side with what a user would otherwise run
	$(GO) test -run '^$$' -bench . -benchmem ./...
	SEALIFT_BENCH=$(abspath $(BUILD))/figures.md SEALIFT_BIN=$(abspath $(BIN)) $(GO) test -count=1 -timeout 60m -v -run '^Test(Service)?Figures$$' ./cmd/sealift/internal/figures

vuln: ## known vulnerabilities, where the database can be reached
	@$(GO) tool govulncheck ./... || { s=$$?; [ $$s -eq 3 ] && exit 3; echo 'vuln: the vulnerability database could not be reached or read (see above)'; }

clean: ## remove what was built; downloads in build/cache stay
	rm -rf $(BIN) $(BUILD)/demo $(BUILD)/test

packages-demo:
	@sh .ci/packages $(DEMO_PACKAGES)

packages-test:
	@sh .ci/packages $(TEST_PACKAGES)

packages-bench:
	@sh .ci/packages $(BENCH_PACKAGES)
