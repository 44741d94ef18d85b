package attest

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/sealift/sealift/image/manifest"
)

// appraisalBanks are the PCR banks that evidence can be appraised by, in the
// order of preference. SHA-1 never suffices. For SHA-512 images have no
// references.
func appraisalBanks() []string { return []string{"sha256", "sha384"} }

// expected returns the digest, in the bank that the log is appraised by, of the
// reference value that an image's manifest names by its SHA-256 digest. It is
// unset if the reference is, or if the manifest has none for the bank.
func (b *measuredBoot) expected(m *manifest.Manifest, d manifest.SHA256) digest {
	switch {
	case d.IsZero():
		return ""
	case b.log.main == "sha256":
		return digest(d[:])
	}
	t, ok := b.in384[m]
	if !ok {
		t = references(m, b.log.main)
		if b.in384 == nil {
			b.in384 = map[*manifest.Manifest]map[manifest.SHA256]digest{}
		}
		b.in384[m] = t
	}
	return t[d]
}

// want writes a reference value for a finding.
func (b *measuredBoot) want(m *manifest.Manifest, d manifest.SHA256) string {
	if d.IsZero() {
		return ""
	}
	if w := b.expected(m, d); !w.IsZero() {
		return w.String()
	}
	return fmt.Sprintf("no %s reference of %s", b.log.main, d)
}

// references returns the digests, in another bank, of what an image's predicted
// boots measure, by their SHA-256 digests.
func references(m *manifest.Manifest, bank string) map[manifest.SHA256]digest {
	t := map[manifest.SHA256]digest{}
	if m == nil {
		return t
	}
	for i := range m.Boots {
		for _, p := range m.Boots[i].PCRs {
			for _, e := range p.Events {
				var d manifest.SHA256
				other, err := hex.DecodeString(e.Digests[bank])
				if err != nil || len(other) == 0 || d.UnmarshalText([]byte(e.Digests["sha256"])) != nil || d.IsZero() {
					continue
				}
				t[d] = digest(other)
			}
		}
	}
	return t
}

// checkAgreement compares the banks with each other. A log has one digest of an
// event for each bank, and nothing makes them digests of the same thing: where
// firmware extends only one of the active banks, whoever boots later can extend
// the other with what a good boot measures, and hand over a log with the true
// digests in the one and the good ones in the other (CVE-2021-42299). So what is
// known of an event by the bank that it is appraised by must hold in the others:
// its data, and the reference value that it equals.
func (v *verification) checkAgreement(l *EventLog, sound map[int]bool, banks []*quoted) {
	main, _ := bankHash(l.main)
	for _, q := range banks {
		index := slices.Index(l.Banks, q.bank)
		hash, ok := bankHash(q.bank)
		if q.bank == l.main || index < 0 || !ok {
			continue
		}
		known := v.knownDigests(l.main, q.bank, main, hash)
		for i := range l.Events {
			e := &l.Events[i]
			if !sound[e.PCR] {
				continue
			}
			want, isKnown := known[e.digest()]
			if _, verified := e.VerifiedData(); verified {
				want, isKnown = hashOf(hash, e.UntrustedData), true
			}
			if !isKnown || bytes.Equal(e.digests[index], []byte(want)) {
				continue
			}
			if v.full(CodeLogStructure, "") {
				v.dropped++
				continue
			}
			v.findPCR(e.PCR, Finding{
				Code: CodeLogStructure,
				Message: fmt.Sprintf("PCR %d, event %d: bank %s has another event than bank %s: digest %x, want %s",
					e.PCR, e.Number, q.bank, l.main, e.digests[index], want),
				Got: hex.EncodeToString(e.digests[index]), Want: want.String(),
				Hint: "one of the banks was not extended by the firmware: deactivate all banks but one in the firmware's setup; if it stays, keep the evidence",
			})
		}
	}
}

// knownDigests returns what images' references and the strings that firmware, stubs
// and kernels measure are in another bank, by their digests in the one that is
// appraised. The rules know these by their digests, whatever data the log has.
func (v *verification) knownDigests(from, to string, fromHash, toHash crypto.Hash) map[digest]digest {
	known := map[digest]digest{}
	add := func(data []byte) { known[hashOf(fromHash, data)] = hashOf(toHash, data) }
	for _, n := range sectionNames() {
		add([]byte(n + "\x00"))
	}
	for _, s := range []string{separator0, separatorF, actionCalling, actionReturning, actionExit, actionExitDone, actionExitFailed} {
		add([]byte(s))
	}
	for i := range v.p.Models {
		r := &v.p.Models[i]
		if v.smbios == nil || !r.forModel(v.smbios) {
			continue
		}
		for _, c := range r.Components {
			if pair := map[string]digest{"sha256": digest(c.SHA256[:]), "sha384": digest(c.SHA384)}; len(c.SHA384) > 0 && !c.SHA256.IsZero() && pair[from] != "" && pair[to] != "" {
				known[pair[from]] = pair[to]
			}
		}
	}
	for _, m := range v.p.Images {
		if m == nil {
			continue
		}
		add(encodeUTF16(m.UKI.Cmdline))
		for i := range m.Boots {
			for _, p := range m.Boots[i].PCRs {
				for _, e := range p.Events {
					a, err := hex.DecodeString(e.Digests[from])
					b, err2 := hex.DecodeString(e.Digests[to])
					if err == nil && err2 == nil && len(a) > 0 && len(b) > 0 {
						known[digest(a)] = digest(b)
					}
				}
			}
		}
	}
	return known
}
