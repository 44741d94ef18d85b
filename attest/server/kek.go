package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
)

// ErrNoKEK: a sealed key is under a key-encryption key that the service does
// not have.
var ErrNoKEK = errors.New("no such key-encryption key")

// openReleases is how long a release is counted that nobody has confirmed. A
// machine confirms within seconds of the release, or its next boot tells.
const openReleases = time.Hour

const (
	// rewrapPage is how many records are read at a time.
	rewrapPage = 256
	// rewrapWrites is how many are written at once: a store that commits
	// together what waits together does them at the price of one.
	rewrapWrites = 16
)

// keks are the key-encryption keys that the service has: all of them open what
// is under them, the present one alone seals.
type keks struct {
	present *keyWrapper
	byID    map[string]*keyWrapper // the present one, too
	lost    []string               // ids of those given up, in order
}

// newKEKs refuses keys that are there twice, and ids that are none.
func newKEKs(present attest.Secret, former []attest.Secret, lost []string) (*keks, error) {
	w, err := newKeyWrapper(present)
	if err != nil {
		return nil, err
	}
	k := &keks{present: w, byID: map[string]*keyWrapper{w.id: w}, lost: slices.Sorted(slices.Values(lost))}
	for _, key := range former {
		w, err := newKeyWrapper(key)
		if err != nil {
			return nil, fmt.Errorf("former %w", err)
		}
		if k.byID[w.id] != nil {
			return nil, fmt.Errorf("former key-encryption key %s is there twice", w.id)
		}
		k.byID[w.id] = w
	}
	isID := regexp.MustCompile(`^[0-9a-f]{16}$`)
	for _, id := range k.lost {
		if !isID.MatchString(id) {
			return nil, fmt.Errorf("lost key-encryption key %.40q: it is not 16 hex digits", id)
		}
		if k.byID[id] != nil {
			return nil, fmt.Errorf("key-encryption key %s is lost and is here", id)
		}
	}
	return k, nil
}

// former returns the ids of the former keys in order.
func (k *keks) former() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(k.byID)), func(id string) bool { return id == k.present.id })
}

// role says what the key of that id is.
func (k *keks) role(id string) api.KEKRole {
	switch {
	case id == k.present.id:
		return api.KEKPresent
	case k.byID[id] != nil:
		return api.KEKFormer
	case slices.Contains(k.lost, id):
		return api.KEKLost
	}
	return api.KEKMissing
}

// seal encrypts key under the present key-encryption key.
func (k *keks) seal(key attest.Secret, purpose ...string) (*SealedKey, error) {
	return k.present.seal(key, purpose...)
}

// open decrypts what seal made with the same purpose, under whichever key. It
// returns ErrNoKEK if that one is not here.
func (k *keks) open(s *SealedKey, purpose ...string) (attest.Secret, error) {
	w := k.byID[s.KEK]
	if w == nil {
		return nil, fmt.Errorf("open sealed key: it is under key-encryption key %.40q, which is %s: %w", s.KEK, k.role(s.KEK), ErrNoKEK)
	}
	return w.open(s, purpose...)
}

// kept is a disk key in a machine's record.
type kept struct {
	key   **SealedKey
	disk  string
	count func(*api.KEKUse) *int
}

// diskKeys are all the disk keys in the record.
func (m *Machine) diskKeys() []kept {
	all := []kept{
		{&m.DiskKey, m.DiskGUID, func(u *api.KEKUse) *int { return &u.DiskKeys }},
		{&m.NextKey, m.DiskGUID, func(u *api.KEKUse) *int { return &u.NextKeys }},
	}
	for i := range m.Former {
		f := &m.Former[i]
		all = append(all,
			kept{&f.DiskKey, f.DiskGUID, func(u *api.KEKUse) *int { return &u.FormerKeys }},
			kept{&f.NextKey, f.DiskGUID, func(u *api.KEKUse) *int { return &u.FormerKeys }})
	}
	return slices.DeleteFunc(all, func(k kept) bool { return *k.key == nil })
}

// machines calls each with every machine's record that can be read, in the order of
// their ids.
func (s *Server) machines(ctx context.Context, each func([]*Machine) error) error {
	var after attest.MachineID
	for {
		page, err := s.c.Store.Machines(ctx, Query{After: after, Limit: rewrapPage})
		if err != nil {
			return fmt.Errorf("read machines: %w", err)
		}
		if len(page) == 0 {
			return nil
		}
		after = page[len(page)-1].ID
		page = slices.DeleteFunc(page, func(m *Machine) bool {
			if m.Damaged != "" {
				s.c.Log.Error("a machine's record cannot be read", "machine", m.ID.Short(), "error", m.Damaged)
			}
			return m.Damaged != ""
		})
		if err := each(page); err != nil {
			return err
		}
	}
}

// uses counts what is under each key-encryption key, by id. Open releases are
// counted on demand: that costs a read per machine.
func (s *Server) uses(ctx context.Context, releases bool) (map[string]*api.KEKUse, error) {
	uses := map[string]*api.KEKUse{}
	of := func(id string) *api.KEKUse {
		if uses[id] == nil {
			uses[id] = &api.KEKUse{KEK: id, Role: s.keys.role(id)}
		}
		return uses[id]
	}
	for id := range s.keys.byID {
		of(id)
	}
	for _, id := range s.keys.lost {
		of(id)
	}
	recent := s.c.Clock().Add(-openReleases)
	err := s.machines(ctx, func(page []*Machine) error {
		for _, m := range page {
			for _, k := range m.diskKeys() {
				*k.count(of((*k.key).KEK))++
			}
			if !releases || m.ReleaseID == "" {
				continue
			}
			// Only the last counts: the TPM forgot the others at its reset.
			switch r, err := s.c.Store.Release(ctx, m.ReleaseID); {
			case errors.Is(err, ErrNotFound):
			case errors.As(err, new(*DamagedError)):
				s.c.Log.Error("a release cannot be read", "release", m.ReleaseID, "error", err)
			case err != nil:
				return fmt.Errorf("read release %s: %w", m.ReleaseID, err)
			case r.Transport != nil && r.Issued.After(recent):
				of(r.Transport.KEK).Releases++
			}
		}
		return nil
	})
	return uses, err
}

// checkKEKs returns ErrNoKEK if there are disk keys that the service cannot
// open and was not told to give up.
func (s *Server) checkKEKs(ctx context.Context) error {
	uses, err := s.uses(ctx, false)
	if err != nil {
		return fmt.Errorf("look at the disk keys: %w", err)
	}
	var missing []string
	for _, id := range slices.Sorted(maps.Keys(uses)) {
		if u := uses[id]; u.Role == api.KEKMissing {
			missing = append(missing, fmt.Sprintf("%d under key %.40q", u.Keys(), id))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("disk keys cannot be opened: %s; the service has %s: %w",
			strings.Join(missing, ", "), strings.Join(slices.Sorted(maps.Keys(s.keys.byID)), ", "), ErrNoKEK)
	}
	return nil
}

// The document that keeps replicas from telling the log of one rewrap twice.
const (
	kekKind   = "kek"
	kekRewrap = "rewrap"
)

// rewrapRecord is its body.
type rewrapRecord struct {
	api.KEKRewrap
	From []string `json:"from"`
}

func (s *Server) loadRewrap(ctx context.Context) (*Document, *rewrapRecord, error) {
	d, err := s.c.Store.Document(ctx, kekKind, kekRewrap)
	if errors.Is(err, ErrNotFound) {
		return &Document{Kind: kekKind, Name: kekRewrap}, &rewrapRecord{}, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the state of the rewrap: %w", err)
	}
	r := new(rewrapRecord)
	if err := json.Unmarshal(d.Body, r); err != nil {
		return nil, nil, fmt.Errorf("read the state of the rewrap: %w", err)
	}
	return d, r, nil
}

// Rewrap brings every disk key that is under a former key-encryption key under
// the present one, while releases go on. It can be cut off at any point and
// called again, and any number of replicas may do it at once: a record changes
// only if it is the one that was read. The audit log has an entry at its start
// and one when nothing is left; when there was nothing to do, none.
//
// Open releases stay under the key that they were made with, see KEKStatus.
// A key that does not open is left as it is: the error names its machine, and
// the others are done.
func (s *Server) Rewrap(ctx context.Context) error {
	if err := s.rewrap(ctx, "", ""); err != nil {
		return fmt.Errorf("bring disk keys under key-encryption key %s: %w", s.keys.present.id, err)
	}
	return nil
}

func (s *Server) rewrap(ctx context.Context, by, reason string) error {
	if err := s.beginRewrap(ctx, by, reason); err != nil {
		return err
	}
	if len(s.keys.former()) == 0 {
		return s.endRewrap(ctx) // of one that was cut off after its last key
	}
	var done, failed atomic.Int64
	err := s.machines(ctx, func(page []*Machine) error {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(rewrapWrites)
		for _, m := range page {
			if !s.stale(m) {
				continue
			}
			group.Go(func() error {
				n, bad, err := s.rewrapMachine(ctx, m)
				done.Add(int64(n))
				failed.Add(int64(bad))
				return err
			})
		}
		return group.Wait()
	})
	if err != nil {
		return err
	}
	if n := failed.Load(); n > 0 {
		return fmt.Errorf("%d of %d disk keys do not open", n, n+done.Load())
	}
	return s.endRewrap(ctx)
}

// underFormer counts the disk keys under former keys.
func (s *Server) underFormer(ctx context.Context) (n int, from []string, err error) {
	if len(s.keys.former()) == 0 {
		return 0, nil, nil // without looking at every machine
	}
	uses, err := s.uses(ctx, false)
	if err != nil {
		return 0, nil, err
	}
	for _, id := range s.keys.former() {
		if k := uses[id].Keys(); k > 0 {
			n += k
			from = append(from, id)
		}
	}
	return n, from, nil
}

// stale reports whether the record has a disk key under a former key.
func (s *Server) stale(m *Machine) bool {
	return slices.ContainsFunc(m.diskKeys(), func(k kept) bool { return s.keys.role((*k.key).KEK) == api.KEKFormer })
}

// rewrapMachine brings one record under the present key. It returns how many
// of its keys it did, and how many do not open.
func (s *Server) rewrapMachine(ctx context.Context, m *Machine) (done, bad int, err error) {
	for range attempts {
		done, bad = 0, 0
		for _, k := range m.diskKeys() {
			old := *k.key
			if s.keys.role(old.KEK) != api.KEKFormer {
				continue
			}
			key, err := s.openDiskKey(old, m.ID, k.disk)
			if err != nil {
				s.c.Log.Error("disk key does not open", "machine", m.ID.Short(), "disk", k.disk, "error", err)
				bad++
				continue
			}
			sealed, err := s.sealDiskKey(key, m.ID, k.disk)
			clear(key)
			if err != nil {
				return 0, 0, err
			}
			*k.key = sealed
			done++
		}
		if done == 0 {
			return 0, bad, nil
		}
		err := s.c.Store.Commit(ctx, &Change{Machine: m})
		if err == nil {
			return done, bad, nil
		}
		if !errors.Is(err, ErrConflict) {
			return 0, 0, err
		}
		if m, err = s.c.Store.Machine(ctx, m.ID); err != nil {
			return 0, 0, err
		}
	}
	return 0, 0, fmt.Errorf("machine %s: changed %d times meanwhile: %w", m.ID, attempts, ErrConflict)
}

// beginRewrap says in the log that a rewrap starts, unless there is nothing to
// do or one to the same key is under way. The document is read before the keys
// are counted: if another replica was done meanwhile, its write conflicts.
func (s *Server) beginRewrap(ctx context.Context, by, reason string) error {
	for range attempts {
		d, r, err := s.loadRewrap(ctx)
		if err != nil {
			return err
		}
		keys, from, err := s.underFormer(ctx)
		if err != nil || keys == 0 || r.To == s.keys.present.id && r.Finished.IsZero() {
			return err
		}
		now := s.c.Clock()
		*r = rewrapRecord{KEKRewrap: api.KEKRewrap{To: s.keys.present.id, Keys: keys, Started: now}, From: from}
		err = s.putRewrap(ctx, d, r, audit.Event{Time: now, Kind: audit.KindKEK, Data: audit.KEKRewrap{
			Event: audit.KEKStarted, To: r.To, From: from, Keys: keys, By: by, Reason: reason,
		}})
		if !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("the state of the rewrap changed %d times meanwhile: %w", attempts, ErrConflict)
}

// endRewrap says in the log that the rewrap to the present key is finished, if
// nothing is left to do, unless that was said.
func (s *Server) endRewrap(ctx context.Context) error {
	for range attempts {
		d, r, err := s.loadRewrap(ctx)
		if err != nil {
			return err
		}
		left, _, err := s.underFormer(ctx)
		if err != nil {
			return err
		}
		if left > 0 {
			// Another replica that does not have the present key yet seals them.
			s.c.Log.Warn("disk keys are being sealed under a former key-encryption key", "left", left, "present", s.keys.present.id)
			return nil
		}
		if r.To != s.keys.present.id || !r.Finished.IsZero() {
			return nil
		}
		r.Finished = s.c.Clock()
		err = s.putRewrap(ctx, d, r, audit.Event{Time: r.Finished, Kind: audit.KindKEK, Data: audit.KEKRewrap{
			Event: audit.KEKFinished, To: r.To, From: r.From, Keys: r.Keys,
		}})
		if err == nil {
			s.c.Log.Info("all disk keys are under the present key-encryption key", "kek", r.To, "from", r.From)
			return nil
		}
		if !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("the state of the rewrap changed %d times meanwhile: %w", attempts, ErrConflict)
}

func (s *Server) putRewrap(ctx context.Context, d *Document, r *rewrapRecord, ev audit.Event) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the state of the rewrap: %w", err)
	}
	d.Body = body
	return s.c.Store.Commit(ctx, &Change{Documents: []*Document{d}, Events: []audit.Event{ev}})
}

// kekStatus looks at the whole store.
func (s *Server) kekStatus(ctx context.Context) (*api.KEKStatus, *failure) {
	uses, err := s.uses(ctx, true)
	if err != nil {
		return nil, unavailable("the store", err)
	}
	_, r, err := s.loadRewrap(ctx)
	if err != nil {
		return nil, unavailable("the store", err)
	}
	st := &api.KEKStatus{Present: s.keys.present.id, Former: s.keys.former(), Lost: s.keys.lost, Uses: []api.KEKUse{}}
	if st.Former == nil {
		st.Former = []string{}
	}
	if st.Lost == nil {
		st.Lost = []string{}
	}
	for _, id := range slices.Sorted(maps.Keys(uses)) {
		st.Uses = append(st.Uses, *uses[id])
	}
	if r.To != "" {
		st.Rewrap = &r.KEKRewrap
	}
	return st, nil
}

func (s *Server) getKEK(_ Operator, _ http.ResponseWriter, r *http.Request) (any, *failure) {
	return noBody(s.kekStatus(r.Context()))
}

// noBody makes a typed nil no body.
func noBody(st *api.KEKStatus, f *failure) (any, *failure) {
	if f != nil {
		return nil, f
	}
	return st, nil
}

// postRewrap rewraps while the operator waits. What it did stays done if the
// operator goes away.
func (s *Server) postRewrap(op Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	var req api.KEKRewrapRequest
	if f := readBody(w, r, maxOperatorBody, bodyTimeout, &req); f != nil {
		return nil, f
	}
	reason, f := checkReason(req.Reason)
	if f != nil {
		return nil, f
	}
	if err := s.rewrap(r.Context(), op.Name, reason); err != nil {
		return nil, internal(fmt.Errorf("bring disk keys under key-encryption key %s: %w", s.keys.present.id, err))
	}
	return noBody(s.kekStatus(r.Context()))
}
