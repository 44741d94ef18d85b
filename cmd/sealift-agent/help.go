package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/recovery"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/kmod"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/rescue"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/unlock"
	"github.com/sealift/sealift/profiles"
)

// help is what people can do for a boot that gets no release.
type help struct {
	// ctx is for the attempts to attest: it ends when a code was typed.
	ctx    context.Context
	cancel context.CancelFunc

	wanted bool // there is a disk that a code could open
	since  time.Time
	asking chan *recovery.Secrets // nil: nobody was asked
	prompt func(context.Context, attest.MachineID) (*recovery.Secrets, error)
	log    func(error)

	// who says which machine this is to those who are asked for the code. It uses
	// the TPM.
	who     func() attest.MachineID
	machine attest.MachineID // as it said; set before anybody is asked
}

// newHelp prepares help. A machine whose state is not there yet has nothing that
// a code could open.
func (m *machine) newHelp(ctx context.Context, s *service, e *early) *help {
	h := &help{
		wanted: e.state.Exists(), since: time.Now(),
		log: func(err error) { m.log.Error("no recovery", "err", err) },
	}
	h.who = func() attest.MachineID {
		if s.told {
			return s.machine
		}
		id, err := e.state.NameFor(m.keys(e), s.machine)
		if err != nil {
			m.log.Warn("the recovery is asked for under this TPM's own name", "err", err)
		}
		return id
	}
	h.prompt = func(ctx context.Context, id attest.MachineID) (*recovery.Secrets, error) {
		// A box may have a serial line and no keyboard.
		if err := loadPeopleModules(e.root.Dir); err != nil {
			m.log.Warn("keyboards may not work", "err", err)
		}
		p := rescue.Prompt{
			Machine: id, NodeName: api.NodeName(id, 10), Disk: e.state.DiskGUID(), Terminals: rescue.OpenTerminals(),
			Clock: time.Now, Sleep: unlock.Sleep, After: time.After,
		}
		return p.Run(ctx)
	}
	h.ctx, h.cancel = context.WithCancel(ctx)
	return h
}

// loadPeopleModules loads the drivers of keyboards from the root file system,
// which dm-verity vouches for.
func loadPeopleModules(root string) error {
	f, err := os.Open(filepath.Join(root, profiles.PeopleModulesPath))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	paths, err := kmod.ReadList(f)
	if err != nil {
		return err
	}
	for i := range paths {
		paths[i] = filepath.Join(root, paths[i])
	}
	return kmod.Load(paths)
}

// failed asks people for a recovery code, once, when an attempt failed in a way
// that does not mend itself soon: a refusal, or rescueAfter without an answer.
// It is called by one goroutine, which uses the TPM.
func (h *help) failed(err error) {
	if !h.wanted || h.asking != nil || h.ctx.Err() != nil {
		return
	}
	var refused *client.RefusedError
	switch {
	case errors.As(err, &refused) && refused.Result != nil:
		if unlock.Spent(refused.Result) {
			return // the machine is about to reboot
		}
	case time.Since(h.since) < rescueAfter:
		return
	}
	h.machine = h.who()
	h.asking = make(chan *recovery.Secrets, 1)
	go func() {
		defer close(h.asking)
		s, err := h.prompt(h.ctx, h.machine)
		if err != nil {
			if h.ctx.Err() == nil {
				h.log(err)
			}
			return
		}
		h.asking <- s
		h.cancel()
	}()
}

// end stops asking, and returns what was typed, or nil.
func (h *help) end() *released {
	h.cancel()
	if h.asking == nil {
		return nil
	}
	s := <-h.asking
	if s == nil {
		return nil
	}
	return &released{secrets: &api.Secrets{DiskKey: s.DiskKey, NextDiskKey: s.NextDiskKey, NodeName: api.NodeName(h.machine, s.NameDigits)}, recovered: true}
}
