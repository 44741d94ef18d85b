package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
)

// ErrCannotTell is wrapped by an Authenticator's error if it could not find out
// whether a token is good.
var ErrCannotTell = errors.New("cannot tell whether the token is good")

// An Authenticator knows operators by a token. It is used by many goroutines.
type Authenticator interface {
	// Authenticate returns the operator whom a token was issued to. An error
	// refuses the token, unless it wraps ErrCannotTell. Its text holds nothing
	// of the token that is secret: the peer and the log may see it.
	Authenticate(ctx context.Context, token string) (Operator, error)
}

const (
	// bearerPrefix is before the names of operators who showed a token. No
	// certificate has a name with a colon, so that nobody who may choose the
	// name of one passes for somebody who may choose that of the other.
	bearerPrefix = "oidc:"
	// bearerTime bounds how long it may take to know a token's operator.
	bearerTime = 10 * time.Second
	// maxName bounds an operator's name, bytes.
	maxName = 255
)

// Operator is an authenticated person or program.
type Operator struct {
	Name  string
	Roles []api.Role
	// Subject is by what the issuer of a token knows who it is, if that is not
	// Name: two names with one subject are one person. Optional.
	Subject string
}

// may reports whether the operator has a role. Every known role is a viewer's.
func (o Operator) may(need api.Role) bool {
	if need == api.RoleViewer {
		return len(o.Roles) > 0
	}
	return slices.Contains(o.Roles, need)
}

func forbidden(format string, args ...any) *failure {
	return &failure{status: http.StatusForbidden, code: "forbidden", text: fmt.Sprintf(format, args...)}
}

func unauthenticated(format string, args ...any) *failure {
	return &failure{status: http.StatusUnauthorized, code: "unauthenticated", text: fmt.Sprintf(format, args...)}
}

// authenticate returns who sent a request. It checks:
//   - the connection is TLS 1.3
//   - exactly one of certificate and token is shown
//   - a certificate was verified by the listener, is an operator's, still
//     valid, and not revoked
//   - a token is the only one and the Authenticator vouches for it
//   - the name is one that the audit log can tell from any other
func (s *Server) authenticate(r *http.Request) (Operator, *failure) {
	if r.TLS == nil || r.TLS.Version != tls.VersionTLS13 {
		return Operator{}, forbidden("the connection is not TLS 1.3")
	}
	header := r.Header.Values("Authorization")
	certified := len(r.TLS.VerifiedChains) > 0 && len(r.TLS.VerifiedChains[0]) > 0
	switch {
	case certified && len(header) > 0:
		// Either could be meant; what one of them may not do must not be done
		// in the name of the other.
		return Operator{}, &failure{status: http.StatusBadRequest, code: "two-identities", text: "the request has a client certificate and a token", hint: "use one of them"}
	case certified:
		return s.certified(r, r.TLS.VerifiedChains[0][0])
	case s.c.Bearer == nil:
		return Operator{}, forbidden("no client certificate was verified")
	case len(header) == 0:
		return Operator{}, unauthenticated("the request has neither a client certificate nor a token")
	case len(header) > 1:
		return Operator{}, unauthenticated("the request has %d Authorization headers", len(header))
	}
	scheme, token, _ := strings.Cut(header[0], " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return Operator{}, unauthenticated("the Authorization header is not of the form Bearer TOKEN")
	}
	ctx, cancel := context.WithTimeout(r.Context(), bearerTime)
	defer cancel()
	op, err := s.c.Bearer.Authenticate(ctx, token)
	if errors.Is(err, ErrCannotTell) {
		return Operator{}, unavailable("the issuer of tokens", err)
	}
	if err != nil {
		f := unauthenticated("the token is not accepted: %s", clip(err.Error()))
		f.hint = "get a new token, or use a client certificate"
		return Operator{}, f
	}
	if err := checkName(op.Name); err != nil {
		return Operator{}, unauthenticated("the token is not accepted: %v", err)
	}
	op.Name = bearerPrefix + op.Name
	op.Roles = slices.DeleteFunc(slices.Clone(op.Roles), func(r api.Role) bool { return !r.Known() })
	return op, nil
}

// certified returns the operator whose certificate the listener verified. Its
// organizational units are the roles; those that are none of ours give nothing.
func (s *Server) certified(r *http.Request, leaf *x509.Certificate) (Operator, *failure) {
	subject := leaf.Subject
	switch {
	case !slices.Contains(subject.Organization, api.OperatorOrganization):
		return Operator{}, forbidden("the client certificate is not of the organization %q", api.OperatorOrganization)
	case subject.CommonName == "":
		return Operator{}, forbidden("the client certificate has no common name")
	case s.c.Clock().After(leaf.NotAfter):
		// The listener looked when the connection began, which may be long ago.
		return Operator{}, forbidden("the client certificate was valid until %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if err := CheckCertificateName(subject.CommonName); err != nil {
		return Operator{}, forbidden("the client certificate: %v", err)
	}
	if s.c.Revoked != nil {
		revoked, err := s.c.Revoked(leaf)
		if err != nil {
			return Operator{}, unavailable("the list of revoked certificates", err)
		}
		if revoked {
			if f := s.revokedShown(r, leaf); f != nil {
				return Operator{}, f
			}
			return Operator{}, &failure{status: http.StatusForbidden, code: "certificate-revoked", text: "the client certificate was revoked"}
		}
	}
	op := Operator{Name: subject.CommonName}
	for _, unit := range subject.OrganizationalUnit {
		if role := api.Role(unit); role.Known() {
			op.Roles = append(op.Roles, role)
		}
	}
	return op, nil
}

// revokedShown raises the alarm for a revoked certificate, within the budget
// for one machine's refusals.
func (s *Server) revokedShown(r *http.Request, leaf *x509.Certificate) *failure {
	now, serial := s.c.Clock(), leaf.SerialNumber.Text(16)
	if ok, _ := s.refusals.log("operator "+serial, now); !ok {
		return nil
	}
	err := s.Record(r.Context(), alarm(attest.MachineID{}, now, audit.Alarm{
		Name: audit.AlarmRevokedOperator, Peer: addressText(r.RemoteAddr),
		What: fmt.Sprintf("the revoked certificate %s of operator %s was shown", serial, leaf.Subject.CommonName),
	}))
	if err != nil {
		return unavailable("the store", err)
	}
	return nil
}

// CheckCertificateName refuses names of operators' certificates that somebody
// else has in the audit log: that of the service itself, and those with a
// colon, which are of operators with tokens and of provisioners.
func CheckCertificateName(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if name == byService || strings.Contains(name, ":") {
		return fmt.Errorf("the name %q can be taken for that of another: it is %q or has a colon", name, byService)
	}
	return nil
}

// byService is who decided in the audit log when nobody did.
const byService = "service"

// checkName accepts 1 to maxName printable ASCII characters without space
// around them: names are compared by people, and what looks like another's
// name must not be one.
func checkName(name string) error {
	if len(name) == 0 || len(name) > maxName {
		return fmt.Errorf("the name has %d bytes, want 1 to %d", len(name), maxName)
	}
	for _, c := range []byte(name) {
		if c < ' ' || c > '~' {
			return fmt.Errorf("the name %+q has characters that are not printable ASCII", name)
		}
	}
	if strings.TrimSpace(name) != name {
		return fmt.Errorf("the name %q begins or ends with a space", name)
	}
	return nil
}

// admit does what comes before the work on an operator's request, cheapest
// first: the limit of the address, who it is, whether he may, and his own
// limits. done must be called if there is no failure.
func (s *Server) admit(need api.Role, r *http.Request) (op Operator, done func(), f *failure) {
	if ok, wait := s.operatorAddress.allow(addressKey(r.RemoteAddr), s.c.Clock()); !ok {
		return op, nil, rateLimited(limitAddress, wait)
	}
	if op, f = s.authenticate(r); f != nil {
		return op, nil, f
	}
	if !op.may(need) {
		f := forbidden("%s does not have the role %s", op.Name, need)
		f.hint = fmt.Sprintf("ask somebody who has it, or make an identity with it: sealift keys issue operator NAME --role %s", need)
		if strings.HasPrefix(op.Name, bearerPrefix) {
			f.hint = "ask somebody who has it; the issuer of the token says who has which role"
		}
		return op, nil, f
	}
	if ok, wait := s.operator.allow(op.Name, s.c.Clock()); !ok {
		return op, nil, rateLimited(limitOperator, wait)
	}
	// The operator's share first: who waits for it holds nothing of others.
	release, ok := s.operatorShares.take(r.Context(), op.Name, s.c.Limits.Queue)
	if !ok {
		return op, nil, busy(limitOperator)
	}
	if !s.operatorSlots.take(r.Context(), s.c.Limits.Queue) {
		release()
		return op, nil, busy(limitConcurrent)
	}
	return op, func() { s.operatorSlots.release(); release() }, nil
}

// RequireOperator serves h to operators who have a role, with the limits of
// the operator API. api is the name of what h is part of, for the Meter.
func (s *Server) RequireOperator(api string, need api.Role, h http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w := &answer{ResponseWriter: rw, api: api}
		_, done, f := s.admit(need, r)
		if f != nil {
			s.fail(w, r, f)
			return
		}
		defer done()
		h.ServeHTTP(w, r)
	})
}
