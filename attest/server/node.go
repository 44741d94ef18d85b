package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
)

// maxPublic bounds a TPMT_PUBLIC, bytes. The largest that a TPM has, RSA 4096,
// is under 600.
const maxPublic = 1024

// NodeHandler serves the node API. It must be served over TLS 1.3 that ends
// here: evidence is bound to the TLS connection. Challenges are kept with the
// connection, and requests let in only while there is room, which only
// ServeNodes does.
func (s *Server) NodeHandler() http.Handler {
	operators := s.operatorRoutes()
	return s.guard(apiNodes, s.nodeRoutes(), func(r *http.Request) *failure {
		if serves(operators, r) {
			return s.trespass(r)
		}
		return nil
	})
}

// trespass answers who asks for the operator API where only nodes are. No
// agent does, so it is an alarm, within a budget of its own: evidence that is
// refused must not use up what would tell of this.
func (s *Server) trespass(r *http.Request) *failure {
	now := s.c.Clock()
	ok, suppressed := s.unproven.log("operator API", now)
	if !ok {
		return wrongListener("operator")
	}
	// net/http leaves methods of any length to us, and the log is for people.
	what := fmt.Sprintf("the operator API was asked for on the node listener: %.16q %.128q", r.Method, r.URL.Path)
	if suppressed > 0 {
		what += fmt.Sprintf(", after %d times that were not logged", suppressed)
	}
	err := s.Record(r.Context(), alarm(attest.MachineID{}, now, audit.Alarm{Name: audit.AlarmWrongListener, Peer: addressText(r.RemoteAddr), What: what}))
	if err != nil {
		return unavailable("the store", err)
	}
	return wrongListener("operator")
}

func (s *Server) nodeRoutes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+api.PathChallenge, node(s, api.MaxChallengeBody, briefTimeout, s.challenge))
	mux.HandleFunc("POST "+api.PathEvidence, node(s, api.MaxEvidenceBody, bodyTimeout, s.evidence))
	mux.HandleFunc("POST "+api.PathKey, node(s, api.MaxConfirmBody, briefTimeout, s.key))
	mux.HandleFunc("POST "+api.PathConfirm, node(s, api.MaxConfirmBody, bodyTimeout, s.confirm))
	return mux
}

// peer is what is known of who sent a request.
type peer struct {
	address  string // without the port
	group    string // addressKey: what belongs to one peer
	exporter []byte // RFC 9266 tls-exporter of the connection
	conn     *connection
	request  string // id of the request
}

// node wraps the work on one node request in what all of them need, cheapest
// first: TLS 1.3, the rate limit per address, the body, a slot to work in.
func node[T any](s *Server, limit int64, timeout time.Duration, work func(context.Context, peer, *T) (status int, body any, f *failure)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || r.TLS.Version != tls.VersionTLS13 {
			s.fail(w, r, badRequest("the connection is not TLS 1.3"))
			return
		}
		if ok, wait := s.address.allow(addressKey(r.RemoteAddr), s.c.Clock()); !ok {
			s.fail(w, r, rateLimited(limitAddress, wait))
			return
		}
		// RFC 9266 4.1: the context is zero-length; in TLS 1.3 that is the
		// same as none.
		exporter, err := r.TLS.ExportKeyingMaterial(api.ExporterLabel, nil, api.ExporterLength)
		if err != nil {
			s.fail(w, r, internal(err))
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), workTimeout)
		defer cancel()
		if r.ContentLength < 0 || r.ContentLength > commonBody {
			// The address's share first: who waits for it holds nothing of others.
			leave, ok := s.largeShares.take(ctx, addressKey(r.RemoteAddr), s.c.Limits.Queue)
			if !ok {
				s.fail(w, r, busy(limitBodies))
				return
			}
			defer leave()
			if !s.large.take(ctx, s.c.Limits.Queue) {
				s.fail(w, r, busy(limitBodies))
				return
			}
			defer s.large.release()
		}
		req := new(T)
		if f := readBody(w, r, limit, timeout, req); f != nil {
			s.fail(w, r, f)
			return
		}
		if !s.nodeSlots.take(ctx, s.c.Limits.Queue) {
			s.fail(w, r, busy(limitConcurrent))
			return
		}
		defer s.nodeSlots.release()
		status, body, f := work(ctx, peer{addressText(r.RemoteAddr), addressKey(r.RemoteAddr), exporter, connectionOf(r.Context()), w.Header().Get(api.HeaderRequestID)}, req)
		if f != nil {
			s.fail(w, r, f)
			return
		}
		reply(w, status, body)
	}
}

func rateLimited(limit string, wait time.Duration) *failure {
	return &failure{status: http.StatusTooManyRequests, limit: limit, code: api.CodeRateLimited, text: "too many requests from this " + strings.ReplaceAll(limit, "-", " "), hint: "wait as long as Retry-After says", wait: wait}
}

// challenge answers api.PathChallenge. It believes nothing of the request: the
// credential is of use only to the TPM that holds the endorsement key, and
// what that key is worth is judged with the evidence.
func (s *Server) challenge(ctx context.Context, p peer, req *api.ChallengeRequest) (int, any, *failure) {
	now := s.c.Clock()
	switch {
	case req.Version != api.Version:
		return 0, nil, badRequest("protocol version is %d, want %d", req.Version, api.Version)
	case req.Purpose != attest.PurposeUnlock && req.Purpose != attest.PurposeReport:
		return 0, nil, badRequest("purpose is neither %q nor %q", attest.PurposeUnlock, attest.PurposeReport)
	case len(req.EKPublic) == 0 || len(req.EKPublic) > maxPublic:
		return 0, nil, badRequest("ekPublic has %d bytes, want 1 to %d", len(req.EKPublic), maxPublic)
	case len(req.AKPublic) == 0 || len(req.AKPublic) > maxPublic:
		return 0, nil, badRequest("akPublic has %d bytes, want 1 to %d", len(req.AKPublic), maxPublic)
	}
	if ok, wait := s.ek.allow(ekKey(p.group, req.EKPublic), now); !ok {
		return 0, nil, rateLimited(limitEK, wait)
	}
	credential, secret, activation, err := credentialFor(req)
	if err != nil {
		s.c.Log.Info("challenge refused", "peer", p.address, "error", err)
		if f := s.refusedUnproven(ctx, now, p, "a credential could not be made: "+err.Error()); f != nil {
			return 0, nil, f
		}
		f := badRequest("the endorsement or attestation key is of no kind that can be challenged")
		if _, err := attest.AKName(req.AKPublic); err != nil {
			f.code, f.text = string(attest.CodeAKAttributes), "the attestation key is no restricted signing key of the kind that is wanted"
		}
		return 0, nil, f
	}
	id, err := randomID()
	if err != nil {
		return 0, nil, internal(err)
	}
	nonce, err := newSecret(32)
	if err != nil {
		return 0, nil, internal(err)
	}
	asksBanks := req.Purpose == attest.PurposeUnlock && s.c.ProveBanks != nil && s.c.ProveBanks()
	ch := &attest.Challenge{
		ID:               id,
		Purpose:          req.Purpose,
		Nonce:            nonce,
		ActivationSecret: activation,
		AKPublic:         req.AKPublic,
		EKPublic:         req.EKPublic,
		Expires:          now.Add(s.c.Limits.ChallengeTTL),
		AsksBanks:        asksBanks,
	}
	who := claim{early: true}
	if !p.conn.guest.calm() {
		who = s.claim(ctx, p, req)
	}
	p.conn.put(ch, who)
	machine, proveKeys := s.advise(ctx, ch)
	return http.StatusOK, &api.Challenge{
		Machine:    machine,
		ProveKeys:  proveKeys,
		ID:         id,
		Nonce:      nonce,
		Credential: credential,
		Secret:     secret,
		PCRs:       attest.PolicyPCRs(),
		Expires:    ch.Expires,
		ProveBanks: asksBanks,
	}, nil
}

// credentialFor makes the credential of a challenge. A report needs none: its
// attestation key was proven before the release that it is held against.
func credentialFor(req *api.ChallengeRequest) (credential, secret []byte, activation attest.Secret, err error) {
	if req.Purpose != attest.PurposeReport {
		return attest.MakeCredential(req.EKPublic, req.AKPublic)
	}
	if _, err = attest.EKMachineID(req.EKPublic); err == nil {
		_, err = attest.AKName(req.AKPublic)
	}
	return nil, nil, nil, err
}

// ekKey is what challenges are counted by. An endorsement key is no secret, so
// it is counted with the address it comes from: else anybody could use up what
// another's machine may ask for.
func ekKey(group string, ekPublic []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%d:%s", len(group), group)
	h.Write(ekPublic)
	return hex.EncodeToString(h.Sum(nil))
}

// refusedUnproven logs a refusal of a sender that proved nothing, within the
// budget for those.
func (s *Server) refusedUnproven(ctx context.Context, now time.Time, p peer, reason string) *failure {
	ok, n := s.unproven.log("", now)
	if !ok {
		return nil
	}
	ev := audit.Event{Time: now, Kind: audit.KindChallengeRefused, Data: audit.ChallengeRefused{Reason: reason, Address: p.address, Suppressed: n}}
	if err := s.Record(ctx, ev); err != nil {
		return unavailable("the store", err)
	}
	return nil
}

// randomID returns 128 random bits in hex.
func randomID() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(b[:]), nil
}
