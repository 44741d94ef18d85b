package inputs

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"pault.ag/go/debian/version"
)

// Bounds of a Packages file. Debian 12's main has 63,000 packages in 46 MB.
const (
	maxIndex     = 512 << 20 // bytes
	maxIndexLine = 1 << 20   // bytes
	maxPackages  = 1 << 20
)

// candidate is one version of a package that an index offers.
type candidate struct {
	Name    string
	Arch    string
	Version version.Version
	// Depends are the Depends and Pre-Depends fields, unparsed: of tens of
	// thousands of packages only those of the closure are ever read.
	Depends  []string
	Provides string
	Filename string // below the archive's root
	Digest   digest
	archive  int // of the resolver's archives
}

// parsePackages reads a Packages file (deb822(5)) and calls fn for each stanza
// of the architecture, or of "all". The text must come from a file whose digest
// a verified Release lists; faults are still errors and never panics.
func parsePackages(r io.Reader, arch string, fn func(candidate) error) error {
	s := bufio.NewScanner(io.LimitReader(r, maxIndex))
	s.Buffer(make([]byte, 64<<10), maxIndexLine)
	fields := map[string]string{}
	line, stanzas := 0, 0
	flush := func() error {
		if len(fields) == 0 {
			return nil
		}
		defer clear(fields)
		if stanzas++; stanzas > maxPackages {
			return fmt.Errorf("more than %d packages", maxPackages)
		}
		if a := fields["Architecture"]; a != arch && a != "all" {
			return nil
		}
		c, err := parseCandidate(fields)
		if err != nil {
			return fmt.Errorf("stanza before line %d: package %.80q: %w", line, fields["Package"], err)
		}
		return fn(c)
	}
	for s.Scan() {
		line++
		text := s.Text()
		switch {
		case text == "":
			if err := flush(); err != nil {
				return err
			}
		case text[0] == ' ' || text[0] == '\t':
			// Continuation lines belong to fields that nothing here reads.
		default:
			key, value, ok := strings.Cut(text, ":")
			if !ok {
				return fmt.Errorf("line %d: not a field", line)
			}
			if _, twice := fields[key]; twice {
				return fmt.Errorf("line %d: field %.40q is there twice", line, key)
			}
			switch key {
			case "Package", "Version", "Architecture", "Depends", "Pre-Depends", "Provides", "Filename", "Size", "SHA256":
				fields[key] = strings.TrimSpace(value)
			}
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("line %d: %w", line+1, err)
	}
	return flush()
}

func parseCandidate(f map[string]string) (candidate, error) {
	c := candidate{Name: f["Package"], Arch: f["Architecture"], Provides: f["Provides"], Filename: f["Filename"]}
	if c.Name == "" || f["Version"] == "" {
		return c, errors.New("field Package or Version is missing")
	}
	var err error
	if c.Version, err = version.Parse(f["Version"]); err != nil {
		return c, fmt.Errorf("version %.80q: %w", f["Version"], err)
	}
	for _, key := range []string{"Pre-Depends", "Depends"} {
		if f[key] != "" {
			c.Depends = append(c.Depends, f[key])
		}
	}
	if c.Filename == "" || path.IsAbs(c.Filename) || path.Clean(c.Filename) != c.Filename || strings.HasPrefix(c.Filename, "..") {
		return c, fmt.Errorf("file name %.120q is not a path below the archive", c.Filename)
	}
	if c.Digest.Size, err = strconv.ParseInt(f["Size"], 10, 64); err != nil || c.Digest.Size <= 0 {
		return c, fmt.Errorf("size %.40q is not a positive number", f["Size"])
	}
	if len(f["SHA256"]) != 64 {
		return c, fmt.Errorf("SHA256 has %d characters, want 64", len(f["SHA256"]))
	}
	if _, err := hex.Decode(c.Digest.SHA256[:], []byte(f["SHA256"])); err != nil {
		return c, fmt.Errorf("SHA256: %w", err)
	}
	return c, nil
}
