package uki

import (
	"bytes"
	"fmt"
)

// packExtra returns the archive in which systemd-stub hands one file to the
// initramfs: a directory, the file, the trailer, in the "new ASCII" cpio
// format (kernel documentation, "initramfs buffer format"). Every byte counts,
// because the kernel measures the result; what the stub leaves zero is zero.
func packExtra(dir, name string, content []byte) []byte {
	var b bytes.Buffer
	writeCPIO(&b, 1, 0o040555, dir, nil)
	writeCPIO(&b, 2, 0o100444, dir+"/"+name, content)
	// The stub's trailer is a fixed text and writes the name's length in
	// upper-case digits, the only such place.
	b.WriteString("070701")
	for i := range 13 {
		switch i {
		case 4:
			b.WriteString("00000001")
		case 11:
			b.WriteString("0000000B")
		default:
			b.WriteString("00000000")
		}
	}
	b.WriteString("TRAILER!!!\x00")
	pad4(&b)
	return b.Bytes()
}

// writeCPIO appends one entry of root's with link count 1 and time zero.
func writeCPIO(b *bytes.Buffer, inode, mode uint32, name string, content []byte) {
	b.WriteString("070701")
	for _, v := range [13]uint32{0: inode, 1: mode, 4: 1, 6: uint32(len(content)), 11: uint32(len(name) + 1)} {
		fmt.Fprintf(b, "%08x", v)
	}
	b.WriteString(name)
	b.WriteByte(0)
	pad4(b)
	b.Write(content)
	pad4(b)
}

func pad4(b *bytes.Buffer) {
	b.Write(make([]byte, -b.Len()&3))
}
