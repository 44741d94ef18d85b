package cluster

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func supervised(t *testing.T, f func(t *testing.T, s *scene)) {
	for _, d := range []Distro{K3s, RKE2} {
		t.Run(string(d), func(t *testing.T) { f(t, newDistroScene(t, d)) })
	}
}

func TestASupervisedNodeUsesItsTokenOnce(t *testing.T) {
	supervised(t, func(t *testing.T, s *scene) {
		s.events.expects["box-1"] = true
		token := s.mint("box-1")
		s.mustRound()
		s.want("", 1)
		if code := s.api.join(string(token.Secret), "box-1", "pw"); code != 200 {
			t.Fatalf("join: HTTP %d", code)
		}
		s.mustRound()
		s.want("", 1) // there is nothing to see before the node registers
		s.api.setNode("box-1", "boot-1", false)
		s.mustRound()
		s.want("used box-1", 0)
		if code := s.api.join(string(token.Secret), "box-2", "pw"); code != 401 {
			t.Errorf("a second join with the token: HTTP %d", code)
		}
		s.mustRound()
		s.api.setNode("box-1", "boot-1", true)
		s.mustRound()
		s.want("used box-1, joined box-1, revoked box-1", 0)
		s.wantAlarms("")
		if len(s.c.outstanding()) != 0 {
			t.Error("the token is still watched")
		}
	})
}

func TestASupervisedNodeThatIsNeverReadyExpires(t *testing.T) {
	supervised(t, func(t *testing.T, s *scene) {
		s.mint("box-1")
		s.api.setNode("box-1", "boot-1", false)
		s.mustRound()
		s.clock.advance(MaxTTL)
		s.mustRound()
		s.want("used box-1, expired box-1", 0)
	})
}

func TestAForeignNodeEndsOpenTokens(t *testing.T) {
	supervised(t, func(t *testing.T, s *scene) {
		s.api.setNode("server-1", "b", true)
		s.api.setNode("old-1", "b", true)
		s.clock.advance(time.Minute)
		s.events.expects["box-1"], s.events.expects["box-2"] = true, true
		token := s.mint("box-1")
		s.mint("box-2")
		s.api.setNode("box-2", "boot", true) // ours
		s.mustRound()
		s.want("joined box-2, revoked box-2", 1)
		if code := s.api.join(string(token.Secret), "thief", "pw"); code != 200 {
			t.Fatalf("HTTP %d", code)
		}
		// It never registers: its password is enough.
		s.mustRound()
		s.want("joined box-2, revoked box-2, revoked box-1", 0)
		s.wantAlarms("token.foreign-node box-1")
		if !strings.Contains(s.events.whats[0], "thief") {
			t.Errorf("the alarm does not name the node: %s", s.events.whats[0])
		}
		if code := s.api.join(string(token.Secret), "thief-2", "pw"); code != 401 {
			t.Errorf("the token works after the alarm: HTTP %d", code)
		}
		s.api.setNode("thief", "b", false)
		// A token that is minted later is not suspect.
		s.clock.advance(time.Minute)
		s.mint("box-1")
		s.mustRound()
		s.mustRound()
		s.want("joined box-2, revoked box-2, revoked box-1", 1)
	})
}

func TestAForeignNodeIsSeenAfterTheTokenWasUsed(t *testing.T) {
	supervised(t, func(t *testing.T, s *scene) {
		token := s.mint("box-1")
		s.events.expects["box-1"] = true
		s.api.join(string(token.Secret), "box-1", "pw")
		s.api.setNode("box-1", "boot-1", false)
		s.mustRound()
		// The thief had its certificate before, and registers now.
		s.api.setNode("thief", "b", false)
		s.mustRound()
		s.mustRound()
		s.api.setNode("box-1", "boot-1", true)
		s.mustRound()
		s.want("used box-1, joined box-1, revoked box-1", 0)
		s.wantAlarms("token.foreign-node box-1")
	})
}

func TestAnInstallTakesItsFormerName(t *testing.T) {
	supervised(t, func(t *testing.T, s *scene) {
		token := s.mint("box-1")
		if code := s.api.join(string(token.Secret), "box-1", "first install"); code != 200 {
			t.Fatalf("HTTP %d", code)
		}
		if code := s.api.join(string(token.Secret), "box-1", "another node"); code != 403 {
			t.Errorf("another password under the name: HTTP %d", code)
		}
		token = s.mint("box-1")
		if code := s.api.join(string(token.Secret), "box-1", "second install"); code != 200 {
			t.Errorf("installed anew: HTTP %d", code)
		}
		s.api.fail = func(r *http.Request) int {
			if r.Method == "DELETE" && strings.Contains(r.URL.Path, "node-password") {
				return 500
			}
			return 0
		}
		if _, err := s.c.Mint(t.Context(), "box-1"); err == nil {
			t.Error("a token was minted that the node could not use")
		}
	})
}

func TestSupervisedTokensMayNotMakeSigningRequests(t *testing.T) {
	supervised(t, func(t *testing.T, s *scene) {
		token := s.mint("box-1")
		if code := s.api.kubelet().ask(string(token.Secret), "csr-1", nodeRequest("box-1"), "client auth"); code != 403 {
			t.Errorf("HTTP %d", code)
		}
		if len(s.api.bindings) != 0 {
			t.Errorf("bindings were made: %v", s.api.bindings)
		}
		// Somebody else's binding lets them.
		s.api.bindings["x"] = &roleBinding{RoleRef: roleRef{Name: roleName}, Subjects: []subject{{Kind: "Group", Name: "system:bootstrappers"}}}
		s.api.kubelet().ask(string(token.Secret), "csr-1", nodeRequest("box-1"), "client auth")
		s.mustRound()
		s.want("revoked box-1", 0)
		s.wantAlarms("token.request-refused box-1")
	})
}

func TestTokensSurviveARestartWithTheirTime(t *testing.T) {
	supervised(t, func(t *testing.T, s *scene) {
		s.api.setNode("old-1", "b", true)
		s.clock.advance(time.Minute)
		s.mint("box-1")
		s.c = s.open()
		s.mustRound()
		s.want("", 1)
		s.api.setNode("thief", "b", true)
		s.mustRound()
		s.want("revoked box-1", 0)
		s.wantAlarms("token.foreign-node box-1")
	})
}

func TestK0sApprovesByItself(t *testing.T) {
	s := newDistroScene(t, K0s)
	token := s.mint("box-1")
	k := s.api.kubelet()
	k.ask(string(token.Secret), "csr-1", nodeRequest("box-1"), "digital signature", "client auth")
	s.mustRound()
	s.api.setNode("box-1", "boot-1", true)
	s.mustRound()
	s.want("used box-1, joined box-1, revoked box-1", 0)
	s.wantAlarms("")

	token = s.mint("box-2")
	s.api.kubelet().ask(string(token.Secret), "csr-2", nodeRequest("box-3"), "client auth")
	s.mustRound()
	s.want("used box-1, joined box-1, revoked box-1, revoked box-2", 0)
	s.wantAlarms("token.misused box-2")

	token = s.mint("box-4")
	s.api.kubelet().ask(string(token.Secret), "csr-4", nodeRequest("box-4"), "client auth")
	s.mustRound()
	s.api.kubelet().ask(string(token.Secret), "csr-5", nodeRequest("box-4"), "client auth")
	s.mustRound()
	s.wantAlarms("token.misused box-2, token.misused box-4")
}

func TestAnApproverOfTheClusterIsSaid(t *testing.T) {
	for _, d := range []Distro{Kubernetes, K0s} {
		s := newDistroScene(t, d)
		if strings.Contains(s.log.String(), "by itself") {
			t.Errorf("%s: a warning without a reason", d)
		}
		s.api.bindings["auto"] = &roleBinding{Metadata: objectMeta{Name: "auto"}, RoleRef: roleRef{Name: approverRole}, Subjects: []subject{{Kind: "Group", Name: "system:bootstrappers"}}}
		s.open()
		if !strings.Contains(s.log.String(), "binding=auto") {
			t.Errorf("%s: no warning", d)
		}
	}
}

// TestSecretsOfEachDistro: what the servers of a distro read, and no usage that
// its nodes do not need.
func TestSecretsOfEachDistro(t *testing.T) {
	for d, usages := range map[Distro]string{
		Kubernetes: "authentication signing", K3s: "authentication", RKE2: "authentication", K0s: "authentication",
	} {
		s := newDistroScene(t, d)
		token := s.mint("box-1")
		got := s.api.secrets["bootstrap-token-"+token.ID]
		var have []string
		for _, u := range []string{"api-auth", "api-worker-calls", "authentication", "signing"} {
			if string(got.Data["usage-bootstrap-"+u]) == "true" {
				have = append(have, u)
			}
		}
		if strings.Join(have, " ") != usages || got.Type != "bootstrap.kubernetes.io/token" || string(got.Data["auth-extra-groups"]) != Group {
			t.Errorf("%s: got %+v", d, got)
		}
	}
}
