package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/netup"
	"github.com/sealift/sealift/profiles"
)

// HandoverPath is where the agent of the initramfs leaves what the agent of
// the root file system needs. It is in memory, on a mount that moves along.
const HandoverPath = "/run/sealift/handover.json"

// maxHandover bounds the file, in bytes.
const maxHandover = 1 << 20

// Handover is what the first half of the boot found out. It holds the join
// token, so it lives for the length of one execve.
type Handover struct {
	Config   profiles.AgentConfig `json:"config"`
	NodeName string               `json:"nodeName"`
	DiskGUID string               `json:"diskGUID"`
	Join     *api.Join            `json:"join,omitempty"` // nil: the node has joined before
	Lease    *netup.Lease         `json:"lease"`
	Report   *Report              `json:"report,omitempty"` // nil: the service wants no reports
}

// Report is what the running system needs to report to the attestation service.
type Report struct {
	EKPublic []byte `json:"ekPublic"` // TPMT_PUBLIC of the keys of the release
	AKPublic []byte `json:"akPublic"`
	After    int    `json:"after"` // how often reports are wanted, seconds
}

// Write leaves the handover for ReadHandover.
func (h *Handover) Write(path string) error {
	b, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("write the handover: %w", err)
	}
	defer clear(b)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write the handover: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write the handover: %w", err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the handover: %w", errors.Join(err, os.Remove(path)))
	}
	return nil
}

// ReadHandover reads the handover and destroys the file, whether or not it
// could be read.
func ReadHandover(path string) (h *Handover, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read the handover: %w", err)
		}
	}()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := os.Remove(path); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxHandover+1))
	if err != nil {
		return nil, err
	}
	defer clear(b)
	if len(b) > maxHandover {
		return nil, fmt.Errorf("more than %d bytes", maxHandover)
	}
	// The pages go back to the kernel when the file is closed; what is in them
	// should not.
	if _, err := f.WriteAt(make([]byte, len(b)), 0); err != nil {
		return nil, err
	}
	h = &Handover{}
	if err := json.Unmarshal(b, h); err != nil {
		return nil, err
	}
	if h.Lease == nil || !h.Lease.Address.IsValid() || h.NodeName == "" || h.DiskGUID == "" {
		return nil, errors.New("the lease, the node name or the disk GUID is missing")
	}
	return h, nil
}
