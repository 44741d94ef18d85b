package inspect

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/provenance"
	"github.com/sealift/sealift/image/sbom"
	"github.com/sealift/sealift/image/sign/bundle"
	"github.com/sealift/sealift/profiles"
)

// maxSigned bounds a signed document beside the manifest, such as an SBOM, bytes.
const maxSigned = 64 << 20

// Statements beside the image: how it was made, and how it booted.
const (
	fileProvenance = "provenance.intoto.json"
	fileTest       = "test.intoto.json"
	typeTest       = "https://sealift.dev/attestation/image-test/v1"
)

// checkSBOM holds an SBOM against the files that are on the disk and in each
// initramfs: it must list each of them, by its digest, and no other.
func (v *verifier) checkSBOM(a manifest.Artifact) (string, error) {
	b, err := v.read(a.Name, sbom.MaxSize)
	if err != nil {
		return "", err
	}
	doc, err := sbom.Read(b)
	if err != nil {
		return "", err
	}
	if err := several(present(same("name", doc.Name, v.m.Name), same("version", doc.Version, v.m.Version))); err != nil {
		return "", err
	}
	digest, err := v.digest()
	if err != nil {
		return "", err
	}
	if err := same("digest of the disk in it", doc.Digest, digest); err != nil {
		return "", err
	}
	got, err := v.contents()
	if err != nil {
		return "", err
	}
	listed := maps.Clone(doc.Files)
	// The stub was taken apart to make the UKI. Files under images/ are in the
	// archives of container images, which are files themselves.
	delete(listed, "uki/stub")
	maps.DeleteFunc(listed, func(path string, _ manifest.SHA256) bool { return strings.HasPrefix(path, "images/") })
	var different []error
	for _, path := range slices.Sorted(maps.Keys(got)) {
		digest, there := listed[path]
		if !there {
			different = append(different, fmt.Errorf("it does not list %s", path))
		} else if err := same("digest of "+path+" in it", digest, got[path]); err != nil {
			different = append(different, err)
		}
		delete(listed, path)
	}
	for _, path := range slices.Sorted(maps.Keys(listed)) {
		different = append(different, fmt.Errorf("it lists %s, which is not in the image", path))
	}
	return fmt.Sprintf("%s, all %d files and %d components", doc.Format, len(doc.Files), len(doc.PackageNames)), several(different)
}

// contents returns the digests of all regular files by their names in an SBOM.
func (v *verifier) contents() (map[string]manifest.SHA256, error) {
	root, err := v.root()
	if err != nil {
		return nil, err
	}
	out := map[string]manifest.SHA256{}
	add := func(place string, files []File) {
		for _, f := range files {
			if f.Mode.IsRegular() {
				out[place+f.Path] = f.SHA256
			}
		}
	}
	add("root", root.Files)
	places := map[string]string{profiles.ModeBoot: "initramfs"}
	if v.hasInstaller() {
		places[profiles.ModeInstall] = "installer"
	}
	for mode, place := range places {
		in, err := v.initrds[mode]()
		if err != nil {
			return nil, err
		}
		add(place, in.files)
	}
	image, err := v.uki()
	if err != nil {
		return nil, err
	}
	kernel, err := peSection(image, ".linux")
	if err != nil {
		return nil, err
	}
	out["uki/linux"] = sha256.Sum256(kernel)
	return out, nil
}

// statement is the part of a test's in-toto statement (v1) that is verified.
type statement struct {
	Type    string `json:"_type"`
	Subject []struct {
		Name   string            `json:"name"`
		Digest map[string]string `json:"digest"`
	} `json:"subject"`
	PredicateType string `json:"predicateType"`
	Predicate     struct {
		Result string `json:"result"`
	} `json:"predicate"`
}

// signedFiles returns the bundles that the directory must have beside the
// manifest's: those of the SBOMs and of the provenance, and that of the test if
// there was one. None other vouches for anything.
func (v *verifier) signedFiles() []string {
	var names []string
	for _, a := range v.m.Artifacts {
		if a.Kind == manifest.KindSPDX || a.Kind == manifest.KindCycloneDX {
			names = append(names, a.Name+bundleSuffix)
		}
	}
	names = append(names, fileProvenance+bundleSuffix)
	for _, name := range []string{fileTest, fileTest + bundleSuffix} {
		if _, err := os.Lstat(filepath.Join(v.Dir, name)); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return append(names, fileTest+bundleSuffix)
		}
	}
	return names
}

// checkSigned verifies a document that is signed for itself: an SBOM by a bundle
// over the file, provenance and test by one that holds the in-toto statement.
func (v *verifier) checkSigned(name string) (string, error) {
	b, err := v.read(name, bundle.MaxStatementSize)
	if err != nil {
		return "", err
	}
	base := strings.TrimSuffix(name, bundleSuffix)
	document, err := v.read(base, maxSigned)
	if err != nil {
		return "", fmt.Errorf("the signed file %s: %w", base, err)
	}
	var form struct {
		Envelope json.RawMessage `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(b, &form); err != nil {
		return "", err
	}
	statement := base == fileProvenance || base == fileTest
	if statement != (form.Envelope != nil) {
		return "", fmt.Errorf("%s is signed as a statement: %t, want %t", base, form.Envelope != nil, statement)
	}
	if !statement {
		return "signature over " + base, bundle.Verify(document, b, v.Keys.Image)
	}
	text, err := bundle.VerifyStatement(b, v.Keys.Image)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(text, document) {
		return "", fmt.Errorf("the statement in it is not that of %s", base)
	}
	if base == fileProvenance {
		s, err := provenance.Decode(text)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s, %d files, %d inputs", s.PredicateType, len(s.Subject), len(s.Predicate.BuildDefinition.ResolvedDependencies)), s.CheckManifest(v.m, FileManifest, v.Manifest)
	}
	return v.checkTest(text)
}

// checkTest holds the statement of "image test" against the image.
func (v *verifier) checkTest(text []byte) (string, error) {
	var s statement
	if err := json.Unmarshal(text, &s); err != nil {
		return "", fmt.Errorf("statement: %w", err)
	}
	if err := several(present(
		same("type of the statement", s.Type, "https://in-toto.io/Statement/v1"),
		same("type of the predicate", s.PredicateType, typeTest),
		same("result of the test", s.Predicate.Result, "passed"),
	)); err != nil {
		return "", err
	}
	own := manifest.SHA256(sha256.Sum256(v.Manifest))
	known, about := map[string]manifest.SHA256{FileManifest: own}, false
	for _, a := range v.m.Artifacts {
		known[a.Name] = a.SHA256
	}
	for _, subject := range s.Subject {
		want, ok := known[subject.Name]
		if !ok {
			return "", fmt.Errorf("the statement is about %.200q, which is not of this image", subject.Name)
		}
		if err := same("digest of "+subject.Name+" in the statement", subject.Digest["sha256"], want.String()); err != nil {
			return "", err
		}
		about = about || subject.Name == FileManifest
	}
	if !about {
		return "", errors.New("the statement is not about the manifest")
	}
	return fmt.Sprintf("%s, %s, about %d files", s.PredicateType, s.Predicate.Result, len(s.Subject)), nil
}
