package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/policy"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/cluster"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/cmd/sealift/internal/monitor"
	"github.com/sealift/sealift/firmware"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign/bundle"
	"github.com/sealift/sealift/profiles"
)

const (
	// policyPoll is how often a replica looks which policy is enabled.
	policyPoll = time.Second
	// policyBound is how long a replica decides by a policy after the last look
	// that showed that it is the enabled one.
	policyBound = 5 * time.Second
	// policyRead bounds a look, so that one that hangs is tried again in time.
	policyRead = 2 * time.Second
	// policyTell is how often a replica tells the others what it goes by.
	policyTell = 10 * time.Second
	// policyGone is after how long a replica that tells nothing is not counted.
	policyGone = 30 * time.Second
)

// hintAltered is what to do about errAltered: nobody can enable a policy with a log
// that goes back on what was signed.
const hintAltered = "put the right database back, or restore it; only if nothing that is lost matters, stop the replicas, remove their witness files and start them (docs/audit.md)"

// hintStored is what to do about what is stored of a policy and is not as it was.
const hintStored = "at a replica that runs: sealift policy enable FILE --images DIR --reason TEXT; or start one whose configuration names the policy's file (policy.file) and the directories of its images (images)"

// errPolicyStale: it is not known which policy is enabled.
var errPolicyStale = errors.New("it could not be read which policy is enabled")

// livePolicy keeps a replica at the policy that is enabled in the store. No
// decision reads the store for it: Run looks every policyPoll, and a decision
// is made, and a release committed, only if the last look that succeeded began
// at most policyBound ago and showed the policy that is used. So a policy that
// was enabled holds at each replica after policyPoll, as a rule, and after
// policyBound in any case, also at one that does not reach the store or cannot
// read the policy: that one releases nothing.
//
// A replica takes nothing from the store that it has not verified with its own
// image key: neither a policy nor a manifest. Which of them is enabled it takes only
// from what the service signed last, as its audit log has it: see provePolicy.
type livePolicy struct {
	store     server.Store
	ring      *keyring.Keyring
	config    *policyConfig
	local     *policySource       // what the configuration gives, without a policy
	file      *policy.Document    // the configuration's, verified or unsigned as configured. Optional.
	distro    cluster.Distro      // of the images; empty: any
	catalogue *firmware.Catalogue // that local's references are of
	mon       *monitor.Monitor
	log       *slog.Logger
	// former are the release keys that the ring's replaced, the latest last. Optional.
	former []*ecdsa.PublicKey
	// witnessFile is where what was seen of the audit log is kept. Optional.
	witnessFile string
	// tail is what the store tells of what this process writes to the log. Optional.
	tail *audit.Tail
	// own is which of it may change what the log says of machines. Optional.
	own *ownWord

	// looking is held during a look: one after the other, what they read never
	// goes back.
	looking sync.Mutex
	proven  *provenPolicy // guarded by looking: of source
	alarmed string        // guarded by looking: what an alarm was raised of last

	mu        sync.Mutex
	witness   *logWitness   // guarded by mu: nil before the first use
	name      string        // of this replica; guarded by mu
	head      policyHead    // guarded by mu: of source
	source    *policySource // guarded by mu: nil before the first look
	confirmed time.Time     // guarded by mu: when the last look began that showed source
	fault     error         // guarded by mu: why what is enabled cannot be gone by
	told      time.Time     // guarded by mu: when this replica told what it goes by
	toldFault string        // guarded by mu: that it told then
	differs   []string      // guarded by mu: replicas with other inputs, when it was told last
}

// named gives this replica its name: that of the host, and the address of its
// node API.
func (l *livePolicy) named(nodes string) {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.name = host + " " + nodes
}

// begin enables the configuration's policy, if that is called for, and takes
// what is enabled then. signature is that of file, nil without one.
func (l *livePolicy) begin(ctx context.Context, signature []byte) error {
	files := map[string][]byte{}
	if l.file != nil {
		if err := l.config.above(l.file.Name, l.file.Version); err != nil {
			return refused{err}
		}
		for _, name := range policy.Files(l.file.Text) {
			b, err := readFile(filepath.Join(filepath.Dir(l.config.File), filepath.FromSlash(name)), policy.MaxFile)
			if err != nil {
				return err
			}
			files[name] = b
		}
		// They were read before, and are what the others get.
		if _, err := policy.Parse(l.config.File, l.file.Text, sentFiles(files)); err != nil {
			return usage{err}
		}
	}
	w, err := l.watched(ctx)
	if err != nil {
		return err
	}
	// What is to be read of the log may take longer than a look may.
	if err := w.catchUp(ctx); err != nil && !errors.Is(err, errAltered) {
		return err
	}
	w.standing.warnUnknown()
	if err := l.findAgain(ctx, w); err != nil && !errors.Is(err, errAltered) {
		return err
	}
	if err := takeOver(ctx, w, l.config); err != nil && !errors.Is(err, errUnproven) {
		return err
	}
	key, err := l.ring.PublicPEM(keyring.FileImage)
	if err != nil {
		return err
	}
	if err := enablePolicy(ctx, w, l.config, l.file, signature, files, key, l.local.clock(), l.log); err != nil && !errors.Is(err, errUnproven) {
		return err
	}
	if err := l.look(ctx); errors.Is(err, errUnproven) {
		// The service runs, so that an approver can enable one.
		remedy := "sealift policy enable FILE --reason TEXT"
		if errors.Is(err, errAltered) {
			remedy = hintAltered
		}
		l.log.Error("it is not proven which policy is enabled: nothing is released until it is", "error", err, "remedy", remedy)
		return nil
	} else if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.fault != nil {
			return refused{err}
		}
		return err
	}
	return nil
}

// inForce returns what to decide by.
func (l *livePolicy) inForce() (*policySource, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.fault != nil:
		return nil, l.fault
	case l.source == nil:
		return nil, errPolicyStale
	}
	now := l.local.clock()
	// The first is by the monotonic clock, which stands while a machine sleeps;
	// the second is not, and may be set.
	if since, wall := now.Sub(l.confirmed), now.Round(0).Sub(l.confirmed.Round(0)); since > policyBound || wall > policyBound || wall < 0 {
		return nil, fmt.Errorf("%w since %s; decisions wait for it", errPolicyStale, l.confirmed.UTC().Format(time.RFC3339))
	}
	return l.source, nil
}

// policy implements server.Config.Policy.
func (l *livePolicy) policy(ctx context.Context, machine attest.MachineID) (*attest.Policy, error) {
	s, err := l.inForce()
	if err != nil {
		return nil, err
	}
	return s.policy(ctx, machine)
}

// holds implements server.Config.PolicyHolds.
func (l *livePolicy) holds(p *attest.Policy) error {
	s, err := l.inForce()
	if err == nil && s.revision != p.Revision {
		err = fmt.Errorf("another policy was enabled: %w", server.ErrConflict)
	}
	return err
}

// proveBanks implements server.Config.ProveBanks. It does not ask whether the policy
// is stale: evidence is, when it comes.
func (l *livePolicy) proveBanks() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.source != nil && l.source.document != nil && l.source.document.TPM.ProveBanks != profiles.BankProofNone
}

// check is whether this replica can decide, for its health.
func (l *livePolicy) check(context.Context) error {
	_, err := l.inForce()
	return err
}

// Run looks which policy is enabled until ctx ends, and then tells the others
// that this replica is gone.
func (l *livePolicy) Run(ctx context.Context) {
	var passes sync.WaitGroup
	passes.Go(func() { l.goOver(ctx) })
	defer passes.Wait()
	defer func() {
		// A store that does not answer holds up no end.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), policyRead)
		defer cancel()
		if w, err := l.watched(last); err == nil {
			if err := w.save(last, true); err != nil {
				l.log.Warn("where the audit log was seen to end is not kept", "error", err)
			}
		}
		if err := l.leave(context.WithoutCancel(ctx)); err != nil {
			l.log.Debug("other replicas not told of the end", "error", err)
		}
	}()
	tick := time.NewTicker(policyPoll)
	defer tick.Stop()
	failed := false
	for {
		err := l.look(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failed {
			l.log.Error("the enabled policy cannot be gone by: nothing is released until it can", "within", policyBound, "error", err)
		} else if err == nil && failed {
			l.log.Info("going by the enabled policy again")
		}
		failed = err != nil
		// That it was altered is told by the next look.
		if err := l.watch(ctx); err != nil && !errors.Is(err, errAltered) && ctx.Err() == nil {
			l.log.Warn("the audit log is not followed, or where it was seen to end is not kept", "error", err)
		}
		if err := l.tell(ctx); err != nil && ctx.Err() == nil {
			l.log.Debug("other replicas not told of the policy", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look reads which policy is enabled, and takes it.
func (l *livePolicy) look(ctx context.Context) error {
	l.looking.Lock()
	defer l.looking.Unlock()
	ctx, cancel := context.WithTimeout(ctx, policyRead)
	defer cancel()
	began := l.local.clock()
	w, err := l.watched(ctx)
	if err != nil {
		return err
	}
	// Before the pointer is read: then an entry that it does not know is none of it.
	_, mark, altered := w.seen()
	pointer, err := readPointer(ctx, l.store)
	if err != nil {
		return err // what was confirmed grows old
	}
	l.mu.Lock()
	before, was := l.source, l.head
	if before != nil && altered == nil && samePointer(l.proven.document, pointer) && mark.Seq <= l.proven.mark.Seq {
		l.confirmed, l.fault = began, nil
		l.mu.Unlock()
		l.mon.PolicyConfirmed(began)
		return nil
	}
	l.mu.Unlock()
	proven, err := provePolicy(ctx, w)
	if errors.Is(err, errUnproven) {
		proven = &provenPolicy{document: pointer, fault: err}
	} else if err != nil {
		return err
	}
	pointer, head := proven.document, proven.head
	var next *policySource
	switch {
	case proven.fault != nil:
		err = proven.fault
	case before != nil && pointer.Revision <= before.revision && !samePointer(l.proven.document, pointer):
		err = fmt.Errorf("the store goes by policy %s, revision %d, and this replica has seen revision %d: the store was replaced; start the replicas again", head, pointer.Revision, before.revision)
	case before != nil && head.Name == "" && was.Name != "" && (l.config == nil || l.config.Off == ""):
		err = fmt.Errorf("it was turned off after %s, and the configuration of this replica does not say so", was)
	case before != nil && head.Name == was.Name && head.Version < was.Version && head.Left < was.Version:
		err = fmt.Errorf("the store goes by policy %s after %s, and not by a step back that was meant", head, was)
	default:
		next, err = l.load(ctx, proven)
	}
	if proven.fault != nil {
		l.alarm(ctx, proven.fault)
	} else {
		l.alarmed = ""
	}
	l.mu.Lock()
	if err != nil {
		if proven.fault == nil {
			err = fmt.Errorf("policy %s is enabled: %w", head, err)
		}
		l.fault = err
		l.mu.Unlock()
		return err
	}
	l.head, l.source, l.confirmed, l.fault, l.told = head, next, began, nil, time.Time{}
	l.mu.Unlock()
	l.proven = proven
	if err := w.save(ctx, true); err != nil {
		l.log.Warn("where the audit log was seen to end is not kept", "error", err)
	}
	l.mon.Policy(head.Name, head.Version, head.Digest.String())
	l.mon.PolicyConfirmed(began)
	if before != nil {
		l.log.Info("going by another policy", "policy", head.String(), "digest", head.Digest, "before", was.String())
	}
	lintAtStart(next, l.catalogue, l.log)
	return nil
}

// watched returns the witness of the store's audit log.
func (l *livePolicy) watched(ctx context.Context) (*logWitness, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.witness != nil {
		return l.witness, nil
	}
	key, err := l.ring.Release()
	if err != nil {
		return nil, err
	}
	w, err := openWitness(ctx, l.store, key, l.witnessFile, l.local.clock, l.log, l.former...)
	if err == nil {
		w.tail = l.tail
		l.witness = w
	}
	return w, err
}

// watch follows the audit log, and keeps what was seen.
func (l *livePolicy) watch(ctx context.Context) error {
	w, err := l.watched(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, policyRead)
	defer cancel()
	if err := w.keepUp(ctx); err != nil {
		return err
	}
	if l.own != nil {
		l.own.forget(w.standing.head())
	}
	return w.save(ctx, false)
}

// alarm raises the alarm of what the store does not prove, once until it does, or
// until it is something else.
func (l *livePolicy) alarm(ctx context.Context, fault error) {
	what := fault.Error()
	if l.alarmed == what {
		return
	}
	name := audit.AlarmPolicyUnproven
	if errors.Is(fault, errAltered) {
		name = audit.AlarmLogAltered
	}
	err := l.store.Commit(ctx, &server.Change{Events: []audit.Event{{
		Time: l.local.clock().UTC(), Kind: audit.KindAlarm, Data: audit.Alarm{Name: name, What: what},
	}}})
	l.log.Error("alarm", "name", string(name), "what", what)
	if err != nil {
		l.log.Error("the alarm is not in the audit log", "error", err)
		return
	}
	l.alarmed = what
}

// load makes what to decide by of an enabled policy. It checks:
//   - it is not below the floor of this replica's configuration
//   - the text is that of the name, version and digest that are enabled
//   - it is signed by the image key of this replica, or is the very file that
//     this replica's configuration names
//   - each file that it names is there, with its digest
//   - each manifest that belongs to it is this replica's own, or is there, is signed
//     by the image key, and is of the cluster's distribution
//   - all of it compiles
func (l *livePolicy) load(ctx context.Context, proven *provenPolicy) (*policySource, error) {
	head, revision := proven.head, proven.document.Revision
	if err := l.config.above(head.Name, head.Version); err != nil {
		return nil, err
	}
	if head.Name == "" {
		if l.config != nil && l.config.File != "" {
			return nil, fmt.Errorf("it was turned off, and the configuration of this replica names %s", l.config.File)
		}
		next := l.local.with(nil, nil, time.Time{})
		next.revision = revision
		return next, nil
	}
	key, err := l.ring.PublicPEM(keyring.FileImage)
	if err != nil {
		return nil, err
	}
	var kept policyVersion
	if _, err := document(ctx, l.store, policyVersionKind, versionName(head.Name, head.Version), &kept); err != nil {
		return nil, err
	}
	d := l.file
	if d == nil || d.Digest != head.Digest {
		switch {
		case kept.Digest != head.Digest || sha256.Sum256(kept.Text) != head.Digest:
			return nil, withHint(errors.New("its text is not in the store"), hintStored)
		case !head.Signed || len(kept.Bundle) == 0:
			return nil, errors.New("it is not signed, or its signature is not in the store, and it is not the file of this replica's configuration")
		}
		if err := bundle.Verify(kept.Text, kept.Bundle, key); err != nil {
			return nil, withHint(err, hintStored)
		}
		if d, err = policy.Parse("the enabled policy", kept.Text, sentFiles(kept.Files)); err != nil {
			return nil, withHint(err, hintStored)
		}
	}
	if d.Name != head.Name || d.Version != head.Version {
		return nil, fmt.Errorf("its text is that of %s", d)
	}
	var more []loadedImage
	// Those of the statement: kept may be another than the one that was compared with it.
	for _, digest := range proven.images {
		if slices.ContainsFunc(l.local.images, func(i loadedImage) bool { return i.digest == digest }) {
			continue // verified when it was loaded
		}
		var m policyManifest
		if _, err := document(ctx, l.store, policyManifestKind, digest.String(), &m); err != nil {
			return nil, err
		}
		one, err := m.image(key)
		if err == nil && one.digest != digest {
			err = errors.New("it has another digest")
		}
		if err == nil {
			err = l.checkDistro([]loadedImage{one})
		}
		if err != nil {
			return nil, withHint(fmt.Errorf("manifest %s: %w", digest, err), hintStored)
		}
		more = append(more, one)
	}
	next := l.local.with(d, more, time.Time{})
	next.revision = revision
	if _, _, err := next.compiled(); err != nil {
		return nil, err
	}
	return next, nil
}

// above refuses a policy that is below the floor of a configuration. An empty name
// is no policy.
func (c *policyConfig) above(name string, version int) error {
	if c == nil || c.Floor == nil || name == c.Floor.Name && version >= c.Floor.Version {
		return nil
	}
	return fmt.Errorf("the configuration of this replica wants policy %s of version %d or later, and this is %s",
		c.Floor.Name, c.Floor.Version, policyHead{Name: name, Version: version})
}

func (l *livePolicy) checkDistro(images []loadedImage) error {
	if l.distro == "" {
		return nil
	}
	return checkDistro(images, l.distro)
}

// enable implements server.Config.EnablePolicy.
func (l *livePolicy) enable(ctx context.Context, by string, req *api.PolicyEnable) (*api.PolicyState, error) {
	n, more, err := l.verified(by, req)
	if err != nil {
		return nil, refused{err}
	}
	if err := l.look(ctx); err != nil {
		// What is enabled may be just what cannot be gone by.
		l.log.Warn("a policy is enabled by a replica that cannot go by the present one", "error", err)
	}
	if err := l.covered(ctx, n, more); err != nil {
		return nil, err
	}
	w, err := l.watched(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := commitEnabling(ctx, w, n, l.local.clock().UTC(), l.log); errors.Is(err, errAltered) {
		return nil, withHint(refused{err}, hintAltered)
	} else if errors.Is(err, errUnproven) {
		return nil, refused{err}
	} else if err != nil {
		return nil, err
	}
	if err := errors.Join(l.look(ctx), l.tell(ctx)); err != nil {
		// It is enabled; whether this replica can go by it is told with the others.
		l.log.Error("the policy is enabled, and this replica does not go by it", "error", err)
	}
	return l.state(ctx)
}

// verified verifies all that an operator sent.
func (l *livePolicy) verified(by string, req *api.PolicyEnable) (n enabling, more []loadedImage, err error) {
	key, err := l.ring.PublicPEM(keyring.FileImage)
	if err != nil {
		return n, nil, err
	}
	if len(req.Bundle) == 0 {
		return n, nil, withHint(errors.New("the policy is not signed"), "sealift policy sign FILE --keys KEYS")
	}
	if err := bundle.Verify(req.Policy, req.Bundle, key); err != nil {
		return n, nil, withHint(fmt.Errorf("the policy: %w", err), "it was altered after it was signed, or signed by another fleet's key: sealift policy sign FILE --keys KEYS")
	}
	n = enabling{bundle: req.Bundle, files: map[string][]byte{}, by: by, reason: req.Reason}
	if req.Rollback {
		n.rollback = &policyRollback{Reason: req.Reason}
	}
	if n.document, err = policy.Parse("the policy", req.Policy, sentFiles(req.Files)); err != nil {
		return n, nil, err
	}
	if err := l.config.above(n.document.Name, n.document.Version); err != nil {
		return n, nil, withHint(err, "if it is meant, lower policy.floor in the configuration of all replicas, and start them again")
	}
	for _, name := range policy.Files(req.Policy) {
		n.files[name] = req.Files[name]
	}
	for i, s := range req.Images {
		m := policyManifest(s)
		one, err := m.image(key)
		if err == nil && !listsImage(n.document, one.manifest.Name) {
			err = fmt.Errorf("the policy does not list image %s", one.manifest.Name)
		}
		if err == nil {
			err = l.checkDistro([]loadedImage{one})
		}
		if err != nil {
			return n, nil, fmt.Errorf("images[%d]: %w", i, err)
		}
		more, n.images, n.digests = append(more, one), append(n.images, m), append(n.digests, one.digest)
	}
	return n, more, nil
}

// covered refuses a policy by which replicas could not judge the same: one that
// lists images of which there is no manifest, or whose manifest only some
// replicas have.
func (l *livePolicy) covered(ctx context.Context, n enabling, more []loadedImage) error {
	const hint = "give the directory of the image, of which the manifest is sent to all replicas: sealift policy enable FILE --images DIR"
	l.mu.Lock()
	base, me := l.source, l.name
	l.mu.Unlock()
	if base == nil {
		base = l.local
	}
	next := base.with(n.document, more, time.Time{})
	for _, i := range policy.Lint(n.document, next.lintInputs(l.catalogue)) {
		if i.Code == "images.no-manifest" || i.Code == "images.pinned-missing" {
			return withHint(refused{fmt.Errorf("%s: %s", i.Where, i.Text)}, hint)
		}
	}
	everywhere := slices.Clone(n.digests)
	if base.document != nil {
		// What came with the present policy goes on to the next.
		for _, i := range base.images {
			if i.dir == "" {
				everywhere = append(everywhere, i.digest)
			}
		}
	}
	all, _, err := l.replicas(ctx)
	if err != nil {
		return err
	}
	for _, i := range next.images {
		if slices.Contains(everywhere, manifest.SHA256(i.digest)) || !listsImage(n.document, i.manifest.Name) {
			continue
		}
		for _, r := range all.Replicas {
			if r.Name != me && !slices.Contains(r.Images, manifest.SHA256(i.digest)) {
				return withHint(refused{fmt.Errorf("replica %s does not have image %s %s, which this one has: they would not judge the same", r.Name, i.manifest.Name, i.manifest.Version)}, hint)
			}
		}
	}
	return nil
}

// state implements server.Config.PolicyState.
func (l *livePolicy) state(ctx context.Context) (*api.PolicyState, error) {
	l.mu.Lock()
	fault := l.fault
	l.mu.Unlock()
	pointer, err := readPointer(ctx, l.store)
	if err != nil {
		return nil, err
	}
	var head policyHead
	if pointer.Revision > 0 {
		err = json.Unmarshal(pointer.Body, &head)
	}
	if err != nil && !errors.Is(fault, errUnproven) {
		return nil, fmt.Errorf("read which policy is enabled: %w", err)
	}
	all, _, err := l.replicas(ctx)
	if err != nil {
		return nil, err
	}
	state := &api.PolicyState{Revision: pointer.Revision, Replicas: all.Replicas}
	if errors.Is(fault, errUnproven) {
		state.Unproven = fault.Error()
	}
	if head.Name == "" {
		return state, nil
	}
	_, kept, err := overwritten[policyVersion](ctx, l.store, policyVersionKind, versionName(head.Name, head.Version))
	if err != nil {
		return nil, err
	}
	state.Name, state.Version, state.Digest, state.Signed = head.Name, head.Version, head.Digest, head.Signed
	state.Text, state.Enabled, state.Images = kept.Text, kept.Enabled, kept.Images
	return state, nil
}

// proposer implements server.Config.Propose.
func (l *livePolicy) proposer(ctx context.Context, req *api.PolicyProposal) (*server.Proposal, error) {
	s, err := l.inForce()
	if err != nil {
		return nil, err
	}
	return s.proposer(l.ring)(ctx, req)
}

// auditHead implements server.Config.AuditHead.
func (l *livePolicy) auditHead(ctx context.Context) (*audit.Envelope, error) {
	w, err := l.watched(ctx)
	if err != nil {
		return nil, err
	}
	return w.head(ctx)
}

// witnessed is whether what was seen of the audit log is kept, for its health.
func (l *livePolicy) witnessed(context.Context) error {
	l.mu.Lock()
	w := l.witness
	l.mu.Unlock()
	if w == nil {
		return nil // not yet
	}
	return w.kept()
}
