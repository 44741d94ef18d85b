package attest

import "fmt"

// TPMDenial denies TPMs by what their TPM is known to do wrong: it names a range
// of firmware versions of one manufacturer. The version is the firmwareVersion
// that the TPM signs (TPMS_ATTEST), TPM_PT_FIRMWARE_VERSION_1 in its upper and
// _2 in its lower half; what the halves mean is the manufacturer's choice. It is
// the TPM's own statement and binds a TPM that still tells the truth.
type TPMDenial struct {
	Vendor TPMVendor // of the verified endorsement certificate
	// Model restricts the denial to certificates with this model. Optional.
	Model string
	// From and To are the first and the last denied version. To is unlimited
	// if it is 0.
	From, To uint64
	Reason   string // for people, e.g. a CVE
}

// denies reports whether the denial is of this TPM.
func (d *TPMDenial) denies(m TPMModel, firmware uint64) bool {
	return d.Vendor == m.Vendor && (d.Model == "" || d.Model == m.Model) && firmware >= d.From && (d.To == 0 || firmware <= d.To)
}

// checkDenied refuses a TPM whose firmware the policy denies. A certificate that
// names no manufacturer is refused where anything is denied: the rules could not
// be applied to it.
func (v *verification) checkDenied(ek *EndorsementKey, firmware uint64) {
	m := ek.Model()
	if m.Vendor == 0 && len(v.p.TPM.Denied) > 0 {
		v.find(Finding{
			Code:    CodeTPMDenied,
			Message: fmt.Sprintf("the policy denies firmware of some TPMs, but endorsement certificate %s does not name the TPM's manufacturer", certificateName(ek.Certificate())),
			Hint:    "import a certificate with the TPM's manufacturer in it, or deny no TPM firmware",
		})
		return
	}
	for i := range v.p.TPM.Denied {
		d := &v.p.TPM.Denied[i]
		if !d.denies(m, firmware) {
			continue
		}
		reason := ""
		if d.Reason != "" {
			reason = ": " + d.Reason
		}
		v.find(Finding{
			Code:    CodeTPMDenied,
			Message: fmt.Sprintf("the TPM, %s %s, has the firmware version %#018x, which the policy denies%s", m.Vendor, m.Model, firmware, reason),
			Got:     fmt.Sprintf("%#018x", firmware),
			Hint:    "update the TPM's firmware with the maker's tool",
		})
		return
	}
}
