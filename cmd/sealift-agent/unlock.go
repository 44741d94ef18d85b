package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/tpm"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/boot"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/netup"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/node"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/prefetch"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/unlock"
	"github.com/sealift/sealift/profiles"
)

// newRoot is where the root file system is mounted in the initramfs, and
// stateMount where the state goes in it.
const (
	newRoot    = "/sysroot"
	stateMount = "/var"
)

// confirmLimit bounds how long a boot waits to tell the service that it
// succeeded. It is told again by the next boot's evidence.
const confirmLimit = 5 * time.Second

// clockSlack is by how much the clock may be slow without being set.
const clockSlack = 30 * time.Second

const (
	// networkPatience is how long an attempt to attest waits for an address.
	networkPatience = 30 * time.Second
	// rescueAfter is how long a boot without an answer of the service goes on
	// before it asks people for help. One that is refused asks at once.
	rescueAfter = time.Minute
	// networkAgain is after how long the network is tried again that could not
	// be brought up.
	networkAgain = 5 * time.Second
)

// early is what a boot brings together before it can attest.
type early struct {
	tpm      *tpm.TPM
	eventLog []byte
	smbios   []byte
	pcrSig   []byte
	root     *unlock.Root
	state    *unlock.State

	up    chan struct{} // closed when the network is up
	lease *netup.Lease  // set before up is closed
}

// awaitNetwork waits at most that long, or without end if it is 0.
func (e *early) awaitNetwork(ctx context.Context, limit time.Duration) error {
	var over <-chan time.Time
	if limit > 0 {
		over = time.After(limit)
	}
	select {
	case <-e.up:
		return nil
	case <-over:
		return errors.New("the network gave no address yet")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// unlock attests, opens the disk and switches root. It returns only with an
// error.
func (m *machine) unlock(ctx context.Context) (boot.End, error) {
	service, err := m.newService()
	if err != nil {
		return "", err
	}
	e, err := m.gather(ctx, service)
	if err != nil {
		return "", err
	}
	released, err := m.attest(ctx, service, e)
	if err != nil {
		return "", err
	}
	err = m.enter(ctx, service, e, released)
	return "", err
}

// gather does in parallel what does not depend on each other: the keys of the
// TPM, the network, and the disk. It does not wait for the network, which the
// store may not have.
func (m *machine) gather(ctx context.Context, s *service) (*early, error) {
	e := &early{up: make(chan struct{})}
	go m.bringUpNetwork(ctx, e)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.readTPM(ctx, s, e) })
	g.Go(func() error {
		if err := m.loadModules(); err != nil {
			return err
		}
		return m.readDisk(ctx, e)
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return e, nil
}

// bringUpNetwork ends when the network is up, or with ctx. The interfaces appear
// while the modules are being loaded.
func (m *machine) bringUpNetwork(ctx context.Context, e *early) {
	for {
		network := netup.Config{ResolvConf: node.ResolvConf, Log: m.log}
		lease, err := network.Up(ctx)
		if err == nil {
			e.lease = lease
			m.console.Step("network up: %s %s", lease.Iface, lease.Address)
			close(e.up)
			return
		}
		if ctx.Err() != nil {
			return
		}
		m.log.Error("network not brought up", "err", err)
		if unlock.Sleep(ctx, networkAgain) != nil {
			return
		}
	}
}

func (m *machine) readTPM(ctx context.Context, s *service, e *early) error {
	path, err := boot.WaitTPM(ctx, tpmWait)
	if err != nil {
		return advise(err, "switch the TPM 2.0 on in the firmware's set-up")
	}
	if e.tpm, err = tpm.Open(path); err != nil {
		return err
	}
	if err := s.identify(e.tpm); err != nil {
		return err
	}
	if e.eventLog, err = boot.ReadEventLog(); err != nil {
		return advise(err, "the firmware must write a TCG event log: switch measured boot (TPM 2.0, SHA-256 or SHA-384) on in its set-up")
	}
	// Without SMBIOS the service can still decide by what is measured.
	if e.smbios, err = boot.ReadSMBIOS(); err != nil {
		m.log.Warn("the machine does not say what it is", "err", err)
	}
	if e.pcrSig, err = os.ReadFile(profiles.PCRSignaturePath); err != nil {
		return advise(fmt.Errorf("read the image's PCR signature: %w", err), "the image was not started as a UKI with systemd-stub, or has no .pcrsig section")
	}
	m.console.Step("TPM ready")
	return nil
}

func (m *machine) readDisk(ctx context.Context, e *early) error {
	rootHash, err := m.cmdline.RootHash()
	if err != nil {
		return err
	}
	const hint = "the disk does not hold the image that was booted, or is damaged: install it again"
	found, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if e.root, err = unlock.MountRoot(found, rootHash, newRoot); err != nil {
		return advise(err, hint)
	}
	if e.state, err = unlock.Inspect(e.root.Part.Disk, e.root.Part.Table); err != nil {
		return advise(err, hint)
	}
	return nil
}

// prefetch reads this program again from the root, which is where it goes on,
// then what the distro will start. One reader: the other CPUs open the disk.
func (m *machine) prefetch(ctx context.Context, root string) {
	programs := []string{profiles.RootAgentPath}
	config, err := node.ReadConfig(root)
	if err == nil {
		programs = append(programs, config.Prefetch...)
	}
	if err := errors.Join(err, prefetch.Files(ctx, root, programs, 1)); err != nil {
		m.log.Warn("programs not read ahead", "err", err)
	}
}

// attest asks until the service releases the machine's secrets, or until people
// have typed a recovery code.
func (m *machine) attest(ctx context.Context, s *service, e *early) (*released, error) {
	disk := attest.Disk{GUID: e.state.DiskGUID(), StateExists: e.state.Exists()}
	var r *released
	help := m.newHelp(ctx, s, e)
	loop := unlock.Loop{
		Attempt: func(ctx context.Context) (err error) {
			if err = e.awaitNetwork(ctx, networkPatience); err == nil {
				r, err = s.attest(ctx, e, disk)
			}
			if err != nil {
				help.failed(err)
			}
			return err
		},
		Screen: m.console,
		Sleep:  unlock.Sleep,
	}
	err := loop.Run(help.ctx)
	if recovered := help.end(); err != nil && recovered != nil {
		m.console.Step("recovered with a code: not attested")
		go m.prefetch(context.WithoutCancel(ctx), e.root.Dir)
		return recovered, nil
	}
	if err != nil {
		if errors.Is(err, unlock.ErrBootSpent) {
			err = advise(err, "nothing is to be done: the machine reboots and asks again")
		}
		return nil, err
	}
	m.console.Step("attested: image %s", r.image)
	// Not before, because hashing what is read comes before all else on every
	// CPU. It goes on until the execve.
	go m.prefetch(context.WithoutCancel(ctx), e.root.Dir)
	m.setClock(r.issued)
	return r, nil
}

// setClock sets a slow clock by the service's: the signed answer to this boot's
// own challenge says what time it is, and the cluster's certificates need it.
func (m *machine) setClock(now time.Time) {
	if time.Until(now) < clockSlack {
		return
	}
	if _, err := boot.RaiseClock(now); err != nil {
		m.log.Warn("the clock is slow and cannot be set", "err", err)
		return
	}
	m.console.Step("the clock was slow and was set by the attestation service's: check the battery of the mainboard")
}

// enter opens or creates the state, caps the boot, and switches root.
func (m *machine) enter(ctx context.Context, s *service, e *early, r *released) error {
	secrets := r.secrets
	opened, err := m.openState(ctx, s, e, secrets, r.recovered)
	clear(secrets.DiskKey)
	clear(secrets.NextDiskKey)
	if err != nil {
		if !r.recovered {
			m.confirm(ctx, r, err.Error())
		}
		err = errors.Join(err, e.tpm.Rest())
		return advise(err, "the state partition is left as it is: restore what was changed (TPM, disk), or install the machine again, which loses its state")
	}
	volume := opened.Volume
	// From here on nothing in this boot can get the secrets again. A boot that
	// cannot be capped must not go on.
	err = e.tpm.Cap(unlock.Label, volume.Key, volume.UUID)
	clear(volume.Key)
	if err != nil {
		return errors.Join(err, e.tpm.Rest())
	}
	if err := e.tpm.Rest(); err != nil {
		m.log.Warn("the TPM will count the next power cut as a failed authorization", "err", err)
	}
	// Power may go at any time from now on.
	m.console.Step("capped")
	confirmed := make(chan struct{})
	go func() {
		defer close(confirmed)
		if !r.recovered {
			m.confirm(ctx, r, outcomeOf(opened))
		}
	}()
	if err := e.root.MountState(opened.Node, stateMount, !e.state.Exists()); err != nil {
		return advise(err, "the state's file system is damaged and is left as it is")
	}
	if r.recovered {
		// There is a cap, so nothing is lost by waiting: a node needs an address.
		m.console.Step("the disk is open; the node starts when the network gives an address")
	}
	if err := e.awaitNetwork(ctx, 0); err != nil {
		return err
	}
	h := node.Handover{
		Config: *m.config, NodeName: secrets.NodeName, DiskGUID: e.state.DiskGUID(),
		Join: secrets.Join, Lease: e.lease,
	}
	if r.reportAfter > 0 {
		h.Report = &node.Report{EKPublic: s.identity.EK.Public, AKPublic: s.identity.AKPublic, After: r.reportAfter}
	}
	if err := h.Write(node.HandoverPath); err != nil {
		return err
	}
	<-confirmed
	if err := e.tpm.Close(); err != nil {
		return err
	}
	m.console.Step("switching root")
	return boot.SwitchRoot(newRoot, profiles.RootAgentPath,
		[]string{profiles.RootAgentPath, argRun}, []string{"HOME=/root", "TERM=linux", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"})
}

// outcomeOf is what the service is told of a state that is open.
func outcomeOf(o *unlock.Opened) string {
	switch {
	case o.Rekeyed:
		return api.OutcomeRekeyed
	case o.RekeyErr != nil:
		return api.OutcomeNotRekeyed(o.RekeyErr)
	}
	return api.OutcomeUnlocked
}

// keys returns what this boot brings to the keys of its disk, without the service's.
func (m *machine) keys(e *early) unlock.Keys {
	return unlock.Keys{TPM: e.tpm, PCRKey: []byte(m.config.PCRKey), PCRSignature: e.pcrSig}
}

// openState opens the state that the evidence spoke of, or makes the first one.
// Without evidence, after a recovery, it makes none, and changes no key.
func (m *machine) openState(ctx context.Context, s *service, e *early, secrets *api.Secrets, recovered bool) (*unlock.Opened, error) {
	keys := m.keys(e)
	keys.ServiceHalf, keys.NextHalf, keys.Either, keys.Machine = secrets.DiskKey, secrets.NextDiskKey, recovered, s.machine
	if !e.state.Exists() {
		if recovered {
			return nil, errors.New("open state: there is none, and none is made with a recovery code, which proves nothing of who made it")
		}
		v, n, err := e.state.Create(ctx, keys, e.root.MakeFileSystem)
		if err != nil {
			return nil, err
		}
		m.console.Step("state created")
		return &unlock.Opened{Volume: v, Node: n}, nil
	}
	o, err := e.state.Open(keys)
	if err != nil {
		return nil, err
	}
	m.console.Step("state opened")
	switch {
	case o.Rekeyed:
		m.console.Step("disk key changed")
	case o.RekeyErr != nil:
		m.log.Error("the disk key was to be changed and was not", "err", o.RekeyErr)
	}
	if o.NoteErr != nil {
		m.log.Warn("the disk does not say to which machine its key was released", "err", o.NoteErr)
	}
	return o, nil
}

// linkResolvConf lets the resolver of the initramfs find the name servers.
func linkResolvConf() error {
	if err := os.MkdirAll("/etc", 0o755); err != nil {
		return err
	}
	if err := os.Symlink(node.ResolvConf, "/etc/resolv.conf"); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("link resolv.conf: %w", err)
	}
	return nil
}
