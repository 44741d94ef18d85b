package attest

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"github.com/sealift/sealift/image/manifest"
)

// secureBoot is what firmware measured into PCR 7.
type secureBoot struct {
	off         bool // SecureBoot was measured as 00
	variables   map[string]*measuredVariable
	authorities []*Event
}

type measuredVariable struct {
	event *Event
	data  []byte
}

// reference returns the SHA-256 digest by which references name the variable. It
// is of the event's data, which was proven to be what was measured, so that it
// holds in whichever bank that was proven.
func (v *measuredVariable) reference() manifest.SHA256 { return sha256.Sum256(v.event.UntrustedData) }

// readSecureBoot decodes PCR 7 (PFP, "PCR[7] - Secure Boot Policy Measurements"). Each EV_EFI_VARIABLE_DRIVER_CONFIG
// event must be of a variable that belongs there, with data that is what was
// measured, once, and before the separator. It returns nil if the PCR's
// digests are not authentic.
func (b *measuredBoot) readSecureBoot() *secureBoot {
	if !b.sound[7] {
		return nil
	}
	sb := &secureBoot{variables: map[string]*measuredVariable{}}
	separated := false
	for _, e := range b.log.ForPCR(7) {
		switch {
		case e.isSeparator():
			separated = true
		case e.UntrustedType == EventAuthority:
			sb.authorities = append(sb.authorities, e)
		case e.UntrustedType == EventVariableConfig:
			b.readVariable(sb, e, separated)
		default:
			b.unknown(e, "nothing but the Secure Boot variables and authorities belongs here", hintInspectLog)
		}
	}
	if v := sb.variables["SecureBoot"]; v != nil {
		sb.off = bytes.Equal(v.data, []byte{0})
	}
	return sb
}

func (b *measuredBoot) readVariable(sb *secureBoot, e *Event, separated bool) {
	data, verified := e.VerifiedData()
	if !verified {
		b.unknown(e, "a variable whose data is not what was measured", hintInspectLog)
		return
	}
	v, err := parseVariable(data)
	if err != nil {
		b.unknown(e, err.Error(), hintInspectLog)
		return
	}
	guid, ok := map[string]string{
		"SecureBoot": guidGlobal, "PK": guidGlobal, "KEK": guidGlobal, "AuditMode": guidGlobal, "DeployedMode": guidGlobal,
		"db": guidSecurity, "dbx": guidSecurity, "dbt": guidSecurity, "dbr": guidSecurity,
	}[v.Name]
	if !ok || guid != v.GUID {
		b.unknown(e, fmt.Sprintf("variable %q of %s does not belong here", cleanText(v.Name), v.GUID), hintInspectLog)
		return
	}
	structure := func(what string) {
		b.v.findPCR(7, Finding{Code: CodeLogStructure, Message: fmt.Sprintf("PCR 7, event %d: variable %s was measured %s", e.Number, v.Name, what), Hint: hintInspectLog})
	}
	if sb.variables[v.Name] != nil {
		structure("twice")
		return
	}
	if separated {
		structure("after the separator")
	}
	sb.variables[v.Name] = &measuredVariable{e, v.Data}
}

// appraiseSecureBoot requires Secure Boot to be on, PK, KEK and db to be those
// that the reference image was signed for, dbx to be one of the policy's if it
// names any, and the image's certificate to be the only authority.
func (b *measuredBoot) appraiseSecureBoot(sb *secureBoot) {
	switch v := sb.variables["SecureBoot"]; {
	case v == nil:
		b.v.findPCR(7, Finding{Code: CodeSecureBootOff, Message: "PCR 7: the variable SecureBoot was not measured", Hint: hintInspectLog})
	case bytes.Equal(v.data, []byte{1}):
		b.v.fact("secureboot", "on", TrustQuoted)
	default:
		b.v.fact("secureboot", "off", TrustQuoted)
		b.v.findPCR(7, Finding{
			Code: CodeSecureBootOff, Message: fmt.Sprintf("PCR 7: Secure Boot is off: the variable SecureBoot is %x, want 01", v.data),
			Got: fmt.Sprintf("%x", v.data), Want: "01",
			Hint: "turn Secure Boot on in the firmware's setup; if its keys were cleared, let the installer enrol them again",
		})
	}
	// Only values that cannot let an unsigned image boot.
	for _, k := range []struct {
		name    string
		allowed []string
	}{{"AuditMode", []string{"\x00"}}, {"DeployedMode", []string{"\x00", "\x01"}}, {"dbt", []string{""}}, {"dbr", []string{""}}} {
		if v := sb.variables[k.name]; v != nil && !slices.Contains(k.allowed, string(v.data)) {
			b.unknown(v.event, fmt.Sprintf("variable %s has a value that no policy allows", k.name), hintInspectLog)
		}
	}
	b.appraiseDBX(sb.variables["dbx"])
	if b.reference == nil {
		return // the policy allows no image, which was found
	}
	ref := &b.reference.SecureBoot
	for _, k := range []struct {
		name string
		want manifest.SHA256
	}{{"PK", ref.PK}, {"KEK", ref.KEK}, {"db", ref.DB}} {
		b.appraiseKeys(sb.variables[k.name], k.name, k.want)
	}
	b.appraiseAuthorities(sb)
}

const hintKeys = "enrol the key set that the image was signed for: put the firmware into setup mode and run the installer; or build the image with the keys of this machine"

func (b *measuredBoot) appraiseKeys(v *measuredVariable, name string, want manifest.SHA256) {
	f := Finding{Code: CodeSecureBootKeys, Component: name, Want: want.String(), Hint: hintKeys}
	image := imageName(b.reference)
	switch {
	case v == nil:
		f.Message = fmt.Sprintf("PCR 7: the variable %s was not measured", name)
		f.Hint = hintInspectLog
	case want.IsZero():
		f.Message, f.Want = fmt.Sprintf("the manifest of image %s has no digest of %s to compare with", image, name), ""
		f.Hint = "build the image with a key directory, and give the service its manifest"
	case v.reference() == want:
		return
	default:
		f.Got = v.reference().String()
		f.Message = fmt.Sprintf("PCR 7: %s holds %s (digest %s), image %s was signed for another %s (digest %s)",
			name, describeSignatures(v.data), f.Got, image, name, want)
	}
	b.v.findPCR(7, f)
}

func (b *measuredBoot) appraiseDBX(v *measuredVariable) {
	if v == nil {
		b.v.findPCR(7, Finding{Code: CodeSecureBootKeys, Component: "dbx", Message: "PCR 7: the variable dbx was not measured", Hint: hintInspectLog})
		return
	}
	d := v.reference()
	b.v.fact("secureboot.dbx", d.String(), TrustQuoted)
	b.appraiseDBXSuperset(v)
	if len(b.v.p.DBX) > 0 && !slices.Contains(b.v.p.DBX, d) {
		var want []string
		for _, a := range b.v.p.DBX[:min(maxListed, len(b.v.p.DBX))] {
			want = append(want, a.String())
		}
		b.v.findPCR(7, Finding{
			Code: CodeSecureBootKeys, Component: "dbx",
			Message: fmt.Sprintf("PCR 7: dbx holds %s (digest %s), which is none of the %d that the policy allows",
				describeSignatures(v.data), d, len(b.v.p.DBX)),
			Got: d.String(), Want: strings.Join(want, " "),
			Hint: "update the machine's dbx, or allow this one in the policy",
		})
	}
}

func (b *measuredBoot) appraiseAuthorities(sb *secureBoot) {
	want := b.reference.SecureBoot.Authority
	seen := false
	for _, e := range sb.authorities {
		if name, ok := b.v.component(7, e); ok {
			b.v.fact("component", "PCR 7: "+name, TrustQuoted)
			continue
		}
		f := Finding{Code: CodeAuthority, Got: e.digest().String(), Want: b.want(b.reference, want),
			Hint: "something signed with another certificate was loaded: " + hintRemoveHardware}
		switch {
		case e.digest() != b.expected(b.reference, want):
			f.Message = fmt.Sprintf("PCR 7, event %d: an image or driver was verified with %s (digest %s), want only the certificate of image %s (digest %s)",
				e.Number, describeAuthority(e), f.Got, imageName(b.reference), f.Want)
		case seen:
			f.Message, f.Hint = fmt.Sprintf("PCR 7, event %d: the certificate of image %s was measured twice", e.Number, imageName(b.reference)), hintInspectLog
		default:
			seen = true
			continue
		}
		b.v.findPCR(7, f)
	}
	if on := sb.variables["SecureBoot"]; on != nil && bytes.Equal(on.data, []byte{1}) && len(sb.authorities) == 0 {
		b.v.findPCR(7, Finding{Code: CodeAuthority, Message: "PCR 7: Secure Boot is on, but no certificate was measured that verified an image",
			Want: want.String(), Hint: hintInspectLog})
	}
}

// describeAuthority names the certificate of an authority event for people.
func describeAuthority(e *Event) string {
	if data, verified := e.VerifiedData(); verified {
		if v, err := parseVariable(data); err == nil && len(v.Data) > 16 {
			return v.describeEntry()
		}
	}
	return "an unknown authority"
}

// describeEntry names what the variable has after the owner's GUID: one entry
// of a signature list (UEFI 2.10, 32.4.1), more than 16 bytes.
func (v *variable) describeEntry() string {
	if c, err := x509.ParseCertificate(v.Data[16:]); err == nil {
		return fmt.Sprintf("the certificate %q of %s", cleanText(c.Subject.String()), cleanText(v.Name))
	}
	return "an entry of " + cleanText(v.Name)
}

// describeSignatures says what is in EFI_SIGNATURE_LISTs, for people.
func describeSignatures(b []byte) string {
	if len(b) == 0 {
		return "nothing"
	}
	entries, err := SignatureEntries(b)
	if err != nil {
		return "damaged signature lists"
	}
	var certs []string
	hashes := 0
	for _, e := range entries {
		if e.Type != guidX509 {
			hashes++
			continue
		}
		certs = append(certs, certificateSubject([]byte(e.Data)))
	}
	var parts []string
	if n := len(certs); n > maxListed {
		certs = append(certs[:maxListed], fmt.Sprintf("and %d more", n-maxListed))
	}
	if len(certs) > 0 {
		parts = append(parts, strings.Join(certs, ", "))
	}
	if hashes > 0 {
		parts = append(parts, fmt.Sprintf("%d hashes", hashes))
	}
	return strings.Join(parts, " and ")
}

// certificateSubject names the certificate of a signature list.
func certificateSubject(der []byte) string {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return "an unreadable certificate"
	}
	return fmt.Sprintf("%q", cleanText(c.Subject.String()))
}
