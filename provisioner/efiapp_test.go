package provisioner

import (
	"bytes"
	"encoding/binary"
	"unicode/utf16"
)

// efiProgram builds an EFI program for x86-64 (PE32+, UEFI 2.10 2.1.1) that
// checks size bytes of its own data by an exclusive or, prints good or bad on
// the console, and switches the machine off. It has to arrive whole to print
// good, and needs no compiler.
func efiProgram(size int, good, bad string) []byte {
	const (
		headers = 0x200 // in the file and in memory
		base    = 0x1000
	)
	size = size &^ 7
	data := pattern(size)
	var sum uint64
	for i := 0; i < size; i += 8 {
		sum ^= binary.LittleEndian.Uint64(data[i:])
	}

	text := func(s string) []byte {
		var b []byte
		for _, u := range utf16.Encode([]rune(s + "\r\n\x00")) {
			b = binary.LittleEndian.AppendUint16(b, u)
		}
		return b
	}
	goodText, badText := text(good), text(bad)

	// The section: 256 bytes of code, the sum, the two texts, the data.
	const codeSize = 256
	sumAt := codeSize
	goodAt := sumAt + 8
	badAt := goodAt + len(goodText)
	dataAt := (badAt + len(badText) + 7) &^ 7

	var code []byte
	emit := func(b ...byte) { code = append(code, b...) }
	relative := func(target int, opcode ...byte) { // an operand relative to the next instruction
		emit(opcode...)
		code = binary.LittleEndian.AppendUint32(code, uint32(target-len(code)-4))
	}
	emit(0x53)                      // push rbx: aligns the stack
	emit(0x48, 0x83, 0xEC, 0x20)    // sub rsp, 32: shadow space
	emit(0x48, 0x89, 0xD3)          // mov rbx, rdx: the system table
	relative(dataAt, 0x4C, 0x8D, 5) // lea r8, [data]
	emit(0xB9)                      // mov ecx, words
	code = binary.LittleEndian.AppendUint32(code, uint32(size/8))
	emit(0x31, 0xC0)                   // xor eax, eax
	emit(0x49, 0x33, 0x00)             // xor rax, [r8]
	emit(0x49, 0x83, 0xC0, 0x08)       // add r8, 8
	emit(0xFF, 0xC9)                   // dec ecx
	emit(0x75, 0xF5)                   // jnz to the xor
	relative(goodAt, 0x48, 0x8D, 0x15) // lea rdx, [good]
	relative(sumAt, 0x48, 0x3B, 0x05)  // cmp rax, [sum]
	emit(0x74, 0x07)                   // je over the next instruction
	relative(badAt, 0x48, 0x8D, 0x15)  // lea rdx, [bad]
	emit(0x48, 0x8B, 0x4B, 0x40)       // mov rcx, [rbx+64]: ConOut
	emit(0xFF, 0x51, 0x08)             // call [rcx+8]: OutputString
	emit(0x48, 0x8B, 0x43, 0x58)       // mov rax, [rbx+88]: RuntimeServices
	emit(0xB9, 2, 0, 0, 0)             // mov ecx, EfiResetShutdown
	emit(0x31, 0xD2, 0x45, 0x31, 0xC0) // xor edx, edx; xor r8d, r8d
	emit(0x45, 0x31, 0xC9)             // xor r9d, r9d
	emit(0xFF, 0x50, 0x68)             // call [rax+104]: ResetSystem

	section := make([]byte, (dataAt+size+0x1ff)&^0x1ff)
	copy(section, code)
	binary.LittleEndian.PutUint64(section[sumAt:], sum)
	copy(section[goodAt:], goodText)
	copy(section[badAt:], badText)
	copy(section[dataAt:], data)
	imageSize := uint32(base+len(section)+0xfff) &^ 0xfff

	var b bytes.Buffer
	put := func(values ...any) {
		for _, v := range values {
			binary.Write(&b, binary.LittleEndian, v)
		}
	}
	put([]byte("MZ"), make([]byte, 58), uint32(64))                               // the PE header is at 64
	put([]byte("PE\x00\x00"), uint16(0x8664), uint16(1), [12]byte{}, uint16(240)) // one section
	put(uint16(0x22E))                                                            // executable, large addresses, no symbols
	put(uint16(0x20B), [2]byte{}, uint32(len(section)), uint32(0), uint32(0))     // PE32+
	put(uint32(base), uint32(base), uint64(0), uint32(0x1000), uint32(0x200))     // entry, code, image base, alignments
	put([16]byte{}, imageSize, uint32(headers), uint32(0), uint16(10), uint16(0)) // an EFI application
	put([32]byte{}, uint32(0), uint32(16), [128]byte{})                           // no directories
	put([]byte(".text\x00\x00\x00"), uint32(len(section)), uint32(base))          // in memory
	put(uint32(len(section)), uint32(headers), [12]byte{}, uint32(0xE0000020))    // in the file; code, read, write
	out := make([]byte, headers, headers+len(section))
	copy(out, b.Bytes())
	return append(out, section...)
}
