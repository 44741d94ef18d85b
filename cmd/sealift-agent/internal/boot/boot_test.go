package boot

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/profiles"
)

func TestParseCmdline(t *testing.T) {
	tests := map[string]struct {
		in   string
		want Cmdline
	}{
		"parameters are split at blanks":           {"console=ttyS0  ro\tquiet\n", Cmdline{"console": {"ttyS0"}, "ro": {""}, "quiet": {""}}},
		"a repeated parameter keeps its order":     {"console=tty0 console=ttyS0,115200", Cmdline{"console": {"tty0", "ttyS0,115200"}}},
		"a quoted value keeps its blanks":          {`a="b c" d`, Cmdline{"a": {"b c"}, "d": {""}}},
		"a quoted parameter keeps its blanks":      {`"a=b c" d`, Cmdline{"a": {"b c"}, "d": {""}}},
		"what is for init is left out":             {"a=1 -- sealift.roothash=00", Cmdline{"a": {"1"}}},
		"a value may hold an equals sign":          {"root=UUID=1", Cmdline{"root": {"UUID=1"}}},
		"an unclosed quote ends with the line":     {`a="b c`, Cmdline{"a": {"b c"}}},
		"an empty line has no parameters":          {" \n", Cmdline{}},
		"a value without a name is no parameter":   {"=x y", Cmdline{"y": {""}}},
		"a lone quote is no parameter and no hang": {`"`, Cmdline{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := ParseCmdline(tt.in); !maps.EqualFunc(got, tt.want, slices.Equal) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func FuzzParseCmdline(f *testing.F) {
	f.Add(`console=ttyS0 a="b c" -- x`)
	f.Add(`"" "="`)
	f.Fuzz(func(t *testing.T, s string) {
		n := 0
		for name, values := range ParseCmdline(s) {
			if name == "" {
				t.Error("a parameter without a name")
			}
			n += len(values)
		}
		if n > len(s) {
			t.Errorf("%d parameters from %d bytes", n, len(s))
		}
	})
}

func TestRootHash(t *testing.T) {
	hash := strings.Repeat("0f", 32)
	tests := map[string]struct{ in, err string }{
		"64 hex digits are the root hash":  {profiles.ParamRootHash + "=" + hash, ""},
		"a missing one is an error":        {"ro", "is missing"},
		"two of them are an error":         {profiles.ParamRootHash + "=" + hash + " " + profiles.ParamRootHash + "=" + hash, "given 2 times"},
		"a short one is an error":          {profiles.ParamRootHash + "=0f", "has 2 characters"},
		"one that is not hex is an error":  {profiles.ParamRootHash + "=" + strings.Repeat("zz", 32), "invalid byte"},
		"one meant for init is not a hash": {"-- " + profiles.ParamRootHash + "=" + hash, "is missing"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h, err := ParseCmdline(tt.in).RootHash()
			if tt.err == "" {
				if err != nil || h.String() != hash {
					t.Errorf("got %s, %v", h, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got error %v, want one with %q", err, tt.err)
			}
		})
	}
}

func TestParseConfig(t *testing.T) {
	bootConfig := `{"mode":"boot","image":"demo 1","debug":false,"modules":["/m.ko"],"attestURL":"https://a:1","attestCA":"c","releaseKey":"r","pcrKey":"p"}`
	tests := map[string]struct{ in, err string }{
		"a boot configuration is read":             {bootConfig, ""},
		"an install configuration is read":         {`{"mode":"install","image":"demo 1","debug":true,"modules":[],"imageKey":"k"}`, ""},
		"an unknown mode is refused":               {`{"mode":"rescue","image":"demo 1"}`, `mode is "rescue"`},
		"an unknown field is refused":              {`{"mode":"boot","shell":true}`, "unknown field"},
		"boot without the release key is refused":  {strings.Replace(bootConfig, `"releaseKey":"r",`, "", 1), "releaseKey is missing in mode boot"},
		"boot without the CA is refused":           {strings.Replace(bootConfig, `"attestCA":"c",`, "", 1), "attestCA is missing in mode boot"},
		"install without the image key is refused": {`{"mode":"install","image":"demo 1"}`, "imageKey is missing in mode install"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ParseConfig([]byte(tt.in))
			if (tt.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got error %v, want %q", err, tt.err)
			}
		})
	}
}

func TestRemoveFileSystemDeletesFilesDirectoriesAndLinksOnly(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	kept := filepath.Join(outside, "kept")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "a/b"), 0o755),
		os.WriteFile(filepath.Join(dir, "a/b/file"), []byte("x"), 0o400),
		os.WriteFile(kept, []byte("x"), 0o400),
		os.Symlink(outside, filepath.Join(dir, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := removeFileSystem(dir); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("what a link points to was deleted: %v", err)
	}
}

func TestSwitchRootRefusesARootThatIsNoInitramfs(t *testing.T) {
	if InInitramfs() {
		t.Skip("the tests run on a tmpfs root")
	}
	if err := SwitchRoot(t.TempDir(), "/init", nil, nil); err == nil || !strings.Contains(err.Error(), "not an initramfs") {
		t.Errorf("got %v", err)
	}
}

func TestParseEnd(t *testing.T) {
	for _, s := range []string{"reboot", "poweroff", "halt"} {
		if e, err := ParseEnd(s); err != nil || string(e) != s {
			t.Errorf("%s: got %v, %v", s, e, err)
		}
	}
	if _, err := ParseEnd("shell"); err == nil {
		t.Error("shell: no error")
	}
}

// The service's certificates are not valid before their CA is, which may have
// been made after the newest package of the image.
func TestTheClockIsNeverBeforeTheImageOrItsCA(t *testing.T) {
	built := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	file := filepath.Join(t.TempDir(), "agent.json")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, built, built); err != nil {
		t.Fatal(err)
	}
	ca := func(from time.Time) []byte {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: from.AddDate(10, 0, 0)}
		der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	older, newer := built.AddDate(0, -1, 0), built.AddDate(0, 1, 0)
	for name, tt := range map[string]struct {
		ca   []byte
		want time.Time
	}{
		"no CA":              {nil, built},
		"an older CA":        {ca(older), built},
		"a newer CA":         {ca(newer), newer},
		"an older and newer": {slices.Concat(ca(older), ca(newer)), newer},
	} {
		if got, err := EarliestNow(file, tt.ca); err != nil || !got.Equal(tt.want) {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, tt.want)
		}
	}
	broken := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})
	if _, err := EarliestNow(file, broken); err == nil {
		t.Error("a broken CA: no error")
	}
}
