package boot

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
)

// maxCmdline bounds the command line, in bytes; x86 has 2048 and arm64 too.
const maxCmdline = 64 << 10

// Cmdline is the kernel's command line: each parameter's values in order. A
// parameter without "=" has the empty value.
type Cmdline map[string][]string

// ReadCmdline reads the running kernel's.
func ReadCmdline() (Cmdline, error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, fmt.Errorf("read the kernel command line: %w", err)
	}
	if len(b) > maxCmdline {
		return nil, fmt.Errorf("read the kernel command line: %d bytes, at most %d allowed", len(b), maxCmdline)
	}
	return ParseCmdline(string(b)), nil
}

// ParseCmdline splits a command line as the kernel does (lib/cmdline.c,
// next_arg): blanks separate parameters except inside double quotes, and
// quotes around a value or around the whole parameter are dropped. What
// follows "--" is for init and is left out.
func ParseCmdline(s string) Cmdline {
	c := Cmdline{}
	for {
		s = strings.TrimLeft(s, " \t\n\v\f\r")
		if s == "" {
			return c
		}
		end, quoted := 0, false
		for end < len(s) && (quoted || !isBlank(s[end])) {
			if s[end] == '"' {
				quoted = !quoted
			}
			end++
		}
		arg := s[:end]
		s = s[end:]
		if arg == "--" {
			return c
		}
		if strings.HasPrefix(arg, `"`) {
			arg = strings.TrimSuffix(arg[1:], `"`)
		}
		name, value, _ := strings.Cut(arg, "=")
		if strings.HasPrefix(value, `"`) {
			value = strings.TrimSuffix(value[1:], `"`)
		}
		if name != "" {
			c[name] = append(c[name], value)
		}
	}
}

func isBlank(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

// Value returns a parameter that must be there at most once, and whether it is.
func (c Cmdline) Value(name string) (string, bool, error) {
	v := c[name]
	switch len(v) {
	case 0:
		return "", false, nil
	case 1:
		return v[0], true, nil
	}
	return "", true, fmt.Errorf("kernel command line: %s is given %d times", name, len(v))
}

// RootHash returns the dm-verity root hash that the image was built with.
func (c Cmdline) RootHash() (manifest.SHA256, error) {
	var h manifest.SHA256
	v, ok, err := c.Value(profiles.ParamRootHash)
	if err != nil {
		return h, err
	}
	if !ok {
		return h, fmt.Errorf("kernel command line: %s is missing", profiles.ParamRootHash)
	}
	if len(v) != 2*len(h) {
		return h, fmt.Errorf("kernel command line: %s has %d characters, want %d hex digits", profiles.ParamRootHash, len(v), 2*len(h))
	}
	if _, err := hex.Decode(h[:], []byte(v)); err != nil {
		return manifest.SHA256{}, fmt.Errorf("kernel command line: %s: %w", profiles.ParamRootHash, err)
	}
	return h, nil
}
