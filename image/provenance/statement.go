// Package provenance says how an image was made: an in-toto statement (version
// 1) with SLSA provenance (version 1) whose subjects are all output files. New
// makes it, FromLock lists what a lock pins, Verify reads a signed one back.
// docs/provenance.md documents the build type.
//
// A statement holds no time and no run identifier, so equal builds give equal
// statements. Only the signature around them differs.
package provenance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign/bundle"
)

// Types of a statement.
const (
	StatementType = "https://in-toto.io/Statement/v1"
	PredicateType = "https://slsa.dev/provenance/v1"
	BuildType     = "https://sealift.dev/buildtypes/image/v1"
)

// DefaultBuilder is the builder's identity where none was given: some machine
// that nobody vouches for.
const DefaultBuilder = "https://sealift.dev/builders/unidentified"

// MaxSize bounds an encoded statement, in bytes.
const MaxSize = 8 << 20

// Statement is an in-toto statement with SLSA provenance.
type Statement struct {
	Type          string     `json:"_type"`
	Subject       []Resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     Predicate  `json:"predicate"`
}

// Resource is an in-toto resource descriptor.
type Resource struct {
	Name        string            `json:"name,omitempty"`
	URI         string            `json:"uri,omitempty"`
	Digest      map[string]string `json:"digest,omitempty"` // algorithm to lower-case hex
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Predicate is SLSA provenance, version 1.
type Predicate struct {
	BuildDefinition BuildDefinition `json:"buildDefinition"`
	RunDetails      RunDetails      `json:"runDetails"`
}

// BuildDefinition is what was built from what.
type BuildDefinition struct {
	BuildType            string             `json:"buildType"`
	ExternalParameters   ExternalParameters `json:"externalParameters"`
	InternalParameters   InternalParameters `json:"internalParameters"`
	ResolvedDependencies []Resource         `json:"resolvedDependencies"`
}

// ExternalParameters are what the caller of the build decides.
type ExternalParameters struct {
	Profile Profile `json:"profile"`
	Lock    Lock    `json:"lock"`
	Arch    string  `json:"arch"`
	// Keys are SHA-256 digests in hex of the public keys and certificates that
	// went into the image, by name.
	Keys map[string]string `json:"keys,omitempty"`
}

// Profile is the profile that was built.
type Profile struct {
	Name    string            `json:"name"`
	Version string            `json:"version"`
	Digest  map[string]string `json:"digest,omitempty"`
}

// Lock is the profile's lock.
type Lock struct {
	Digest map[string]string `json:"digest"`
}

// InternalParameters are what the builder decides.
type InternalParameters struct {
	Epoch int64 `json:"epoch"` // SOURCE_DATE_EPOCH, Unix seconds
}

// RunDetails say who built.
type RunDetails struct {
	Builder Builder `json:"builder"`
}

// Builder is who vouches for the build.
type Builder struct {
	ID      string            `json:"id"`
	Version map[string]string `json:"version,omitempty"` // program to version
}

// Input is what a statement is made from. All fields are required unless
// marked Optional.
type Input struct {
	Manifest     *manifest.Manifest
	ManifestName string // file name of the manifest
	ManifestText []byte // as signed
	Parameters
}

// Parameters are those parts of a statement that only the caller of a build
// knows. All are optional.
type Parameters struct {
	ProfileDigest manifest.SHA256   // of the profile's file
	Keys          map[string]string // see ExternalParameters.Keys
	Dependencies  []Resource        // see FromLock
	Builder       string            // URI; DefaultBuilder if empty
	Version       string            // of the program that builds
}

// New makes the statement of a finished build.
func New(in Input) (*Statement, error) {
	if in.Manifest == nil || in.ManifestName == "" || len(in.ManifestText) == 0 {
		return nil, errors.New("provenance: no manifest")
	}
	m := in.Manifest
	s := &Statement{
		Type: StatementType, PredicateType: PredicateType,
		Subject: []Resource{{Name: in.ManifestName, Digest: digestOf(in.ManifestText)}},
	}
	for _, a := range m.Artifacts {
		if a.SHA256.IsZero() {
			return nil, fmt.Errorf("provenance: artifact %s has no digest", a.Name)
		}
		s.Subject = append(s.Subject, Resource{Name: a.Name, Digest: sha256Set(a.SHA256)})
	}
	d := &s.Predicate.BuildDefinition
	d.BuildType = BuildType
	d.ExternalParameters = ExternalParameters{
		Profile: Profile{Name: m.Name, Version: m.Version}, Lock: Lock{Digest: sha256Set(m.LockDigest)},
		Arch: m.Arch, Keys: in.Keys,
	}
	if !in.ProfileDigest.IsZero() {
		d.ExternalParameters.Profile.Digest = sha256Set(in.ProfileDigest)
	}
	d.InternalParameters.Epoch = m.Epoch
	d.ResolvedDependencies = slices.Clone(in.Dependencies)
	if d.ResolvedDependencies == nil {
		d.ResolvedDependencies = []Resource{}
	}
	s.Predicate.RunDetails.Builder.ID = in.Builder
	if in.Builder == "" {
		s.Predicate.RunDetails.Builder.ID = DefaultBuilder
	}
	if in.Version != "" {
		s.Predicate.RunDetails.Builder.Version = map[string]string{"sealift": in.Version}
	}
	return s, nil
}

// Encode returns the statement as JSON. Equal statements give equal bytes.
func (s *Statement) Encode() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return nil, fmt.Errorf("encode provenance: %w", err)
	}
	if b.Len() > MaxSize {
		return nil, fmt.Errorf("encode provenance: %d bytes, at most %d allowed", b.Len(), MaxSize)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Decode reads a statement strictly: unknown fields, other types and trailing
// data are errors. It does not verify a signature.
func Decode(b []byte) (*Statement, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("decode provenance: %d bytes, at most %d allowed", len(b), MaxSize)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	s := &Statement{}
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("decode provenance: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("decode provenance: data after the statement")
	}
	for _, t := range []struct{ what, got, want string }{
		{"statement type", s.Type, StatementType},
		{"predicate type", s.PredicateType, PredicateType},
		{"build type", s.Predicate.BuildDefinition.BuildType, BuildType},
	} {
		if t.got != t.want {
			return nil, fmt.Errorf("decode provenance: %s is %.200q, want %q", t.what, t.got, t.want)
		}
	}
	return s, nil
}

// Verify returns the statement of a bundle that the key in pubPEM has signed.
// Compare what it says with CheckManifest: any statement that the key ever
// signed verifies.
func Verify(signed, pubPEM []byte) (*Statement, error) {
	b, err := bundle.VerifyStatement(signed, pubPEM)
	if err != nil {
		return nil, fmt.Errorf("provenance: %w", err)
	}
	return Decode(b)
}

// CheckManifest reports whether the statement is of the build that gave a
// manifest. It checks that
//   - the subjects are the manifest, by name and digest, and exactly its
//     artifacts, each once and with its digest,
//   - profile, version, architecture, lock and epoch are those of the manifest.
//
// All that differs is in the error.
func (s *Statement) CheckManifest(m *manifest.Manifest, name string, text []byte) error {
	want := map[string]string{name: digestOf(text)["sha256"]}
	for _, a := range m.Artifacts {
		want[a.Name] = a.SHA256.String()
	}
	var errs []error
	seen := map[string]bool{}
	for _, r := range s.Subject {
		got := r.Digest["sha256"]
		switch digest, ok := want[r.Name]; {
		case !ok:
			errs = append(errs, fmt.Errorf("provenance: subject %.200q is not in the manifest", r.Name))
		case seen[r.Name]:
			errs = append(errs, fmt.Errorf("provenance: subject %.200q is there twice", r.Name))
		case got != digest:
			errs = append(errs, fmt.Errorf("provenance: subject %s has digest %.64q, want %s", r.Name, got, digest))
		}
		seen[r.Name] = true
	}
	for _, n := range append([]string{name}, artifactNames(m)...) {
		if !seen[n] {
			errs = append(errs, fmt.Errorf("provenance: no subject %s", n))
		}
	}
	d := &s.Predicate.BuildDefinition
	p := &d.ExternalParameters
	for _, c := range []struct{ what, got, want string }{
		{"profile", p.Profile.Name, m.Name},
		{"version", p.Profile.Version, m.Version},
		{"architecture", p.Arch, m.Arch},
		{"lock", p.Lock.Digest["sha256"], m.LockDigest.String()},
		{"epoch", fmt.Sprint(d.InternalParameters.Epoch), fmt.Sprint(m.Epoch)},
	} {
		if c.got != c.want {
			errs = append(errs, fmt.Errorf("provenance: %s is %.200q, the manifest has %q", c.what, c.got, c.want))
		}
	}
	return errors.Join(errs...)
}

func artifactNames(m *manifest.Manifest) []string {
	names := make([]string, len(m.Artifacts))
	for i, a := range m.Artifacts {
		names[i] = a.Name
	}
	return names
}
