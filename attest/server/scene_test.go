package server_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

const (
	disk      = "6a0d1e0c-3b1f-4a56-9d0e-0123456789ab"
	otherDisk = "6b0d1e0c-3b1f-4a56-9d0e-0123456789ab"
)

// box is a machine whose TPM is on paper.
type box struct {
	tpm                *papertpm.TPM
	ekPublic, akPublic []byte
	cert               []byte
	id                 attest.MachineID
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newBox(t testing.TB, ca *tpmtest.CA) *box {
	t.Helper()
	ek := newKey(t)
	d, err := papertpm.New(ek)
	if err != nil {
		t.Fatal(err)
	}
	b := &box{tpm: d, ekPublic: tpm2.Marshal(d.EKPublic), akPublic: tpm2.Marshal(d.AKPublic), cert: ca.Certify(t, ek.Public()).Raw}
	if b.id, err = d.MachineID(); err != nil {
		t.Fatal(err)
	}
	return b
}

// minter mints tokens that join nothing.
type minter struct {
	mu      sync.Mutex
	n       int
	out     map[string]bool
	fail    error
	life    time.Duration
	secrets []string
}

func (m *minter) Mint(_ context.Context, nodeName string) (*server.Token, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return nil, m.fail
	}
	m.n++
	id := fmt.Sprintf("tok%03d", m.n)
	m.out[id] = true
	secret := id + ".s3cr3t-" + rand.Text()
	m.secrets = append(m.secrets, secret)
	return &server.Token{ID: id, Secret: attest.Secret(secret), Expires: time.Now().Add(m.life), Server: "https://10.0.0.1:6443", CA: []byte("ca")}, nil
}

func (m *minter) Revoke(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.out, id)
	return nil
}

func (m *minter) open() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.out)
}

// logBuffer keeps what is logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// scene is a service on loopback with its store, and boxes that ask it.
type scene struct {
	*testing.T
	memory   *storetest.Memory
	srv      *server.Server
	release  *ecdsa.PrivateKey
	tokens   *minter
	tpmCA    *tpmtest.CA
	log      *logBuffer
	accepted []attest.MachineID // by the firmware observer
	mu       sync.Mutex         // guards accepted, boot, refuse, unsigned, offset, stopped

	boot     server.Boot      // that evidence proves
	refuse   []attest.Finding // findings that any evidence has
	unsigned bool             // the attestation key signed none of the evidence
	offset   time.Duration    // of the service's clock
	stopped  time.Time        // when it was stopped, but for the offset; zero: it goes

	ca        *x509.Certificate
	caKey     *ecdsa.PrivateKey
	nodes     string // address of the node API
	operators string
	fail      func(method string) (error, bool)
	vacate    func() // ends what occupy began
	stranger  *box   // that nobody enrolled
}

// Accepted implements server.FirmwareObserver.
func (s *scene) Accepted(_ context.Context, id attest.MachineID, _ time.Time, r *attest.Result) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepted = append(s.accepted, id)
	return errors.New("an observer's error holds nothing back")
}

func (s *scene) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped.IsZero() {
		return s.stopped.Add(s.offset)
	}
	return time.Now().Add(s.offset)
}

// appraise accepts what attest.Verify would check of the service's own record,
// and refuses with the scene's findings.
func (s *scene) appraise(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, p *attest.Policy) (*attest.Result, *server.Boot) {
	s.mu.Lock()
	boot, unsigned := s.boot, s.unsigned
	fs := append([]attest.Finding{}, s.refuse...)
	s.mu.Unlock()
	id, err := attest.EKMachineID(ch.EKPublic)
	if err != nil {
		s.Error(err)
	}
	add := func(c attest.Code) { fs = append(fs, attest.Finding{Code: c, Message: "paper: " + string(c)}) }
	if ses.Now.After(ch.Expires) {
		add(attest.CodeChallenge)
	}
	if len(ses.Exporter) != api.ExporterLength {
		s.Errorf("exporter has %d bytes", len(ses.Exporter))
	}
	if !bytes.Equal(ses.ActivationProof, attest.ActivationProof(ch.ActivationSecret, ch.ID, ch.Nonce, ch.AKPublic)) {
		add(attest.CodeActivation)
	}
	switch k.State {
	case attest.StateEnrolled:
	case attest.StatePending:
		add(attest.CodeMachinePending)
	case attest.StateRevoked:
		add(attest.CodeMachineRevoked)
	default:
		add(attest.CodeMachineUnknown)
	}
	if k.Unproven != "" {
		add(attest.CodeMachineUnproven)
	}
	if !k.TPMOwner.IsZero() {
		add(attest.CodeTPMTaken)
	}
	if unsigned {
		add(attest.CodeQuoteSignature)
	}
	if k.DiskGUID != "" && k.DiskGUID != ev.Disk.GUID || !k.DiskOwner.IsZero() && k.DiskOwner != id {
		add(attest.CodeDiskForeign)
	}
	if k.StateMade && !ev.Disk.StateExists {
		add(attest.CodeStateLost)
	}
	if k.Released && k.ResetCount == boot.Reset && k.RestartCount == boot.Restart {
		add(attest.CodeReleaseRepeated)
	}
	r := &attest.Result{
		Machine: id, Policy: p.ID, Findings: fs, Facts: []attest.Fact{{Name: "disk.guid", Value: ev.Disk.GUID, Trust: attest.TrustClaimed}},
		Image: "demo 1", Firmware: attest.Firmware{Verdict: attest.FirmwareMeasured, Version: "v1"},
	}
	if !unsigned {
		r.Facts = append(r.Facts, attest.Fact{Name: "tpm.resets", Value: fmt.Sprint(boot.Reset), Trust: attest.TrustQuoted})
	}
	if len(fs) > 0 {
		return r, nil
	}
	r.Allowed = true
	return r, &boot
}

// newScene starts a service. change may alter its configuration.
func newScene(t *testing.T, change func(*server.Config)) *scene {
	t.Helper()
	s := &scene{
		T: t, memory: new(storetest.Memory), release: newKey(t), tpmCA: tpmtest.NewCA(t), log: new(logBuffer),
		tokens: &minter{out: map[string]bool{}, life: 9 * time.Minute}, boot: server.Boot{Reset: 1},
	}
	faulty := &storetest.Faulty{Store: s.memory, Fail: func(method string) (error, bool) {
		s.mu.Lock()
		f := s.fail
		s.mu.Unlock()
		if f == nil {
			return nil, false
		}
		return f(method)
	}}
	kek := make(attest.Secret, server.KEKSize)
	rand.Read(kek)
	c := server.Config{
		Store: faulty,
		Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) {
			return &attest.Policy{ID: "policy-1", TPM: attest.TPMPolicy{
				Roots:   []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: s.tpmCA.Root}, {Certificate: s.tpmCA.Issuer, Intermediate: true}},
				Allowed: []attest.TPMClass{attest.TPMSoftware},
			}}, nil
		},
		KEK: kek, ReleaseKey: s.release, Tokens: s.tokens, Firmware: s,
		Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Clock: s.now, Version: "test",
		Limits: server.Limits{EKBurst: 1000},
	}
	if change != nil {
		change(&c)
	}
	if c.Standing == nil {
		c.Standing = storetest.Standing(t, s.memory, s.release)
	}
	srv, err := server.New(c)
	if err != nil {
		t.Fatal(err)
	}
	srv.Appraise(s.appraise)
	s.srv = srv
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.listen()
	return s
}

// listen serves both APIs until the test ends.
func (s *scene) listen() {
	s.Helper()
	s.caKey = newKey(s)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "service CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, s.caKey.Public(), s.caKey)
	if err != nil {
		s.Fatal(err)
	}
	if s.ca, err = x509.ParseCertificate(der); err != nil {
		s.Fatal(err)
	}
	cert := s.certificate(pkix.Name{CommonName: "service"}, x509.ExtKeyUsageServerAuth)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	serve := func(f func(net.Listener) error) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			s.Fatal(err)
		}
		wg.Go(func() {
			if err := f(ln); err != nil {
				s.Error(err)
			}
		})
		return ln.Addr().String()
	}
	srv, pool := s.srv, s.pool() // a test may put others in their place
	s.nodes = serve(func(ln net.Listener) error { return srv.ServeNodes(ctx, ln, cert) })
	s.operators = serve(func(ln net.Listener) error { return srv.ServeOperators(ctx, ln, cert, pool) })
	s.Cleanup(func() {
		cancel()
		wg.Wait()
	})
}

func (s *scene) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(s.ca)
	return p
}

func (s *scene) certificate(subject pkix.Name, usage x509.ExtKeyUsage) tls.Certificate {
	s.Helper()
	key := newKey(s)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		s.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: subject, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(30, 0, 0), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.ca, key.Public(), s.caKey)
	if err != nil {
		s.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// httpClient returns a client with a certificate, or without.
func (s *scene) httpClient(certs ...tls.Certificate) *http.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.pool(), Certificates: certs}}
	s.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (s *scene) operator() *http.Client {
	return s.httpClient(s.certificate(pkix.Name{CommonName: "alice", Organization: []string{api.OperatorOrganization}, OrganizationalUnit: []string{"operator", "approver", "auditor", "unheard-of"}}, x509.ExtKeyUsageClientAuth))
}

// call makes a request and decodes the answer into v, which may be nil.
func (s *scene) call(c *http.Client, method, url string, body, v any) int {
	s.Helper()
	status, b := s.raw(c, method, url, body)
	if v != nil {
		if err := json.Unmarshal(b, v); err != nil {
			s.Errorf("%s %s: %v: %s", method, url, err, b)
		}
	}
	return status
}

func (s *scene) raw(c *http.Client, method, url string, body any) (int, []byte) {
	s.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		j, err := json.Marshal(b)
		if err != nil {
			s.Fatal(err)
		}
		r = bytes.NewReader(j)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, url, r)
	if err != nil {
		s.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		s.Error(err)
		return 0, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.Error(err)
	}
	return resp.StatusCode, b
}

// challenge asks for a challenge.
func (s *scene) challenge(c *http.Client, b *box) *api.Challenge {
	s.Helper()
	ch := new(api.Challenge)
	status := s.call(c, "POST", "https://"+s.nodes+api.PathChallenge, &api.ChallengeRequest{
		Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: b.ekPublic, AKPublic: b.akPublic, EKCertificates: [][]byte{b.cert},
	}, ch)
	if status != 200 {
		s.Errorf("challenge: HTTP %d", status)
	}
	return ch
}

// answer is the evidence that b gives for a challenge. To one that was not made
// for b it answers as well as it can.
func (s *scene) answer(b *box, ch *api.Challenge) *api.EvidenceRequest {
	secret, err := b.tpm.Activate(ch.Credential, ch.Secret)
	if err != nil {
		secret = attest.Secret("wrong")
	}
	return &api.EvidenceRequest{
		ChallengeID:     ch.ID,
		ActivationProof: attest.ActivationProof(secret, ch.ID, ch.Nonce, b.akPublic),
		Evidence:        attest.Evidence{EKPublic: b.ekPublic, EKCertificates: [][]byte{b.cert}, AKPublic: b.akPublic, Disk: attest.Disk{GUID: disk}},
	}
}

func (s *scene) send(c *http.Client, req *api.EvidenceRequest) (int, *api.EvidenceResponse) {
	s.Helper()
	resp := new(api.EvidenceResponse)
	return s.call(c, "POST", "https://"+s.nodes+api.PathEvidence, req, resp), resp
}

// attest runs the protocol once.
func (s *scene) attest(b *box) (int, *api.EvidenceResponse) {
	s.Helper()
	c := s.httpClient()
	return s.send(c, s.answer(b, s.challenge(c, b)))
}

// open verifies a release and returns its secrets and its transport secret.
func (s *scene) open(resp *api.EvidenceResponse) (*api.Release, *api.Secrets, attest.Secret) {
	s.Helper()
	r, err := api.VerifyRelease(resp.Release, &s.release.PublicKey)
	if err != nil {
		s.Fatal(err)
	}
	transport := attest.Secret(r.Key.Public)
	secrets, err := api.OpenSecrets(transport, r)
	if err != nil {
		s.Fatal(err)
	}
	return r, secrets, transport
}

func (s *scene) enrol(b *box) {
	s.Helper()
	if _, err := s.srv.Enrol(s.Context(), "line-1", record(b)); err != nil {
		s.Fatal(err)
	}
}

func record(b *box) *api.InstallRecord {
	return &api.InstallRecord{EKPublic: b.ekPublic, EKCertificates: [][]byte{b.cert}, DiskGUID: disk, Serial: "S-" + b.id.Short(), MAC: "02:00:00:00:00:01", Image: "demo 1", SecureBoot: "enrolled", Finished: time.Unix(100, 0).UTC()}
}

// kinds verifies the audit log and returns its kinds in order.
func (s *scene) kinds() string {
	s.Helper()
	var out []string
	var v audit.Verifier
	for e, err := range s.memory.Audit(context.Background(), 1) {
		if err == nil {
			err = v.Add(e)
		}
		if err != nil {
			s.Fatal(err)
		}
		out = append(out, string(e.Kind))
	}
	return strings.Join(out, " ")
}

func codes(r *attest.Result) string {
	if r == nil {
		return "no result"
	}
	var out []string
	for _, f := range r.Findings {
		out = append(out, string(f.Code))
	}
	return strings.Join(out, " ")
}

func (s *scene) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *scene) machine(b *box) *server.Machine {
	s.Helper()
	m, err := s.memory.Machine(context.Background(), b.id)
	if err != nil {
		s.Fatal(err)
	}
	return m
}

func pkixName(cn string) pkix.Name { return pkix.Name{CommonName: cn} }

const serverAuth = x509.ExtKeyUsageServerAuth

// tlsState returns the state of a TLS 1.3 connection.
func tlsState(t testing.TB) *tls.ConnectionState {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	srv := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13})
	client := tls.Client(b, &tls.Config{InsecureSkipVerify: true})
	go func() {
		// The server's handshake below says whether this one worked.
		_ = client.Handshake()
		_, _ = io.Copy(io.Discard, client)
	}()
	if err := srv.Handshake(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	state := srv.ConnectionState()
	return &state
}
