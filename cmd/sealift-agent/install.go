package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
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
	system, err := readSystem()
	if err != nil {
		m.log.Warn("the machine does not say what it is", "err", err)
	}
	flow := install.Flow{
		Server:  server,
		Host:    api.HostKey{MAC: lease.MAC, UUID: system.UUID},
		Serial:  system.Serial,
		Machine: &hardware{config: m.config},
		Verify: func(manifest, sigstore []byte) error {
			return bundle.Verify(manifest, sigstore, []byte(m.config.ImageKey))
		},
		MinDisk: m.config.MinDisk,
		Step:    m.console.Step,
		Log:     m.log,
		Now:     time.Now,
	}
	if err := flow.Run(ctx); err != nil {
		return "", err
	}
	m.console.Step("installed")
	return boot.EndPowerOff, nil
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
