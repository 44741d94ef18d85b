package profiles

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// Bounds of what lies beside a profile, in bytes.
const (
	MaxSource   = 256 << 20 // a file of the root file system
	MaxManifest = 256 << 10 // a static pod
	MaxCA       = 64 << 10  // certificates
)

// maxCerts is how many certificates Attest.CA may hold.
const maxCerts = 16

// Sources returns the paths, as in the profile, of the files beside it that
// become part of the image, in order and each once.
func (p *Profile) Sources() []string {
	var out []string
	for _, f := range p.Files {
		out = append(out, f.Source)
	}
	for _, m := range p.Preload.Manifests {
		out = append(out, m.Source)
	}
	out = append(out, p.Attest.CA)
	slices.Sort(out)
	return slices.DeleteFunc(slices.Compact(out), func(s string) bool { return s == "" })
}

// Source names the image in messages and in the lock.
func (o OCI) Source() string {
	switch {
	case o.Layout != "":
		return "layout " + o.Layout
	case o.Archive != "":
		return "archive " + o.Archive
	}
	return o.Image
}

// OpenSource opens a file beside a profile, or below, for reading, and returns
// its size. Neither ".." nor a link leads out of the profile's directory, and
// what is not a regular file is refused without being read.
func OpenSource(profile, source string) (_ *os.File, size int64, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("source %s: %w", source, err)
		}
	}()
	if source == "" || !filepath.IsLocal(source) {
		return nil, 0, errors.New("it is not below the profile's directory")
	}
	dir, err := os.OpenRoot(filepath.Dir(profile))
	if err != nil {
		return nil, 0, err
	}
	defer dir.Close() // only read
	// A pipe would make a blocking open wait for a writer.
	f, err := dir.OpenFile(filepath.FromSlash(source), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	switch {
	case err != nil:
	case !st.Mode().IsRegular():
		err = errNotRegular
	case st.Size() > MaxSource:
		err = fmt.Errorf("%d bytes, at most %d allowed", st.Size(), MaxSource)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, st.Size(), nil
}

var errNotRegular = errors.New("not a regular file")

// OpenRegular opens a file for reading, as os.Open does, but refuses what is not
// a regular file: opening a pipe would wait for a writer, whatever a context says.
func OpenRegular(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		if err == nil {
			err = fmt.Errorf("open %s: %w", name, errNotRegular)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// PolicyDBX reads the file that a profile's policy names in
// secureBoot.dbx.superset. It is nil if the policy names none.
func (p *Profile) PolicyDBX(profile string) ([]byte, error) {
	if p.Policy.SecureBoot.DBX.Superset.File == "" {
		return nil, nil
	}
	return readSource(profile, p.Policy.SecureBoot.DBX.Superset.File, MaxPolicyFile)
}

// readSource reads a file beside a profile of at most max bytes.
func readSource(profile, source string, max int64) (_ []byte, err error) {
	f, _, err := OpenSource(profile, source)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("source %s: more than %d bytes", source, max)
	}
	return b, err
}

// checkSources reports what is wrong with the files beside a profile.
func (p *Profile) checkSources(profile string, r report) {
	for i, f := range p.Files {
		if f.Source == "" {
			continue
		}
		file, _, err := OpenSource(profile, f.Source)
		if err == nil {
			err = file.Close()
		}
		if err != nil {
			r(fmt.Sprintf("files[%d].source", i), err.Error(), "")
		}
	}
	for i, m := range p.Preload.Manifests {
		if m.Source == "" {
			continue
		}
		b, err := readSource(profile, m.Source, MaxManifest)
		if err == nil {
			err = CheckStaticPod(b)
		}
		if err != nil {
			r(fmt.Sprintf("preload.manifests[%d].source", i), err.Error(), "")
		}
	}
	if p.Attest.CA != "" {
		b, err := readSource(profile, p.Attest.CA, MaxCA)
		if err == nil {
			_, err = ParseCA(b)
		}
		if err != nil {
			r("attest.ca", err.Error(), "")
		}
	}
}

// CheckStaticPod reports what the kubelet would not take as a static pod: it
// reads one Pod from each file, and only logs what is wrong. The pod's
// specification is the kubelet's to judge.
func CheckStaticPod(b []byte) (err error) {
	if len(b) > MaxManifest {
		return fmt.Errorf("static pod: %d bytes, at most %d allowed", len(b), MaxManifest)
	}
	d := &document{}
	var body *yaml.Node
	if d.checkText(b) {
		if body, err = d.parse(b); err != nil {
			return fmt.Errorf("static pod: %w", err)
		}
	}
	if len(d.problems) > 0 {
		p := d.problems[0]
		return fmt.Errorf("static pod: line %d: %s", p.Line, p.Message)
	}
	if body == nil || body.Kind != yaml.MappingNode {
		return errors.New("static pod: not a Kubernetes object")
	}
	get := func(n *yaml.Node, key string) *yaml.Node {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				return n.Content[i+1]
			}
		}
		return &yaml.Node{}
	}
	version, kind := get(body, "apiVersion").Value, get(body, "kind").Value
	if version != "v1" || kind != "Pod" {
		return fmt.Errorf("static pod: apiVersion %.60q, kind %.60q; want v1 and Pod, one to a file", version, kind)
	}
	if get(get(body, "metadata"), "name").Value == "" {
		return errors.New("static pod: metadata.name is missing")
	}
	if get(body, "spec").Kind != yaml.MappingNode {
		return errors.New("static pod: spec is missing")
	}
	return nil
}

// ParseCA reads certificates of authorities in PEM and returns them without
// what else was in the file. A private key, or a certificate that is not an
// authority's, is an error.
func ParseCA(b []byte) ([]byte, error) {
	if len(b) > MaxCA {
		return nil, fmt.Errorf("CA certificates: %d bytes, at most %d allowed", len(b), MaxCA)
	}
	var out bytes.Buffer
	n := 0
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if n++; n > maxCerts {
			return nil, fmt.Errorf("CA certificates: more than %d", maxCerts)
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("CA certificates: block %d is a %.40q, want a CERTIFICATE", n, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("CA certificates: certificate %d: %w", n, err)
		}
		if !c.BasicConstraintsValid || !c.IsCA {
			return nil, fmt.Errorf("CA certificates: certificate %d, of %q, is not an authority's", n, c.Subject)
		}
		if err := pem.Encode(&out, &pem.Block{Type: block.Type, Bytes: block.Bytes}); err != nil {
			return nil, fmt.Errorf("CA certificates: %w", err)
		}
	}
	if n == 0 || len(bytes.TrimSpace(b)) > 0 {
		return nil, fmt.Errorf("CA certificates: %d in PEM, then %.20q", n, bytes.TrimSpace(b))
	}
	return out.Bytes(), nil
}

// validateFiles checks what a lock pins of the files beside the profile.
func (l *Lock) validateFiles(r report, sum func(field, got string)) {
	seen := map[string]bool{}
	for i, f := range l.Files {
		at := fmt.Sprintf("files[%d]", i)
		if !filepath.IsLocal(f.Path) || seen[f.Path] {
			r(at+".path", fmt.Sprintf("%.200q is not below the profile's directory, or is there twice", f.Path), "")
		}
		seen[f.Path] = true
		if f.Size < 0 || f.Size > MaxSource {
			r(at+".size", fmt.Sprintf("%d is not between 0 and %d", f.Size, MaxSource), "")
		}
		sum(at+".sha256", f.SHA256)
	}
	if l.OCI == nil {
		return
	}
	if l.OCI.Source == "" {
		r("oci.source", "missing", "")
	}
	digest, ok := strings.CutPrefix(l.OCI.Digest, "sha256:")
	if !ok {
		r("oci.digest", fmt.Sprintf("%.80q is not sha256: and a digest", l.OCI.Digest), "")
	} else {
		sum("oci.digest", digest)
	}
	if l.OCI.Size <= 0 || l.OCI.Size > MaxImage {
		r("oci.size", fmt.Sprintf("%d is not between 1 and %d", l.OCI.Size, int64(MaxImage)), "")
	}
}
