package audit

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"time"

	"github.com/sealift/sealift/attest"
)

//go:embed report.html.tmpl
var reportHTML string

// stamp formats a time as the report prints it: UTC, to the second.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// WriteHTML writes the report as one HTML page that needs no other file, no
// script and no network. Everything from machines is escaped.
func (r *Report) WriteHTML(w io.Writer) error {
	t, err := template.New("report").Funcs(template.FuncMap{
		"stamp": stamp,
		"iso":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"list":  list,
		"trust": trustText,
		"state": func(s attest.EnrolmentState) string { return orNone(string(s)) },
	}).Parse(reportHTML)
	if err != nil {
		return fmt.Errorf("attestation report: %w", err)
	}
	if err := t.Execute(w, r); err != nil {
		return fmt.Errorf("write attestation report: %w", err)
	}
	return nil
}

// trustText says in words how far a fact is proven.
func trustText(t attest.Trust) string {
	switch t {
	case attest.TrustQuoted:
		return "signed by the TPM"
	case attest.TrustDigest:
		return "digest signed by the TPM, text not"
	case attest.TrustClaimed:
		return "claimed by the machine"
	case attest.TrustRecorded:
		return "the service's own record"
	}
	return "unknown"
}
