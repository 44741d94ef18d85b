// Package ukitest makes what stands for a kernel in tests: an EFI program that
// does nothing, but says what it is where Linux does. Kernel is the way in.
package ukitest

import (
	"encoding/binary"
	"fmt"

	"github.com/sealift/sealift/image/pe"
)

// Kernel returns a program for a machine (pe.MachineAMD64, pe.MachineARM64) with
// the release in a bzImage's setup header, or in the banner of an arm64 Image.
// Equal input gives equal bytes.
func Kernel(machine uint16, release string) []byte {
	const (
		header   = 0x40
		optional = header + 4 + 20
		table    = optional + 112 + 6*8
		text     = 0x400 // setup: a boot sector and one more
		size     = 64 << 10
		version  = 0x300
	)
	b := make([]byte, text+size)
	le := binary.LittleEndian
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], header)
	copy(b[header:], "PE\x00\x00")
	le.PutUint16(b[header+4:], machine)
	le.PutUint16(b[header+6:], 1) // sections
	le.PutUint16(b[header+20:], table-optional)
	le.PutUint16(b[header+22:], 0x206) // executable, no line numbers, no debug data
	o := b[optional:]
	le.PutUint16(o, 0x20b) // PE32+
	le.PutUint32(o[4:], size)
	le.PutUint32(o[16:], 0x1000) // entry point
	le.PutUint32(o[20:], 0x1000) // base of code
	le.PutUint32(o[32:], 0x1000)
	le.PutUint32(o[36:], 0x200)
	le.PutUint32(o[56:], 0x1000+size)
	le.PutUint32(o[60:], text)
	le.PutUint16(o[68:], 10) // EFI application
	le.PutUint32(o[108:], 6)
	s := b[table:]
	copy(s, ".text")
	le.PutUint32(s[8:], size)
	le.PutUint32(s[12:], 0x1000)
	le.PutUint32(s[16:], size)
	le.PutUint32(s[20:], text)
	le.PutUint32(s[36:], 0x60000020) // code, executable, readable
	for i := range b[text:] {
		b[text+i] = byte(i * i >> 5)
	}
	said := release + " (builder@example) #1 SMP"
	if machine == pe.MachineARM64 {
		copy(b[0x38:], "ARM\x64")
		copy(b[text+0x100:], "Linux version "+said+"\n\x00")
		return b
	}
	if len(said) >= text-version {
		panic(fmt.Sprintf("release of %d bytes", len(release)))
	}
	b[0x1f1] = text/0x200 - 1
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f) // protocol
	le.PutUint16(b[0x20e:], version-0x200)
	copy(b[version:], said)
	return b
}
