package inspect

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sealift/sealift/attest/tpm/pcrsig"
	"github.com/sealift/sealift/image/disk"
	"github.com/sealift/sealift/image/efivar"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/pe"
	"github.com/sealift/sealift/image/predict"
	"github.com/sealift/sealift/image/uki"
	"github.com/sealift/sealift/profiles"
)

// maxUKI bounds a UKI, bytes: it is read into memory as firmware does.
const maxUKI = 512 << 20

func (v *verifier) ukiJobs() []job {
	return []job{
		result("uki.file", v.checkUKIFile),
		result("uki.layout", on(v.uki, v.checkPE)),
		result("uki.signature", on(v.uki, v.checkSignature)),
		result("uki.reference", on(v.uki, func(image []byte) (string, error) { return checkReference("uki", image, &v.m.UKI) })),
		result("uki.cmdline", on(v.uki, v.checkCmdline)),
		result("uki.uname", v.checkUname(v.uki, profiles.ModeBoot)),
		result("uki.debug", v.checkDebug(v.uki, profiles.ModeBoot)),
		result("uki.policy", on(v.uki, v.checkPolicy)),
		result("uki.initrd", on(v.uki, v.checkInitrd)),
		result("secureboot.reference", v.checkSecureBoot),
		result("boots.reference", v.checkBoots),
	}
}

// on makes a check of one that needs a UKI.
func on(get func() ([]byte, error), check func([]byte) (string, error)) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		image, err := get()
		if err != nil {
			return "", err
		}
		return check(image)
	}
}

// readUKI reads the file that firmware starts from the ESP.
func (v *verifier) readUKI() ([]byte, error) {
	f, err := v.esp()
	if err != nil {
		return nil, fmt.Errorf("read it from the ESP: %w", err)
	}
	boot, err := disk.BootPath(v.m.Arch)
	if err != nil {
		return nil, err
	}
	for _, e := range f.Entries {
		if e.Path == boot && !e.Dir {
			return f.ReadFile(e, maxUKI)
		}
	}
	return nil, fmt.Errorf("the ESP has no %s", boot)
}

func (v *verifier) checkUKIFile(context.Context) (string, error) {
	image, err := v.uki()
	if err != nil {
		return "", err
	}
	a, listed := v.m.Artifact(manifest.KindUKI)
	if !listed {
		return "", errors.New("the manifest lists no UKI")
	}
	if err := same("size of the UKI on the ESP", int64(len(image)), a.Size); err != nil {
		return "", err
	}
	got := manifest.SHA256(sha256.Sum256(image))
	return got.String(), same("SHA-256 of the UKI on the ESP", got, a.SHA256)
}

// checkPE finds bytes of a UKI that neither a section nor a header accounts
// for. The Authenticode digest passes over gaps between sections.
func (v *verifier) checkPE(image []byte) (string, error) {
	f, err := pe.Parse(image)
	if err != nil {
		return "", err
	}
	sections := slices.DeleteFunc(slices.Clone(f.Sections), func(s pe.Section) bool { return s.RawSize == 0 })
	slices.SortFunc(sections, func(a, b pe.Section) int { return cmp.Compare(a.RawOffset, b.RawOffset) })
	at := uint64(f.SizeOfHeaders)
	for _, s := range sections {
		if uint64(s.RawOffset) != at {
			return "", fmt.Errorf("section %s begins at %#x, the one before ends at %#x: the bytes between are in no section", s.Name, s.RawOffset, at)
		}
		at += uint64(s.RawSize)
		if i := nonZero(s.Raw()[len(s.Data()):]); i >= 0 {
			return "", fmt.Errorf("section %s has data at byte %d, behind its size of %d", s.Name, len(s.Data())+i, s.VirtualSize)
		}
	}
	signatures, err := f.Signatures()
	if err != nil {
		return "", err
	}
	var signed uint64
	for _, der := range signatures {
		signed += (uint64(len(der)) + 8 + 7) &^ 7 // with the entry's header and padding
	}
	if end := (at+7)&^7 + signed; end != uint64(len(image)) {
		return "", fmt.Errorf("its sections and signatures end at %#x, the file at %#x", end, len(image))
	}
	wantMachine := map[string]uint16{"amd64": pe.MachineAMD64, "arm64": pe.MachineARM64}[v.m.Arch]
	if err := same("machine", fmt.Sprintf("%#x", f.Machine), fmt.Sprintf("%#x", wantMachine)); err != nil {
		return "", err
	}
	if stamp := binary.LittleEndian.Uint32(image[f.Offsets().COFF+4:]); int64(stamp) != v.m.Epoch {
		return "", &Mismatch{What: "time stamp", Got: fmt.Sprint(stamp), Want: fmt.Sprintf("%d, the epoch", v.m.Epoch)}
	}
	return fmt.Sprintf("%d sections, no byte outside of them", len(f.Sections)), nil
}

func (v *verifier) checkSignature(image []byte) (string, error) {
	f, err := pe.Parse(image)
	if err != nil {
		return "", err
	}
	if v.Keys.DB == nil {
		return "", errors.New("cannot be checked without the db certificate")
	}
	signatures, err := f.Signatures()
	if err != nil {
		return "", err
	}
	if err := same("number of signatures", len(signatures), 1); err != nil {
		return "", err
	}
	c, err := f.Verify(v.Keys.DB)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("Authenticode, by %q in db", c.Subject.CommonName), nil
}

// checkReference predicts what booting a UKI measures, and compares every value.
func checkReference(prefix string, image []byte, want *manifest.UKI) (string, error) {
	got, err := uki.Predict(image)
	if err != nil {
		return "", err
	}
	n, err := sameJSON(prefix, got, want)
	return fmt.Sprintf("systemd-stub %s, %d sections, %d values", got.StubVersion, len(got.Sections), n), err
}

// peSection returns a section's content.
func peSection(image []byte, name string) ([]byte, error) {
	f, err := pe.Parse(image)
	if err != nil {
		return nil, err
	}
	s, found, err := f.Section(name)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("the UKI has no section %s", name)
	}
	return s.Data(), nil
}

// cmdlineHash returns the root hash that a command line names exactly once.
func cmdlineHash(cmdline string) (manifest.SHA256, error) {
	var found []string
	for _, p := range strings.Fields(cmdline) {
		if name, value, _ := strings.Cut(p, "="); name == profiles.ParamRootHash {
			found = append(found, value)
		}
	}
	var d manifest.SHA256
	if len(found) != 1 {
		return d, fmt.Errorf("the command line has %s %d times, want once", profiles.ParamRootHash, len(found))
	}
	err := d.UnmarshalText([]byte(found[0]))
	if err == nil && d.String() != found[0] {
		err = errors.New("it is not in lower case")
	}
	if err != nil {
		return d, fmt.Errorf("parameter %s: %w", profiles.ParamRootHash, err)
	}
	return d, nil
}

func (v *verifier) checkCmdline(image []byte) (string, error) {
	cmdline, err := peSection(image, ".cmdline")
	if err != nil {
		return "", err
	}
	got, err := cmdlineHash(string(cmdline))
	if err != nil {
		return "", err
	}
	return "names the root hash, once", same("root hash in the command line", got, v.m.Root.RootHash)
}

// checkUname makes a check that a UKI and the modules for it are of the kernel
// that is in it, by the kernel's own word.
func (v *verifier) checkUname(get func() ([]byte, error), mode string) func(context.Context) (string, error) {
	return on(get, func(image []byte) (string, error) {
		release, err := uki.CheckUname(image)
		var other *uki.UnameError
		if errors.As(err, &other) {
			return "", same("section .uname, against the kernel,", other.Uname, other.Kernel)
		}
		if err != nil {
			return "", err
		}
		in, err := v.initrds[mode]()
		if err != nil {
			return "", err
		}
		files := in.files
		if mode == profiles.ModeBoot {
			root, err := v.root()
			if err != nil {
				return "", err
			}
			files = slices.Concat(files, root.Files)
		}
		modules := 0
		for _, f := range files {
			rest, ok := strings.CutPrefix(f.Path, modulesDir)
			if !ok {
				continue
			}
			if dir, _, _ := strings.Cut(rest, "/"); dir != release {
				return "", fmt.Errorf("%s is not for kernel %s", f.Path, release)
			}
			if moduleName(f.Path) != "" {
				modules++
			}
		}
		return fmt.Sprintf("%s, as the kernel says, with %d modules for it", release, modules), nil
	})
}

// modulesDir has a directory for each kernel release.
const modulesDir = "/usr/lib/modules/"

// debugMark is how a mark is told.
func debugMark(debug bool) string {
	if debug {
		return "marked debug"
	}
	return "not marked debug"
}

// osReleasePath is where the root file system has what is in section .osrel.
const osReleasePath = "/etc/os-release"

// checkDebug makes a check that a UKI and the agent in it are marked debug if
// the manifest is, and only then.
func (v *verifier) checkDebug(get func() ([]byte, error), mode string) func(context.Context) (string, error) {
	return on(get, func(image []byte) (string, error) {
		release, err := peSection(image, ".osrel")
		if err != nil {
			return "", err
		}
		_, c, _, err := v.agentConfig(mode)
		if err != nil {
			return "", err
		}
		want := debugMark(v.m.Debug)
		differ := present(
			same("section .osrel", debugMark(profiles.MarkedDebug(release)), want),
			same("the agent", debugMark(c.Debug), want),
		)
		if mode == profiles.ModeBoot {
			root, err := v.root()
			if err != nil {
				return "", err
			}
			differ = append(differ, present(same(osReleasePath, string(root.Kept[osReleasePath]), string(release)))...)
		}
		if v.m.Debug {
			want += ", not for production"
		}
		return want, several(differ)
	})
}

// checkPolicy checks that .pcrsig allows PCR 11 as this UKI leaves it and
// nothing else, by the key in .pcrpkey.
func (v *verifier) checkPolicy(image []byte) (string, error) {
	text, err := peSection(image, ".pcrpkey")
	if err != nil {
		return "", err
	}
	key, err := rsaPublic(text)
	if err != nil {
		return "", fmt.Errorf("section .pcrpkey: %w", err)
	}
	if v.Keys.PCR == nil {
		return "", errors.New("cannot be checked without the PCR key")
	}
	if !v.Keys.PCR.Equal(key) {
		got, want := pcrsig.KeyID(key), pcrsig.KeyID(v.Keys.PCR)
		return "", &Mismatch{What: "key in .pcrpkey", Got: hex.EncodeToString(got[:]), Want: hex.EncodeToString(want[:])}
	}
	file, err := peSection(image, ".pcrsig")
	if err != nil {
		return "", err
	}
	entries, err := pcrsig.Parse(file)
	if err != nil {
		return "", err
	}
	u, err := uki.Predict(image)
	if err != nil {
		return "", err
	}
	id := pcrsig.KeyID(key)
	var banks []string
	for _, e := range entries {
		if slices.Contains(banks, e.Bank) {
			return "", fmt.Errorf("bank %s has more than one signed policy", e.Bank)
		}
		banks = append(banks, e.Bank)
		pcr11, err := hex.DecodeString(u.PCRs[e.Bank][pcrsig.KernelPCR])
		if err != nil {
			return "", err
		}
		want, err := pcrsig.PolicyDigest(e.Bank, map[int][]byte{pcrsig.KernelPCR: pcr11})
		if err != nil {
			return "", err
		}
		if !slices.Equal(e.PCRs, []int{pcrsig.KernelPCR}) || !bytes.Equal(e.Policy[:], want) {
			return "", &Mismatch{What: fmt.Sprintf("signed policy of bank %s, for PCRs %v,", e.Bank, e.PCRs), Got: hex.EncodeToString(e.Policy[:]), Want: hex.EncodeToString(want) + " for PCR 11"}
		}
		if e.KeyID != id {
			return "", &Mismatch{What: "key of the signed policy", Got: hex.EncodeToString(e.KeyID[:]), Want: hex.EncodeToString(id[:])}
		}
		if err := e.Verify(key); err != nil {
			return "", err
		}
	}
	// Images of before have no policy of the SHA-384 bank.
	if !slices.Contains(banks, "sha256") {
		return "", errors.New("no policy of the sha256 bank is signed")
	}
	return "PCR 11 as predicted is signed by the PCR key", nil
}

// rsaPublic reads a public key, PKIX in one PEM block.
func rsaPublic(text []byte) (*rsa.PublicKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("it is not exactly one PEM block \"PUBLIC KEY\"")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	public, ok := key.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("it is %T, want RSA", key)
	}
	return public, nil
}

// checkInitrd reads the initramfs and the agent's configuration in it.
func (v *verifier) checkInitrd(image []byte) (string, error) {
	n, c, _, err := v.agentConfig(profiles.ModeBoot)
	if err != nil {
		return "", err
	}
	text, err := peSection(image, ".pcrpkey")
	if err != nil {
		return "", err
	}
	stub, err := rsaPublic(text)
	if err != nil {
		return "", fmt.Errorf("section .pcrpkey: %w", err)
	}
	agent, err := rsaPublic([]byte(c.PCRKey))
	if err != nil {
		return "", fmt.Errorf("PCR key of the agent: %w", err)
	}
	if !stub.Equal(agent) {
		return "", errors.New("the agent has another PCR key than section .pcrpkey")
	}
	return fmt.Sprintf("%d files, the agent in mode %s for %q", n, c.Mode, c.Image), nil
}

// initramfs is what is in one: all files, and the content of those that the
// agent reads.
type initramfs struct {
	files []File
	kept  map[string][]byte
}

func readInitramfs(image func() ([]byte, error)) (*initramfs, error) {
	b, err := image()
	if err != nil {
		return nil, err
	}
	initrd, err := peSection(b, ".initrd")
	if err != nil {
		return nil, err
	}
	vars := profiles.SecureBootDir + "/"
	files, kept, err := ReadInitrd(initrd, func(path string) bool { return path == profiles.AgentConfigPath || strings.HasPrefix(path, vars) })
	return &initramfs{files, kept}, err
}

// agentConfig reads the initramfs of a mode: how many files it has, the agent's
// configuration, and the Secure Boot variables that an installer has.
func (v *verifier) agentConfig(mode string) (n int, _ *profiles.AgentConfig, auth map[string][]byte, err error) {
	in, err := v.initrds[mode]()
	if err != nil {
		return 0, nil, nil, err
	}
	files := in.files
	for _, f := range files {
		if f.MTime != v.m.Epoch || f.UID != 0 || f.GID != 0 {
			return 0, nil, nil, fmt.Errorf("%s has owner %d:%d and time %d, want 0:0 and %d, the epoch", f.Path, f.UID, f.GID, f.MTime, v.m.Epoch)
		}
	}
	d := json.NewDecoder(bytes.NewReader(in.kept[profiles.AgentConfigPath]))
	d.DisallowUnknownFields()
	var c profiles.AgentConfig
	if err := d.Decode(&c); err != nil {
		return 0, nil, nil, fmt.Errorf("%s: %w", profiles.AgentConfigPath, err)
	}
	if err := same("mode of the agent", c.Mode, mode); err != nil {
		return 0, nil, nil, err
	}
	if err := same("image of the agent", c.Image, v.m.Name+" "+v.m.Version); err != nil {
		return 0, nil, nil, err
	}
	auth = maps.Clone(in.kept)
	delete(auth, profiles.AgentConfigPath)
	return len(files), &c, auth, nil
}

// enrolment returns the Secure Boot keys that the image is verified for.
func (v *verifier) enrolment() (efivar.Enrolment, error) {
	if v.Keys.PK == nil || v.Keys.KEK == nil || v.Keys.DB == nil {
		return efivar.Enrolment{}, errors.New("cannot be checked without the certificates of PK, KEK and db")
	}
	return efivar.Enrolment{PK: v.Keys.PK, KEK: v.Keys.KEK, DB: v.Keys.DB}, nil
}

func (v *verifier) checkSecureBoot(context.Context) (string, error) {
	e, err := v.enrolment()
	if err != nil {
		return "", err
	}
	got, err := e.SecureBoot()
	if err != nil {
		return "", err
	}
	n, err := sameJSON("secureBoot", got, v.m.SecureBoot)
	return fmt.Sprintf("%d values from PK, KEK and db", n), err
}

// checkBoots predicts the events of each boot and compares every value.
func (v *verifier) checkBoots(context.Context) (string, error) {
	e, err := v.enrolment()
	if err != nil {
		return "", err
	}
	in := predict.Input{Enrolments: []efivar.Enrolment{e}}
	if in.UKI, err = v.uki(); err != nil {
		return "", err
	}
	boots := v.m.Boots
	switch {
	case !v.hasInstaller(): // so that no boot may be of one
	case v.DiskOnly:
		boots = slices.DeleteFunc(slices.Clone(boots), func(b manifest.Boot) bool { return b.Artifact == manifest.KindInstaller })
	default:
		if in.Installer, err = v.installer(); err != nil {
			return "", err
		}
	}
	got, err := predict.Boots(in)
	if err != nil {
		return "", err
	}
	n, err := sameJSON("boots", got, boots)
	return fmt.Sprintf("%d boots, %d values", len(got), n), err
}
