package tpm

import (
	"bytes"
	"crypto/hmac"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/pcrsig"
)

// PCRs that Cap extends, and what it measures into all but the first.
const (
	volumePCR  = 15
	releasePCR = 12
	kernelPCR  = pcrsig.KernelPCR
	released   = "sealift released"
)

// Cap ends the part of a boot in which secrets can be had. It extends, in
// every active bank,
//
//   - PCR 15 with HMAC(volume key, "cryptsetup:"+label+":"+uuid) by the bank's
//     hash, as systemd-cryptsetup does with tpm2-measure-pcr=yes, which shows
//     in later quotes which volume was opened,
//   - PCR 12 with "sealift released", and
//   - PCR 11 with the same, as systemd-pcrphase does at the end of a phase.
//
// After it the transport key's policy fails, the service refuses fresh
// evidence, and the device half does not open: the policies want these PCRs as
// they were before, and no image has a signature for the new PCR 11. label is the
// volume's name without colons, uuid that of its LUKS2 header.
//
// On an error the caller must not go on: it is not known whether a later
// program of this boot could ask for the same secrets.
func (t *TPM) Cap(label string, volumeKey attest.Secret, uuid string) error {
	if err := t.capBanks(label, volumeKey, uuid); err != nil {
		return fmt.Errorf("cap: %w", err)
	}
	return nil
}

func (t *TPM) capBanks(label string, volumeKey attest.Secret, uuid string) error {
	if label == "" || uuid == "" || strings.Contains(label+uuid, ":") {
		return fmt.Errorf("got the label %q and the uuid %q, want both, without a colon", label, uuid)
	}
	if len(volumeKey) < 16 {
		return fmt.Errorf("got a volume key of %d bytes, want at least 16", len(volumeKey))
	}
	banks, err := t.activeBanks()
	if err != nil {
		return err
	}
	err = t.extend(banks, volumePCR, func(b bank) []byte {
		m := hmac.New(b.hash.New, volumeKey)
		m.Write([]byte("cryptsetup:" + label + ":" + uuid))
		return m.Sum(nil)
	})
	// The others are tried even if the first failed: each closes what it can.
	for _, pcr := range []int{releasePCR, kernelPCR} {
		err = errors.Join(err, t.extend(banks, pcr, func(b bank) []byte {
			h := b.hash.New()
			h.Write([]byte(released))
			return h.Sum(nil)
		}))
	}
	return err
}

// extend extends a PCR of each bank with the bank's digest and checks that the
// PCR has changed as it should: TPM2_PCR_Extend (Part 3, 22.2) does not say
// so when a bank lacks the PCR.
func (t *TPM) extend(banks []bank, pcr int, digest func(bank) []byte) error {
	var values tpm2.TPMLDigestValues
	want := make([][]byte, len(banks))
	for i, b := range banks {
		old, err := t.readPCRs(b, []int{pcr})
		if err != nil {
			return err
		}
		d := digest(b)
		values.Digests = append(values.Digests, tpm2.TPMTHA{HashAlg: b.alg, Digest: d})
		h := b.hash.New()
		h.Write(old[pcr])
		h.Write(d)
		want[i] = h.Sum(nil)
	}
	_, err := tpm2.PCRExtend{PCRHandle: hierarchy(tpm2.TPMHandle(pcr)), Digests: values}.Execute(t.transport)
	if err != nil {
		return fmt.Errorf("extend PCR %d: %w", pcr, err)
	}
	for i, b := range banks {
		got, err := t.readPCRs(b, []int{pcr})
		if err != nil {
			return err
		}
		if !bytes.Equal(got[pcr], want[i]) {
			return fmt.Errorf("extend PCR %d: bank %s has %x, want %x", pcr, b.name, got[pcr], want[i])
		}
	}
	return nil
}
