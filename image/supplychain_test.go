package image

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	slsa "github.com/in-toto/attestation/go/predicates/provenance/v1"
	statement "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/provenance"
	"github.com/sealift/sealift/image/sbom"
	"github.com/sealift/sealift/image/sign/bundle"
)

// built is an image in a directory, and the key that verifies it.
func built(t *testing.T) (dir string, pub []byte, m *manifest.Manifest) {
	t.Helper()
	in := input(t)
	in.Provenance = provenance.Parameters{ProfileDigest: [32]byte{1}, Version: "v0.1.0", Dependencies: []provenance.Resource{
		{Name: "a", URI: "https://example.org/a", Digest: map[string]string{"sha256": strings.Repeat("0f", 32)}},
	}}
	m, err := Build(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return in.Output, publicPEM(t, in.Signer.Public()), m
}

func read(t *testing.T, parts ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTheInventoryIsOfTheDiskAndIsSigned(t *testing.T) {
	dir, pub, m := built(t)
	disk, _ := m.Artifact(manifest.KindDisk)
	for _, kind := range []string{manifest.KindSPDX, manifest.KindCycloneDX} {
		a, ok := m.Artifact(kind)
		if !ok {
			t.Fatalf("the manifest lists no %s", kind)
		}
		text := read(t, dir, a.Name)
		if err := bundle.Verify(text, read(t, dir, BundleOf(a.Name)), pub); err != nil {
			t.Errorf("%s: %v", a.Name, err)
		}
		d, err := sbom.Read(text)
		if err != nil {
			t.Fatalf("%s: %v", a.Name, err)
		}
		if d.Digest != disk.SHA256 || d.Name != m.Name || d.Version != m.Version {
			t.Errorf("%s is of %s %s with disk %s, want %s %s with %s", a.Name, d.Name, d.Version, d.Digest, m.Name, m.Version, disk.SHA256)
		}
		for _, place := range []string{PlaceRoot, PlaceInitramfs, PlaceInstaller, PlaceUKI} {
			found := false
			for name := range d.Files {
				found = found || strings.HasPrefix(name, place+"/")
			}
			if !found {
				t.Errorf("%s lists no file of %s", a.Name, place)
			}
		}
	}
}

func TestTheProvenanceIsOfTheManifestAndAllItsArtifacts(t *testing.T) {
	dir, pub, m := built(t)
	signed := read(t, dir, BundleOf(FileProvenance))
	s, err := provenance.Verify(signed, pub)
	if err != nil {
		t.Fatal(err)
	}
	text := read(t, dir, FileManifest)
	if err := s.CheckManifest(m, FileManifest, text); err != nil {
		t.Error(err)
	}
	if len(s.Subject) != 1+len(m.Artifacts) {
		t.Errorf("got %d subjects, want %d", len(s.Subject), 1+len(m.Artifacts))
	}
	raw, err := bundle.VerifyStatement(signed, pub)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw, read(t, dir, FileProvenance)) {
		t.Error("the statement in the bundle is not that beside it")
	}
	// The library of the in-toto project reads it and finds it valid.
	var st statement.Statement
	if err := protojson.Unmarshal(raw, &st); err != nil {
		t.Fatal(err)
	}
	predicate, err := protojson.Marshal(st.GetPredicate())
	if err != nil {
		t.Fatal(err)
	}
	var p slsa.Provenance
	if err := errors.Join(st.Validate(), protojson.Unmarshal(predicate, &p), p.Validate()); err != nil {
		t.Error(err)
	}
}

// cosign is the real one. make tools builds it at the version that
// image/sign/testdata/cosign pins.
func cosign(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("cosign")
	if err != nil && os.Getenv("REQUIRE_TOOLS") != "" {
		t.Fatal("cosign is not there: make tools builds it")
	} else if err != nil {
		t.Skip("cosign is not there: make tools builds it")
	}
	return path
}

func TestCosignAcceptsAllThatIsSignedWithoutANetwork(t *testing.T) {
	tool := cosign(t)
	dir, pub, _ := built(t)
	key := filepath.Join(t.TempDir(), "image.pub")
	if err := os.WriteFile(key, pub, 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) error {
		cmd := exec.Command(tool, append(args, "--key", key, "--insecure-ignore-tlog=true")...)
		cmd.Dir = dir
		// A proxy that refuses shows every attempt to reach a network.
		cmd.Env = append(os.Environ(), "HTTPS_PROXY=http://127.0.0.1:1", "HTTP_PROXY=http://127.0.0.1:1", "HOME="+t.TempDir(), "TUF_ROOT="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if err != nil {
			return errors.Join(err, errors.New(string(bytes.TrimSpace(out))))
		}
		return nil
	}
	for _, name := range []string{FileManifest, FileSPDX, FileCycloneDX} {
		if err := run("verify-blob", "--bundle", BundleOf(name), name); err != nil {
			t.Errorf("cosign verify-blob %s: %v", name, err)
		}
	}
	if run("verify-blob", "--bundle", BundleOf(FileSPDX), FileCycloneDX) == nil {
		t.Error("cosign accepts the signature of one file for another")
	}
	for _, name := range []string{FileManifest, FileDisk, FileUKI, FileSPDX, FileDiskZstd, FileInstaller} {
		if err := run("verify-blob-attestation", "--bundle", BundleOf(FileProvenance), "--type", "slsaprovenance1", name); err != nil {
			t.Errorf("cosign verify-blob-attestation %s: %v", name, err)
		}
	}
	if run("verify-blob-attestation", "--bundle", BundleOf(FileProvenance), "--type", "slsaprovenance1", BundleOf(FileSPDX)) == nil {
		t.Error("cosign accepts the provenance for a file that is no subject")
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, publicPEM(t, other.Public()), 0o644); err != nil {
		t.Fatal(err)
	}
	if run("verify-blob", "--bundle", FileBundle, FileManifest) == nil {
		t.Error("cosign accepts another key")
	}
}
