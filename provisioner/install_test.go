package provisioner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sealift/sealift/provisioner/api"
)

// testSink answers with err, and remembers what it was given.
type testSink struct {
	mu  sync.Mutex
	err error
	got []api.Record
}

func (s *testSink) Record(ctx context.Context, r api.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, r)
	return s.err
}

func (s *testSink) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

const (
	boxKey = "02:00:00:00:00:01"
	boxIP  = "10.98.0.20"
)

// newTestInstaller has one box with a lease, at boxIP.
func newTestInstaller(t *testing.T, hosts Store) (*httpHandler, *testSink) {
	t.Helper()
	leases := newLeaseTable(Range{addr("10.98.0.20"), addr("10.98.0.30")})
	if _, ok := leases.claim(time.Now(), macAddr(boxMAC), addr(boxIP), time.Now().Add(time.Hour)); !ok {
		t.Fatal("no lease")
	}
	sink := &testSink{}
	log := slog.New(slog.DiscardHandler)
	return &httpHandler{
		boot:   map[string]*bootImage{},
		images: map[string]string{"demo": "", "other": ""},
		install: &installer{
			hosts: hosts, images: map[string]string{"demo": "", "other": ""}, image: "demo", leases: leases,
			records: sink, log: log, now: time.Now, busy: make(map[string]bool),
		},
		slots: make(chan struct{}, 2), log: log,
	}, sink
}

func do(h http.Handler, method, path, from string, body any) (int, string) {
	var text []byte
	switch b := body.(type) {
	case nil:
	case string:
		text = []byte(b)
	default:
		text, _ = json.Marshal(b)
	}
	r := httptest.NewRequest(method, "http://10.98.0.1/"+path, strings.NewReader(string(text)))
	r.RemoteAddr = from + ":1234"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	out, _ := io.ReadAll(w.Result().Body)
	return w.Code, strings.TrimSpace(string(out))
}

func TestInstallRequestsThatAreRefused(t *testing.T) {
	key := api.HostKey{MAC: boxKey}
	for _, c := range []struct {
		name, method, path, from string
		body                     any
		code                     int
		text                     string
	}{
		{"a plan from an address without a lease", "GET", api.PathPlan + "?mac=" + boxKey, "10.98.0.21", nil, 403, "10.98.0.21 has no lease from this server"},
		{"a plan for another MAC", "GET", api.PathPlan + "?mac=02:00:00:00:00:02", boxIP, nil, 403, "10.98.0.20 is leased to 02:00:00:00:00:01, not to 02:00:00:00:00:02"},
		{"a plan without a MAC", "GET", api.PathPlan, boxIP, nil, 400, "host key: MAC"},
		{"a plan with a MAC in capitals", "GET", api.PathPlan + "?mac=02:00:00:00:00:0A", boxIP, nil, 400, "host key: MAC"},
		{"a plan with a bad UUID", "GET", api.PathPlan + "?mac=" + boxKey + "&uuid=x", boxIP, nil, 400, "host key: UUID"},
		{"a plan by POST", "POST", api.PathPlan, boxIP, nil, 405, "only GET"},
		{"progress by GET", "GET", api.PathProgress, boxIP, nil, 405, "only POST"},
		{"progress that is no JSON", "POST", api.PathProgress, boxIP, "{", 400, "decode body"},
		{"progress with more behind it", "POST", api.PathProgress, boxIP, `{"host":{"mac":"` + boxKey + `"},"phase":"x"}{}`, 400, "more than one JSON value"},
		{"progress without a phase", "POST", api.PathProgress, boxIP, api.Progress{Host: key}, 400, "a phase of 0 bytes"},
		{"progress with control characters", "POST", api.PathProgress, boxIP, api.Progress{Host: key, Phase: "a\x1b[2J"}, 400, "not printable"},
		{"progress with a long text", "POST", api.PathProgress, boxIP, api.Progress{Host: key, Phase: "x", Text: strings.Repeat("x", 1025)}, 400, "a text of 1025 bytes"},
		{"progress below zero", "POST", api.PathProgress, boxIP, api.Progress{Host: key, Phase: "x", Done: -1}, 400, "negative"},
		{"a record without a record", "POST", api.PathRecord, boxIP, api.Record{Host: key}, 400, "want a JSON object"},
		{"a record that is no object", "POST", api.PathRecord, boxIP, api.Record{Host: key, Record: json.RawMessage(`[]`)}, 400, "want a JSON object"},
		{"a record that is too large", "POST", api.PathRecord, boxIP, `{"record":"` + strings.Repeat("x", api.MaxBody) + `"}`, 413, "larger than 262144 bytes"},
		{"a record of another host", "POST", api.PathRecord, boxIP, api.Record{Host: api.HostKey{MAC: "02:00:00:00:00:02"}, Record: json.RawMessage(`{}`)}, 403, "is leased to"},
		{"an unknown path", "GET", "v1/hosts", boxIP, nil, 404, "no such path"},
		{"an image that is not there", "GET", "images/x/manifest.json", boxIP, nil, 404, "no such image"},
		{"an image by PUT", "PUT", "images/demo/manifest.json", boxIP, nil, 405, "only GET and HEAD"},
		{"a path of a thousand parts", "GET", strings.Repeat("x/", 1000), boxIP, nil, 404, "no such path"},
	} {
		t.Run(c.name, func(t *testing.T) {
			hosts := &memoryHosts{hosts: make(map[string]Host)}
			h, sink := newTestInstaller(t, hosts)
			code, text := do(h, c.method, c.path, c.from, c.body)
			if code != c.code || !strings.Contains(text, c.text) {
				t.Errorf("answer is %d %q, want %d with %q", code, text, c.code, c.text)
			}
			if len(hosts.hosts) != 0 || len(sink.got) != 0 {
				t.Errorf("a refused request left %v and %v", hosts.hosts, sink.got)
			}
		})
	}
}

func TestAPlanNamesTheHostsImage(t *testing.T) {
	hosts := &memoryHosts{hosts: map[string]Host{boxKey: {Key: api.HostKey{MAC: boxKey}, State: Seen, Image: "other"}}}
	h, _ := newTestInstaller(t, hosts)
	code, text := do(h, "GET", api.PathPlan+"?mac="+boxKey+"&uuid=00112233-4455-6677-8899-aabbccddeeff", boxIP, nil)
	if code != 200 || !strings.Contains(text, "images/other/disk.raw.zst") {
		t.Errorf("the plan is %d %s", code, text)
	}
	if got := hosts.hosts[boxKey]; got.State != Installing || got.Key.UUID != "00112233-4455-6677-8899-aabbccddeeff" {
		t.Errorf("the host is %+v", got)
	}
	hosts.hosts[boxKey] = Host{Key: api.HostKey{MAC: boxKey}, Image: "gone"}
	if code, text := do(h, "GET", api.PathPlan+"?mac="+boxKey, boxIP, nil); code != 409 || !strings.Contains(text, `image "gone"`) {
		t.Errorf("the plan for an image that is gone is %d %s", code, text)
	}
}

func TestAFailedInstallCanBeTriedAgain(t *testing.T) {
	hosts := &memoryHosts{hosts: make(map[string]Host)}
	h, _ := newTestInstaller(t, hosts)
	key := api.HostKey{MAC: boxKey}
	if code, text := do(h, "POST", api.PathProgress, boxIP, api.Progress{Host: key, Phase: "failed", Text: "disk is full"}); code != 204 {
		t.Fatalf("progress is %d %s", code, text)
	}
	if got := hosts.hosts[boxKey]; got.State != Failed || got.LastError != "disk is full" || !got.Bootable() {
		t.Errorf("the host is %+v", got)
	}
	if code, _ := do(h, "GET", api.PathPlan+"?mac="+boxKey, boxIP, nil); code != 200 {
		t.Errorf("the plan is %d", code)
	}
	if got := hosts.hosts[boxKey]; got.State != Installing || got.LastError != "" {
		t.Errorf("the host is %+v", got)
	}
}

func TestARecordReachesTheSinkOnceItCan(t *testing.T) {
	record := api.Record{Host: api.HostKey{MAC: boxKey}, Record: json.RawMessage(`{"a":1}`)}
	t.Run("a sink that is away", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			hosts := &memoryHosts{hosts: make(map[string]Host)}
			h, sink := newTestInstaller(t, hosts)
			sink.set(errors.New("connection refused"))
			if code, text := do(h, "POST", api.PathRecord, boxIP, record); code != 204 {
				t.Fatalf("the record is answered %d %s, want 204: it is stored", code, text)
			}
			if got := hosts.hosts[boxKey]; got.State != Installed || got.Delivered || got.Bootable() {
				t.Errorf("the host is %+v", got)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- h.install.redeliver(ctx) }()
			synctest.Wait()
			sink.set(nil)
			time.Sleep(3 * deliveryRetry)
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if got := hosts.hosts[boxKey]; !got.Delivered {
				t.Errorf("the host is %+v", got)
			}
			if len(sink.got) != 3 { // from the request, at the start of redeliver, and after the pause
				t.Errorf("the sink was asked %d times, want 3", len(sink.got))
			}
		})
	})
	t.Run("a sink that refuses", func(t *testing.T) {
		hosts := &memoryHosts{hosts: make(map[string]Host)}
		h, sink := newTestInstaller(t, hosts)
		sink.set(fmt.Errorf("%w: the EK certificate has expired", ErrRecordRefused))
		if code, text := do(h, "POST", api.PathRecord, boxIP, record); code != 422 || !strings.Contains(text, "the EK certificate has expired") {
			t.Errorf("the record is answered %d %s", code, text)
		}
		if got := hosts.hosts[boxKey]; got.State != Failed || !got.Bootable() || !strings.Contains(got.LastError, "expired") {
			t.Errorf("the host is %+v", got)
		}
	})
	t.Run("a store that is away", func(t *testing.T) {
		hosts := &memoryHosts{hosts: make(map[string]Host), err: errors.New("no database")}
		h, sink := newTestInstaller(t, hosts)
		if code, _ := do(h, "POST", api.PathRecord, boxIP, record); code != 503 {
			t.Errorf("the record is answered %d, want 503", code)
		}
		if len(sink.got) != 0 {
			t.Error("a record that is not stored reached the sink")
		}
	})
}

func TestTooManyInstallRequestsAreToldToComeBack(t *testing.T) {
	h, _ := newTestInstaller(t, &memoryHosts{hosts: make(map[string]Host)})
	h.slots <- struct{}{}
	h.slots <- struct{}{}
	if code, _ := do(h, "GET", api.PathPlan+"?mac="+boxKey, boxIP, nil); code != 503 {
		t.Errorf("answer is %d, want 503", code)
	}
}

func TestServersThatCouldNotWorkAreRefused(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{manifestFile, bundleFile, diskFile} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	good := func() *Server {
		return &Server{
			Interface: "lo", Address: netip.MustParsePrefix("10.98.0.1/24"), Range: Range{addr("10.98.0.20"), addr("10.98.0.250")},
			LeaseFile: filepath.Join(dir, "leases"), Installers: map[string]string{"amd64": "x"}, Images: map[string]string{"demo": dir},
			Hosts: &memoryHosts{}, Records: &testSink{}, Log: slog.New(slog.DiscardHandler),
		}
	}
	if err := good().check(); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for _, c := range []struct {
		name   string
		change func(*Server)
		want   string
	}{
		{"no store", func(s *Server) { s.Hosts = nil }, "no host store"},
		{"no sink", func(s *Server) { s.Records = nil }, "no record sink"},
		{"no log", func(s *Server) { s.Log = nil }, "no logger"},
		{"no lease file", func(s *Server) { s.LeaseFile = "" }, "no lease file"},
		{"a lease of a second", func(s *Server) { s.Lease = time.Second }, "a lease of 1s"},
		{"no address", func(s *Server) { s.Address = netip.Prefix{} }, "is not an IPv4 address"},
		{"an IPv6 address", func(s *Server) { s.Address = netip.MustParsePrefix("fd00::1/64") }, "is not an IPv4 address"},
		{"a mask that firmware refuses", func(s *Server) { s.Address = netip.MustParsePrefix("10.98.0.1/31") }, "prefix of 31 bits, want 8 to 30"},
		{"a range elsewhere", func(s *Server) { s.Range.Last = addr("10.99.0.1") }, "ascending addresses within 10.98.0.0/24"},
		{"a range backwards", func(s *Server) { s.Range.Last = addr("10.98.0.1") }, "ascending addresses"},
		{"a router elsewhere", func(s *Server) { s.Router = addr("10.99.0.1") }, "router 10.99.0.1 is not within"},
		{"no installer", func(s *Server) { s.Installers = nil }, "no installer"},
		{"an installer for an unknown architecture", func(s *Server) { s.Installers = map[string]string{"riscv64": "x"} }, `installer for "riscv64"`},
		{"an image that is not built", func(s *Server) { s.Images = map[string]string{"demo": dir + "/no"} }, "no such file"},
		{"an image name with a slash", func(s *Server) { s.Images = map[string]string{"a/b": dir} }, `image name "a/b"`},
		{"an image name that is a way out", func(s *Server) { s.Images = map[string]string{"..": dir} }, `image name ".."`},
		{"two images and no default", func(s *Server) { s.Images = map[string]string{"a": dir, "b": dir} }, "2 images and no default"},
		{"a default that is not there", func(s *Server) { s.Image = "x" }, `default image "x"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := good()
			c.change(s)
			if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want one with %q", err, c.want)
			}
		})
	}
	if err := good().Run(t.Context()); err == nil || !strings.Contains(err.Error(), "interface lo: it has") {
		t.Errorf("an interface without the address: %v", err)
	}
}

func FuzzInstallRequest(f *testing.F) {
	f.Add("POST", api.PathRecord, `{"host":{"mac":"02:00:00:00:00:01"},"record":{}}`)
	f.Add("POST", api.PathProgress, `{"host":{"mac":"02:00:00:00:00:01"},"phase":"write","done":1}`)
	f.Add("GET", "images/../demo/manifest.json", "")
	f.Fuzz(func(t *testing.T, method, path, body string) {
		h, _ := newTestInstaller(t, &memoryHosts{hosts: make(map[string]Host)})
		h.images = map[string]string{"demo": t.TempDir()}
		r := httptest.NewRequest("GET", "http://10.98.0.1/", strings.NewReader(body))
		r.Method, r.URL.Path, r.RemoteAddr = method, path, boxIP+":1"
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 300 && w.Code < 400 {
			t.Errorf("%s %q redirects", method, path)
		}
	})
}
