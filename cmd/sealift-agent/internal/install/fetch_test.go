package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	attestapi "github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/provisioner/api"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestNewServer(t *testing.T) {
	for name, tt := range map[string]struct {
		base string
		ok   bool
	}{
		"a host and port":           {"http://10.0.0.1:8080/", true},
		"a host without a slash":    {"http://10.0.0.1", true},
		"a path":                    {"http://boot.example/sealift/", true},
		"no boot file at all":       {"", false},
		"a TFTP boot file":          {"boot/installer.efi", false},
		"https, without a trust":    {"https://10.0.0.1/", false},
		"another scheme":            {"file:///etc", false},
		"a user name":               {"http://a@10.0.0.1/", false},
		"a query":                   {"http://10.0.0.1/?x=1", false},
		"what is no URL":            {"http://[::1", false},
		"a URL without a host part": {"http:///x", false},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := NewServer(tt.base, quiet()); (err == nil) != tt.ok {
				t.Errorf("got error %v", err)
			}
		})
	}
}

func TestResolveStaysBelowTheBase(t *testing.T) {
	s, err := NewServer("http://10.0.0.1/base/", quiet())
	if err != nil {
		t.Fatal(err)
	}
	for rel, want := range map[string]string{
		"images/demo/manifest.json": "http://10.0.0.1/base/images/demo/manifest.json",
		"v1/install/plan?mac=1":     "http://10.0.0.1/base/v1/install/plan?mac=1",
		"../secret":                 "",
		"images/../../secret":       "",
		"/etc/passwd":               "",
		"http://evil/":              "",
		"//evil/x":                  "",
		"":                          "",
		"images/%2e%2e/%2e%2e/x":    "",
	} {
		u, err := s.resolve(rel)
		if want == "" && err == nil || want != "" && (err != nil || u.String() != want) {
			t.Errorf("%q: got %v, %v, want %q", rel, u, err, want)
		}
	}
}

// flaky serves content and breaks connections after so many bytes each.
type flaky struct {
	content []byte
	breaks  []int // bytes until each connection breaks; then it stays whole
	ranges  bool
	etag    func(request int) string

	mu       sync.Mutex
	requests []string // Range headers
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	n := len(f.requests)
	f.requests = append(f.requests, r.Header.Get("Range"))
	f.mu.Unlock()
	if f.etag != nil {
		w.Header().Set("ETag", f.etag(n))
	}
	if !f.ranges {
		r.Header.Del("Range")
	}
	var out http.ResponseWriter = w
	if n < len(f.breaks) {
		out = &breaking{w, f.breaks[n]}
	}
	http.ServeContent(out, r, "disk", time.Time{}, bytes.NewReader(f.content))
}

type breaking struct {
	http.ResponseWriter
	left int
}

func (b *breaking) Write(p []byte) (int, error) {
	n, err := b.ResponseWriter.Write(p[:min(len(p), b.left)])
	if b.left -= n; b.left == 0 {
		http.NewResponseController(b.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func TestDownloadGoesOnAfterABreak(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	tests := map[string]struct {
		server   *flaky
		size     int64
		err      string
		requests []string
	}{
		"one connection is enough": {server: &flaky{ranges: true}, requests: []string{""}},
		"a break is followed by a range request": {
			server:   &flaky{ranges: true, breaks: []int{100000}},
			requests: []string{"", "bytes=100000-"},
		},
		"a server without ranges sends everything again": {
			server:   &flaky{breaks: []int{100000}},
			requests: []string{"", "bytes=100000-"},
		},
		"a file that changed in between is refused": {
			server: &flaky{ranges: true, breaks: []int{100000}, etag: func(n int) string { return fmt.Sprintf(`"%d"`, n) }},
			err:    "the file changed during the download",
		},
		"a file of another size is refused": {
			server: &flaky{ranges: true}, size: 99,
			err: "the file has 1048576 bytes, the signed manifest says 99",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.server.content = content
			ts := httptest.NewServer(tt.server)
			defer ts.Close()
			ts.Config.ErrorLog = nil
			s, err := NewServer(ts.URL+"/", quiet())
			if err != nil {
				t.Fatal(err)
			}
			size := tt.size
			if size == 0 {
				size = int64(len(content))
			}
			r, err := s.Download(t.Context(), "disk", size)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got %v, want an error with %q", err, tt.err)
				}
				return
			}
			if err != nil || !bytes.Equal(got, content) {
				t.Fatalf("got %d bytes, %v", len(got), err)
			}
			if fmt.Sprint(tt.server.requests) != fmt.Sprint(tt.requests) {
				t.Errorf("got requests %q, want %q", tt.server.requests, tt.requests)
			}
		})
	}
}

func TestDownloadEndsWithItsContext(t *testing.T) {
	ts := httptest.NewServer(http.NotFoundHandler())
	defer ts.Close()
	s, err := NewServer(ts.URL+"/", quiet())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, err := s.Download(ctx, "disk", 10)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// line is a provisioner with one image.
type line struct {
	manifest, bundle, disk []byte

	mu       sync.Mutex
	phases   []string
	records  []api.Record
	planless int // so many requests for a plan fail
	refuse   int // so many records are refused
}

func (l *line) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch r.URL.Path {
	case "/" + api.PathPlan:
		if l.planless > 0 {
			l.planless--
			http.Error(w, "no plan for this host yet", http.StatusNotFound)
			return
		}
		json.NewEncoder(w).Encode(api.Plan{Manifest: "images/m", Bundle: "images/b", Disk: "images/d"})
	case "/images/m":
		w.Write(l.manifest)
	case "/images/b":
		w.Write(l.bundle)
	case "/images/d":
		w.Write(l.disk)
	case "/" + api.PathProgress:
		var p api.Progress
		json.NewDecoder(r.Body).Decode(&p)
		l.phases = append(l.phases, p.Phase)
	case "/" + api.PathRecord:
		if l.refuse > 0 {
			l.refuse--
			http.Error(w, "the service is away", http.StatusBadGateway)
			return
		}
		var rec api.Record
		json.NewDecoder(r.Body).Decode(&rec)
		l.records = append(l.records, rec)
	default:
		http.NotFound(w, r)
	}
}

// fakeMachine is hardware that does what it is told.
type fakeMachine struct {
	*memory
	opened     bool
	secureBoot error
	tpm        error
	bootable   bool
}

func (m *fakeMachine) OpenDisk(need int64) (OpenDisk, error) { m.opened = true; return m, nil }
func (m *fakeMachine) String() string                        { return "/dev/fake" }
func (m *fakeMachine) Close() error                          { return nil }
func (m *fakeMachine) EnrolSecureBoot() (string, error)      { return "enrolled", m.secureBoot }
func (m *fakeMachine) MakeBootable(OpenDisk, string) (string, error) {
	m.bootable = true
	return "00112233-4455-6677-8899-aabbccddeeff", nil
}
func (m *fakeMachine) EndorsementKey() ([]byte, [][]byte, error) {
	return []byte("ek"), [][]byte{[]byte("cert")}, m.tpm
}

func TestFlow(t *testing.T) {
	img, layout := testImage(40)
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	compressed := enc.EncodeAll(img, nil)
	m := manifest.Manifest{
		Schema: manifest.Schema, Name: "demo", Version: "1", Arch: runtime.GOARCH, Disk: layout,
		Artifacts: []manifest.Artifact{{Kind: manifest.KindDiskZstd, Name: "disk.raw.zst", Size: int64(len(compressed)), SHA256: sha256.Sum256(compressed)}},
	}
	raw, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	foreign := m
	foreign.Arch = "mips"
	rawForeign, err := foreign.Encode()
	if err != nil {
		t.Fatal(err)
	}
	errSignature := errors.New("signature is not of the key")
	tests := map[string]struct {
		line       *line
		verify     error
		secureBoot error
		tpm        error
		err        string
		untouched  bool
	}{
		"a signed image is installed and recorded": {line: &line{manifest: raw, disk: compressed}},
		"a plan that comes later is waited for, and a record that is refused is sent again": {
			line: &line{manifest: raw, disk: compressed, planless: 1, refuse: 1},
		},
		"a manifest whose signature is wrong touches nothing": {
			line: &line{manifest: raw, disk: compressed}, verify: errSignature,
			err: "signature is not of the key", untouched: true,
		},
		"an image for another processor touches nothing": {
			line: &line{manifest: rawForeign, disk: compressed},
			err:  "is for mips", untouched: true,
		},
		"foreign Secure Boot keys leave the disk alone": {
			line: &line{manifest: raw, disk: compressed}, secureBoot: errors.New("other keys"),
			err: "other keys", untouched: true,
		},
		"a TPM that is off leaves the disk alone": {
			line: &line{manifest: raw, disk: compressed}, tpm: errors.New("no /dev/tpmrm0"),
			err: "no /dev/tpmrm0", untouched: true,
		},
		"a disk file that is no zstd leaves no partition table": {
			line: &line{manifest: raw, disk: bytes.Repeat([]byte{7}, len(compressed))},
			err:  "read chunk 0 of 40",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ts := httptest.NewServer(tt.line)
			defer ts.Close()
			server, err := NewServer(ts.URL, quiet())
			if err != nil {
				t.Fatal(err)
			}
			machine := &fakeMachine{memory: newMemory(), secureBoot: tt.secureBoot, tpm: tt.tpm}
			host := api.HostKey{MAC: "52:54:00:00:00:01"}
			f := Flow{
				Source: &Network{Server: server, Host: host, Log: quiet()}, Host: host, Serial: "4711", Machine: machine,
				Verify: func(manifest, bundle []byte) error { return tt.verify },
				Step:   t.Logf, Log: quiet(), Now: time.Now,
			}
			err = f.Run(t.Context())
			tt.line.mu.Lock()
			defer tt.line.mu.Unlock()
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got %v, want an error with %q", err, tt.err)
				}
				if tt.untouched && machine.data[0] != 0xee {
					t.Error("the disk was written to")
				}
				if !tt.untouched && len(bytes.Trim(machine.data[:tableSize], "\x00")) != 0 {
					t.Error("a partition table is left")
				}
				if len(tt.line.records) != 0 || machine.bootable {
					t.Error("a failed install was recorded or made bootable")
				}
				if n := len(tt.line.phases); n == 0 || tt.line.phases[n-1] != PhaseFailed {
					t.Errorf("got phases %v, want %s last", tt.line.phases, PhaseFailed)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(machine.data[:len(img)], img) || !machine.bootable {
				t.Error("the image is not on the disk")
			}
			if len(tt.line.records) != 1 {
				t.Fatalf("got %d records", len(tt.line.records))
			}
			var rec attestapi.InstallRecord
			if err := json.Unmarshal(tt.line.records[0].Record, &rec); err != nil {
				t.Fatal(err)
			}
			if rec.Image != "demo 1" || rec.SecureBoot != "enrolled" || rec.Serial != "4711" ||
				rec.ManifestDigest != manifest.SHA256(sha256.Sum256(raw)).String() || rec.DiskGUID == "" {
				t.Errorf("got record %+v", rec)
			}
		})
	}
}
