package inputs

import (
	"bytes"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// archiveKeys are the keys that Debian signs its indexes with; see keys/README.md.
//
//go:embed keys/*.asc
var archiveKeys embed.FS

// maxInRelease bounds an InRelease file, in bytes. Debian's are about 200 KiB.
const maxInRelease = 4 << 20

// keyring returns the embedded archive keys.
func keyring() (openpgp.EntityList, error) {
	names, err := fs.Glob(archiveKeys, "keys/*.asc")
	if err != nil {
		return nil, fmt.Errorf("archive keys: %w", err)
	}
	var all openpgp.EntityList
	for _, name := range names {
		b, err := archiveKeys.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("archive keys: %w", err)
		}
		list, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("archive key %s: %w", name, err)
		}
		all = append(all, list...)
	}
	return all, nil
}

// release is a verified Release file (Debian Wiki, DebianRepository/Format).
type release struct {
	Codename string
	Date     time.Time
	ByHash   bool              // files are also found under their digest
	Files    map[string]digest // path below the suite's directory
}

// digest is what an index says about a file.
type digest struct {
	Size   int64
	SHA256 [32]byte
}

// verifyRelease checks an InRelease file and returns what it says. It holds that
//   - the file is one clear-signed OpenPGP message and nothing else,
//   - a key of the ring signed it and was valid at the time now,
//   - it names the suite that was asked for, so that an index of another suite
//     cannot stand in,
//   - it is not dated after now, and not past its Valid-Until, so that an old
//     index cannot hide updates for longer than Debian allows.
//
// Only bytes that the signature covers are used.
func verifyRelease(b []byte, keys openpgp.EntityList, suite string, now time.Time) (*release, error) {
	if len(b) > maxInRelease {
		return nil, fmt.Errorf("%d bytes, at most %d allowed", len(b), maxInRelease)
	}
	if !bytes.HasPrefix(b, []byte("-----BEGIN PGP SIGNED MESSAGE-----")) {
		return nil, errors.New("not a clear-signed message")
	}
	text, err := signedText(b, keys, now)
	if err != nil {
		return nil, err
	}
	r, err := parseRelease(text)
	if err != nil {
		return nil, err
	}
	if r.Codename != suite {
		return nil, fmt.Errorf("index is of suite %q, want %q", r.Codename, suite)
	}
	if r.Date.After(now.Add(time.Hour)) {
		return nil, fmt.Errorf("index is dated %s, after now (%s)", r.Date.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if !r.validUntil.IsZero() && now.After(r.validUntil) {
		return nil, fmt.Errorf("index was valid until %s, now is %s", r.validUntil.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return &r.release, nil
}

// signedText returns what a key of the ring has signed. It turns a panic of the
// OpenPGP library, which an empty message causes, into an error.
func signedText(b []byte, keys openpgp.EntityList, now time.Time) (text []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			text, err = nil, fmt.Errorf("not a clear-signed message: %v", r)
		}
	}()
	block, rest := clearsign.Decode(b)
	if block == nil || len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("not exactly one clear-signed message")
	}
	cfg := &packet.Config{Time: func() time.Time { return now }}
	if _, err := openpgp.CheckDetachedSignature(keys, bytes.NewReader(block.Bytes), block.ArmoredSignature.Body, cfg); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	return block.Plaintext, nil
}

type unverifiedRelease struct {
	release
	validUntil time.Time
}

// parseRelease reads a Release file's text.
func parseRelease(b []byte) (*unverifiedRelease, error) {
	r := &unverifiedRelease{release: release{Files: map[string]digest{}}}
	list := ""
	for n, line := range strings.Split(string(b), "\n") {
		line = strings.TrimRight(line, "\r")
		if line == "" {
			continue
		}
		if line[0] == ' ' || line[0] == '\t' {
			if list == "SHA256" {
				name, d, err := parseDigest(line)
				if err != nil {
					return nil, fmt.Errorf("line %d: %w", n+1, err)
				}
				r.Files[name] = d
			}
			continue
		}
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("line %d: not a field", n+1)
		}
		list, value = key, strings.TrimSpace(value)
		var err error
		switch key {
		case "Codename":
			r.Codename = value
		case "Date":
			r.Date, err = parseTime(value)
		case "Valid-Until":
			r.validUntil, err = parseTime(value)
		case "Acquire-By-Hash":
			r.ByHash = value == "yes"
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", n+1, key, err)
		}
	}
	if r.Codename == "" || r.Date.IsZero() || len(r.Files) == 0 {
		return nil, errors.New("field Codename, Date or SHA256 is missing")
	}
	return r, nil
}

func parseTime(s string) (time.Time, error) {
	t, err := time.Parse("Mon, 2 Jan 2006 15:04:05 MST", s)
	if err != nil {
		return time.Time{}, err
	}
	if z := t.Location().String(); z != "UTC" && z != "GMT" {
		return time.Time{}, fmt.Errorf("time zone of %q is not UTC", s)
	}
	return t.UTC(), nil
}

func parseDigest(line string) (string, digest, error) {
	var d digest
	f := strings.Fields(line)
	if len(f) != 3 || len(f[0]) != 64 {
		return "", d, fmt.Errorf("%.100q is not a digest, a size and a name", line)
	}
	if _, err := hex.Decode(d.SHA256[:], []byte(f[0])); err != nil {
		return "", d, err
	}
	size, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil || size < 0 {
		return "", d, fmt.Errorf("size %.40q is not a number", f[1])
	}
	d.Size = size
	return f[2], d, nil
}
