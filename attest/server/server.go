// Package server is the attestation service: it gives machines single-use
// challenges, appraises their evidence with attest.Verify, and releases disk
// keys and join tokens to those whose evidence is accepted, wrapped to the TPM
// that gave it. Config and New make a Server, ServeNodes and ServeOperators
// run its two APIs on listeners of their own, and a Store keeps its state.
//
// The order of a decision is fixed: the challenge is taken from its connection,
// then the evidence is verified, then the verdict, the release and the audit
// entries are committed together, and only then does a secret leave.
package server

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
)

// ErrRefused is wrapped by the errors of calls that will never succeed as they
// were made, however often they are tried.
var ErrRefused = errors.New("refused")

// Config is what a Server needs. All fields are required unless marked
// Optional.
type Config struct {
	// Store keeps all state.
	Store Store

	// Policy returns the policy that a machine's evidence is appraised with.
	// The machine may be one that was never heard of. An error refuses the
	// evidence as "unavailable", without a verdict.
	Policy func(ctx context.Context, machine attest.MachineID) (*attest.Policy, error)

	// PolicyHolds reports whether what Policy returned before may still be decided
	// by. It is asked before a release is committed, and is cheap. An error keeps
	// the release back; one that wraps ErrConflict has the evidence decided on
	// anew. Optional.
	PolicyHolds func(*attest.Policy) error

	// ProveBanks reports whether Policy's policies have TPM.ProveBanks or TPM.AskBanks,
	// so that machines are told. It is asked for each challenge, which anybody may
	// get, and is cheap. Optional: machines are not told.
	ProveBanks func() bool

	// EnablePolicy makes a policy that of all replicas, for an operator. An error
	// that wraps ErrRefused says why not. Optional.
	EnablePolicy func(ctx context.Context, operator string, req *api.PolicyEnable) (*api.PolicyState, error)

	// Propose makes the policies of a proposal, or says what is wrong with it.
	// Optional; without it nothing can be tried.
	Propose func(context.Context, *api.PolicyProposal) (*Proposal, error)

	// PolicyState tells what policy is enabled. Optional.
	PolicyState func(context.Context) (*api.PolicyState, error)

	// AuditHead signs where the audit log ends, which the caller has seen to go on
	// from what was signed before. Optional; without it nobody can ask for it.
	AuditHead func(context.Context) (*audit.Envelope, error)

	// Standing tells what the audit log says of machines, without which the records of
	// Store count for nothing. NewOwnStanding makes one for a store of one process.
	Standing Standing

	// KEK is the key-encryption key under which disk keys are stored, KEKSize
	// bytes from a CSPRNG. It must not be kept in the store.
	KEK attest.Secret

	// FormerKEKs open what was stored under them; nothing is stored under them
	// any more. Rewrap brings it under KEK. Optional.
	FormerKEKs []attest.Secret

	// LostKEKs are the ids (KEKID) of keys that are lost for good. Start goes on
	// although the disk keys under them can never be released. Optional.
	LostKEKs []string

	// ReleaseKey signs releases. ECDSA P-256.
	ReleaseKey crypto.Signer

	// Tokens mints join tokens. Optional; without it releases hold disk keys
	// only.
	Tokens TokenMinter

	// Fence keeps the cluster from giving work to the nodes of machines that
	// were quarantined or revoked. Optional.
	Fence NodeFencer

	// Reports says how often machines must report from their running system.
	Reports Reports

	// Webhooks are told of events by DeliverWebhooks. Optional.
	Webhooks []Webhook

	// IgnoreSerials are serial numbers that name no machine, beside the usual
	// placeholders. Optional.
	IgnoreSerials []string

	// Pruner forgets evidence of Store. Optional.
	Pruner Pruner

	// Retention is how long evidence is kept that nothing needs; at least
	// MinRetention, and for ever if zero. It needs a Pruner.
	Retention time.Duration

	// Firmware is told of accepted evidence. Optional.
	Firmware FirmwareObserver

	// Campaigns serves api.PathCampaigns and what is below it to the operator
	// whose name it is given, who has been authenticated. Optional.
	Campaigns func(operator string, w http.ResponseWriter, r *http.Request)

	// Bearer knows operators by a token in place of a client certificate.
	// Optional; without it there is no way but the certificate.
	Bearer Authenticator

	// Revoked reports whether an operator's certificate, which is verified,
	// was revoked. It is asked for every request. An error refuses the
	// request as "unavailable". Optional.
	Revoked func(*x509.Certificate) (bool, error)

	// NodeProxies and OperatorProxies are the networks of the load balancers before
	// each API that say whose a connection is, see Bounds.Proxies. Optional.
	NodeProxies, OperatorProxies []netip.Prefix

	// People are those who may have several names as operators. Where two people
	// must agree, a certificate and a token count as two only if both are named
	// here. Optional.
	People []Person

	// Meter counts. Optional.
	Meter Meter

	// Log gets operational messages. They hold no secret.
	Log *slog.Logger

	// Clock returns the present time. Optional; time.Now.
	Clock func() time.Time

	// Version of the program, for the audit log. Optional.
	Version string

	Limits Limits
}

// Limits bound what peers can make the service do. A zero field means its
// default.
type Limits struct {
	ChallengeTTL  time.Duration // how long a challenge can be answered; 60 s, at most that
	PerAddress    time.Duration // one request per address (IPv6: per /64) after each; 50 ms
	AddressBurst  int           // requests an address can save up; 1000, for a factory line behind one address
	PerEK         time.Duration // one challenge per address and endorsement key after each; 2 s
	EKBurst       int           // challenges that the two can save up; 10. Both bound proven evidence of a key from all addresses, too
	Unproven      time.Duration // one logged refusal of unproven senders after each; 1 s
	UnprovenBurst int           // such refusals that are logged at once; 100
	Refusal       time.Duration // one refusal of a machine is stored after each; 1 min
	RefusalBurst  int           // such refusals that are stored at once; 10
	Concurrent    int           // requests worked on at once, on each API; 64
	Connections   int           // open at once, on each API; 16384
	// AddressConnections are those of one address (IPv6: /64); 1024, for a
	// factory line behind one address
	AddressConnections int
	// OperatorPerAddress and OperatorAddressBurst are PerAddress and
	// AddressBurst of the operator API; 5 ms and 2000
	OperatorPerAddress   time.Duration
	OperatorAddressBurst int
	PerOperator          time.Duration // one request of each operator after each; 10 ms
	OperatorBurst        int           // requests an operator can save up; 1000
	Queue                time.Duration // how long a request waits for its turn; 5 s
	MaxPending           int           // machines that wait for approval; 1000
	Mint                 time.Duration // how long minting a join token may take; 10 s
	Drain                time.Duration // how long requests that were let in may take after the end of service, see front.drain; 15 s
}

// withDefaults replaces zero fields.
func (l Limits) withDefaults() Limits {
	if l.ChallengeTTL == 0 {
		l.ChallengeTTL = time.Minute
	}
	if l.PerAddress == 0 {
		l.PerAddress = 50 * time.Millisecond
	}
	if l.AddressBurst == 0 {
		l.AddressBurst = 1000
	}
	if l.PerEK == 0 {
		l.PerEK = 2 * time.Second
	}
	if l.EKBurst == 0 {
		l.EKBurst = 10
	}
	if l.Unproven == 0 {
		l.Unproven = time.Second
	}
	if l.UnprovenBurst == 0 {
		l.UnprovenBurst = 100
	}
	if l.Refusal == 0 {
		l.Refusal = time.Minute
	}
	if l.RefusalBurst == 0 {
		l.RefusalBurst = 10
	}
	if l.Concurrent == 0 {
		l.Concurrent = 64
	}
	if l.Connections == 0 {
		l.Connections = 16384
	}
	if l.AddressConnections == 0 {
		l.AddressConnections = 1024
	}
	if l.OperatorPerAddress == 0 {
		l.OperatorPerAddress = 5 * time.Millisecond
	}
	if l.OperatorAddressBurst == 0 {
		l.OperatorAddressBurst = 2000
	}
	if l.PerOperator == 0 {
		l.PerOperator = 10 * time.Millisecond
	}
	if l.OperatorBurst == 0 {
		l.OperatorBurst = 1000
	}
	if l.Queue == 0 {
		l.Queue = 5 * time.Second
	}
	if l.MaxPending == 0 {
		l.MaxPending = 1000
	}
	if l.Mint == 0 {
		l.Mint = 10 * time.Second
	}
	if l.Drain == 0 {
		l.Drain = 15 * time.Second
	}
	return l
}

// check refuses limits that are no limits.
func (l Limits) check() error {
	if l.ChallengeTTL < 0 || l.ChallengeTTL > time.Minute {
		return fmt.Errorf("challenge TTL %v is not between 0 and 1m", l.ChallengeTTL)
	}
	for _, d := range []time.Duration{l.PerAddress, l.PerEK, l.Unproven, l.Refusal, l.Queue, l.Mint, l.Drain, l.OperatorPerAddress, l.PerOperator} {
		if d < 0 {
			return fmt.Errorf("a limit is negative: %v", d)
		}
	}
	for _, n := range []int{l.AddressBurst, l.EKBurst, l.UnprovenBurst, l.RefusalBurst, l.Concurrent, l.MaxPending, l.Connections, l.AddressConnections, l.OperatorAddressBurst, l.OperatorBurst} {
		if n < 0 {
			return fmt.Errorf("a limit is negative: %d", n)
		}
	}
	return nil
}

// A TokenMinter makes join tokens for a cluster. It is used by many goroutines.
type TokenMinter interface {
	// Mint makes a token with which exactly the node of that name can join,
	// once and within ten minutes. It returns when the cluster honours it.
	Mint(ctx context.Context, nodeName string) (*Token, error)

	// Revoke takes a token back. A token that is gone is no error.
	Revoke(ctx context.Context, tokenID string) error
}

// Token is a join token with where to use it.
type Token struct {
	ID      string        // public half, for the audit log
	Secret  attest.Secret // the whole token, as the kubelet wants it
	Expires time.Time
	Server  string // https://host:port of the kube-apiserver, as nodes reach it
	CA      []byte // PEM
}

// A FirmwareObserver learns what firmware machines prove to run.
type FirmwareObserver interface {
	// Accepted is called after evidence was accepted and the decision is
	// durable, and before the machine is answered. A call can be lost in a
	// crash and comes again with the machine's next evidence. An error is
	// logged and does not hold the release back.
	Accepted(ctx context.Context, machine attest.MachineID, at time.Time, r *attest.Result) error
}

// Server answers nodes and operators. Make it with New.
type Server struct {
	c       Config
	keys    *keks
	keyID   string // of ReleaseKey
	address *limiter
	ek      *limiter
	// proven bounds the evidence of each endorsement key, from all addresses
	// together, of senders that have proven to hold it.
	proven *limiter

	// slots bound the requests worked on at once, apart for nodes and
	// operators so that a power-cut storm does not lock the operators out.
	// large bounds the node requests with a long body, largeShares those of one
	// address; how many there are in all is bounded by what ServeNodes lets in.
	nodeSlots, operatorSlots, large slots
	largeShares                     *shares

	// operatorAddress and operator bound the requests to the operator API of
	// each address and each operator, operatorShares what an operator has of
	// operatorSlots.
	operatorAddress, operator *limiter
	operatorShares            *shares

	// unproven is what may be logged of refusals of senders that proved
	// nothing, refusals what may be kept of those of each machine.
	unproven, refusals *budget
	// raised are the signs in evidence that an alarm was raised for.
	raised *reminders

	hooks []*hook

	people people

	// wake tells Watch that a node is to be fenced.
	wake chan struct{}

	// appraiseReport is attest.VerifyReport.
	appraiseReport func(*attest.Evidence, *attest.Challenge, *attest.Session, *attest.Known, *attest.Boot) (*attest.Result, attest.Report)
	// free: the store is not held after a restore, see held. settled: machines
	// that it does not know are new, see unsettled.
	free, settled atomic.Bool

	// trying lets one proposal be tried at a time, pruning one order be
	// carried out, and measuring the store be measured.
	trying, pruning, measuring slots
	clockFault                 atomic.Pointer[ClockError] // why the retention does not go by the clock

	// appraise is attest.Verify with what only an accepted result gives.
	appraise func(*attest.Evidence, *attest.Challenge, *attest.Session, *attest.Known, *attest.Policy) (*attest.Result, *proof)
}

// New checks c and returns a Server. It writes nothing; Start does.
func New(c Config) (*Server, error) {
	switch {
	case c.Store == nil:
		return nil, errors.New("attestation service: no store")
	case c.Policy == nil:
		return nil, errors.New("attestation service: no policy source")
	case c.Standing == nil:
		return nil, errors.New("attestation service: nothing that says what the audit log says of machines")
	case c.Log == nil:
		return nil, errors.New("attestation service: no log")
	case c.ReleaseKey == nil:
		return nil, errors.New("attestation service: no release key")
	}
	pub, ok := c.ReleaseKey.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("attestation service: release key is %T, want ECDSA P-256", c.ReleaseKey.Public())
	}
	keyID, err := api.KeyID(pub)
	if err != nil {
		return nil, fmt.Errorf("attestation service: %w", err)
	}
	keys, err := newKEKs(c.KEK, c.FormerKEKs, c.LostKEKs)
	if err != nil {
		return nil, fmt.Errorf("attestation service: %w", err)
	}
	c.KEK, c.FormerKEKs = nil, nil
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Meter == nil {
		c.Meter = unmetered{}
	}
	if err := c.Limits.check(); err != nil {
		return nil, fmt.Errorf("attestation service: limits: %w", err)
	}
	c.Limits = c.Limits.withDefaults()
	if err := c.Reports.check(); err != nil {
		return nil, fmt.Errorf("attestation service: reports: %w", err)
	}
	if c.Retention != 0 && (c.Retention < MinRetention || c.Pruner == nil) {
		return nil, fmt.Errorf("attestation service: retention of %v: want at least %v, and a store that can prune", c.Retention, MinRetention)
	}
	hooks, err := newHooks(c.Webhooks)
	if err != nil {
		return nil, fmt.Errorf("attestation service: %w", err)
	}
	c.Webhooks = nil
	who, err := newPeople(c.People)
	if err != nil {
		return nil, fmt.Errorf("attestation service: %w", err)
	}
	return &Server{
		c:             c,
		keys:          keys,
		keyID:         keyID,
		address:       newLimiter(c.Limits.PerAddress, c.Limits.AddressBurst),
		ek:            newLimiter(c.Limits.PerEK, c.Limits.EKBurst),
		proven:        newProvenLimiter(c.Limits.PerEK, c.Limits.EKBurst),
		unproven:      newBudget(c.Limits.Unproven, c.Limits.UnprovenBurst),
		refusals:      newBudget(c.Limits.Refusal, c.Limits.RefusalBurst),
		raised:        newReminders(signsEvery),
		nodeSlots:     make(slots, c.Limits.Concurrent),
		operatorSlots: make(slots, c.Limits.Concurrent),
		large:         make(slots, largeBodies),
		largeShares:   newShares(largePerAddress),
		trying:        make(slots, 1),
		pruning:       make(slots, 1),
		measuring:     make(slots, 1),
		appraise:      appraise,

		hooks:           hooks,
		people:          who,
		appraiseReport:  attest.VerifyReport,
		wake:            make(chan struct{}, 1),
		operatorAddress: newLimiter(c.Limits.OperatorPerAddress, c.Limits.OperatorAddressBurst),
		operator:        newLimiter(c.Limits.PerOperator, c.Limits.OperatorBurst),
		operatorShares:  newShares(requestsPerOperator),
	}, nil
}

// MaxConnections is how many connections both APIs may have at once.
func (s *Server) MaxConnections() int { return 2 * s.c.Limits.Connections }

// Start writes the start of service to the audit log. Call it once, before
// the APIs are served: a store that cannot be written shows here, and so do
// disk keys under a key-encryption key that the service does not have
// (ErrNoKEK).
func (s *Server) Start(ctx context.Context) error {
	if err := s.checkKEKs(ctx); err != nil {
		return err
	}
	if err := s.indexTPMs(ctx); err != nil {
		return err
	}
	return s.Record(ctx, audit.Event{
		Kind: audit.KindStart,
		Data: audit.Start{Version: s.c.Version, KEK: s.keys.present.id, FormerKEKs: s.keys.former(), LostKEKs: s.keys.lost, ReleaseKey: s.keyID, SignsEnrolments: true},
	})
}

// KeyIDs returns the ids of the key-encryption key and of the release key, as
// the audit log names them.
func (s *Server) KeyIDs() (kek, release string) { return s.keys.present.id, s.keyID }

// Record appends events to the audit log. An event without a time gets the
// present one. It is for those who decide beside the Server: campaigns.
func (s *Server) Record(ctx context.Context, events ...audit.Event) error {
	now := s.c.Clock()
	for i := range events {
		if events[i].Time.IsZero() {
			events[i].Time = now
		}
	}
	if err := s.c.Store.Commit(ctx, &Change{Events: events}); err != nil {
		return fmt.Errorf("append to the audit log: %w", err)
	}
	s.sound(events)
	return nil
}
