package server_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
)

// deafStore is a store that may not answer.
type deafStore struct {
	server.Store
	is atomic.Bool
}

func (d *deafStore) Machine(ctx context.Context, id attest.MachineID) (*server.Machine, error) {
	if d.is.Load() {
		return nil, errors.New("no store")
	}
	return d.Store.Machine(ctx, id)
}

// What a connection is worth by the machine that its peer says it is.
func TestWhichMachineAChallengeIsFor(t *testing.T) {
	t.Parallel()
	const here, near, far = "127.0.0.1", "127.0.0.9", "192.0.2.1"
	deaf := new(deafStore)
	s := newScene(t, func(c *server.Config) { deaf.Store, c.Store = c.Store, deaf })
	claim := func(b *box, from string) string {
		m, home := s.srv.Claim(t.Context(), from, &api.ChallengeRequest{EKPublic: b.ekPublic, EKCertificates: [][]byte{b.cert}})
		switch {
		case m.IsZero() && !home:
			return "none"
		case m != b.id:
			return m.String()
		case home:
			return "home"
		}
		return "away"
	}
	check := func(what string, b *box, from, want string) {
		t.Helper()
		if got := claim(b, from); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	b := newBox(t, s.tpmCA)
	check("one never heard of", b, here, "none")
	s.enrol(b)
	check("one that is enrolled and never came", b, here, "away")
	if status, _ := s.attest(b); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	check("one that was released to", b, here, "home")
	check("in the same network", b, near, "home")
	check("elsewhere", b, far, "away")
	pending := newBox(t, s.tpmCA)
	if status, _ := s.attest(pending); status != 403 {
		t.Errorf("HTTP %d", status)
	}
	check("one that waits for approval", pending, near, "home")
	check("one that waits for approval, elsewhere", pending, far, "away")
	for _, verb := range []string{"quarantine", "revoke"} {
		if status := s.call(s.operator(), "POST", "https://"+s.operators+api.PathMachines+"/"+b.id.String()+"/"+verb, api.StateChange{Reason: "x"}, nil); status != 200 {
			t.Fatalf("%s: HTTP %d", verb, status)
		}
		check("after "+verb, b, here, "none")
	}
	expected := newBox(t, s.tpmCA)
	if got := s.expects(false, api.Expected{EK: expected.digests(t)[0], Serial: "S-9"}); !strings.HasPrefix(got, "added") {
		t.Fatal(got)
	}
	check("one that is expected", expected, here, "away")
	deaf.is.Store(true)
	check("where the store does not answer", pending, here, "none")
	if m, _ := s.srv.Claim(context.Background(), here, &api.ChallengeRequest{EKPublic: []byte("nonsense")}); !m.IsZero() {
		t.Errorf("nonsense is machine %s", m)
	}
}
