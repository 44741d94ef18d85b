package server_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

var hookSecret = attest.Secret("a webhook secret of 32 bytes, yes")

// delivery is one request as a receiver got it.
type delivery struct {
	id, timestamp, signature string
	body                     []byte
	Type                     string
	Data                     struct {
		Seq       int64
		Kind      audit.Kind
		Machine   string
		Details   json.RawMessage
		Truncated bool
	}
}

// receiver is somebody's webhook endpoint.
type receiver struct {
	*httptest.Server
	t    testing.TB
	got  chan delivery                                            // that were answered with 200
	fail atomic.Pointer[func(http.ResponseWriter, *http.Request)] // answers instead
}

// hangUp waits until the sender is gone, which a server sees only once it has
// read the request.
func hangUp(req *http.Request) {
	_, _ = io.Copy(io.Discard, req.Body)
	<-req.Context().Done()
}

func newReceiver(t testing.TB) *receiver {
	r := &receiver{t: t, got: make(chan delivery, 1000)}
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(r.serve))
	r.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	r.StartTLS()
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) serve(w http.ResponseWriter, req *http.Request) {
	if f := r.fail.Load(); f != nil {
		(*f)(w, req)
		return
	}
	d := delivery{id: req.Header.Get("webhook-id"), timestamp: req.Header.Get("webhook-timestamp"), signature: req.Header.Get("webhook-signature")}
	var err error
	if d.body, err = io.ReadAll(req.Body); err == nil {
		err = json.Unmarshal(d.body, &d)
	}
	m := hmac.New(sha256.New, hookSecret)
	m.Write([]byte(d.id + "." + d.timestamp + "." + string(d.body)))
	if want := "v1," + base64.StdEncoding.EncodeToString(m.Sum(nil)); err != nil || d.signature != want || req.Method != "POST" {
		r.t.Errorf("%s with the signature %q, want %q: %v", req.Method, d.signature, want, err)
	}
	r.got <- d
}

func (r *receiver) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(r.Certificate())
	return p
}

func (r *receiver) hook(events ...string) server.Webhook {
	return server.Webhook{URL: r.URL + "/secret-path", Secrets: []attest.Secret{hookSecret}, Events: events, CA: r.pool()}
}

// replica starts a service on a store that delivers webhooks.
func replica(t testing.TB, store server.Store, hooks ...server.Webhook) (*server.Server, *logBuffer, func()) {
	t.Helper()
	return replicaWith(t, func(c *server.Config) { c.Store, c.Webhooks = store, hooks }, func(s *server.Server) { s.HurryWebhooks(30*time.Second, time.Minute) })
}

// replicaWith is replica for one whose configuration and times are others.
func replicaWith(t testing.TB, change func(*server.Config), before func(*server.Server)) (*server.Server, *logBuffer, func()) {
	t.Helper()
	log, key := new(logBuffer), newKey(t)
	c := server.Config{
		Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) { return &attest.Policy{}, nil },
		KEK:    bytes.Repeat([]byte{1}, server.KEKSize), ReleaseKey: key, Log: slog.New(slog.NewTextHandler(log, nil)),
	}
	change(&c)
	c.Standing = storetest.Standing(t, c.Store, key)
	s, err := server.New(c)
	if err != nil {
		t.Fatal(err)
	}
	before(s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.DeliverWebhooks(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop := sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return s, log, stop
}

// known waits until the webhooks have a cursor: from then on they are told.
func known(t testing.TB, store server.Store, n int) {
	t.Helper()
	for {
		docs, err := store.Documents(context.Background(), "webhook", "", 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(docs) == n {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// state writes an entry that a machine has another state.
func state(t testing.TB, store server.Store, to attest.EnrolmentState, reason string) {
	t.Helper()
	if err := store.Commit(context.Background(), &server.Change{Events: []audit.Event{{
		Time: time.Unix(1, 0), Kind: audit.KindState, Machine: attest.MachineID{7}, Data: audit.StateChange{From: attest.StateEnrolled, To: to, Reason: reason},
	}}}); err != nil {
		t.Fatal(err)
	}
}

func (d delivery) reason() string {
	var s audit.StateChange
	_ = json.Unmarshal(d.Data.Details, &s)
	return s.Reason
}

func TestEventsAreSignedInOrderAndOnlyThoseWanted(t *testing.T) {
	store := new(storetest.Memory)
	state(t, store, attest.StateQuarantined, "before the webhook was there")
	r := newReceiver(t)
	replica(t, store, r.hook(server.EventQuarantined))
	known(t, store, 1)
	for i := range 5 {
		state(t, store, attest.StateRevoked, "not wanted")
		state(t, store, attest.StateQuarantined, fmt.Sprint(i))
	}
	for i := range 5 {
		d := <-r.got
		if d.Type != server.EventQuarantined || d.reason() != fmt.Sprint(i) || d.Data.Machine != (attest.MachineID{7}).String() || !strings.HasPrefix(d.id, fmt.Sprintf("sealift_%d_", d.Data.Seq)) {
			t.Errorf("event %d is %s: %s", i, d.Type, d.body)
		}
	}
}

// The way that the documentation tells receivers to check a signature.
func TestOpenSSLConfirmsTheSignature(t *testing.T) {
	openssl := tpmtest.Tool(t, "openssl")
	store := new(storetest.Memory)
	r := newReceiver(t)
	replica(t, store, r.hook())
	known(t, store, 1)
	state(t, store, attest.StateQuarantined, "x")
	d := <-r.got
	cmd := exec.Command(openssl, "dgst", "-sha256", "-mac", "HMAC", "-macopt", "hexkey:"+hex.EncodeToString(hookSecret), "-binary")
	cmd.Stdin = strings.NewReader(d.id + "." + d.timestamp + "." + string(d.body))
	out, err := cmd.Output()
	if err != nil || "v1,"+base64.StdEncoding.EncodeToString(out) != d.signature {
		t.Errorf("openssl gives %x, %v; the header is %s", out, err, d.signature)
	}
}

func TestAReceiverThatFailsGetsEverythingLaterAndHoldsUpNobody(t *testing.T) {
	elsewhere := newReceiver(t)
	for name, answer := range map[string]func(http.ResponseWriter, *http.Request){
		"an error": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"a redirect": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", elsewhere.URL)
			w.WriteHeader(307)
		},
		"not modified": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) },
		"junk": func(w http.ResponseWriter, _ *http.Request) {
			c, buf, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			buf.WriteString("\x00\x01 this is no HTTP\r\n\r\n")
			buf.Flush()
			c.Close()
		},
		"endless headers": func(w http.ResponseWriter, _ *http.Request) {
			for i := range 4000 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 100))
			}
		},
		"a closed connection": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := new(storetest.Memory)
			bad, good := newReceiver(t), newReceiver(t)
			var tries atomic.Int64
			enough := make(chan struct{})
			f := func(w http.ResponseWriter, r *http.Request) {
				if tries.Add(1) == 4 {
					close(enough)
				}
				answer(w, r)
			}
			bad.fail.Store(&f)
			_, log, _ := replica(t, store, bad.hook(), good.hook())
			known(t, store, 2)
			for i := range 3 {
				state(t, store, attest.StateQuarantined, fmt.Sprint(i))
			}
			for i := range 3 {
				if d := <-good.got; d.reason() != fmt.Sprint(i) {
					t.Errorf("the other receiver got %s", d.body)
				}
			}
			<-enough
			bad.fail.Store(nil)
			for i := range 3 {
				if d := <-bad.got; d.reason() != fmt.Sprint(i) {
					t.Errorf("event %d is %s", i, d.body)
				}
			}
			if strings.Count(log.String(), "webhook not delivered") != 1 || strings.Contains(log.String(), "secret") {
				t.Errorf("the log:\n%s", log)
			}
		})
	}
	t.Cleanup(func() {
		if len(elsewhere.got) > 0 {
			t.Error("a redirect was followed")
		}
	})
}

func TestAReceiverThatHangsOrTalksWithoutEndIsCutOff(t *testing.T) {
	for name, talk := range map[string]bool{"hangs": false, "talks": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, log := new(storetest.Memory), new(logBuffer)
			r := newReceiver(t)
			var tries atomic.Int64
			f := func(w http.ResponseWriter, req *http.Request) {
				n := tries.Add(1)
				body, err := io.ReadAll(req.Body)
				if err != nil {
					return
				}
				// Who talks does so to the first two events, however often each is
				// sent; under load the time may be over before it was heard.
				if talk && bytes.Contains(body, []byte(`"three"`)) {
					r.fail.Store(nil)
					req.Body = io.NopCloser(bytes.NewReader(body))
					r.serve(w, req)
					return
				}
				if !talk && n == 2 {
					r.fail.Store(nil)
				}
				for talk {
					if _, err := w.Write(make([]byte, 64<<10)); err != nil {
						return
					}
				}
				hangUp(req)
			}
			r.fail.Store(&f)
			key := newKey(t)
			s, err := server.New(server.Config{
				Store: store, Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) { return &attest.Policy{}, nil },
				Standing: storetest.Standing(t, store, key),
				KEK:      bytes.Repeat([]byte{1}, server.KEKSize), ReleaseKey: key, Log: slog.New(slog.NewTextHandler(log, nil)), Webhooks: []server.Webhook{r.hook()},
			})
			if err != nil {
				t.Fatal(err)
			}
			s.HurryWebhooks(2*time.Second, time.Minute)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- s.DeliverWebhooks(ctx) }()
			known(t, store, 1)
			state(t, store, attest.StateQuarantined, "one")
			state(t, store, attest.StateQuarantined, "two")
			state(t, store, attest.StateQuarantined, "three")
			// A status 200 is enough, whatever follows it: the two answers that
			// never ended were taken.
			want := []string{"one", "two", "three"}
			if talk {
				want = want[2:]
			}
			for last := ""; len(want) > 0; {
				select {
				case d := <-r.got:
					if d.reason() == last {
						continue // the time was over before its answer was there
					}
					if last = d.reason(); last != want[0] {
						t.Errorf("got %s, want %s", d.body, want[0])
					}
					want = want[1:]
				case <-time.After(time.Minute):
					docs, err := store.Documents(t.Context(), "webhook", "", 0)
					t.Fatalf("%s was not delivered: the receiver was asked %d times; cursor %s, %v; log:\n%s", want[0], tries.Load(), docs[0].Body, err, log)
				}
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// roundTrip is a transport.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// A receiver that hangs, and whose HTTP server ends the request with a status
// 200 when it hears that the connection is being closed, does not have the event.
func TestAnAnswerToTheEndOfTheTimeIsNoDelivery(t *testing.T) {
	store := new(storetest.Memory)
	r := newReceiver(t)
	var tries atomic.Int64
	replicaWith(t, func(c *server.Config) { c.Store, c.Webhooks = store, []server.Webhook{r.hook()} }, func(s *server.Server) {
		s.HurryWebhooks(2*time.Second, time.Minute)
		s.WebhooksGoThrough(roundTrip(func(req *http.Request) (*http.Response, error) {
			if tries.Add(1) == 1 {
				<-req.Context().Done()
				return &http.Response{StatusCode: 200, Body: http.NoBody, Request: req}, nil
			}
			return r.Client().Transport.RoundTrip(req)
		}))
	})
	known(t, store, 1)
	state(t, store, attest.StateQuarantined, "one")
	state(t, store, attest.StateQuarantined, "two")
	d := <-r.got
	if d.reason() != "one" {
		t.Errorf("got %s, want one", d.body)
	}
	for d.reason() == "one" { // again, if the time was over before its answer was there
		d = <-r.got
	}
	if d.reason() != "two" {
		t.Errorf("got %s, want two", d.body)
	}
}

// The clock of whoever wrote the cursor was hours ahead, and was then set right.
func TestAClockThatWasWrongHoldsUpNoDelivery(t *testing.T) {
	wrong := time.Now().Add(5 * time.Hour).UTC().Format(time.RFC3339)
	for name, what := range map[string]string{
		"a pause after a failure": `"notBefore":"` + wrong + `","attempts":3`,
		"another's lease":         `"holder":"another","until":"` + wrong + `"`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := new(storetest.Memory)
			r := newReceiver(t)
			_, _, stop := replica(t, store, r.hook())
			known(t, store, 1)
			stop()
			docs, err := store.Documents(t.Context(), "webhook", "", 0)
			if err != nil || len(docs) != 1 {
				t.Fatal(docs, err)
			}
			docs[0].Body = json.RawMessage(`{"receiver":"r","next":1,` + what + `}`)
			if err := store.Commit(t.Context(), &server.Change{Documents: docs}); err != nil {
				t.Fatal(err)
			}
			state(t, store, attest.StateQuarantined, "one")
			replicaWith(t, func(c *server.Config) { c.Store, c.Webhooks = store, []server.Webhook{r.hook()} }, func(s *server.Server) {
				s.HurryWebhooks(5*time.Second, 50*time.Millisecond)
			})
			if d := <-r.got; d.reason() != "one" {
				t.Errorf("got %s", d.body)
			}
			var after struct{ Until time.Time }
			docs, err = store.Documents(t.Context(), "webhook", "", 0)
			if err == nil {
				err = json.Unmarshal(docs[0].Body, &after)
			}
			if err != nil || after.Until.After(time.Now().Add(time.Minute)) {
				t.Errorf("the lease is until %v, %v", after.Until, err)
			}
		})
	}
}

// The process dies after the receiver has an event and before that is noted.
func TestAnEventWhoseDeliveryWasNotNotedComesAgainWithItsID(t *testing.T) {
	memory := new(storetest.Memory)
	var dead atomic.Bool
	r := newReceiver(t)
	store := &storetest.Faulty{Store: memory, Fail: func(string) (error, bool) {
		if dead.Load() {
			return errors.New("killed"), false
		}
		return nil, false
	}}
	_, _, stop := replica(t, store, r.hook())
	known(t, memory, 1)
	die := func(w http.ResponseWriter, req *http.Request) {
		dead.Store(true)
		r.fail.Store(nil)
		r.serve(w, req)
	}
	r.fail.Store(&die)
	state(t, memory, attest.StateQuarantined, "one")
	state(t, memory, attest.StateQuarantined, "two")
	first := <-r.got
	stop()
	for len(r.got) > 0 {
		if d := <-r.got; d.id != first.id {
			t.Errorf("a dead process sent %s", d.body)
		}
	}
	// Another one takes over when the lease is over; here its clock says so.
	doc, err := memory.Documents(t.Context(), "webhook", "", 0)
	if err != nil || len(doc) != 1 {
		t.Fatal(doc, err)
	}
	doc[0].Body = bytes.Replace(doc[0].Body, []byte(`"until":"2`), []byte(`"until":"1`), 1)
	if err := memory.Commit(t.Context(), &server.Change{Documents: doc}); err != nil {
		t.Fatal(err)
	}
	replica(t, memory, r.hook())
	if d := <-r.got; d.id != first.id || d.reason() != "one" {
		t.Errorf("after the restart %s comes first: %s", d.id, d.body)
	}
	if d := <-r.got; d.reason() != "two" {
		t.Errorf("then %s", d.body)
	}
}

func TestOfSeveralReplicasOneDelivers(t *testing.T) {
	store := new(storetest.Memory)
	r := newReceiver(t)
	for range 3 {
		replica(t, store, r.hook())
	}
	known(t, store, 1)
	const n = 50
	for i := range n {
		state(t, store, attest.StateQuarantined, fmt.Sprint(i))
	}
	for i := range n {
		if d := <-r.got; d.reason() != fmt.Sprint(i) {
			t.Fatalf("event %d is %s", i, d.body)
		}
	}
	if len(r.got) > 0 {
		t.Errorf("%d events came twice", len(r.got))
	}
}

func TestAReplicaThatIsStoppedHandsOver(t *testing.T) {
	store := new(storetest.Memory)
	r := newReceiver(t)
	_, _, stop := replica(t, store, r.hook())
	known(t, store, 1)
	hang := make(chan struct{})
	f := func(_ http.ResponseWriter, req *http.Request) {
		close(hang)
		hangUp(req)
	}
	r.fail.Store(&f)
	state(t, store, attest.StateQuarantined, "one")
	<-hang
	r.fail.Store(nil)
	stop()
	// The receiver did not fail: nobody has to wait because of it.
	docs, err := store.Documents(t.Context(), "webhook", "", 0)
	if err != nil || len(docs) != 1 || bytes.Contains(docs[0].Body, []byte("attempts")) || bytes.Contains(docs[0].Body, []byte("holder")) {
		t.Errorf("the cursor is %s, %v", docs[0].Body, err)
	}
	// The lease was for a minute; the next one need not wait for its end.
	replica(t, store, r.hook())
	if d := <-r.got; d.reason() != "one" {
		t.Errorf("got %s", d.body)
	}
}

func TestTheEndOfTheLogIsFound(t *testing.T) {
	store := new(storetest.Memory)
	s, _, _ := replica(t, store)
	for want := range int64(20) {
		if got, err := s.LogEnd(t.Context()); err != nil || got != want {
			t.Fatalf("got %d, %v, want %d", got, err, want)
		}
		state(t, store, attest.StateRevoked, "x")
	}
}

func TestWebhooksThatCannotBeAreRefusedAtTheStart(t *testing.T) {
	good := server.Webhook{URL: "https://ops.example/x", Secrets: []attest.Secret{hookSecret}}
	with := func(f func(*server.Webhook)) []server.Webhook { w := good; f(&w); return []server.Webhook{w} }
	for name, hooks := range map[string][]server.Webhook{
		"plain HTTP to elsewhere":   with(func(w *server.Webhook) { w.URL = "http://ops.example/x" }),
		"plain HTTP to the network": with(func(w *server.Webhook) { w.URL = "http://10.0.0.1/x" }),
		"another scheme":            with(func(w *server.Webhook) { w.URL = "file:///etc/passwd" }),
		"no host":                   with(func(w *server.Webhook) { w.URL = "https:///x" }),
		"no URL":                    with(func(w *server.Webhook) { w.URL = "::" }),
		"a user":                    with(func(w *server.Webhook) { w.URL = "https://me:pw@ops.example/" }),
		"a short secret":            with(func(w *server.Webhook) { w.Secrets = []attest.Secret{[]byte("short")} }),
		"no secret":                 with(func(w *server.Webhook) { w.Secrets = nil }),
		"an unknown event":          with(func(w *server.Webhook) { w.Events = []string{"machine.exploded"} }),
		"one URL twice":             {good, good},
	} {
		store, key := new(storetest.Memory), newKey(t)
		_, err := server.New(server.Config{
			Store: store, Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) { return nil, nil },
			Standing: storetest.Standing(t, store, key),
			KEK:      bytes.Repeat([]byte{1}, server.KEKSize), ReleaseKey: key, Log: slog.New(slog.DiscardHandler), Webhooks: hooks,
		})
		if err == nil || !strings.Contains(err.Error(), "webhook") || strings.Contains(err.Error(), "short") || strings.Contains(err.Error(), "pw") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, u := range []string{"http://127.0.0.1:9/x", "http://[::1]:9/", "http://localhost:9/"} {
		replica(t, new(storetest.Memory), server.Webhook{URL: u, Secrets: []attest.Secret{hookSecret}})
	}
}

func TestWebhookSecrets(t *testing.T) {
	raw := bytes.Repeat([]byte{0xfb}, 32)
	text := "whsec_" + base64.StdEncoding.EncodeToString(raw)
	got, err := server.ParseWebhookSecrets([]byte("\n" + text + "\r\n" + string(hookSecret) + "\n"))
	if err != nil || len(got) != 2 || !bytes.Equal(got[0], raw) || !bytes.Equal(got[1], hookSecret) {
		t.Errorf("%d secrets, %v", len(got), err)
	}
	for _, bad := range []string{"", "\n", "short", "whsec_!!!", "whsec_c2hvcnQ=", strings.Repeat(string(hookSecret)+"\n", 5)} {
		if _, err := server.ParseWebhookSecrets([]byte(bad)); err == nil || len(bad) > 2 && strings.Contains(err.Error(), "c2hvcnQ") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestEveryKindOfEntryIsAnEventThatCanBeAskedFor(t *testing.T) {
	result := func(allowed bool) *attest.Result { return &attest.Result{Allowed: allowed} }
	var seen []string
	for _, c := range []struct {
		kind audit.Kind
		data any
		want string
	}{
		{audit.KindState, audit.StateChange{From: "enrolled", To: "quarantined"}, server.EventQuarantined},
		{audit.KindState, audit.StateChange{From: "quarantined", To: "quarantined", Effect: "fenced"}, "machine.state"},
		{audit.KindState, audit.StateChange{From: "enrolled", To: "revoked"}, "machine.state"},
		{audit.KindStale, audit.Stale{Stale: true}, server.EventStale}, {audit.KindStale, audit.Stale{}, server.EventFresh},
		{audit.KindVerdict, audit.Verdict{Result: result(true)}, server.EventEvidenceAccepted}, {audit.KindVerdict, audit.Verdict{Result: result(false)}, server.EventEvidenceRefused},
		{audit.KindReport, audit.Reattestation{Result: result(true)}, server.EventReportAccepted}, {audit.KindReport, audit.Reattestation{Result: result(false)}, server.EventReportRefused},
		{audit.KindStart, audit.Start{}, ""}, {audit.KindChallengeRefused, audit.ChallengeRefused{}, ""}, {audit.KindRelease, audit.Release{}, ""},
		{audit.KindConfirm, audit.Confirm{}, ""}, {audit.KindInstall, audit.Install{}, ""}, {audit.KindToken, audit.Token{}, ""},
		{audit.KindCampaign, audit.Campaign{}, ""}, {audit.KindExpected, audit.Expected{}, ""}, {audit.KindAlarm, audit.Alarm{}, ""}, {audit.KindPolicy, audit.Policy{}, ""},
		{audit.KindRecovery, audit.Recovery{}, ""}, {audit.KindDiskKey, audit.DiskKey{}, ""}, {audit.KindKEK, audit.KEKRewrap{}, ""},
		{audit.KindRestore, audit.Restore{}, ""}, {audit.KindAcceptRestore, audit.AcceptRestore{}, ""}, {audit.KindPrune, audit.Prune{}, ""},
	} {
		e, err := audit.Next(audit.Head{}, audit.Event{Kind: c.kind, Data: c.data})
		if err != nil {
			t.Fatal(err)
		}
		if c.want == "" {
			c.want = string(c.kind)
		}
		got := server.EventType(&e)
		if got != c.want || !slices.Contains(server.EventTypes(), got) {
			t.Errorf("%s is %s, want %s", c.kind, got, c.want)
		}
		seen = append(seen, got)
	}
	for _, e := range server.EventTypes() {
		if !slices.Contains(seen, e) {
			t.Errorf("no entry gives %s", e)
		}
	}
}

// A hostile machine's verdict must not make a request of a megabyte.
func TestEventsAreBounded(t *testing.T) {
	store := new(storetest.Memory)
	r := newReceiver(t)
	replica(t, store, r.hook(server.EventEvidenceRefused, "campaign"))
	known(t, store, 1)
	result := &attest.Result{Findings: []attest.Finding{}, Facts: []attest.Fact{}}
	for range 400 {
		result.Findings = append(result.Findings, attest.Finding{Code: attest.CodeEventUnknown, Message: strings.Repeat("m", 1000)})
		result.Facts = append(result.Facts, attest.Fact{Name: "x", Value: strings.Repeat("v", 1000)})
	}
	if err := store.Commit(t.Context(), &server.Change{Events: []audit.Event{
		{Kind: audit.KindVerdict, Data: audit.Verdict{Result: result}},
		{Kind: audit.KindCampaign, Data: audit.Campaign{Reason: strings.Repeat("r", 100<<10)}},
	}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if d := <-r.got; len(d.body) > 70<<10 || !d.Data.Truncated {
			t.Errorf("%s has %d bytes, truncated %t", d.Type, len(d.body), d.Data.Truncated)
		}
	}
}
