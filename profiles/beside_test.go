package profiles

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestLoadChecksWhatLiesBesideTheProfile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\n")
	write("two.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\n---\nkind: Pod\n")
	write("large.yaml", strings.Repeat("#\n", MaxManifest))
	ca, err := os.ReadFile("examples/files/company-ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	write("ca.pem", string(ca))
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "d"), 0o755), syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600), os.Symlink("/etc/passwd", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ claim, text, want string }{
		{"all is well", "files: [{path: /etc/x, source: pod.yaml}]\npreload: {manifests: [{name: a, source: pod.yaml}]}\n", ""},
		{"a file that is not there", "files: [{path: /etc/x, source: none}]\n", "shop.yaml:9:32: files[0].source: source none: openat none: no such file"},
		{"a directory", "files: [{path: /etc/x, source: d}]\n", "source d: not a regular file"},
		{"a pipe", "files: [{path: /etc/x, source: pipe}]\n", "source pipe: not a regular file"},
		{"a link that leads out", "files: [{path: /etc/x, source: link}]\n", "source link: openat link: path escapes from parent"},
		{"two pods", "preload: {manifests: [{name: a, source: two.yaml}]}\n", "shop.yaml:9:41: preload.manifests[0].source: static pod: line 6: a second document"},
		{"a large pod", "preload: {manifests: [{name: a, source: large.yaml}]}\n", "source large.yaml: more than 262144 bytes"},
	} {
		write("shop.yaml", valid+tc.text)
		_, err := Load(filepath.Join(dir, "shop.yaml"))
		if (tc.want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v, want %q", tc.claim, err, tc.want)
		}
	}
	write("shop.yaml", strings.Replace(valid, "attest:\n", "attest:\n  ca: ca.pem\n", 1))
	p, err := Load(filepath.Join(dir, "shop.yaml"))
	if err != nil || p.Attest.CA != "ca.pem" {
		t.Error(err)
	}
	write("ca.pem", "no certificate")
	if _, err := Load(filepath.Join(dir, "shop.yaml")); err == nil || !strings.Contains(err.Error(), "shop.yaml:8:7: attest.ca: CA certificates: 0 in PEM") {
		t.Errorf("a CA that is none: %v", err)
	}
}

func TestOpenRegularWaitsForNobody(t *testing.T) {
	dir := t.TempDir()
	pipe, link, file := filepath.Join(dir, "pipe"), filepath.Join(dir, "link"), filepath.Join(dir, "file")
	if err := errors.Join(syscall.Mkfifo(pipe, 0o600), os.WriteFile(file, nil, 0o600), os.Symlink("file", link)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{pipe, dir, "/dev/null"} {
		if _, err := OpenRegular(name); err == nil || !strings.Contains(err.Error(), name+": not a regular file") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for _, name := range []string{file, link} {
		f, err := OpenRegular(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatChoosesInputsIsInTheDigest(t *testing.T) {
	base := func() *Profile {
		p, err := Parse("p.yaml", []byte(full))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	digest := func(p *Profile) string {
		d, err := p.InputDigest()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	want := digest(base())
	for claim, edit := range map[string]func(*Profile){
		"another base image": func(p *Profile) { p.OCI.Image = strings.Replace(p.OCI.Image, "0123", "9999", 1) },
		"another source":     func(p *Profile) { p.Files[1].Source = "files/y" },
		"another manifest":   func(p *Profile) { p.Preload.Manifests[1].Source = "r.yaml" },
		"other certificates": func(p *Profile) { p.Attest.CA = "other.pem" },
	} {
		p := base()
		edit(p)
		if digest(p) == want {
			t.Errorf("%s does not make the lock stale", claim)
		}
	}
	for claim, edit := range map[string]func(*Profile){
		"another text": func(p *Profile) { p.Files[0].Content = "x" },
		"another user": func(p *Profile) { p.Users[0].UID++ },
		"other boxes":  func(p *Profile) { p.Hardware = nil },
	} {
		p := base()
		edit(p)
		if digest(p) != want {
			t.Errorf("%s makes the lock stale", claim)
		}
	}
}

func TestLockOfFilesAndABaseIsChecked(t *testing.T) {
	digest := strings.Repeat("a", 64)
	good := string(readDemoLock(t)) + "files:\n- path: files/x\n  size: 1\n  sha256: " + digest + "\noci:\n  source: archive base.tar\n  digest: sha256:" + digest + "\n  size: 5\n"
	l, err := ParseLock("l.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Files) != 1 || l.OCI == nil || l.OCI.Size != 5 {
		t.Errorf("got %+v, %+v", l.Files, l.OCI)
	}
	out, err := l.Encode()
	if err != nil || string(out) != good {
		t.Errorf("encoded otherwise (%v):\n%s", err, out)
	}
	for _, tc := range []struct{ old, new, want string }{
		{"path: files/x", "path: ../x", `files[0].path: "../x" is not below the profile's directory`},
		{"path: files/x", "path: /x", "files[0].path"},
		{"size: 1\n", "size: -1\n", "files[0].size"},
		{"sha256: " + digest, "sha256: x", "files[0].sha256"},
		{"source: archive base.tar", `source: ""`, "oci.source: missing"},
		{"digest: sha256:" + digest, "digest: md5:0", "oci.digest"},
		{"digest: sha256:" + digest, "digest: sha256:0", "oci.digest"},
		{"size: 5\n", "size: 0\n", "oci.size"},
	} {
		bad := strings.Replace(good, tc.old, tc.new, 1)
		if bad == good {
			t.Fatalf("%q is not in the lock", tc.old)
		}
		if _, err := ParseLock("l.yaml", []byte(bad)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.new, err, tc.want)
		}
	}
}

func TestCheckStaticPodIsNotSlow(t *testing.T) {
	done := make(chan error, 1)
	go func() { done <- CheckStaticPod([]byte(strings.Repeat("[", MaxManifest))) }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("brackets are a pod")
		}
	case <-time.After(time.Minute):
		t.Fatal("it goes on for a minute")
	}
}

func FuzzCheckStaticPod(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\n"))
	f.Add([]byte(`{"apiVersion":"v1","kind":"Pod"}`))
	f.Add([]byte("a: &a [*a]\n---\n- b"))
	f.Fuzz(func(_ *testing.T, b []byte) { _ = CheckStaticPod(b) })
}

func FuzzParseCA(f *testing.F) {
	b, err := os.ReadFile("examples/files/company-ca.pem")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := ParseCA(b)
		if err != nil {
			return
		}
		if again, err := ParseCA(out); err != nil || string(again) != string(out) {
			t.Errorf("what was read does not read again: %v", err)
		}
	})
}
