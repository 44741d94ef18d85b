package attest

import "strings"

// Commands that more than one finding names.
const (
	commandLog     = "sealift attest explain ID --write-log log.bin && sealift attest log log.bin"
	commandSetup   = "ipmitool -H BMC chassis bootdev bios && ipmitool -H BMC chassis power cycle"
	commandDBX     = "fwupdmgr update"
	commandRestart = "ipmitool -H BMC chassis power cycle"
	commandBuild   = "sealift image build PROFILE --keys KEYS --out DIR"
	// What is signed counts when a running service goes by it.
	commandPolicy = "sealift policy sign FILE --keys KEYS && sealift policy enable FILE --reason TEXT"
)

// mends returns what a finding is about, unless the finding itself says so, and
// the command that mends it or shows more. ID stands for the machine.
func mends(c Code) (component, command string) {
	switch c {
	case CodeMalformed:
		return "the agent", "sealift attest explain ID --json"
	case CodeChallenge, CodeChallengeKey:
		return "the challenge", "sealift machine show ID"
	case CodeActivation:
		return "the attestation key", "sealift machine revoke ID --reason TEXT"
	case CodeAKAttributes, CodeTransport:
		return "the agent", commandBuild
	case CodeAKChanged:
		return "the attestation key", "sealift machine approve ID --reason TEXT"
	case CodeEKCertificate:
		return "the endorsement certificate", "sealift serve --config FILE"
	case CodeEKMismatch, CodeEKNotSigned:
		return "the endorsement certificate", "sealift machine revoke ID --reason TEXT"
	case CodeTPMClass:
		return "the TPM", commandPolicy
	case CodeBankUnproven, CodeBankHidden, CodeBankEmpty, CodeBankUnlogged:
		return "the PCR banks", commandSetup
	case CodeBankTurnedOff:
		return "the PCR banks", "sealift machine approve ID --reason TEXT"
	case CodeClock:
		return "the TPM's clock", "sealift machine approve ID --reason TEXT"
	case CodeTPMFirmware:
		return "the TPM's firmware", "sealift machine approve ID --reason TEXT"
	case CodeTPMDenied:
		return "the TPM's firmware", "sealift attest explain ID --json"
	case CodeSecureBootOff:
		return "Secure Boot", commandSetup
	case CodeSecureBootKeys:
		return "the Secure Boot keys", commandSetup
	case CodeAuthority:
		return "an option ROM or boot loader", commandPolicy
	case CodeImageUnknown:
		return "the boot application", "sealift policy enable FILE --images DIR --reason TEXT"
	case CodeImageDenied:
		return "the image", commandBuild
	case CodePolicyDates:
		return "the policy", commandPolicy
	case CodeSection:
		return "the UKI", "sealift image verify /dev/DISK --manifest DIR/manifest.json --keys KEYS --installed"
	case CodeCmdline:
		return "the kernel command line", "sealift image verify /dev/DISK --manifest DIR/manifest.json --keys KEYS --installed"
	case CodePCRNotZero:
		return "a command line, credential or extension from outside the image", commandLog
	case CodePCRCapped, CodeReleaseRepeated, CodeReportBoot:
		return "the boot", commandRestart
	case CodeEventUnknown:
		return "an event of the firmware", commandPolicy
	case CodeFirmwareUnknown:
		return "the firmware", "sealift firmware catalogue add FILE IMAGE --vendor VENDOR --product PRODUCT --version VERSION"
	case CodeFirmwareDenied:
		return "the firmware", "sealift firmware campaign create NAME --vendor VENDOR --product PRODUCT --from VERSION --to VERSION --machine ID"
	case CodeFirmwareClaim:
		return "the firmware's version in SMBIOS", "sealift firmware catalogue lint FILE"
	case CodeMachineUnknown, CodeMachinePending:
		return "the machine's enrolment", "sealift machine approve ID --reason TEXT"
	case CodePCRChanged, CodeLogChanged:
		return "the running system", commandRestart
	case CodeSerialMismatch, CodeSerialTaken:
		return "the machine's serial number", "sealift machine show ID"
	case CodeTPMTaken:
		return "the TPM's endorsement key", "sealift machine show ID"
	case CodeRecordDamaged:
		return "the service's record", "sealift machine approve ID --reason TEXT"
	case CodeMachineUnproven:
		return "the machine's enrolment", "sealift machine revoke ID --reason TEXT"
	case CodeMachineRevoked, CodeQuarantined:
		return "the machine's enrolment", "sealift machine reinstate ID --reason TEXT"
	case CodeDiskForeign:
		return "the disk", "sealift machine show ID"
	case CodeStateLost:
		return "the state partition", "sealift machine show ID"
	}
	// Codes that are about a kind of thing as a whole.
	switch kind, _, _ := strings.Cut(string(c), "."); kind {
	case "quote":
		return "the TPM's quote", "sealift attest explain ID --json"
	case "eventlog":
		return "the event log", commandLog
	case "ek":
		return "the endorsement certificate", "sealift serve --config FILE"
	case "tpm":
		return "the TPM", "sealift serve --config FILE"
	}
	return "the evidence", "sealift attest explain ID --json"
}
