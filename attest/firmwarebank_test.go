package attest_test

import (
	"crypto"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/image/manifest"
)

// build is a firmware of the scene's model, with digests in these banks of these
// volumes.
func build(version string, status FirmwareStatus, unpinned int, banks string, volumes ...string) FirmwareReference {
	r := FirmwareReference{Vendor: "Paper", Product: "Box", Version: version, Status: status, Unpinned: unpinned}
	for _, v := range volumes {
		if strings.Contains(banks, "256") {
			r.Digests = append(r.Digests, digestOf(v))
		}
		if strings.Contains(banks, "384") {
			r.SHA384 = append(r.SHA384, hexOf(crypto.SHA384, []byte(v)))
		}
	}
	return r
}

// The scene measures "pei volume" and "dxe volume", with the SMBIOS version 1.0, and
// no version text but where the case has one.
func TestABuildThatCannotBeComparedIsNotTakenForAnother(t *testing.T) {
	const allowed, denied = FirmwareAllowed, FirmwareDenied
	for name, c := range map[string]struct {
		banks  []string
		main   string // by which it is appraised; SHA-256 where it is active
		text   string // of the version, measured
		refs   []FirmwareReference
		policy []FirmwareVerdict // that release
		want   []Code
		as     FirmwareVerdict
		says   string
	}{
		"a denied build, known in the other bank": {
			banks: []string{"sha384"}, refs: []FirmwareReference{build("1.0", denied, 1, "256", "dxe volume")},
			want: []Code{CodeFirmwareUnknown}, as: FirmwareUnknown, says: "1 for this model have no digests of the bank sha384"},
		"a denied build beside an allowed one of the same version text": {
			banks: []string{"sha384"}, text: "1.0", refs: []FirmwareReference{build("1.0", denied, 1, "256", "dxe volume"), build("1.0", allowed, 0, "")},
			want: []Code{CodeFirmwareUnknown}, as: FirmwareUnknown, says: "could be firmware version 1.0, which is denied"},
		"the same where SHA-256 is compared": {
			banks: []string{"sha256", "sha384"}, text: "1.0", refs: []FirmwareReference{build("1.0", denied, 1, "256", "dxe volume"), build("1.0", allowed, 0, "")},
			want: []Code{CodeFirmwareDenied}, as: FirmwareVerdictDenied},
		"the same where SHA-256 is active beside the bank that counts": {
			banks: []string{"sha256", "sha384"}, main: "sha384", text: "1.0", refs: []FirmwareReference{build("1.0", denied, 1, "256", "dxe volume"), build("1.0", allowed, 0, "")},
			want: []Code{CodeFirmwareDenied}, as: FirmwareVerdictDenied},
		"a denied build that SHA-256 shows not to be it": {
			banks: []string{"sha256", "sha384"}, main: "sha384", text: "1.0", refs: []FirmwareReference{build("1.0", denied, 1, "256", "another volume"), build("1.0", allowed, 0, "")},
			as: FirmwareCrossChecked},
		"a denied build of another version than the text that was measured": {
			banks: []string{"sha384"}, text: "1.0", refs: []FirmwareReference{build("0.9", denied, 1, "256", "dxe volume"), build("1.0", allowed, 0, "")},
			as: FirmwareCrossChecked},
		"a denied build of more volumes": {
			banks: []string{"sha384"}, text: "1.0", refs: []FirmwareReference{build("1.0", denied, 2, "256", "dxe volume"), build("1.0", allowed, 0, "")},
			as: FirmwareCrossChecked},
		"a denied build of another model": {
			banks: []string{"sha384"}, text: "1.0", refs: []FirmwareReference{{Vendor: "Other", Version: "1.0", Status: denied, Unpinned: 1, Digests: []manifest.SHA256{digestOf("dxe volume")}}, build("1.0", allowed, 0, "")},
			as: FirmwareCrossChecked},
		"claims, where a denied build could be it": {
			banks: []string{"sha384"}, refs: []FirmwareReference{build("0.9", denied, 1, "256", "dxe volume"), build("1.0", allowed, 0, "384", "other")},
			policy: []FirmwareVerdict{FirmwareMeasured, FirmwareClaimedOnly},
			want:   []Code{CodeFirmwareUnknown}, as: FirmwareUnknown, says: "could be firmware version 0.9"},
		"claims, where none could": {
			banks: []string{"sha384"}, refs: []FirmwareReference{build("0.9", denied, 2, "256", "dxe volume"), build("1.0", allowed, 0, "384", "other")},
			policy: []FirmwareVerdict{FirmwareMeasured, FirmwareClaimedOnly}, as: FirmwareClaimedOnly},

		"an allowed build with an unpinned volume that a denied one pins": {
			banks: []string{"sha384"}, refs: []FirmwareReference{build("1.0", allowed, 1, "256 384", "dxe volume"), build("1.0", denied, 0, "256", "dxe volume", "pei volume")},
			want: []Code{CodeFirmwareUnknown}, as: FirmwareUnknown, says: "could be firmware version 1.0"},
		"an allowed build whose volumes a denied one does not have": {
			banks: []string{"sha384"}, refs: []FirmwareReference{build("1.0", allowed, 1, "256 384", "dxe volume"), build("1.0", denied, 1, "256", "dxe volume of another")},
			want: []Code{CodeFirmwareUnknown}, as: FirmwareUnknown, says: "could be"}, // it may be the unpinned one
		"an allowed build, all pinned, and a denied one of other volumes": {
			banks: []string{"sha384"}, refs: []FirmwareReference{build("1.0", allowed, 0, "256 384", "dxe volume", "pei volume"), build("1.0", denied, 1, "256", "dxe volume of another")},
			as: FirmwareMeasured},
		"an allowed build, all pinned, that a denied one is a part of": {
			banks: []string{"sha384"}, refs: []FirmwareReference{build("1.0", allowed, 0, "256 384", "dxe volume", "pei volume"), build("1.0", denied, 1, "256", "pei volume")},
			want: []Code{CodeFirmwareDenied}, as: FirmwareVerdictDenied}, // as it is where SHA-256 is compared
		"an allowed build whose other digests are not known": {
			banks: []string{"sha384"}, refs: []FirmwareReference{build("1.0", allowed, 0, "384", "dxe volume", "pei volume"), build("1.0", denied, 1, "256", "another volume")},
			want: []Code{CodeFirmwareUnknown}, as: FirmwareUnknown, says: "could be"},

		"a build that is denied in the second bank alone": {
			banks: []string{"sha256", "sha384"}, refs: []FirmwareReference{build("1.0", allowed, 1, "256", "dxe volume"), build("1.0", denied, 1, "384", "dxe volume")},
			want: []Code{CodeFirmwareDenied}, as: FirmwareVerdictDenied},
		"a build that is denied in a bank that is off": {
			banks: []string{"sha256"}, refs: []FirmwareReference{build("1.0", allowed, 0, "256", "dxe volume", "pei volume"), build("1.0", denied, 1, "384", "other")},
			want: []Code{CodeFirmwareUnknown}, as: FirmwareUnknown, says: "no digest of the bank sha256"},
		"an allowed build of the other bank, of the version text": {
			banks: []string{"sha384"}, text: "1.0", refs: []FirmwareReference{build("1.0", allowed, 1, "256", "dxe volume")},
			want: []Code{CodeFirmwareUnknown}, as: FirmwareClaimedOnly},
		"an allowed build of the second bank, of the version text": {
			banks: []string{"sha256"}, text: "1.0", refs: []FirmwareReference{build("1.0", allowed, 1, "384", "dxe volume")},
			want: []Code{CodeFirmwareUnknown}, as: FirmwareClaimedOnly},
		"both banks, where SHA-256 covers": {
			banks: []string{"sha256", "sha384"}, refs: []FirmwareReference{build("1.0", allowed, 1, "256", "dxe volume"), build("0.9", denied, 1, "256", "dxe volume 0")},
			as: FirmwareMeasured, says: "firmware.bank.uncompared=sha384"},
		"digests that cannot be read": {
			banks: []string{"sha384"}, text: "1.0", refs: []FirmwareReference{{Vendor: "Paper", Product: "Box", Version: "1.0", Status: denied, SHA384: []string{"xyz"}}, build("1.0", allowed, 0, "")},
			want: []Code{CodeFirmwareUnknown}, as: FirmwareUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			s := sha384Scene(t, c.banks...)
			if c.main != "" {
				s.policy.Bank = c.main
			}
			if c.text != "" {
				s.Measured[0].Data = []byte(c.text)
			}
			s.policy.Firmware = FirmwarePolicy{References: c.refs, Release: c.policy}
			// Denied builds win wherever they are listed.
			for range 2 {
				slices.Reverse(s.policy.Firmware.References)
				s.collect()
				r := s.verify()
				if got := codesOf(r); !slices.Equal(got, c.want) || r.Allowed != (len(c.want) == 0) {
					t.Errorf("codes are %q, want %q: %+v", got, c.want, r.Findings)
				}
				if r.Firmware.Verdict != c.as {
					t.Errorf("verdict is %q, want %q", r.Firmware.Verdict, c.as)
				}
				text := ""
				for _, f := range r.Findings {
					text += f.Message
				}
				for _, f := range r.Facts {
					text += " " + f.Name + "=" + f.Value
				}
				if !strings.Contains(text, c.says) {
					t.Errorf("nothing says %q: %s", c.says, text)
				}
			}
		})
	}
}

// An option ROM has no data in the log. It is known in the SHA-384 bank if the policy
// names it there.
func TestComponentsAreNamedInTheBankThatIsAppraised(t *testing.T) {
	sha384 := func(s string) []byte {
		b, _ := hex.DecodeString(hexOf(crypto.SHA384, []byte(s)))
		return b
	}
	for name, c := range map[string]struct {
		banks     []string
		component Component
		digests   [2]string // measured in SHA-256 and SHA-384, if not the ROM
		want      []Code
	}{
		"named in SHA-256, where it is off": {banks: []string{"sha384"}, component: Component{PCR: 2, SHA256: digestOf("rom")}, want: []Code{CodeEventUnknown}},
		"named in SHA-384":                  {banks: []string{"sha384"}, component: Component{PCR: 2, SHA256: digestOf("rom"), SHA384: sha384("rom")}},
		"another than is named":             {banks: []string{"sha384"}, component: Component{PCR: 2, SHA256: digestOf("rom"), SHA384: sha384("another rom")}, want: []Code{CodeEventUnknown}},
		"named for another PCR":             {banks: []string{"sha384"}, component: Component{PCR: 3, SHA384: sha384("rom")}, want: []Code{CodeEventUnknown}},
		"named in SHA-384, SHA-256 appraised": {banks: []string{"sha256", "sha384"}, component: Component{PCR: 2, SHA256: digestOf("another rom"), SHA384: sha384("rom")},
			want: []Code{CodeEventUnknown}},
		"named in SHA-256, both active":       {banks: []string{"sha256", "sha384"}, component: Component{PCR: 2, SHA256: digestOf("rom")}},
		"named in both, both active":          {banks: []string{"sha256", "sha384"}, component: Component{PCR: 2, SHA256: digestOf("rom"), SHA384: sha384("rom")}},
		"named in both, another in SHA-384":   {banks: []string{"sha256", "sha384"}, component: Component{PCR: 2, SHA256: digestOf("rom"), SHA384: sha384("rom")}, digests: [2]string{"rom", "evil rom"}, want: []Code{CodeLogStructure}},
		"named in none, with an empty digest": {banks: []string{"sha384"}, component: Component{PCR: 2, SHA384: []byte{}}, want: []Code{CodeEventUnknown}},
	} {
		t.Run(name, func(t *testing.T) {
			s := sha384Scene(t, c.banks...)
			s.policy.Firmware.References = []FirmwareReference{build("1.0", FirmwareAllowed, 1, "256 384", "dxe volume")}
			s.policy.Models = []ModelRule{{Components: []Component{c.component}}}
			rom := papertpm.Measurement{PCR: 2, Type: EventBootDriver, Data: []byte("path"), Measured: []byte("rom")}
			if c.digests != [2]string{} {
				split(&rom, c.digests[0], c.digests[1])
			}
			s.insertAfter(of("dxe volume"), rom)
			s.collect()
			if got := codesOf(s.verify()); !slices.Equal(got, c.want) {
				t.Errorf("codes are %q, want %q", got, c.want)
			}
		})
	}
}
