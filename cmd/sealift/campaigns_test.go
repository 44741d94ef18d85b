package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/firmware"
	"github.com/sealift/sealift/image/manifest"
)

func TestCampaignsAreForMachinesThatExistAndProvenByMeasurement(t *testing.T) {
	s, store, ca := newServer(t)
	rec, id := newInstall(t, ca)
	if _, err := s.Enrol(t.Context(), "test", rec); err != nil {
		t.Fatal(err)
	}
	build := func(version string, status firmware.Status) firmware.Build {
		return firmware.Build{Version: version, Digests: []manifest.SHA256{{version[0]}}, Status: status}
	}
	c := &campaigns{
		store: store, clock: time.Now, log: slog.New(slog.DiscardHandler),
		catalogue: &firmware.Catalogue{Models: []firmware.Model{{Vendor: "V", Product: "P", Builds: []firmware.Build{build("1", firmware.Allowed), build("2", firmware.Candidate)}}}},
	}
	call := func(method, path, body string) (int, string) {
		w := httptest.NewRecorder()
		w.Header().Set(api.HeaderRequestID, "r1") // as the service does
		r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
		r.Body = http.MaxBytesReader(w, r.Body, 256<<10) // as the service does
		c.serve("ana", w, r)
		return w.Code, w.Body.String()
	}
	asked := func(name string, wave ...attest.MachineID) string {
		b, err := json.Marshal(firmware.Campaign{Name: name, Vendor: "V", Product: "P", From: "1", To: "2", Wave: wave})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, r := range []struct {
		claim, method, path, body string
		code                      int
		want                      string
	}{
		{"an unknown machine is refused", http.MethodPost, "", asked("c1", attest.MachineID{1}), http.StatusBadRequest, "there is no machine 01"},
		{"an empty wave is refused", http.MethodPost, "", asked("c1"), http.StatusBadRequest, "the wave has no machines"},
		{"an unknown field is refused", http.MethodPost, "", `{"nmae":"c1"}`, http.StatusBadRequest, "nmae"},
		{"a name twice is refused", http.MethodPost, "", strings.Replace(asked("c1", id), "{", `{"name":"c0",`, 1), http.StatusBadRequest, "duplicate"},
		{"a name in another case is refused", http.MethodPost, "", strings.Replace(asked("c1", id), `"wave"`, `"Wave"`, 1), http.StatusBadRequest, "Wave"},
		{"what follows is refused", http.MethodPost, "", asked("c1", id) + "{}", http.StatusBadRequest, "read the campaign"},
		{"a body that does not end is refused", http.MethodPost, "", asked("c1", id)[:40], http.StatusBadRequest, "read the campaign"},
		{"a long body is refused", http.MethodPost, "", asked(strings.Repeat("x", 1<<20)), http.StatusRequestEntityTooLarge, "larger than 262144 bytes"},
		{"no campaigns are an empty list", http.MethodGet, "", "", http.StatusOK, "[]"},
		{"a known machine is taken", http.MethodPost, "", asked("c1", id), http.StatusOK, `"state":"open"`},
		{"a name is taken once", http.MethodPost, "", asked("c1", id), http.StatusBadRequest, "exists already"},
		{"a machine is in one campaign at a time", http.MethodPost, "", asked("c2", id), http.StatusBadRequest, "is still in the open campaign c1"},
		{"it can be looked at", http.MethodGet, "/c1", "", http.StatusOK, `"name":"c1"`},
		{"another cannot", http.MethodGet, "/c2", "", http.StatusNotFound, "there is no campaign c2"},
		{"nothing is deleted", http.MethodDelete, "/c1", "", http.StatusMethodNotAllowed, `"code":"method-not-allowed"`},
	} {
		code, body := call(r.method, api.PathCampaigns+r.path, r.body)
		if code != r.code || !strings.Contains(body, r.want) {
			t.Errorf("%s: status %d, want %d: %s", r.claim, code, r.code, body)
		}
		if named := strings.Contains(body, `"request":"r1"`); named != (code != http.StatusOK) {
			t.Errorf("%s: the request is named: %v: %s", r.claim, named, body)
		}
	}

	for _, b := range []struct {
		claim   string
		verdict attest.FirmwareVerdict
		want    firmware.CampaignState
	}{
		{"a claim proves nothing", attest.FirmwareClaimedOnly, firmware.Open},
		{"a measurement does", attest.FirmwareMeasured, firmware.Proven},
		{"and again changes nothing", attest.FirmwareMeasured, firmware.Proven},
	} {
		result := &attest.Result{Firmware: attest.Firmware{Verdict: b.verdict, Vendor: "V", Product: "P", Version: "2"}}
		if err := c.Accepted(t.Context(), id, time.Now(), result); err != nil {
			t.Fatal(err)
		}
		list, _, err := c.all(t.Context())
		if err != nil || len(list) != 1 || list[0].State != b.want {
			t.Errorf("%s: %+v, %v", b.claim, list, err)
		}
	}

	_, body := call(http.MethodGet, api.PathCampaigns, "")
	var all []json.RawMessage
	if err := json.Unmarshal([]byte(body), &all); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := printCampaigns(&env{out: &out}, all...); err != nil || !strings.Contains(out.String(), "c1    proven  V P    1     2   1 of 1") {
		t.Errorf("%v:\n%s", err, &out)
	}
}
