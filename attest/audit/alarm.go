package audit

// KindAlarm is the kind of an entry that a person must look at: something that
// happens when a secret or an identity is misused, and seldom otherwise. It is
// written with the entry of the decision that it is about.
const KindAlarm Kind = "alarm" // Alarm

// AlarmName says what an alarm is about.
type AlarmName string

// Names of alarms. They are stable, like kinds.
const (
	// AlarmReleaseRepeated: a machine asked for a second release in one boot.
	// The first went to it or to somebody else; a box whose first answer was
	// lost on the way raises it, too.
	AlarmReleaseRepeated AlarmName = "release.repeated"
	// AlarmEvidenceTampered: evidence that a machine's TPM proves to be its own
	// has findings that are signs of tampering.
	AlarmEvidenceTampered AlarmName = "evidence.tampered"
	// AlarmMachineMisused: evidence has findings that say that an identity, a disk
	// or a key is where it does not belong.
	AlarmMachineMisused AlarmName = "machine.misused"
	// AlarmBanksFailed: the proof of its active PCR banks that a machine gave does
	// not hold, or shows a bank that it does not quote, and its evidence raises no
	// AlarmEvidenceTampered for that: the policy may only ask for the proof, so that
	// the machine can have been released.
	AlarmBanksFailed AlarmName = "banks.proof-failed"
	// AlarmConfirmContradicted: a release whose end was confirmed was confirmed
	// again with another outcome. Only the machine knows the release's id; that
	// the second came from it is not proven.
	AlarmConfirmContradicted AlarmName = "release.confirm-contradicted"
	// AlarmTokenRefused: a join token was used to ask for a certificate that is
	// not the one that it was minted for. The token was taken back.
	AlarmTokenRefused AlarmName = "token.request-refused"
	// AlarmTokenMisused: the cluster gave a certificate to the holder of a join
	// token that it was not minted for. The token was taken back; the
	// certificate is valid until the cluster's owner ends it.
	AlarmTokenMisused AlarmName = "token.misused"
	// AlarmForeignNode: while a join token was open, a node appeared that had
	// none. The token was taken back, as nothing else tells whether it was used.
	AlarmForeignNode AlarmName = "token.foreign-node"
	// AlarmWrongListener: somebody asked for the operator API on the listener of
	// the nodes, as no agent does.
	AlarmWrongListener AlarmName = "operator-api.from-nodes"
	// AlarmRevokedOperator: a revoked certificate of an operator was shown by
	// somebody who has its key.
	AlarmRevokedOperator AlarmName = "operator.revoked"
	// AlarmPolicyBack: the service goes by an older policy than before, by one of
	// another name, or by none. One approver can have that done.
	AlarmPolicyBack AlarmName = "policy.step-back"
	// AlarmPolicyUnproven: the store says that the service goes by a policy, or by
	// none, and that is not what the service signed last. Nothing is released.
	AlarmPolicyUnproven AlarmName = "policy.unproven"
	// AlarmLogAltered: the decision log does not go on from where the service saw
	// it last. Nothing is released.
	AlarmLogAltered AlarmName = "audit.altered"
	// AlarmMachineUnproven: the store says that a machine is enrolled, or to be
	// enrolled, and the decision log does not. It is given nothing.
	AlarmMachineUnproven AlarmName = "machine.unproven"
	// AlarmEnrolmentUnproven: the decision log has an entry that enrols a machine, or
	// puts one on a list, and that the service did not sign, or not so. It does not count.
	AlarmEnrolmentUnproven AlarmName = "enrolment.unproven"
)

// AlarmNames returns all of them.
func AlarmNames() []AlarmName {
	return []AlarmName{
		AlarmReleaseRepeated, AlarmEvidenceTampered, AlarmMachineMisused, AlarmBanksFailed, AlarmConfirmContradicted, AlarmTokenRefused, AlarmTokenMisused, AlarmForeignNode,
		AlarmWrongListener, AlarmRevokedOperator, AlarmRecoveryGiven, AlarmRecoveryRefused,
		AlarmPolicyBack, AlarmPolicyUnproven, AlarmLogAltered, AlarmMachineUnproven, AlarmEnrolmentUnproven,
	}
}

// Alarm records what a person must look at. The entry's machine is the one
// whose secret or identity it is about.
type Alarm struct {
	Name AlarmName `json:"name"`
	What string    `json:"what"` // in words
	// Peer is the address that the request came from, or the name of an
	// operator. Empty if there is none.
	Peer string `json:"peer,omitempty"`
}
