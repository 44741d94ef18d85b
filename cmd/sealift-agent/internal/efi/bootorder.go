package efi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// bootAttributes are those of Boot#### and BootOrder (UEFI 2.10, 3.3).
const bootAttributes = nonVolatile | bootService | runtime

// BootFirst makes e the first boot option and returns its number. An entry
// with the same description is ours from an earlier install: one is used
// again, the others are deleted. Variables that would not change are not
// written, to spare the flash.
func (v Vars) BootFirst(e BootEntry) (uint16, error) {
	want, err := e.encode()
	if err != nil {
		return 0, err
	}
	order, err := v.bootOrder()
	if err != nil {
		return 0, err
	}
	used, own, err := v.bootOptions(e.Description)
	if err != nil {
		return 0, err
	}
	number, err := pick(own, used, order, want)
	if err != nil {
		return 0, err
	}
	if !bytes.Equal(own[number], want) {
		if err := v.write(bootName(number), global, bootAttributes, want); err != nil {
			return 0, err
		}
	}
	next := []uint16{number}
	for _, n := range order {
		if _, ours := own[n]; !ours && n != number {
			next = append(next, n)
		}
	}
	if !slices.Equal(order, next) {
		var b []byte
		for _, n := range next {
			b = binary.LittleEndian.AppendUint16(b, n)
		}
		if err := v.write("BootOrder", global, bootAttributes, b); err != nil {
			return 0, err
		}
	}
	for n := range own {
		if n != number {
			if err := v.remove(bootName(n), global); err != nil {
				return 0, err
			}
		}
	}
	return number, nil
}

// pick chooses the number for the entry: that of an own entry with the same
// bytes, else the lowest own one, else the lowest that neither a variable nor
// BootOrder uses.
func pick(own map[uint16][]byte, used map[uint16]bool, order []uint16, want []byte) (uint16, error) {
	var best uint16
	found := false
	for n, b := range own {
		switch same, bestSame := bytes.Equal(b, want), found && bytes.Equal(own[best], want); {
		case !found, same && !bestSame, same == bestSame && n < best:
			best, found = n, true
		}
	}
	if found {
		return best, nil
	}
	for n := uint16(0); n < 0xffff; n++ {
		if !used[n] && !slices.Contains(order, n) {
			return n, nil
		}
	}
	return 0, errors.New("boot entry: no free number")
}

// bootOptions returns the numbers of all Boot#### variables, and those with
// that description together with their values.
func (v Vars) bootOptions(desc string) (used map[uint16]bool, own map[uint16][]byte, err error) {
	names, err := v.names(global)
	if err != nil {
		return nil, nil, err
	}
	used, own = make(map[uint16]bool), make(map[uint16][]byte)
	for _, name := range names {
		digits, ok := strings.CutPrefix(name, "Boot")
		n, perr := strconv.ParseUint(digits, 16, 16)
		if !ok || len(digits) != 4 || perr != nil || strings.ToUpper(digits) != digits {
			continue
		}
		used[uint16(n)] = true
		b, err := v.read(name, global)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if d, err := description(b); err == nil && d == desc {
			own[uint16(n)] = b
		}
	}
	return used, own, nil
}

// bootOrder returns BootOrder, which may be absent.
func (v Vars) bootOrder() ([]uint16, error) {
	b, err := v.read("BootOrder", global)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(b)%2 != 0 {
		return nil, fmt.Errorf("EFI variable BootOrder has %d bytes, want pairs", len(b))
	}
	var order []uint16
	for ; len(b) > 0; b = b[2:] {
		order = append(order, binary.LittleEndian.Uint16(b))
	}
	return order, nil
}

func bootName(n uint16) string { return fmt.Sprintf("Boot%04X", n) }
