package main

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// releaseConfig says which keys the release key replaced, which is that of the key
// directory.
type releaseConfig struct {
	// Former are PEM files with public keys (release.pub), the latest last: what they
	// signed before the change is verified with them. Optional.
	Former []string `yaml:"former"`
}

// hintFormer is what to do about what an unknown release key signed.
const hintFormer = "if the service had that release key before, name its public key under release.former (docs/keys.md)"

func (c releaseConfig) check() error {
	if n := len(c.Former); n > audit.MaxFormerKeys {
		return fmt.Errorf("release.former has %d keys, at most %d allowed", n, audit.MaxFormerKeys)
	}
	for i, file := range c.Former {
		if file == "" {
			return fmt.Errorf("release.former[%d] is empty, want the file of a public key", i)
		}
	}
	return nil
}

// keys reads the former keys, which go with the present one.
func (c releaseConfig) keys(present *ecdsa.PublicKey) (audit.ReleaseKeys, error) {
	keys := audit.ReleaseKeys{Present: present}
	for i, file := range c.Former {
		key, err := readReleaseKey(file)
		if err != nil {
			return keys, fmt.Errorf("release.former[%d]: %w", i, err)
		}
		keys.Former = append(keys.Former, key)
	}
	if err := keys.Check(); err != nil {
		return keys, usage{fmt.Errorf("release.former: %w", err)}
	}
	return keys, nil
}

// unsignedEvery is how often alarms of audit.UnsignedEntries are raised. Those who write
// to the database can make many.
const unsignedEvery = time.Minute

// tell raises an alarm for each of the first entries that would enrol if the service
// had signed them, and one for the others. It reports whether all were told of. The
// caller holds saving.
func (s *logStanding) tell(ctx context.Context, at time.Time) (all bool, err error) {
	s.mu.Lock()
	if !s.all.Doubts() || at.Sub(s.toldAt) < unsignedEvery && !at.Before(s.toldAt) {
		all = !s.all.Doubts()
		s.mu.Unlock()
		return all, nil
	}
	u := s.all.Unsigned()
	s.mu.Unlock()
	var events []audit.Event
	add := func(id attest.MachineID, what string, unknown bool) {
		if unknown {
			what += "; " + hintFormer
		}
		s.log.Error("alarm", "name", string(audit.AlarmEnrolmentUnproven), "machine", id.Short(), "what", what)
		events = append(events, audit.Event{Time: at.UTC(), Kind: audit.KindAlarm, Machine: id, Data: audit.Alarm{Name: audit.AlarmEnrolmentUnproven, What: what}})
	}
	for _, e := range u.First {
		add(e.Machine, e.String(), e.Unknown)
	}
	if u.More > 0 {
		add(attest.MachineID{}, fmt.Sprintf("%d more audit entries, from %d to %d, would enrol and do not count", u.More, u.From, u.To), u.Unknown)
	}
	s.toldAt = at
	if err := s.store.Commit(ctx, &server.Change{Events: events}); err != nil {
		s.mu.Lock()
		s.all.Retell(u)
		s.mu.Unlock()
		return false, fmt.Errorf("raise the alarm of enrolments that the service did not sign: %w", err)
	}
	return true, nil
}

// warnUnknown says at the start that entries are signed with keys that are not there.
func (s *logStanding) warnUnknown() {
	s.mu.RLock()
	ids := s.all.UnknownKeys()
	s.mu.RUnlock()
	if len(ids) > 0 {
		s.log.Error("the audit log has enrolments that are signed with unknown release keys: they do not count", "keys", strings.Join(ids, " "), "remedy", hintFormer)
	}
}
