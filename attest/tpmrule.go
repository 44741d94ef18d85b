package attest

import (
	"fmt"
	"math"
	"slices"
)

// TPMRule names TPMs that a policy treats otherwise: those of a manufacturer, or
// that of one machine. What it goes by is proven. The endorsement key is, by
// TPM2_ActivateCredential; manufacturer and model are the word of the authority that
// vouches for it, and count only if its root is there for named manufacturers and no
// others: an authority that may vouch for any could be made to write any. What SMBIOS
// claims, or the machine says of its TPM, puts nobody under a rule.
type TPMRule struct {
	Vendor TPMVendor // of the verified endorsement certificate
	// Model restricts it to certificates with this model. Optional.
	Model string
	// Below restricts it to TPMs whose firmwareVersion (TPMS_ATTEST), as the TPM
	// signs it, is lower. Optional; 0 is any.
	Below   uint64
	Machine MachineID // the only machine that it is for, in place of Vendor
	Reason  string    // for people
}

// of reports whether the rule is for this TPM. The zero value is for none.
func (x *TPMRule) of(id MachineID, ek *EndorsementKey, firmware uint64) bool {
	switch {
	case ek == nil:
		return false
	case !x.Machine.IsZero():
		return x.Vendor == 0 && x.Machine == id
	}
	return x.Vendor != 0 && ek.named && ek.model.Vendor == x.Vendor &&
		(x.Model == "" || x.Model == ek.model.Model) && (x.Below == 0 || firmware < x.Below)
}

// tpmRule returns the first of the rules that is for this TPM, or nil. quotes are
// those that are valid.
func (v *verification) tpmRule(rules []TPMRule, quotes []*quoted) *TPMRule {
	firmware := uint64(math.MaxUint64)
	for i, q := range quotes {
		if i == 0 || q.time.firmware > firmware {
			firmware = q.time.firmware
		}
	}
	i := slices.IndexFunc(rules, func(x TPMRule) bool { return x.of(v.r.Machine, v.ek, firmware) })
	if i < 0 {
		return nil
	}
	return &rules[i]
}

// tpmRuleLine returns the line of a policy that puts this TPM under a list of rules.
func (v *verification) tpmRuleLine(list string) string {
	switch ek := v.ek; {
	case ek == nil || !ek.named || ek.model.Vendor == 0:
		return fmt.Sprintf("tpm.%s: [{machine: %q, reason: TEXT}]", list, v.r.Machine)
	case ek.model.Model == "":
		return fmt.Sprintf("tpm.%s: [{vendor: %q, reason: TEXT}]", list, ek.model.Vendor)
	default:
		return fmt.Sprintf("tpm.%s: [{vendor: %q, model: %q, reason: TEXT}]", list, ek.model.Vendor, ek.model.Model)
	}
}
