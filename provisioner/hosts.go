package provisioner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/sealift/sealift/provisioner/api"
)

// ErrNoHost says that a store has never heard of a host.
var ErrNoHost = errors.New("no such host")

// A State is how far a host has come.
type State string

// The states of a Host.
const (
	Seen       State = "seen"       // asked for a boot file
	Installing State = "installing" // fetched its plan
	Failed     State = "failed"     // its installer gave up, or its install record was refused
	Installed  State = "installed"  // its install record is stored
)

// Host is what a provisioner remembers of a box. All of it is claimed by the
// box and nothing of it is proven: it steers an install, it never decides what
// a machine may have.
type Host struct {
	Key     api.HostKey `json:"key"`
	State   State       `json:"state"`
	Address netip.Addr  `json:"address,omitzero"` // its last lease
	Arch    string      `json:"arch,omitempty"`   // GOARCH spelling, from its firmware
	Seen    time.Time   `json:"seen,omitzero"`    // last time it asked for a boot file, to a minute

	// Image is the image that an operator chose for this host; empty means
	// the server's default.
	Image string `json:"image,omitempty"`
	// Reinstall is set by an operator and cleared by the next install record.
	Reinstall bool `json:"reinstall,omitempty"`

	Progress  *api.Progress `json:"progress,omitempty"` // the last one posted
	LastError string        `json:"lastError,omitempty"`

	Installed time.Time       `json:"installed,omitzero"` // when the record arrived
	Record    json.RawMessage `json:"record,omitempty"`
	// Delivered is set once the RecordSink has taken the record.
	Delivered bool `json:"delivered,omitempty"`
}

// Bootable reports whether the host is to be given the installer. An
// installed host is not, until an operator asks for it: otherwise a box whose
// firmware tries the network first would be installed for ever.
func (h Host) Bootable() bool { return h.Installed.IsZero() || h.Reinstall }

// Store remembers hosts. The MAC in a HostKey is the key; the UUID is kept but
// never looked up, because boards exist that share one UUID by the thousand.
//
// Methods may be called concurrently. A change for which Update returned nil is
// durable. After an error it may or may not have happened: every caller here
// asks for changes that can be repeated.
type Store interface {
	// Host returns a host, or an error that wraps ErrNoHost.
	Host(ctx context.Context, key api.HostKey) (Host, error)
	// Update changes a host atomically and returns it as changed. A host that
	// is not there yet is created from a Host with only its Key set. If change
	// returns an error, Update changes nothing and returns that error. A
	// change may be called more than once and must have no side effects.
	Update(ctx context.Context, key api.HostKey, change func(*Host) error) (Host, error)
	// All returns every host, in the order of MACs.
	All(ctx context.Context) ([]Host, error)
}

// Reinstall lets the next network boot of an installed host install it again,
// which overwrites its disk. A host that is not known is an error that wraps
// ErrNoHost.
func Reinstall(ctx context.Context, hosts Store, key api.HostKey) error {
	if err := checkKey(key); err != nil {
		return err
	}
	_, err := hosts.Update(ctx, key, func(h *Host) error {
		if h.State == "" {
			return fmt.Errorf("reinstall %s: %w", key.MAC, ErrNoHost)
		}
		h.Reinstall = true
		return nil
	})
	return err
}

// checkKey holds a HostKey from outside to its only spelling, so that one box
// cannot be two hosts.
func checkKey(key api.HostKey) error {
	mac, err := net.ParseMAC(key.MAC)
	if err != nil || len(mac) != 6 || mac.String() != key.MAC {
		return fmt.Errorf("host key: MAC %.32q is not six lower-case hex bytes with colons", key.MAC)
	}
	if key.UUID == "" {
		return nil
	}
	ok := len(key.UUID) == 36
	for i := 0; ok && i < 36; i++ {
		c := key.UUID[i]
		switch i {
		case 8, 13, 18, 23:
			ok = c == '-'
		default:
			ok = c >= '0' && c <= '9' || c >= 'a' && c <= 'f'
		}
	}
	if !ok {
		return fmt.Errorf("host key: UUID %.48q is not a lower-case UUID", key.UUID)
	}
	return nil
}
