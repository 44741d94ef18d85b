package attest

import "fmt"

// checkMachine compares the evidence with the service's record of the machine.
// proof is nil if there is no valid quote.
func (v *verification) checkMachine(proof *Verified) {
	v.fact("machine.state", stateName(v.known.State), TrustRecorded)
	v.checkState()
	for _, what := range v.known.Damaged {
		v.find(Finding{
			Code:    CodeRecordDamaged,
			Message: fmt.Sprintf("what the service has of %s cannot be read: who machine %s is cannot be told", what, v.r.Machine.Short()),
			Hint:    "a disk fails, or somebody wrote to the database. To have it written anew: " + v.command("approve"),
		})
	}
	v.checkTPMOwner()
	v.checkDisk()
	if proof != nil && v.known.Released && proof.resetCount == v.known.ResetCount && proof.restartCount == v.known.RestartCount {
		v.find(Finding{
			Code:    CodeReleaseRepeated,
			Message: fmt.Sprintf("secrets were already released in this boot (TPM reset %d, restart %d)", proof.resetCount, proof.restartCount),
			Hint:    "restart the machine; if it asked only once, someone else holds its keys: " + v.command("revoke"),
		})
	}
}

func stateName(s EnrolmentState) string {
	if s == StateUnknown {
		return "unknown"
	}
	return string(s)
}

func (v *verification) checkState() {
	id := v.r.Machine.Short()
	reason := ""
	if v.known.StateReason != "" {
		reason = ": " + v.known.StateReason
	}
	f := Finding{Got: stateName(v.known.State), Want: string(StateEnrolled)}
	switch v.known.State {
	case StateEnrolled:
		if v.known.Unproven == "" {
			return
		}
		f.Code, f.Got, f.Want = CodeMachineUnproven, v.known.Unproven, "an entry that enrols it"
		f.Message = fmt.Sprintf("machine %s is enrolled on record%s, and the service's decision log does not say so: it says %s", id, reason, v.known.Unproven)
		f.Hint = "somebody may have written to the database: keep a copy, find out who. Then " + v.command("revoke") + "; if it may have secrets, after that: " + v.command("reinstate")
	case StatePending:
		f.Code, f.Hint = CodeMachinePending, v.command("approve")
		f.Message = fmt.Sprintf("machine %s waits for approval%s", id, reason)
	case StateRevoked:
		f.Code, f.Hint = CodeMachineRevoked, v.command("reinstate")
		f.Message = fmt.Sprintf("machine %s is revoked%s", id, reason)
	case StateQuarantined:
		f.Code, f.Hint = CodeQuarantined, "inspect the machine, then: "+v.command("reinstate")
		f.Message = fmt.Sprintf("machine %s is quarantined%s", id, reason)
	default: // StateUnknown, and any state that this version does not know
		f.Code, f.Hint = CodeMachineUnknown, "install it again, or, if you know it: "+v.command("approve")
		f.Message = fmt.Sprintf("machine %s is not enrolled: no install record names its endorsement key", id)
	}
	v.find(f)
}

// checkTPMOwner refuses a TPM that is another machine already. A TPM can have several
// endorsement keys, each with a certificate, and each would be a machine of its own:
// one box could be enrolled twice, and one that was locked out come back. That two
// keys are in one TPM no certificate says. What proves it is one attestation key that
// was activated with both (Part 1, "Credential Protection").
func (v *verification) checkTPMOwner() {
	for _, id := range v.known.OtherKeys {
		v.fact("tpm.key.other", id.String(), TrustRecorded)
	}
	owner := v.known.TPMOwner
	if owner.IsZero() || owner == v.r.Machine {
		return
	}
	state := stateName(v.known.TPMOwnerState)
	hint := fmt.Sprintf("let the agent use the machine's own endorsement key: it does so by itself if the image is of this version; if the key is to change: sealift machine re-enrol --old %s --new %s --reason TEXT", owner, v.r.Machine)
	switch {
	case v.known.TPMOwnerState == StateEnrolled:
	case v.known.State == StateEnrolled:
		// Both are on record, so a person may have locked out a duplicate.
		hint = fmt.Sprintf("the lock-out is of the hardware, whichever of its keys it shows. Look why machine %s is %s: sealift machine show %s. If only that record was to go, and the box is to stay machine %s: sealift machine re-enrol --old %s --new %s --reason TEXT",
			owner.Short(), state, owner, v.r.Machine.Short(), owner, v.r.Machine)
	default:
		hint = fmt.Sprintf("the lock-out is of the hardware, whichever of its keys it shows: sealift machine show %s", owner)
	}
	v.find(Finding{
		Code:    CodeTPMTaken,
		Message: fmt.Sprintf("the TPM of machine %s is that of machine %s, which is %s: this is another endorsement key of the same TPM", v.r.Machine.Short(), owner.Short(), state),
		Got:     v.r.Machine.String(), Want: owner.String(),
		Hint: hint,
	})
}

func (v *verification) checkDisk() {
	d := v.ev.Disk
	v.fact("disk.guid", d.GUID, TrustClaimed)
	v.fact("disk.state", map[bool]string{true: "present", false: "absent"}[d.StateExists], TrustClaimed)
	if owner := v.known.DiskOwner; !owner.IsZero() && owner != v.r.Machine {
		v.find(Finding{
			Code:    CodeDiskForeign,
			Message: fmt.Sprintf("disk %s belongs to machine %s, not to machine %s: it was moved or copied", d.GUID, owner.Short(), v.r.Machine.Short()),
			Got:     v.r.Machine.String(), Want: owner.String(),
			Hint: "put the disk back, or install this machine anew",
		})
	}
	if v.known.DiskGUID != "" && v.known.DiskGUID != d.GUID {
		v.find(Finding{
			Code:    CodeDiskForeign,
			Message: fmt.Sprintf("machine %s was installed on disk %s, it booted from disk %s", v.r.Machine.Short(), v.known.DiskGUID, d.GUID),
			Got:     d.GUID, Want: v.known.DiskGUID,
			Hint: "put the right disk in, or install this machine anew",
		})
	}
	if v.known.StateMade && !d.StateExists {
		v.find(Finding{
			Code:    CodeStateLost,
			Message: fmt.Sprintf("machine %s had a state partition on disk %s, which is gone: it was wiped, or an older copy of the disk is booted", v.r.Machine.Short(), d.GUID),
			Got:     "absent", Want: "present",
			Hint: "restore the disk, or install this machine anew",
		})
	}
}
