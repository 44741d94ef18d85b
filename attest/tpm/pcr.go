package tpm

import (
	"crypto"
	_ "crypto/sha1" // of a PCR bank, where one is active
	_ "crypto/sha256"
	_ "crypto/sha512"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// bank is a PCR bank that this package can compute digests for.
type bank struct {
	name string
	alg  tpm2.TPMAlgID
	hash crypto.Hash
}

func knownBanks() []bank {
	return []bank{
		{"sha1", tpm2.TPMAlgSHA1, crypto.SHA1},
		{"sha256", tpm2.TPMAlgSHA256, crypto.SHA256},
		{"sha384", tpm2.TPMAlgSHA384, crypto.SHA384},
		{"sha512", tpm2.TPMAlgSHA512, crypto.SHA512},
	}
}

func bankNamed(name string) (bank, error) {
	for _, b := range knownBanks() {
		if b.name == name {
			return b, nil
		}
	}
	return bank{}, fmt.Errorf("pcr bank %q: want sha1, sha256, sha384 or sha512", name)
}

func (b bank) selection(pcrs ...int) tpm2.TPMLPCRSelection {
	u := make([]uint, len(pcrs))
	for i, p := range pcrs {
		u[i] = uint(p)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash: b.alg, PCRSelect: tpm2.PCClientCompatible.PCRs(u...),
	}}}
}

// activeBanks returns the banks that have any PCR allocated
// (TPM2_GetCapability of TPM_CAP_PCRS, Part 2, 6.12), in the TPM's order. A
// bank that this package cannot compute digests for is an error: it could
// neither be quoted nor capped, and would stay open to whoever comes next.
func (t *TPM) activeBanks() ([]bank, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}.Execute(t.transport)
	if err != nil {
		return nil, fmt.Errorf("list pcr banks: %w", err)
	}
	list, err := rsp.CapabilityData.Data.AssignedPCR()
	if err != nil {
		return nil, fmt.Errorf("list pcr banks: %w", err)
	}
	var banks []bank
next:
	for _, s := range list.PCRSelections {
		active := false
		for _, bits := range s.PCRSelect {
			active = active || bits != 0
		}
		if !active {
			continue
		}
		for _, b := range knownBanks() {
			if b.alg == s.Hash {
				banks = append(banks, b)
				continue next
			}
		}
		return nil, fmt.Errorf("pcr bank with hash algorithm %#x is active, want only sha1, sha256, sha384 and sha512: turn it off in the firmware's setup", uint16(s.Hash))
	}
	if len(banks) == 0 {
		return nil, fmt.Errorf("no pcr bank is active: turn the sha256 bank on in the firmware's setup")
	}
	return banks, nil
}

// mainBank returns the bank to whose state secrets are bound: SHA-256 if it is
// active, else SHA-384. attest.Verify expects the same choice.
func mainBank(active []bank) (bank, error) {
	for _, name := range []string{"sha256", "sha384"} {
		for _, b := range active {
			if b.name == name {
				return b, nil
			}
		}
	}
	return bank{}, errors.New("neither the sha256 nor the sha384 pcr bank is active: turn one of them on in the firmware's setup")
}

// ReadPCR returns the value of PCR index, 0 to 23, of the bank sha1, sha256,
// sha384 or sha512.
func (t *TPM) ReadPCR(bankName string, index int) ([]byte, error) {
	b, err := bankNamed(bankName)
	if err != nil {
		return nil, err
	}
	if index < 0 || index > 23 {
		return nil, fmt.Errorf("pcr %d: want 0 to 23", index)
	}
	values, err := t.readPCRs(b, []int{index})
	if err != nil {
		return nil, err
	}
	return values[index], nil
}

// readPCRs reads PCRs of one bank. They can be from different moments: a TPM
// gives at most eight values at a time.
func (t *TPM) readPCRs(b bank, pcrs []int) (map[int][]byte, error) {
	values := make(map[int][]byte, len(pcrs))
	for len(values) < len(pcrs) {
		var missing []int
		for _, p := range pcrs {
			if values[p] == nil {
				missing = append(missing, p)
			}
		}
		rsp, err := tpm2.PCRRead{PCRSelectionIn: b.selection(missing...)}.Execute(t.transport)
		if err != nil {
			return nil, fmt.Errorf("read %s PCRs %d: %w", b.name, missing, err)
		}
		got := selected(rsp.PCRSelectionOut, b.alg)
		if len(got) == 0 || len(got) != len(rsp.PCRValues.Digests) {
			return nil, fmt.Errorf("read %s PCRs %d: got %d values for PCRs %d: the bank is not active or incomplete", b.name, missing, len(rsp.PCRValues.Digests), got)
		}
		for i, p := range got {
			if !slices.Contains(missing, p) {
				return nil, fmt.Errorf("read %s PCRs %d: got PCR %d, which was not asked for", b.name, missing, p)
			}
			v := rsp.PCRValues.Digests[i].Buffer
			if len(v) != b.hash.Size() {
				return nil, fmt.Errorf("read %s PCR %d: got %d bytes, want %d", b.name, p, len(v), b.hash.Size())
			}
			values[p] = v
		}
	}
	return values, nil
}

// selected lists the PCRs of a selection, in ascending order.
func selected(l tpm2.TPMLPCRSelection, alg tpm2.TPMAlgID) []int {
	var pcrs []int
	for _, s := range l.PCRSelections {
		if s.Hash != alg {
			continue
		}
		for i := range len(s.PCRSelect) * 8 {
			if s.PCRSelect[i/8]&(1<<(i%8)) != 0 {
				pcrs = append(pcrs, i)
			}
		}
	}
	return pcrs
}
