package imagetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign/bundle"
)

// TestBootsAsPredicted boots the image that the demo's test has built, as it is
// and tampered with, by the command that people use. It runs only where
// SEALIFT_VM is set; SEALIFT_BIN is the directory of the built programs,
// SEALIFT_IMAGE and SEALIFT_KEYS say where another image and its keys are.
func TestBootsAsPredicted(t *testing.T) {
	if os.Getenv("SEALIFT_VM") == "" {
		t.Skip("boots virtual machines: make e2e")
	}
	b := newBootTest(t)
	if _, err := os.Stat(filepath.Join(b.image, "manifest.json")); err != nil {
		t.Fatalf("%v: the demo's test builds the image: make e2e", err)
	}
	// Firmware and kernel use one CPU each, so both boots together take little
	// longer than one.
	t.Run("the image as it is", func(t *testing.T) { t.Parallel(); b.good(t) })
	t.Run("a changed command line, signed again with the db key", func(t *testing.T) { t.Parallel(); b.tampered(t) })
}

// TestBootsForAnotherArchitecture builds the demo's image for arm64, wherever
// this runs, and boots it with firmware of arm64. It runs only where SEALIFT_VM
// is set; the variables are those of TestBootsAsPredicted, but for the image.
func TestBootsForAnotherArchitecture(t *testing.T) {
	if os.Getenv("SEALIFT_VM") == "" {
		t.Skip("boots virtual machines: make e2e")
	}
	b := newBootTest(t)
	b.image = filepath.Join(b.root, "build", "test", "image-arm64")
	if _, err := os.Stat(b.keys); err != nil {
		b.sealift(t, "keys", "init", b.keys)
	}
	b.sealift(t, "image", "build", filepath.Join(b.root, "profiles", "demo.yaml"), "--arch", "arm64", "--keys", b.keys,
		"--cache", filepath.Join(b.root, "build", "cache"), "--out", b.image, "--output", "raw,netboot", "--reuse")
	b.sealift(t, "image", "verify", b.image, "--keys", b.keys)
	b.good(t)
}

type bootTest struct{ root, program, image, keys string }

func newBootTest(t *testing.T) *bootTest {
	t.Helper()
	root, err := filepath.Abs("../../../..")
	if err != nil {
		t.Fatal(err)
	}
	or := func(name string, parts ...string) string {
		if v := os.Getenv(name); v != "" {
			return v
		}
		return filepath.Join(append([]string{root}, parts...)...)
	}
	return &bootTest{
		root:    root,
		program: filepath.Join(or("SEALIFT_BIN", "bin"), "sealift"),
		image:   or("SEALIFT_IMAGE", "build", "test", "image"),
		keys:    or("SEALIFT_KEYS", "build", "test", "keys"),
	}
}

// sealift runs a command that has to succeed.
func (b *bootTest) sealift(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), b.program, args...).CombinedOutput(); err != nil {
		t.Fatalf("sealift %q: %v\n%s", args, err, out)
	}
}

// run tests the image in dir, and returns the lines of the result and the exit
// status.
func (b *bootTest) run(t *testing.T, dir string) (string, int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), b.program, "image", "test", dir, "--keys", b.keys, "--timeout", "12m")
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if code := cmd.ProcessState.ExitCode(); code != 0 && code != 3 {
		t.Fatalf("exit status %d:\n%s%s", code, out.String(), talk.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// statement verifies the signature of the statement beside the manifest.
func (b *bootTest) statement(t *testing.T, dir string) Statement {
	t.Helper()
	read := func(name string) []byte {
		t.Helper()
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	text := read(filepath.Join(dir, "test.intoto.json"))
	signed, err := bundle.VerifyStatement(read(filepath.Join(dir, "test.intoto.json.sigstore.json")), read(filepath.Join(b.keys, "image.pub")))
	if err != nil || !bytes.Equal(signed, text) {
		t.Fatalf("the signed statement is not the one in the file (%v)", err)
	}
	var s Statement
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// link makes a directory with the image's files, but for those named.
func (b *bootTest) link(t *testing.T, but ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"manifest.json", "manifest.json.sigstore.json", "disk.raw", "uki.efi"} {
		if !strings.Contains(strings.Join(but, " "), name) {
			if err := os.Symlink(filepath.Join(b.image, name), filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func (b *bootTest) good(t *testing.T) {
	dir := b.link(t)
	out, code := b.run(t, dir)
	if code != 0 || strings.Contains(out, "differs") {
		t.Fatalf("exit status %d:\n%s", code, out)
	}
	for _, want := range []string{"PCR 4: value, sha256", "PCR 5: value, sha384", "PCR 7: value, sha256", "PCR 9: value, sha384", "PCR 11: value, sha256", "PCR 12: value, sha384", "PCR 13: value, sha256"} {
		if !strings.Contains(out, "ok       "+want) {
			t.Errorf("there is no line for %s:\n%s", want, out)
		}
	}
	s := b.statement(t, dir)
	if s.PredicateType != PredicateType || s.Predicate.Result != Passed || s.Predicate.Failures() != 0 || s.Predicate.EventLog.IsZero() {
		t.Errorf("the statement says %s, %d failures", s.Predicate.Result, s.Predicate.Failures())
	}
	t.Logf("%d checks on %s, %s: ok", len(s.Predicate.Checks), s.Predicate.Machine.Emulator, s.Predicate.Machine.TPM)
}

// tampered proves that a test can fail: a thief of the db key changes one
// character of the kernel's command line, and Secure Boot starts it.
func (b *bootTest) tampered(t *testing.T) {
	dir := b.link(t, "disk.raw")
	b.tamper(t, dir)
	out, code := b.run(t, dir)
	if code != 3 {
		t.Fatalf("exit status %d, want 3:\n%s", code, out)
	}
	for _, bank := range []string{"sha256", "sha384"} {
		for _, want := range []string{
			`PCR 4, event \d+: EV_EFI_BOOT_SERVICES_APPLICATION the UKI, .*`, `PCR 4: value`,
			`PCR 9, event \d+: EV_EVENT_TAG LOADED_IMAGE::LoadOptions: .*`, `PCR 9: value`,
			`PCR 11, event \d+: EV_IPL \.cmdline: the content`, `PCR 11: value`,
		} {
			if re := `(?m)^differs  ` + want + `, ` + bank + `: predicted [0-9a-f]+, booted [0-9a-f]+$`; !regexp.MustCompile(re).MatchString(out) {
				t.Errorf("no line matches %s", re)
			}
		}
	}
	for _, want := range []string{"differs  artifact disk.raw: content, sha256: predicted ", "differs  verifier: image.unknown: "} {
		if !strings.Contains(out, want) {
			t.Errorf("no line has %q", want)
		}
	}
	// What was not touched is as predicted. PCR 7 cannot see the theft.
	if re := regexp.MustCompile(`(?m)^differs  (PCR (5|7|12|13)\b|.*\.(linux|initrd|osrel|pcrpkey)).*$`); re.MatchString(out) {
		t.Errorf("differs, too: %s", re.FindString(out))
	}
	if t.Failed() {
		t.Log(out)
	}
	if s := b.statement(t, dir); s.Predicate.Result != Failed || s.Predicate.Failures() != 14 {
		t.Errorf("the statement says %s, %d failures, want 14", s.Predicate.Result, s.Predicate.Failures())
	}
}

// tamper puts a disk image into dir whose UKI has another command line.
func (b *bootTest) tamper(t *testing.T, dir string) {
	t.Helper()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(needTool(t, name), args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	uki, err := os.ReadFile(filepath.Join(b.image, "uki.efi"))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(uki, []byte(" loglevel=4")); n != 1 {
		t.Fatalf("the command line is in the UKI %d times, want once", n)
	}
	altered := filepath.Join(t.TempDir(), "altered.efi")
	if err := os.WriteFile(altered, bytes.Replace(uki, []byte(" loglevel=4"), []byte(" loglevel=7"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	run("sbattach", "--remove", altered)
	run("sbsign", "--key", filepath.Join(b.keys, "db.key"), "--cert", filepath.Join(b.keys, "db.crt"), "--output", altered, altered)
	text, err := os.ReadFile(filepath.Join(b.image, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk.raw")
	run("cp", "--sparse=always", filepath.Join(b.image, "disk.raw"), disk)
	for _, p := range m.Disk.Partitions {
		if p.Role == manifest.RoleESP {
			run("mcopy", "-o", "-i", fmt.Sprintf("%s@@%d", disk, p.FirstLBA*512), altered, "::/EFI/BOOT/BOOTX64.EFI")
		}
	}
}
