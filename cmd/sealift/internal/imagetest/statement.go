package imagetest

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
)

// PredicateType names the predicate of a test's statement. docs/reference-values.md
// describes it.
const PredicateType = "https://sealift.dev/attestation/image-test/v1"

const statementType = "https://in-toto.io/Statement/v1"

// Results of a test.
const (
	Passed = "passed"
	Failed = "failed"
)

// Statement is the in-toto statement of one test (in-toto Attestation
// Framework, Statement v1).
type Statement struct {
	Type          string    `json:"_type"`
	Subject       []Subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     Report    `json:"predicate"`
}

// Subject is a file that the statement is about.
type Subject struct {
	Name   string                     `json:"name"`
	Digest map[string]manifest.SHA256 `json:"digest"`
}

// Report is the predicate: what was booted, on what, and what was found.
type Report struct {
	Result    string    `json:"result"` // Passed or Failed
	Image     string    `json:"image"`  // name and version
	Way       string    `json:"way"`    // of the manifest's boot
	Enrolment string    `json:"enrolment"`
	Tester    Tester    `json:"tester"`
	Machine   Machine   `json:"machine"`
	Started   time.Time `json:"started"`
	Finished  time.Time `json:"finished"`
	Checks    []Check   `json:"checks"`
	// EventLog is the digest of the log that the machine sent, if it did.
	EventLog manifest.SHA256 `json:"eventLog,omitzero"`

	// Console is the end of the machine's console if no evidence came.
	Console string `json:"console,omitempty"`

	manifest manifest.SHA256 // of the manifest's bytes
	disk     Subject         // the file that was booted
}

// Tester is the program that ran the test.
type Tester struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
}

// Machine is the emulated one.
type Machine struct {
	Emulator string          `json:"emulator"`
	Accel    string          `json:"accel"`
	Firmware manifest.SHA256 `json:"firmware"` // of the firmware file
	TPM      string          `json:"tpm"`
	Banks    []string        `json:"banks"`
	DiskGUID string          `json:"diskGUID"`
	DiskSize int64           `json:"diskSize"` // bytes
}

// Failures returns how many checks failed.
func (r *Report) Failures() int {
	n := 0
	for _, c := range r.Checks {
		if !c.OK {
			n++
		}
	}
	return n
}

// Statement returns the report as an in-toto statement about the manifest and
// the disk image, as JSON.
func (r *Report) Statement() ([]byte, error) {
	s := Statement{
		Type: statementType, PredicateType: PredicateType, Predicate: *r,
		Subject: []Subject{{Name: image.FileManifest, Digest: map[string]manifest.SHA256{"sha256": r.manifest}}, r.disk},
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the statement: %w", err)
	}
	return append(b, '\n'), nil
}

// CheckStatement returns an error if text is not the statement of a test of the
// image with that manifest and that result. A key signs only what passes.
func CheckStatement(text []byte, digest manifest.SHA256, passed bool) error {
	var s Statement
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("read the statement of the test: %w", err)
	}
	about := slices.ContainsFunc(s.Subject, func(x Subject) bool {
		return x.Name == image.FileManifest && x.Digest["sha256"] == digest
	})
	r := &s.Predicate
	if s.Type != statementType || s.PredicateType != PredicateType || !about || (r.Result == Passed) != passed || (r.Failures() == 0) != passed {
		return fmt.Errorf("the statement of the test is of type %.100q, result %.20q with %d failures, about manifest %s: %t; it is not signed",
			s.PredicateType, r.Result, r.Failures(), digest, about)
	}
	return nil
}
