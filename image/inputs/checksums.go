package inputs

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/sealift/sealift/image/manifest"
)

// maxChecksums bounds a vendor's file of checksums, in bytes. That of RKE2 has
// 60 lines.
const maxChecksums = 1 << 20

// errNotListed reports a file that a file of checksums does not name.
var errNotListed = errors.New("not listed")

// checksumOf finds the digest of a file in a vendor's file of checksums: lines
// as sha256sum(1) prints them, in text or binary mode, or a lone digest, as
// dl.k8s.io has beside each file. A file that is listed with two digests is an
// error; the error for one that is not listed wraps errNotListed.
func checksumOf(b []byte, file string) (manifest.SHA256, error) {
	var found manifest.SHA256
	if len(b) > maxChecksums {
		return found, fmt.Errorf("%d bytes, at most %d allowed", len(b), maxChecksums)
	}
	text := strings.TrimSpace(string(b))
	if !strings.ContainsAny(text, " \t\r\n") {
		return parseChecksum(text)
	}
	n := 0
	for line := range strings.Lines(text) {
		if n++; strings.TrimSpace(line) == "" {
			continue
		}
		hash, name, ok := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		// The character after the space is the mode: a space or an asterisk.
		if !ok || len(name) < 2 || (name[0] != ' ' && name[0] != '*') {
			return manifest.SHA256{}, fmt.Errorf("line %d: %.100q is not a digest and a file name", n, line)
		}
		if strings.TrimPrefix(name[1:], "./") != file {
			continue
		}
		d, err := parseChecksum(hash)
		if err != nil {
			return manifest.SHA256{}, fmt.Errorf("line %d: %w", n, err)
		}
		if !found.IsZero() && d != found {
			return manifest.SHA256{}, fmt.Errorf("line %d: %s has a second digest %s, the first is %s", n, file, d, found)
		}
		found = d
	}
	if found.IsZero() {
		return found, fmt.Errorf("%s is %w", file, errNotListed)
	}
	return found, nil
}

func parseChecksum(s string) (manifest.SHA256, error) {
	var d manifest.SHA256
	if len(s) != 2*len(d) {
		return d, fmt.Errorf("%.80q is not a SHA-256 digest", s)
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return manifest.SHA256{}, fmt.Errorf("%.80q is not a SHA-256 digest", s)
	}
	if d.IsZero() {
		return d, errors.New("a digest of zeros is of nothing")
	}
	return d, nil
}
