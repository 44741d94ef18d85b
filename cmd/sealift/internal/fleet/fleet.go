// Package fleet simulates machines that boot against an attestation service:
// software TPMs with keys, certificates, event logs and signatures of their
// own, which speak the node API as the agent does, and come back as the agent
// does when they are sent away. Files are what a service and a fleet need to
// know of each other, Enrol makes a fleet, Run lets it boot, and Host runs a
// service for it.
package fleet

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sync/errgroup"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/papertpm"
)

// Config says which fleet boots against which service. All fields are required
// unless marked Optional.
type Config struct {
	Files *Files
	// Enrol hands in an install record, as the provisioner does.
	Enrol func(context.Context, *api.InstallRecord) error

	Machines int
	Seed     string // of all keys: the same seed is the same fleet
	// Resets is how often each machine was reset before the run; a service
	// that has seen the fleet wants more than the last time.
	Resets uint32

	// Boots are begun this often a second. Optional; 0 is as fast as Open lets.
	Rate float64
	// Open is how many machines may be between their first connection and
	// their confirmation at once.
	Open int
	// For is how long machines are started. Optional; 0 starts each once.
	For time.Duration
	// Storm switches all machines on at once, instead of Rate. Open then only
	// bounds the connections.
	Storm bool
	// TPMTime is how long a machine's TPM takes to answer a challenge. Optional.
	TPMTime time.Duration
	// Again is the share of boots, 0 to 1, that ask for a second release,
	// which must be refused. Optional.
	Again float64
	// Addresses is the number of loopback addresses that the machines come
	// from, 127.0.0.1 onwards; 0 leaves the address to the system. Optional.
	Addresses int
}

// machine is one of the fleet, between its boots. Its TPM is made from the
// seed when it boots: a fleet of 100,000 must fit into memory.
type machine struct {
	number int
	resets uint32
	cert   []byte
	areas  papertpm.Areas
	disk   string
	made   bool     // has a state partition
	key    [32]byte // SHA-256 of the disk key, once it was released

	released uint32 // resets of the boot released last
	any      bool   // released is set
}

// Fleet is machines that are enrolled. Its Run is called once.
type Fleet struct {
	c        Config
	client   *client.Client
	enrolled time.Duration
	machines []*machine
	sockets  chan struct{} // one for each open machine
	open     atomic.Int64
	stats    *stats
}

// Enrol makes the machines of a fleet and enrols every one.
func Enrol(ctx context.Context, c Config) (*Fleet, error) {
	switch {
	case c.Machines < 1 || c.Open < 1:
		return nil, errors.New("simulate a fleet: no machines")
	case c.Storm && (c.Rate > 0 || c.For > 0):
		return nil, errors.New("simulate a fleet: a storm has neither rate nor duration")
	}
	began := time.Now()
	f := &Fleet{c: c, sockets: make(chan struct{}, c.Open), stats: newStats()}
	f.machines = make([]*machine, c.Machines)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(32)
	for i := range f.machines {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			// A machine that was on before has made its state then.
			m := &machine{number: i, resets: c.Resets, made: c.Resets > 0, disk: diskGUID(c.Seed, i)}
			f.machines[i] = m
			t, err := f.tpm(m)
			if err != nil {
				return err
			}
			if err := c.Files.CA.Equip(t); err != nil {
				return err
			}
			m.cert, m.areas = t.EKCertificates[0], t.Areas()
			return f.enrol(ctx, m)
		})
	}
	err := g.Wait()
	f.enrolled = time.Since(began)
	return f, err
}

func (f *Fleet) enrol(ctx context.Context, m *machine) error {
	err := f.c.Enrol(ctx, &api.InstallRecord{
		EKPublic: m.areas.EK, EKCertificates: [][]byte{m.cert}, DiskGUID: m.disk,
		Serial: serial(f.c.Seed, m.number), MAC: fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", byte(m.number>>24), byte(m.number>>16), byte(m.number>>8), byte(m.number)),
		Image: f.c.Files.Image.Name + " " + f.c.Files.Image.Version, SecureBoot: "already", Finished: time.Now().UTC().Truncate(time.Second),
	})
	if err != nil {
		return fmt.Errorf("enrol machine %d: %w", m.number, err)
	}
	return nil
}

// serial is the serial number that a machine has and tells. Machines of another
// seed are others: a service keeps each serial number for one endorsement key.
func serial(seed string, number int) string {
	d := sha256.Sum256(fmt.Appendf(nil, "sealift simulated serial number %s", seed))
	return fmt.Sprintf("SIM%X-%08d", d[:4], number)
}

// tpm makes the machine's TPM.
func (f *Fleet) tpm(m *machine) (*papertpm.TPM, error) {
	t, err := papertpm.FromSeed(fmt.Appendf(nil, "%s/%d", f.c.Seed, m.number))
	if err != nil {
		return nil, err
	}
	t.EKCertificates = [][]byte{m.cert}
	return t, nil
}

// diskGUID names the disk of a machine.
func diskGUID(seed string, number int) string {
	d := sha256.Sum256(fmt.Appendf(nil, "sealift simulated disk %s/%d", seed, number))
	h := hex.EncodeToString(d[:16])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// Run lets the fleet boot against the service that c knows, whose Dial is
// replaced. progress is told every second how many releases there were.
func (f *Fleet) Run(ctx context.Context, c *client.Client, progress func(released, of int64)) (*Report, error) {
	f.client = c
	began := time.Now()
	stop := f.tell(progress)
	err := f.boots(ctx)
	stop()
	r := f.stats.report(time.Since(began))
	r.Machines, r.Enrolment = f.c.Machines, f.enrolled.Seconds()
	for _, m := range f.machines {
		// With a duration, the fleet may be larger than what was started.
		if !m.any && f.c.For == 0 {
			r.Unserved++
		}
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return r, err
}

// tell calls progress every second until stop.
func (f *Fleet) tell(progress func(released, of int64)) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
				progress(f.stats.releases.Load(), int64(f.c.Machines))
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// boots starts machines as the configuration says, and waits for all of them.
func (f *Fleet) boots(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if f.c.Storm {
		for _, m := range f.machines {
			wg.Go(func() { f.boot(ctx, m) })
		}
		return nil
	}
	idle := make(chan *machine, len(f.machines))
	for _, m := range f.machines {
		idle <- m
	}
	began := time.Now()
	for n := 0; f.c.For > 0 || n < len(f.machines); n++ {
		now := time.Now()
		if f.c.Rate > 0 {
			at := began.Add(time.Duration(float64(n) / f.c.Rate * float64(time.Second)))
			if wait := at.Sub(now); wait > 0 {
				if err := sleep(ctx, wait); err != nil {
					return err
				}
			} else {
				f.stats.late(-wait)
			}
		}
		if f.c.For > 0 && time.Since(began) >= f.c.For {
			return nil
		}
		// An open machine has a socket; without one free, none is started.
		select {
		case f.sockets <- struct{}{}:
			<-f.sockets
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case m := <-idle:
			f.acquire()
			wg.Go(func() {
				f.booted(ctx, m)
				f.release()
				idle <- m
			})
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (f *Fleet) acquire() {
	f.sockets <- struct{}{}
	f.stats.opened(f.open.Add(1))
}

func (f *Fleet) release() {
	f.open.Add(-1)
	<-f.sockets
}

// boot is booted for a machine of a storm, which waits for its connection and
// gives it back while it pauses.
func (f *Fleet) boot(ctx context.Context, m *machine) { f.attempts(ctx, m, f.acquire, f.release) }

// booted lets a machine boot that keeps its place among the open ones.
func (f *Fleet) booted(ctx context.Context, m *machine) { f.attempts(ctx, m, func() {}, func() {}) }

// Pauses between attempts, as the agent makes them.
const (
	brokenFirst = time.Second
	brokenMax   = time.Minute
	askedMax    = 5 * time.Minute // the longest Retry-After that is honoured
)

// errWrong ends a boot whose machine was refused although it is good.
var errWrong = errors.New("refused wrongly")

// attempts lets a machine boot until it is released, as the agent's loop does.
func (f *Fleet) attempts(ctx context.Context, m *machine, acquire, release func()) {
	began := time.Now()
	boot := f.power(m)
	pause := brokenFirst
	for n := 0; ; n++ {
		acquire()
		err := boot.attempt(ctx)
		release()
		switch {
		case err == nil:
			f.stats.add(stepReleased, time.Since(began))
			return
		case ctx.Err() != nil || errors.Is(err, errWrong):
			return
		case errors.Is(err, errSpent):
			// The answer to a release was lost on the way.
			f.stats.lost.Add(1)
			boot = f.power(m)
			continue
		}
		wait := pause*3/4 + rand.N(pause/2)
		pause = min(2*pause, brokenMax)
		var busy *client.ServiceError
		if errors.As(err, &busy) {
			wait = max(wait, min(busy.RetryAfter, askedMax))
		}
		f.stats.retries.Add(1)
		if sleep(ctx, wait) != nil {
			return
		}
	}
}

// boot is one boot of a machine.
type boot struct {
	f   *Fleet
	m   *machine
	tpm *papertpm.TPM
	log *papertpm.Boot
	id  attest.MachineID

	sent bool // evidence was sent before in this boot
}

// errSpent says that the boot was released and the answer did not arrive.
var errSpent = errors.New("this boot was released before")

// power switches a machine off and on.
func (f *Fleet) power(m *machine) *boot {
	m.resets++
	return &boot{f: f, m: m}
}

// attempt is one attempt of the agent: connect, challenge, evidence, open the
// release, confirm.
func (b *boot) attempt(ctx context.Context) error {
	f, m := b.f, b.m
	if b.tpm == nil {
		var err error
		if b.tpm, err = f.tpm(m); err != nil {
			return f.stats.wrong("simulator", err)
		}
		b.tpm.Clock = tpm2.TPMSClockInfo{Clock: uint64(m.resets) * 60_000, ResetCount: m.resets, Safe: true}
		if b.log, err = f.c.Files.Boot.OnDisk(m.disk, m.made); err != nil {
			return f.stats.wrong("simulator", err)
		}
		b.tpm.Freeze(m.areas)
		if b.id, err = attest.EKMachineID(m.areas.EK); err != nil {
			return f.stats.wrong("simulator", err)
		}
		b.log.SMBIOS = papertpm.EncodeSMBIOS("1.0", "Paper", "Box", serial(f.c.Seed, m.number))
		b.log.Measure(b.tpm)
	}
	c := *f.client
	c.Dial = f.dial(m)
	began := time.Now()
	s, err := c.Connect(ctx)
	if err != nil {
		return f.stats.failed(err)
	}
	// The answers are what counts, not how the connection ends.
	defer func() { _ = s.Close() }()
	whole := f.stats.add(stepConnect, time.Since(began))
	d, rel, err := b.ask(ctx, s)
	whole += d
	if err != nil {
		return err
	}
	transport, err := b.open(rel)
	if err != nil {
		return err
	}
	if rand.Float64() < f.c.Again {
		// It may also be sent away, or be refused in another way, which ask
		// has counted.
		if _, _, err := b.ask(ctx, s); err == nil || errors.Is(err, errWrong) {
			return f.stats.wrong("second release", fmt.Errorf("a second request in one boot was not refused as repeated: %w", errors.Join(err, errWrong)))
		}
	}
	began = time.Now()
	if err := s.Confirm(ctx, transport, rel.ID, api.OutcomeUnlocked); err != nil {
		// The agent goes on without.
		f.stats.unconfirmed.Add(1)
		_ = f.stats.failed(err)
		return nil
	}
	whole += f.stats.add(stepConfirm, time.Since(began))
	f.stats.add(stepWhole, whole)
	return nil
}

// ask gets a release over a connection. took is the time of the service alone.
func (b *boot) ask(ctx context.Context, s *client.Session) (took time.Duration, rel *api.Release, err error) {
	f, m := b.f, b.m
	began := time.Now()
	ch, err := s.Challenge(ctx, &api.ChallengeRequest{
		Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: m.areas.EK, EKCertificates: b.tpm.EKCertificates, AKPublic: m.areas.AK,
	})
	if err != nil {
		return 0, nil, f.stats.failed(err)
	}
	took = f.stats.add(stepChallenge, time.Since(began))
	secret, err := b.tpm.Activate(ch.Credential, ch.Secret)
	if err != nil {
		return 0, nil, f.stats.wrong("credential", err)
	}
	b.tpm.Prove = ch.ProveBanks
	ev, err := b.tpm.Evidence(b.log, attest.PurposeUnlock, ch.Nonce, s.Exporter())
	if err != nil {
		return 0, nil, f.stats.wrong("simulator", err)
	}
	if err := sleep(ctx, f.c.TPMTime); err != nil {
		return 0, nil, err
	}
	repeated := b.sent
	b.sent = true
	began = time.Now()
	rel, _, err = s.Evidence(ctx, b.id, &api.EvidenceRequest{
		ChallengeID: ch.ID, ActivationProof: attest.ActivationProof(secret, ch.ID, ch.Nonce, m.areas.AK), Evidence: *ev,
	})
	var refused *client.RefusedError
	switch {
	case err == nil:
		took += f.stats.add(stepEvidence, time.Since(began))
		if m.any && m.released == m.resets {
			f.stats.second.Add(1)
		}
		m.released, m.any = m.resets, true
		return took, rel, nil
	case errors.As(err, &refused) && repeated && onlyRepeated(refused.Result):
		return 0, nil, errSpent
	case errors.As(err, &refused):
		for _, x := range refused.Result.Findings {
			f.stats.refused("verdict " + string(x.Code))
		}
		return 0, nil, f.stats.wrong("verdict", err)
	}
	return 0, nil, f.stats.failed(err)
}

func onlyRepeated(r *attest.Result) bool {
	return len(r.Findings) > 0 && !slices.ContainsFunc(r.Findings, func(f attest.Finding) bool { return f.Code != attest.CodeReleaseRepeated })
}

// open opens a release and checks that its disk key is the machine's.
func (b *boot) open(rel *api.Release) (attest.Secret, error) {
	f, m := b.f, b.m
	transport, err := b.tpm.Unwrap(rel.Key)
	if err != nil {
		return nil, f.stats.wrong("release", err)
	}
	secrets, err := api.OpenSecrets(transport, rel)
	if err != nil {
		return nil, f.stats.wrong("release", err)
	}
	d := sha256.Sum256(secrets.DiskKey)
	if m.key != [32]byte{} && subtle.ConstantTimeCompare(d[:], m.key[:]) != 1 {
		return nil, f.stats.wrong("release", errors.New("the disk key is another than in the boot before"))
	}
	m.key, m.made = d, true
	f.stats.releases.Add(1)
	return transport, nil
}

// dial connects from the machine's address.
func (f *Fleet) dial(m *machine) func(context.Context, string, string) (net.Conn, error) {
	var d net.Dialer
	if n := f.c.Addresses; n > 0 {
		k := m.number % n
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, byte(k/62500), byte(k/250%250), byte(1+k%250))}
	}
	return d.DialContext
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
