package vm

// archARM64 is the value of Box.Arch for boxes that are not amd64.
const archARM64 = "arm64"

// hardware is what differs between boxes of different architectures.
type hardware struct {
	qemu    string   // program
	machine []string // its arguments for board, processor and flash
	tpm     string   // device that is a TPM with the TIS interface
}

// Emulator is the program that runs the box.
func (b *Box) Emulator() string { return b.hardware("tcg").qemu }

// hardware returns that of the box's architecture.
//
// On amd64 System Management Mode keeps the NVRAM from the operating system.
// QEMU's arm64 board has nothing of the kind, and AAVMF's Secure Boot does
// without: the variables are checked, but whoever has root in the guest could
// write the flash past the firmware. For tests of what is measured both do.
func (b *Box) hardware(accel string) hardware {
	if b.Arch == archARM64 {
		cpu := emulatedCPUARM64
		if accel == "kvm" {
			cpu = "host"
		}
		return hardware{
			qemu:    "qemu-system-aarch64",
			machine: []string{"-machine", "virt,gic-version=max,accel=" + accel, "-cpu", cpu},
			tpm:     "tpm-tis-device",
		}
	}
	cpu := emulatedCPU
	if accel == "kvm" {
		cpu = "host"
	}
	return hardware{
		qemu:    "qemu-system-x86_64",
		machine: []string{"-machine", "q35,smm=on,accel=" + accel, "-cpu", cpu, "-global", "driver=cfi.pflash01,property=secure,value=on"},
		tpm:     "tpm-tis",
	}
}

// emulatedCPUARM64 has the instructions for AES and SHA-2, and not those whose
// emulation costs a multiple of their use, such as pointer authentication,
// which the newest processors have and kernels then use in every function.
const emulatedCPUARM64 = "cortex-a72"
