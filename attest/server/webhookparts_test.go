package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
)

func secretsOf(n, size int) []attest.Secret {
	var all []attest.Secret
	for i := range n {
		all = append(all, counted(byte(i+1), size))
	}
	return all
}

func TestWebhooksAreHeldToTheirBounds(t *testing.T) {
	for name, tt := range map[string]struct {
		w    Webhook
		want string // empty: it is good
	}{
		"as many secrets as may be":   {Webhook{URL: "https://ops.example/x", Secrets: secretsOf(maxWebhookSecrets, minWebhookSecret)}, ""},
		"one more":                    {Webhook{URL: "https://ops.example/x", Secrets: secretsOf(maxWebhookSecrets+1, minWebhookSecret)}, "5 secrets"},
		"a secret that is too short":  {Webhook{URL: "https://ops.example/x", Secrets: secretsOf(1, minWebhookSecret-1)}, "23 bytes"},
		"a fragment":                  {Webhook{URL: "https://ops.example/x#y", Secrets: secretsOf(1, 32)}, "a fragment"},
		"another scheme to loopback":  {Webhook{URL: "ftp://127.0.0.1/x", Secrets: secretsOf(1, 32)}, "want https"},
		"a name that is like a local": {Webhook{URL: "http://localhost.example/x", Secrets: secretsOf(1, 32)}, "want https"},
	} {
		_, err := newHook(tt.w)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	line := strings.Repeat("s", minWebhookSecret) + "\n"
	for text, ok := range map[string]bool{strings.Repeat(line, maxWebhookSecrets): true, strings.Repeat(line, maxWebhookSecrets+1): false, line[1:]: false} {
		if got, err := ParseWebhookSecrets([]byte(text)); (err == nil) != ok {
			t.Errorf("%d bytes: %d secrets, %v", len(text), len(got), err)
		}
	}
}

func testHook(t *testing.T, url string) *hook {
	t.Helper()
	h, err := newHook(Webhook{URL: url, Secrets: secretsOf(2, 32)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.client.CloseIdleConnections)
	return h
}

// The name localhost is not looked up in these tests: the dialer sees addresses.
func TestPlainHTTPStaysOnLoopback(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for url, plain := range map[string]bool{"http://localhost/x": true, "https://ops.example/x": false} {
		dial := testHook(t, url).client.Transport.(*http.Transport).DialContext
		c, err := dial(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Errorf("%s: %v", url, err)
		} else if err := c.Close(); err != nil {
			t.Error(err)
		}
		// 192.0.2.0/24 is for documentation (RFC 5737): nobody is there.
		_, err = dial(t.Context(), "udp", "192.0.2.1:9")
		if refused := err != nil && strings.Contains(err.Error(), "is not loopback"); refused != plain {
			t.Errorf("%s: another machine: %v", url, err)
		}
	}
}

func TestEveryStatusOfSuccessIsADeliveryAndNoOther(t *testing.T) {
	var status int
	var got http.Header
	var body []byte
	r := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		body, _ = io.ReadAll(r.Body)
		w.WriteHeader(status)
	}))
	t.Cleanup(r.Close)
	h := testHook(t, r.URL+"/x")
	if h.client.Transport.(*http.Transport).Proxy != nil {
		t.Error("a proxy is asked for")
	}
	for _, status = range []int{200, 201, 204, 299, 300, 302, 304, 400, 404, 410, 500} {
		if err := h.post(t.Context(), time.Unix(1700000000, 5e8), "sealift_1_aa", []byte(`{"a":1}`)); (err == nil) != (status < 300) {
			t.Errorf("HTTP %d: %v", status, err)
		}
	}
	want := map[string]string{
		"Content-Type": "application/json", "User-Agent": "sealift", "Webhook-Id": "sealift_1_aa", "Webhook-Timestamp": "1700000000",
		// Made with Python's hmac, of the secrets 01 02 ... and 02 03 ...
		"Webhook-Signature": "v1,NYFv7mCt7TVphdO7B/VM2ZQjvD3welHIsK/p9SpTc64= v1,gWObLyOuP9CTpG6H8aU5sRW7zu5X9Ew5UxKdf1t6/rg=",
	}
	for name, value := range want {
		if got.Get(name) != value {
			t.Errorf("%s: got %q, want %q", name, got.Get(name), value)
		}
	}
	if string(body) != `{"a":1}` {
		t.Errorf("the body is %s", body)
	}
	if err := testHook(t, "http://127.0.0.1:1/secret-path").post(t.Context(), time.Unix(1, 0), "x", nil); err == nil || strings.Contains(err.Error(), "secret-path") {
		t.Errorf("nobody there: %v", err)
	}
}

func TestWhatIsShownOfAWebhookIsNotItsPath(t *testing.T) {
	a, b := testHook(t, "https://ops.example/secret-path"), testHook(t, "https://ops.example/another")
	if a.shown != "https://ops.example" || a.name == b.name {
		t.Errorf("shown %s; names %s and %s", a.shown, a.name, b.name)
	}
}

func verdictEntry(t *testing.T, kind audit.Kind, data any) *audit.Entry {
	t.Helper()
	e, err := audit.Next(audit.Head{Seq: 6}, audit.Event{Time: time.Unix(1, 0), Kind: kind, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	return &e
}

func TestAnEventHasTheFirstFindingsAndNoFacts(t *testing.T) {
	result := func(findings int) *attest.Result {
		r := &attest.Result{Findings: []attest.Finding{}, Facts: []attest.Fact{{Name: "secret of the owner"}}}
		for i := range findings {
			r.Findings = append(r.Findings, attest.Finding{Message: fmt.Sprint(i)})
		}
		return r
	}
	type raw = json.RawMessage
	long := func(size int) raw { return raw(`{"x":"` + strings.Repeat("x", size-8) + `"}`) }
	for name, tt := range map[string]struct {
		kind      audit.Kind
		data      any
		findings  int
		truncated bool
		details   bool
	}{
		"as many findings as may be":       {audit.KindVerdict, audit.Verdict{Result: result(maxWebhookFindings)}, maxWebhookFindings, false, true},
		"one more":                         {audit.KindVerdict, audit.Verdict{Result: result(maxWebhookFindings + 1)}, maxWebhookFindings, true, true},
		"as many in a report":              {audit.KindReport, audit.Reattestation{Result: result(maxWebhookFindings)}, maxWebhookFindings, false, true},
		"one more in a report":             {audit.KindReport, audit.Reattestation{Result: result(maxWebhookFindings + 1)}, maxWebhookFindings, true, true},
		"no result":                        {audit.KindVerdict, raw(`{"address":"192.0.2.1"}`), 0, false, true},
		"a result of another kind":         {audit.KindVerdict, raw(`{"result":[1]}`), 0, true, false},
		"the result of an entry of others": {audit.KindAlarm, audit.Verdict{Result: result(maxWebhookFindings + 1)}, maxWebhookFindings + 1, false, true},
		"as long as may be":                {audit.KindAlarm, long(maxWebhookDetails), 0, false, true},
		"a byte more":                      {audit.KindAlarm, long(maxWebhookDetails + 1), 0, true, false},
	} {
		b, err := eventBody("type", verdictEntry(t, tt.kind, tt.data))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got event
		var details struct{ Result *attest.Result }
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if got.Data.Details != nil {
			if err := json.Unmarshal(got.Data.Details, &details); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		if details.Result != nil {
			n = len(details.Result.Findings)
		}
		if n != tt.findings || got.Data.Truncated != tt.truncated || (got.Data.Details != nil) != tt.details {
			t.Errorf("%s: %d findings, truncated %t, details %t", name, n, got.Data.Truncated, got.Data.Details != nil)
		}
		if tt.kind != audit.KindAlarm && strings.Contains(string(b), "secret of the owner") {
			t.Errorf("%s: the facts are sent", name)
		}
	}
}

// Entries of other kinds may have fields of the same names.
func TestTheTypeOfAnEventGoesByTheKindOfItsEntry(t *testing.T) {
	for data, want := range map[string]string{
		`{"from":"enrolled","to":"quarantined"}`: string(audit.KindAlarm), `{"stale":true}`: string(audit.KindAlarm),
		`{"result":{"allowed":true}}`: string(audit.KindAlarm), `{"from":1}`: string(audit.KindAlarm),
	} {
		if got := eventType(verdictEntry(t, audit.KindAlarm, json.RawMessage(data))); got != want {
			t.Errorf("%s is %s, want %s", data, got, want)
		}
	}
	if got := eventType(verdictEntry(t, audit.KindVerdict, json.RawMessage(`{}`))); got != EventEvidenceRefused {
		t.Errorf("a verdict without a result is %s", got)
	}
}

func TestTheIDOfAnEventIsOfItsEntry(t *testing.T) {
	a := verdictEntry(t, audit.KindAlarm, json.RawMessage(`{"x":1}`))
	b := verdictEntry(t, audit.KindAlarm, json.RawMessage(`{"x":2}`))
	if again := eventID(a); again == eventID(b) || again != eventID(a) || !strings.HasPrefix(eventID(a), "sealift_7_") {
		t.Errorf("the ids are %s and %s", eventID(a), eventID(b))
	}
}

func TestALeaseIsOverWhenItsCursorStayedForItsTime(t *testing.T) {
	h := &hook{times: hookTimes{lease: time.Minute}}
	start := time.Now()
	for _, step := range []struct {
		revision int64
		after    time.Duration
		want     bool
	}{
		{1, 0, false}, {1, time.Minute - 1, false}, {1, time.Minute, true}, {2, 2 * time.Minute, false}, {2, 3*time.Minute - 1, false}, {2, 3 * time.Minute, true},
	} {
		if got := h.over(step.revision, start.Add(step.after)); got != step.want {
			t.Errorf("revision %d after %v: %t", step.revision, step.after, got)
		}
	}
}

func TestALostCursorHasTheLogReadAgain(t *testing.T) {
	other := errors.New("no room")
	for err, want := range map[error]error{ErrConflict: nil, fmt.Errorf("x: %w", ErrConflict): nil, other: other} {
		h := &hook{scanned: 7, times: hookTimes{poll: time.Second}}
		if pause, got := lost(h, err); pause != time.Second || !errors.Is(got, want) || got != nil && want == nil || h.scanned != 0 {
			t.Errorf("%v: %v, %v; scanned %d", err, pause, got, h.scanned)
		}
	}
}

// DeliverOnce delivers what is to be delivered to the first webhook, and returns
// after what time to look again.
func (s *Server) DeliverOnce(ctx context.Context) (time.Duration, error) {
	return s.deliver(ctx, s.hooks[0])
}
