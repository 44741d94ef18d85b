package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sealift/sealift"

// layers orders the packages: imports go strictly downwards, and packages of
// one layer do not import each other, save for the exceptions in peers. A
// package belongs to the longest prefix that fits.
var layers = []struct {
	prefix string
	layer  int
}{
	{"profiles", 0}, {"image/manifest", 0}, {"provisioner/api", 0}, {"image/guid", 0}, {"image/iso9660", 0},
	{"attest", 1},
	{"attest/api", 2}, {"attest/papertpm", 2}, {"attest/tpm", 2}, {"attest/tpmroots", 2}, {"attest/audit", 2}, {"attest/policy", 2}, {"attest/recovery", 2}, {"firmware", 2}, {"image/sign", 2},
	{"image", 3}, {"provisioner", 3}, {"attest/server", 3}, {"attest/client", 3},
	{"cmd", 4},
}

// peers are the trees in which one package may build on another of its layer.
var peers = []string{"profiles", "image", "image/sign", "attest/tpm", "attest/server", "attest/client", "provisioner", "cmd"}

// rooms hold the heavy dependencies: each may be linked only below its room.
var rooms = map[string][]string{
	"modernc.org/sqlite":                     {"cmd/sealift/internal/sqlstore"},
	"github.com/jackc/pgx":                   {"cmd/sealift/internal/pgstore"},
	"github.com/spf13/cobra":                 {"cmd/sealift"},
	"github.com/sigstore/sigstore":           {"image/sign"},
	"github.com/sigstore/sigstore-go":        {"image/sign"},
	"github.com/ThalesGroup/crypto11":        {"image/sign"},
	"github.com/CycloneDX/cyclonedx-go":      {"image/sbom"},
	"github.com/spdx/tools-golang":           {"image/sbom"},
	"github.com/diskfs/go-diskfs":            {"image"},
	"github.com/pin/tftp":                    {"provisioner"},
	"github.com/coreos/go-oidc":              {"cmd/sealift/internal/oidc"},
	"github.com/go-json-experiment":          {"attest/strict"},
	"github.com/go-jose/go-jose":             {"cmd/sealift/internal/oidc"},
	"github.com/pires/go-proxyproto":         {"attest/server"},
	"github.com/prometheus":                  {"cmd/sealift/internal/monitor"},
	"k8s.io/client-go":                       {"cmd/sealift/internal/cluster"},
	"github.com/google/go-containerregistry": {"image"},
	"github.com/hashicorp/vault":             {"cmd/sealift/internal/kek"},
	"github.com/aws/aws-sdk-go-v2":           {"cmd/sealift/internal/kek"},
	"cloud.google.com/go":                    {"cmd/sealift/internal/kek"},
	"github.com/Azure/azure-sdk-for-go":      {"cmd/sealift/internal/kek"},
	// What forges evidence serves tests, the simulated fleet and the attack lab.
	module + "/attest/papertpm": {"cmd/sealift"},
}

// agentMayNot lists what the agent must never link.
var agentMayNot = []string{
	module + "/attest/server", module + "/provisioner", module + "/image", "database/sql", "github.com/spf13/cobra",
	"github.com/sigstore", "github.com/diskfs", "k8s.io", "net/http/httptest", "testing",
	"github.com/go-json-experiment",
}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func packages(t *testing.T, args ...string) []pkg {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func within(path, prefix string) bool { return path == prefix || strings.HasPrefix(path, prefix+"/") }

func layerOf(t *testing.T, path string) int {
	best, layer := -1, 0
	for _, l := range layers {
		if within(path, l.prefix) && len(l.prefix) > best {
			best, layer = len(l.prefix), l.layer
		}
	}
	if best < 0 {
		t.Errorf("%s belongs to no layer", path)
	}
	return layer
}

func TestImportsGoDownwards(t *testing.T) {
	for _, p := range packages(t, module+"/...") {
		path := strings.TrimPrefix(p.ImportPath, module+"/")
		if within(path, "testdata") {
			continue
		}
		for _, imp := range p.Imports {
			if !strings.HasPrefix(imp, module+"/") {
				continue
			}
			imp = strings.TrimPrefix(imp, module+"/")
			same := slices.ContainsFunc(peers, func(tree string) bool { return within(path, tree) && within(imp, tree) })
			switch from, to := layerOf(t, path), layerOf(t, imp); {
			case to > from:
				t.Errorf("%s (layer %d) imports %s (layer %d)", path, from, imp, to)
			case to == from && !same:
				t.Errorf("%s imports its peer %s", path, imp)
			}
		}
	}
}

func TestImportsKeepHeavyDependenciesInTheirRooms(t *testing.T) {
	for _, p := range packages(t, module+"/...") {
		path := strings.TrimPrefix(p.ImportPath, module+"/")
		for _, imp := range p.Imports {
			for dep, allowed := range rooms {
				if within(imp, dep) && !slices.ContainsFunc(allowed, func(room string) bool { return within(path, room) }) {
					t.Errorf("%s imports %s, which belongs into %v", path, imp, allowed)
				}
			}
		}
	}
}

func TestImportsOfTheAgentStayLight(t *testing.T) {
	for _, p := range packages(t, module+"/cmd/sealift-agent") {
		for _, dep := range p.Deps {
			if within(dep, module+"/image/manifest") || within(dep, module+"/image/iso9660") || within(dep, module+"/image/sign/bundle") || within(dep, module+"/provisioner/api") {
				continue
			}
			for _, no := range agentMayNot {
				if within(dep, no) {
					t.Errorf("the agent links %s", dep)
				}
			}
		}
	}
}
