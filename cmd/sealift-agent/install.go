package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/blockdev"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/boot"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/efi"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/gpt"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/guid"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/install"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/netup"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/node"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign/bundle"
	"github.com/sealift/sealift/profiles"
	"github.com/sealift/sealift/provisioner/api"
)

// tpmWait is how long a TPM driver may take to appear.
const tpmWait = 10 * time.Second

// install writes the image and powers off.
func (m *machine) install(ctx context.Context) (boot.End, error) {
	if err := boot.EFIVars().Do(); err != nil {
		return "", advise(err, "the machine was not started by UEFI firmware: switch legacy boot (CSM) off")
	}
	system, err := readSystem()
	if err != nil {
		m.log.Warn("the machine does not say what it is", "err", err)
	}
	box := &hardware{config: m.config}
	host := api.HostKey{UUID: system.UUID}
	var source install.Source
	image := "" // the provisioner says which
	medium, err := m.findMedium(ctx)
	if err != nil {
		return "", err
	}
	if medium != nil {
		defer medium.Close() // only read
		m.console.Step("installing from %s, without a network", medium)
		source, image, box.medium, host.MAC = medium, m.config.Image, medium.Node(), firstMAC()
	} else {
		network := netup.Config{VendorClass: api.VendorClass, ResolvConf: node.ResolvConf, Log: m.log}
		lease, err := network.Up(ctx)
		if err != nil {
			return "", err
		}
		m.console.Step("network up: %s %s", lease.Iface, lease.Address)
		server, err := install.NewServer(lease.BootFile, m.log)
		if err != nil {
			return "", advise(err, "the DHCP server that answered is not the provisioner's, or another one answered first")
		}
		host.MAC = lease.MAC
		source = &install.Network{Server: server, Host: host, Log: m.log}
	}
	flow := install.Flow{
		Source:  source,
		Image:   image,
		Host:    host,
		Serial:  system.Serial,
		Machine: box,
		Verify: func(manifest, sigstore []byte) error {
			return bundle.Verify(manifest, sigstore, []byte(m.config.ImageKey))
		},
		MinDisk: m.config.MinDisk,
		Suits: func() error {
			return advise(install.CheckHardware(m.config.Hardware, &system),
				"install another image on this machine, or change hardware in the profile")
		},
		Step: m.console.Step,
		Log:  m.log,
		Now:  time.Now,
	}
	if err := flow.Run(ctx); err != nil {
		return "", err
	}
	m.console.Step("installed")
	return boot.EndPowerOff, nil
}

// How long to wait for an installation medium: where firmware started from
// something that is no network, and where it does not say.
const (
	mediumWait   = 30 * time.Second
	mediumGlance = 5 * time.Second
)

// findMedium returns the installation medium, or nil if the network is to be
// asked. A box that was booted over the network installs from there, also with
// a medium in it.
func (m *machine) findMedium(ctx context.Context) (*install.Medium, error) {
	wait := mediumWait
	switch network, err := (efi.Vars{}).BootedFromNetwork(); {
	case err != nil:
		m.log.Info("the firmware does not say where it booted from", "err", err)
		wait = mediumGlance
	case network:
		return nil, nil
	}
	medium, err := install.FindMedium(ctx, blockdev.System{}, wait)
	if errors.Is(err, install.ErrNoMedium) {
		m.console.Step("%v, asking the network", err)
		return nil, nil
	}
	return medium, advise(err, "take out all installation media but one")
}

// firstMAC returns the address of the network card that the kernel found
// first, or nothing. It is a hint for people, like all that a machine claims.
func firstMAC() string {
	interfaces, err := net.Interfaces()
	if err != nil {
		return ""
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback == 0 && len(i.HardwareAddr) == 6 {
			return i.HardwareAddr.String()
		}
	}
	return ""
}

// readSystem returns what the machine claims to be. On an error it is empty.
func readSystem() (attest.SMBIOS, error) {
	table, err := boot.ReadSMBIOS()
	if err != nil {
		return attest.SMBIOS{}, err
	}
	s, err := attest.ParseSMBIOS(table)
	if err != nil {
		return attest.SMBIOS{}, err
	}
	// All zeros and all ones mean that none is set (DSP0134 7.2.1).
	if strings.Trim(s.UUID, "0-") == "" || strings.Trim(s.UUID, "f-") == "" {
		s.UUID = ""
	}
	return *s, nil
}

// hardware is this machine as the installer's.
type hardware struct {
	config *profiles.AgentConfig
	medium string // device node of the installation medium; empty if there is none
}

// disk is an open disk with what it is.
type disk struct {
	*install.Device
	about blockdev.Disk
}

func (d *disk) String() string { return d.about.String() }

func (h *hardware) OpenDisk(need int64) (install.OpenDisk, error) {
	candidates, err := blockdev.System{}.Candidates()
	if err != nil {
		return nil, err
	}
	// Whatever the rules allow, the medium is not what to install on.
	candidates = slices.DeleteFunc(candidates, func(c blockdev.Candidate) bool { return c.Node == h.medium })
	chosen, err := blockdev.Choose(candidates, blockdev.Rule{MinSize: need, Wipe: h.config.Wipe})
	if err != nil {
		return nil, advise(err, "empty the disk, take out those that are not meant, or build the installer with other install settings")
	}
	d, err := install.OpenDevice(chosen.Node)
	if err != nil {
		return nil, err
	}
	return &disk{d, chosen}, nil
}

func (h *hardware) EnrolSecureBoot() (string, error) {
	var keys efi.Keys
	for name, to := range map[string]*[]byte{"PK.auth": &keys.PK, "KEK.auth": &keys.KEK, "db.auth": &keys.DB} {
		b, err := os.ReadFile(filepath.Join(profiles.SecureBootDir, name))
		if err != nil {
			return "", fmt.Errorf("read the Secure Boot keys: %w", err)
		}
		*to = b
	}
	var vars efi.Vars
	setup, err := vars.SetupMode()
	if err != nil {
		return "", advise(err, "the firmware has no Secure Boot")
	}
	if setup {
		if err := vars.Enrol(keys); err != nil {
			return "", advise(err, "clear the Secure Boot keys in the firmware's set-up and start again")
		}
		return "enrolled", nil
	}
	foreign, err := vars.Foreign(keys)
	if err != nil {
		return "", err
	}
	if len(foreign) > 0 {
		return "", advise(fmt.Errorf("the firmware is in user mode with other keys than the image's: %s", strings.Join(foreign, ", ")),
			"put the firmware into setup mode (clear the Secure Boot keys in its set-up) and start again")
	}
	on, err := vars.SecureBoot()
	if err != nil {
		return "", err
	}
	if !on {
		return "", advise(errors.New("the firmware holds the image's keys, but Secure Boot is off"),
			"switch Secure Boot on in the firmware's set-up and start again")
	}
	return "already", nil
}

func (h *hardware) MakeBootable(od install.OpenDisk, description string) (string, error) {
	d, ok := od.(*disk)
	if !ok {
		return "", fmt.Errorf("make the disk bootable: %s was not opened here", od)
	}
	table, err := gpt.Read(d, d.Size())
	if err != nil {
		return "", fmt.Errorf("make the disk bootable: %w", err)
	}
	if table.Disk, err = guid.New(rand.Reader); err != nil {
		return "", err
	}
	if err := table.Grow(d.Size()); err != nil {
		return "", err
	}
	if err := gpt.Write(d, d.Size(), table); err != nil {
		return "", err
	}
	if err := d.Forget(); err != nil {
		return "", err
	}
	back, err := gpt.Read(d, d.Size())
	if err != nil {
		return "", fmt.Errorf("read back the partition table: %w", err)
	}
	if back.Disk != table.Disk || back.Damaged != nil {
		return "", fmt.Errorf("read back the partition table: the disk GUID is %s, want %s; damage: %v", back.Disk, table.Disk, back.Damaged)
	}
	esp, ok := back.ByName(manifest.RoleESP)
	if !ok {
		return "", fmt.Errorf("the image has no partition named %s", manifest.RoleESP)
	}
	if _, err := (efi.Vars{}).BootFirst(efi.BootEntry{Description: description, Partition: esp, File: bootFile()}); err != nil {
		return "", err
	}
	return table.Disk.String(), nil
}

// bootFile is the default file that firmware starts (UEFI 2.10, 3.5.1.1).
func bootFile() string {
	if runtime.GOARCH == "arm64" {
		return `\EFI\BOOT\BOOTAA64.EFI`
	}
	return `\EFI\BOOT\BOOTX64.EFI`
}

func (h *hardware) EndorsementKey() (public []byte, certificates [][]byte, err error) {
	path, err := boot.WaitTPM(context.Background(), tpmWait)
	if err != nil {
		return nil, nil, advise(err, "switch the TPM 2.0 on in the firmware's set-up")
	}
	t, err := tpm.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	ek, err := t.EK()
	if err != nil {
		return nil, nil, err
	}
	return ek.Public, ek.Certificates, nil
}
